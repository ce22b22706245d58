"""Measures the cost of judging a distilled set beside that of the field's own training loop, side by side in one run.

    python benchmarks/evaluation.py --epochs 8 --rounds 3
    python benchmarks/evaluation.py --size 224 --epochs 40 --rounds 5 --workers 8
    python benchmarks/evaluation.py --network convnet6 --size 64 --epochs 200 --rounds 5    # long enough to compare accuracies

Two ways take turns in rounds, so that a change of the machine's speed affects both:

    plain   the hard-label protocol of MinimaxDiffusion as a usual PyTorch script, written here from its description
            alone. The workers of a DataLoader open, resize, crop, jitter and normalise one image after another. One
            network is trained at a time. Every look at the test set decodes it anew. Training images are decoded once
            and kept, as MinimaxDiffusion does by default; with --from-disk they are opened every time, as others do.
    dap     `dap.evaluation.training.evaluate.evaluate` by --protocol

Both ways read the same PNG files: a random real subset of Fashion-MNIST and test images, enlarged to 8/7 of --size, as
256 px are to 224. Both train the same architectures with random numbers of their own. The plain way has torch's
GroupNorm and layout, and dap has its usual ones. A round is --seeds trials of each way. Times are medians over the
epochs of a round without the first epoch, in which processes and kernels start: "train" is the training of an epoch,
"test" a look at the test set. Ratios are plain / dap, as median and range over rounds. "A trial" is computed from these
times for the protocol's own number of epochs and looks, and from the work that dap does once before the first epoch.
The first reading of the training images counts for neither way. Accuracies are the protocol's headline over all trials,
with Welch's 95 % interval of the difference. After few epochs they show whether both ways learn alike, not the
protocol's accuracy. JSON lines, one for each way and round, come before the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from dap.data.real.sources import open_source
from dap.evaluation.spread import welch
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.networks import InstanceNorm, build
from dap.evaluation.training.protocol import Protocol, load_protocol

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
VECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Colours of ImageNet's pixels: `VALUES` are standard deviations along the axes, `VECTORS` has the axes as columns."""

File = tuple[Path, int]


@dataclass
class Run:
    """The result of one way in one round: times in seconds, and accuracies as fractions, one for each seed."""

    setup: float = 0.0
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def rounded(self) -> dict[str, object]:
        """The values, rounded for a JSON line."""
        lists = {name: [round(value, 4) for value in found] for name, found in vars(self).items() if name != "setup"}
        return {"setup": round(self.setup, 4), **lists}


class Pictures(Dataset):
    """A data set that gives the image of one PNG file and its label at a time."""

    def __init__(self, files: Sequence[File], transform: Callable[[Image.Image], Tensor], keep: bool) -> None:
        self.files, self.transform = files, transform
        self.kept = [_opened(path) for path, _ in files] if keep else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.transform(self.kept[index] if self.kept else _opened(path)), label


class Jitter:
    """Changes brightness, contrast and saturation of an image (3, h, w), in random order, each by 1 + U(-0.4, 0.4)."""

    def __call__(self, image: Tensor) -> Tensor:
        for which in torch.randperm(3).tolist():
            weight = float(torch.empty(1).uniform_(0.6, 1.4))
            grey = (image * GREY).sum(0, keepdim=True)
            other = (torch.zeros(()), grey.mean(), grey)[which]
            image = weight * image + (1 - weight) * other
        return image


class PcaNoise:
    """Adds a random colour to one image (3, h, w), normal along the principal axes of ImageNet's colours."""

    def __call__(self, image: Tensor) -> Tensor:
        return image + (VECTORS @ (torch.randn(3) * 0.1 * VALUES)).view(3, 1, 1)


def cut_mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """A batch with one rectangle from partner images, the partners' labels, and the share of the area outside it."""
    height, width = images.shape[2:]
    partner = torch.randperm(len(images), device=images.device)
    side = math.sqrt(1 - random.betavariate(1, 1))
    row, column = random.randrange(height), random.randrange(width)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, labels[partner], 1 - (bottom - top) * (right - left) / (height * width)


