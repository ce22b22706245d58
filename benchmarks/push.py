"""What DAP's push points at under each noise of the compared features, how large it is, and what each way costs.

    python benchmarks/push.py                                # directions, on the unguided path
    python benchmarks/push.py --cost --steps 10              # seconds beside vanilla, all ways in turns
    python benchmarks/push.py --trust                        # how much of a push the schedule trust leaves
    python benchmarks/push.py --sets --ipc 10 --scale 0.06   # diversity and coverage of a set of each way

The pushes of all noises are taken at the same states of one unguided run, so they differ in the noise alone. The cosine with
-eps_hat is 1 where a push only removes the predicted noise. The other cosine is with z_bar - x0_hat, the way from the predicted
content to the mean latent of the class's real images. "Early", "middle" and "late"
are steps 1, 5, 10; 20, 25, 30; and 40, 45, 49 of 50. No accuracy is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dap import load_backbone, open_source
from dap.backbones import Backbone, ClassifierFree
from dap.data.bank import BankOptions, FeatureBank, RealImages
from dap.data.real.sources import Source
from dap.evaluation.measures.measures import compare, extract
from dap.evaluation.training.loading import load_classifier
from dap.guidance import Descend, Guidance, Representative, State, Trusted
from dap.guidance.base import per_image_norm
from dap.sampling import Batch, latents
from dap.starter import REFERENCE

PHASES = {"early": (1, 5, 10), "middle": (20, 25, 30), "late": (40, 45, 49)}
"""Steps of 50, counted from 0."""

WAYS: dict[str, dict[str, str]] = {
    "fixed": {},
    "shared": {"noise": "shared"},
    "own": {"noise": "own"},
    "common": {"noise": "common"},
    "fixed, slots": {"targets": "slot"},
    "own, slots": {"noise": "own", "targets": "slot"},
    "common, slots": {"noise": "common", "targets": "slot"},
    "fixed, pooled": {"pool": "mean"},
}
"""Options of the bank, by the name of the row."""


class Seen(Guidance):
    """Keeps what several pushes look like at chosen steps, and pushes nothing."""

    grad_through = "features"

    def __init__(self, ways: dict[str, Guidance], reals: FeatureBank, chosen: Sequence[int]) -> None:
        self.ways, self.reals, self.chosen = ways, reals, chosen
        self.layer, self.branch = reals.layer, reals.branch
        self.rows: dict[tuple[str, int], list[Tensor]] = {}

    def begin(self, labels: Sequence[int]) -> None:
        for way in self.ways.values():
            way.begin(labels)

    def active(self, index: int, steps: int) -> bool:
        return index in self.chosen

    def __call__(self, state: State) -> Tensor:
        means = torch.stack([self.reals.latents(label).mean(0) for label in state.labels.tolist()])
        for name, way in self.ways.items():
            push = way(state)
            seen = [
                cosine_similarity(push.flatten(1), -state.eps.flatten(1)),
                cosine_similarity(push.flatten(1), (means - state.x0_hat).flatten(1)),
                per_image_norm(push).flatten(),
                per_image_norm(state.proposal - state.x.detach()).flatten(),
            ]
            self.rows.setdefault((name, state.index), []).append(torch.stack(seen).detach())
        return torch.zeros_like(state.proposal)


def banks(backbone: Backbone, source: RealImages, names: Sequence[str], reals: int, ipc: int) -> dict[str, FeatureBank]:
    made = {name: BankOptions.model_validate({"reals": reals, **WAYS[name]}) for name in names}
    return {name: FeatureBank(source, backbone, options, ipc=ipc) for name, options in made.items()}


def looked(
    model: ClassifierFree, source: RealImages, ways: dict[str, Guidance], bank: FeatureBank, args: argparse.Namespace
) -> Seen:
    """The pushes at the steps of `PHASES`, over all classes."""
    seen = Seen(ways, bank, [index for steps in PHASES.values() for index in steps])
    for label in range(len(source.class_names)):
        batch = Batch.of(source.class_names, [label] * args.ipc, range(args.ipc), args.seed)
        latents(model, seen, batch, steps=50)
    return seen


def means(seen: Seen, name: str, row: int) -> list[float]:
    """The means over images and over the steps of each phase."""
    found = []
    for steps in PHASES.values():
        values = [torch.cat([part[row] for part in seen.rows[name, index]]) for index in steps]
        found.append(torch.cat(values).mean().item())
    return found


def directions(model: ClassifierFree, source: RealImages, args: argparse.Namespace) -> None:
    made = banks(model.backbone, source, ["fixed", "shared", "own", "common", "fixed, pooled"], args.reals, args.ipc)
    ways: dict[str, Guidance] = {name: Descend(Representative(bank), 1.0) for name, bank in made.items()}
    seen = looked(model, source, ways, made["fixed"], args)
    print("| noise | cosine with −ε̂: early, middle, late | cosine with z̄ − x̂_0 | ‖g_t‖ |\n|---|---|---|---|")
    for name in ways:
        cells = [", ".join(f"{value:.2f}" for value in means(seen, name, row)) for row in (0, 1, 2)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def trust(model: ClassifierFree, source: RealImages, args: argparse.Namespace) -> None:
    """The norm of the push that `Trusted` leaves, as a part of the whole push."""
    bank = banks(model.backbone, source, ["fixed"], args.reals, args.ipc)["fixed"]
    pushes = {scale: Descend(Representative(bank), scale, "step") for scale in (0.02, 0.06, 0.2)}
    ways: dict[str, Guidance] = {}
    for scale, push in pushes.items():
        ways |= {f"{scale:g}": push, f"{scale:g}, trust": Trusted(push)}
    seen = looked(model, source, ways, bank, args)
    print("| γ, steps | part of the push that is left: early, middle, late |\n|---|---|")
    for scale in pushes:
        whole, left = means(seen, f"{scale:g}", 2), means(seen, f"{scale:g}, trust", 2)
        print(f"| {scale:g} | {', '.join(f'{b / a:.2f}' for a, b in zip(whole, left, strict=True))} |", flush=True)


def cost(model: ClassifierFree, source: RealImages, args: argparse.Namespace) -> None:
    """Seconds of one batch of a class, as a multiple of vanilla's: real features computed in the run, and kept from before."""
    names = ["fixed", "common", "own", "fixed, slots", "common, slots", "own, slots"]
    made = banks(model.backbone, source, names, args.reals, args.ipc)
    ways: dict[str, Guidance | None] = {"vanilla": None}
    ways |= {name: Descend(Representative(bank), 0.05, "step") for name, bank in made.items()}
    ways["fixed, trust"] = Trusted(Descend(Representative(made["fixed"]), 0.05, "step"))
    batch = Batch.of(source.class_names, [0] * args.ipc, range(args.ipc), args.seed)
    spent: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        began = time.process_time()  # other work on the machine does not count
        run()
        spent.setdefault(name, []).append(time.process_time() - began)

    for round_ in range(args.rounds + 1):
        if round_ == 1:
            spent = {}  # the first round warms up, encodes the real images and splits them into shares
        for name, way in ways.items():
            for bank in made.values():
                bank._features.clear()  # pyright: ignore[reportPrivateUsage]
            timed(name, lambda way=way: latents(model, way, batch, steps=args.steps))
            if way is not None:
                timed(f"{name}, kept", lambda way=way: latents(model, way, batch, steps=args.steps))
    print(f"vanilla: {statistics.median(spent['vanilla']) / args.ipc / args.steps * 50:.2f} s an image of 50 steps")
    print("| way | first batch of a class, × vanilla | later batches |\n|---|---|---|")
    for name in list(ways)[1:]:
        ratios = [
            statistics.median(mine / base for mine, base in zip(spent[key], spent["vanilla"], strict=True))
            for key in (name, f"{name}, kept")
        ]
        print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def sets(model: ClassifierFree, source: Source, args: argparse.Namespace) -> None:
    """Measures of one set of each way, in features of the network that knows the data, beside 500 real images a class."""
    classifier = load_classifier(REFERENCE, source.class_names, "cpu")
    classes = range(len(source.class_names))
    pictures = [source.images(label, source.good(label, 500, 0)) for label in classes]
    real = torch.cat([extract(classifier, part) for part in pictures])
    real_labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(part) for part in pictures]))
    print(f"γ = {args.scale:g} steps, N = {args.reals}, {args.ipc} images of each of {len(classes)} classes, one set")
    print("| way | representativeness | diversity | coverage | label agreement |\n|---|---|---|---|---|")
    for name in args.ways:
        bank = None if name == "vanilla" else banks(model.backbone, source, [name], args.reals, args.ipc)[name]
        way = None if bank is None else Descend(Representative(bank), args.scale, "step")
        made = []
        for label in classes:
            batch = Batch.of(source.class_names, [label] * args.ipc, range(args.ipc), args.seed)
            made.append(model.backbone.decode(latents(model, way, batch, steps=50)))
        labels, images = torch.arange(len(classes)).repeat_interleave(args.ipc), torch.cat(made)
        found = compare((extract(classifier, images), labels), (real, real_labels), len(classes)).values
        right = (classifier.probabilities(images).argmax(1) == labels).float().mean().item()
        cells = [f"{found[part]:.3g}" for part in ("representativeness", "diversity", "coverage")]
        print(f"| {name} | {' | '.join(cells)} | {right:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--ipc", type=int, default=2, help="images of each class")
    parser.add_argument("--reals", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="of --cost")
    parser.add_argument("--rounds", type=int, default=3, help="of --cost")
    parser.add_argument("--cost", action="store_true", help="measure seconds")
    parser.add_argument("--sets", action="store_true", help="measure a set of each way")
    parser.add_argument("--scale", type=float, default=0.06, help="gamma of --sets, in steps")
    parser.add_argument("--ways", nargs="+", default=["vanilla", *WAYS], choices=["vanilla", *WAYS], help="of --sets")
    parser.add_argument("--classes", nargs="+", help="default: all")
    parser.add_argument("--trust", action="store_true", help="measure the schedule trust")
    args = parser.parse_args()
    backbone = load_backbone(args.backbone)
    source = open_source("fashion-mnist", size=backbone.card.size, classes=args.classes)
    model = ClassifierFree(backbone, backbone.card.cfg, backbone.card.cfg_channels)
    torch.set_num_threads(1)
    (cost if args.cost else trust if args.trust else sets if args.sets else directions)(model, source, args)


if __name__ == "__main__":
    main()