def plain(
    train: Sequence[File], test: Sequence[File], network: str, looks: Sequence[int], seed: int, args: argparse.Namespace
) -> Run:
    """One trial of the usual script. `looks` are the epochs after which the network is tested."""
    device, run = torch.device(args.device), Run()
    torch.manual_seed(seed)
    random.seed(seed)
    enough = [transforms.Resize(args.size), transforms.CenterCrop(args.size), transforms.ToTensor()]
    augmented = [
        transforms.RandomResizedCrop(args.size, scale=(0.5, 1), antialias=True),
        transforms.RandomHorizontalFlip(),
        Jitter(),
        PcaNoise(),
    ]
    normal = transforms.Normalize(MEAN, STD)
    pin, settings = device.type == "cuda", {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    train_loader = DataLoader(
        Pictures(train, transforms.Compose([*enough, *augmented, normal]), keep=not args.from_disk),
        batch_size=64,
        shuffle=True,
        pin_memory=pin,
        **settings,
    )
    test_loader = DataLoader(
        Pictures(test, transforms.Compose([*enough, normal]), keep=False), batch_size=32, pin_memory=pin, **settings
    )
    net = with_group_norm(build(network, classes=args.classes, size=args.size)).to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    decays = [2 * args.epochs // 3, 5 * args.epochs // 6]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, decays, gamma=0.2)
    for epoch in range(1, args.epochs + 1):
        began = now(device, args.clock)
        net.train()
        for images, labels in train_loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            images, others, own = cut_mixed(images, labels)
            logits = net(images)
            loss = own * F.cross_entropy(logits, labels) + (1 - own) * F.cross_entropy(logits, others)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()  # such scripts print it
        scheduler.step()
        trained = now(device, args.clock)
        run.train.append(trained - began)
        if epoch in looks:
            net.eval()
            right = 0
            with torch.no_grad():
                for images, labels in test_loader:
                    predicted = net(images.to(device, non_blocking=True)).argmax(1)
                    right += int((predicted == labels.to(device, non_blocking=True)).sum())
            run.last, run.best = [right / len(test)], [max([right / len(test), *run.best])]
            run.test.append(now(device, args.clock) - trained)
    return run


def averaged(runs: Sequence[Run]) -> Run:
    """One run for all trials of a round: the mean time of each epoch and of each look, and all accuracies."""
    train = [statistics.fmean(times) for times in zip(*(run.train for run in runs), strict=True)]
    test = [statistics.fmean(times) for times in zip(*(run.test for run in runs), strict=True)]
    return Run(0.0, train, test, [run.best[0] for run in runs], [run.last[0] for run in runs])


def with_group_norm(net: nn.Module) -> nn.Module:
    """The same network with torch's own GroupNorm, as the field's scripts have it."""
    for path, part in list(net.named_modules()):
        if isinstance(part, InstanceNorm):
            net.set_submodule(path, nn.GroupNorm(part.num_groups, part.num_channels, part.eps))
    return net


def ours(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], protocol: Protocol, network: str, seeds: Sequence[int],
    args: argparse.Namespace,
) -> Run:  # fmt: skip
    """A round of trials by `evaluate`. A look is timed as an epoch with a look, minus the median epoch without one."""
    device, run = torch.device(args.device), Run()
    spent: dict[int, float] = defaultdict(float)
    began = now(device, args.clock)

    def finished(seed: int, done: int, total: int) -> None:
        nonlocal began
        spent[protocol.first_epoch + done - 1] += (now(device, args.clock) - began) / len(seeds)
        began = now(device, args.clock)

    options = {"network": network, "device": device, "progress": finished}
    trials = evaluate(train, test, protocol, seeds, classes=args.classes, **options)
    run.setup, began = now(device, args.clock) - began, now(device, args.clock)
    for trial in trials:
        run.best.append(trial.best)
        run.last.append(trial.last)
        began = now(device, args.clock)  # the test on the training images is no part of an epoch
    run.train = [seconds for epoch, seconds in sorted(spent.items()) if epoch not in protocol.look_epochs]
    usual = median(run.train)
    run.test = [seconds - usual for epoch, seconds in sorted(spent.items()) if epoch in protocol.look_epochs]
    return run


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def now(device: torch.device, clock: str) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCKS[clock]()


def median(seconds: Sequence[float]) -> float:
    """The median without the first value, unless there is only one value."""
    return statistics.median(seconds[1:] or seconds)


def written(split: str, each: int, side: int, seed: int, folder: Path) -> list[File]:
    """Write `each` random images of each class as PNG files with `side` pixels a side."""
    source = open_source("fashion-mnist", split, size=side)
    files = []
    for label, name in enumerate(source.class_names):
        (folder / split / str(label)).mkdir(parents=True)
        for slot, image in enumerate(source.images(label, source.good(label, each, seed + label))):
            files.append((folder / split / str(label) / f"{name.replace('/', '-')}_{slot}.png", label))
            to_pil_image(image).save(files[-1][0])
    return files


def tensors(files: Sequence[File]) -> tuple[Tensor, Tensor]:
    """Images (n, 3, h, w), uint8, and labels (n,)."""
    return torch.stack([pil_to_tensor(_opened(path)) for path, _ in files]), torch.tensor([label for _, label in files])


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def percent(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation} ({len(values)})"


def row(network: str, rounds: Sequence[dict[str, Run]], whole: Protocol, headline: str) -> str:
    """A line of the table; `whole` is the protocol with its own number of epochs and looks."""
    times = {way: [(median(r[way].train), median(r[way].test)) for r in rounds] for way in ("plain", "dap")}
    epochs, looks = whole.epochs - whole.first_epoch + 1, len(whole.look_epochs)
    trials = {
        way: [r[way].setup + epochs * train + looks * test for r, (train, test) in zip(rounds, times[way], strict=True)]
        for way in times
    }
    cells = [network]
    cells += [f"{statistics.median(t[k] for t in times[way]):.3g}" for k in (0, 1) for way in ("plain", "dap")]
    cells += [spread([a[k] / b[k] for a, b in zip(times["plain"], times["dap"], strict=True)]) for k in (0, 1)]
    cells += [f"{statistics.median(trials[way]) / 60:.1f}" for way in ("plain", "dap")]
    cells.append(spread([a / b for a, b in zip(trials["plain"], trials["dap"], strict=True)]))
    found = {way: [value for r in rounds for value in getattr(r[way], headline)] for way in ("plain", "dap")}
    cells += [percent(found["plain"]), percent(found["dap"])]
    difference = welch(found["dap"], found["plain"])
    shown = f"{100 * difference.value:+.1f}"
    if difference.interval is not None:
        shown += f" [{100 * difference.interval[0]:+.1f}, {100 * difference.interval[1]:+.1f}]"
    return f"| {' | '.join([*cells, shown])} |"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Cost of judging a set, beside the field's own training loop.")
    parser.add_argument("--network", nargs="+", default=["convnet6", "resnetap10", "resnet18"])
    parser.add_argument("--protocol", default="minimax-hard", help="of dap's way; the plain one has no other")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="pixels the networks see (default: 224 on a GPU, else 64)")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--test-per-class", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--looks", type=int, help="at the test set (default: half as many as epochs, 100 at most)")
    parser.add_argument("--seeds", type=int, default=1, help="trials each way in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain way's loaders")
    parser.add_argument("--from-disk", action="store_true", help="the plain way opens training images every time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process; takes --workers 0"
    )
    return parser


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a comparison, with what was left open."""
    of = parser()
    args = of.parse_args(words)
    args.size = args.size or (224 if args.device.startswith("cuda") else 64)
    args.looks = args.looks or min(100, max(1, args.epochs // 2))
    if not 1 <= args.looks <= args.epochs - 2:
        of.error("two epochs without a look are needed to tell training from testing; more epochs, or fewer looks")
    if args.rounds < 1 or args.seeds < 1:
        of.error("there must be at least one round and one seed")
    if args.clock == "cpu" and args.workers:
        of.error("seconds of this process do not hold those of its workers; give --workers 0 too")
    return args


def rounds_of(args: argparse.Namespace) -> Iterator[dict[str, dict[str, Run]]]:
    """For each round the runs of both ways, by network."""
    with tempfile.TemporaryDirectory() as folder:
        side = round(args.size * 8 / 7)
        files = [written("train", args.ipc, side, 0, Path(folder))]
        files += [written("test", args.test_per_class, side, 1, Path(folder))]
        train, test = (tensors(part) for part in files)
        args.classes = len(train[1].unique())
        settings = {"size": args.size, "epochs": args.epochs, "looks": args.looks}
        protocol = load_protocol(args.protocol, **settings)
        for number in range(args.rounds):
            seeds, found = range(number * args.seeds, (number + 1) * args.seeds), {}
            for network in args.network:
                settled = protocol.settled(ipc=args.ipc, classes=args.classes, network=network)
                alone = [plain(files[0], files[1], network, settled.look_epochs, seed, args) for seed in seeds]
                found[network] = {"plain": averaged(alone), "dap": ours(train, test, settled, network, seeds, args)}
            yield found


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    rounds: dict[str, list[dict[str, Run]]] = {network: [] for network in args.network}
    for number, found in enumerate(rounds_of(args)):
        for network, runs in found.items():
            rounds[network].append(runs)
            seeds = list(range(number * args.seeds, (number + 1) * args.seeds))
            for way, run in runs.items():
                facts = {"round": number, "network": network, "way": way, "size": args.size, "seeds": seeds}
                print(json.dumps({**facts, **run.rounded()}), flush=True)
    whole = load_protocol(args.protocol, size=args.size).settled(ipc=args.ipc, classes=args.classes)
    chip = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    tests = args.test_per_class * args.classes
    print(f"\n{whole.name}, ipc {args.ipc}, {tests} test images; {chip}, {torch.get_num_threads()} threads, ", end="")
    print(f"{args.workers} workers, torch {torch.__version__}; ", end="")
    print(f"rounds {args.rounds}, seeds in each {args.seeds}; accuracies: {whole.score}\n")
    epochs, number = whole.epochs - whole.first_epoch + 1, len(whole.look_epochs)
    names = [
        "network",
        "train, s/epoch: plain",
        "dap",
        "test, s/look: plain",
        "dap",
        "train: times faster",
        "test: times faster",
    ]
    names += [f"a trial ({epochs} epochs, {number} looks), min: plain", "dap", "times faster"]
    names += ["accuracy %: plain (n)", "dap (n)", "dap − plain [95 %]"]
    print(f"| {' | '.join(names)} |")
    print("|---" * len(names) + "|")
    for network, runs in rounds.items():
        print(row(network, runs, whole, whole.score))


if __name__ == "__main__":
    main()
