"""How many floating-point operations a distilled ImageNet-1K takes, and how many hours of one GPU at a rate that you name.

    python benchmarks/imagenet_hours.py                                # DiT-XL/2 and Stable Diffusion 1.5, at 200 TFLOP/s
    python benchmarks/imagenet_hours.py --rate 90 --shape dit-xl-2 --ipc 10 --classes 100
    python benchmarks/imagenet_hours.py --check                        # counts real runs on the starter beside the formulas

torch counts the operations of single passes on tensors without content, so nothing is computed and no GPU is asked. The formulas
of `Costs` add them up as the product runs them; `--check` holds them against whole runs of the product. Counted are matrix
products, convolutions and attention, a multiplication and an addition as two. What a GPU makes of them is its rate: the share of
its peak that it reaches. `benchmarks/sampling.py` measures that share ("share of peak").
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dap.backbones import Backbone, ClassifierFree
from shapes import build

NAMES = {"dit-xl-2": "DiT-XL/2, 256 px", "sd-1.5": "Stable Diffusion 1.5, 512 px"}

AUTO_REALS, PULLING, TIMES, MOVES = 1000, 250, 3, 100
"""Of `auto`: real images of a class that are clustered, those that pull, noise levels, and steps of the refinement."""

MANY, MIDDLE = 50, 0.3
"""From so many images per class on `auto` denoises its prototypes for this part of the run."""


def counted(run: Callable[[], object]) -> int:
    """The operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Costs:
    """Operations of one image, or of one image and one step.

    Attributes:
        half: a pass of the whole network.
        tap: a pass to the tapped layer, without a graph.
        back: the gradient from that layer to the sample.
        encode, decode: the autoencoder.
        halves: how many passes classifier-free guidance takes.
    """

    half: int
    tap: int
    back: int
    encode: int
    decode: int
    halves: int

    @classmethod
    def of(cls, backbone: Backbone, autoencoder: Any) -> Costs:
        """Count each pass. `autoencoder` may be another one than the backbone's."""
        card, device = backbone.card, backbone.device
        x = torch.zeros(1, *backbone.latent_shape, device=device)
        name = backbone.class_names[0] if backbone.class_names else "a dog"
        condition, t = backbone.condition([name]), 100

        def led() -> tuple[torch.Tensor, ...]:
            found = backbone.predict(x, t, condition, layer=card.layer, grad_through="features").features
            assert found is not None
            return torch.autograd.grad(found.sum(), x)

        with torch.no_grad():
            half = counted(lambda: backbone.predict(x, t, condition))
            tap = counted(lambda: backbone.tap(x, t, condition, card.layer))
            side, weight = card.size, next(autoencoder.parameters())
            images = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
            encode = counted(lambda: autoencoder.encode(images))
            decode = counted(lambda: autoencoder.decode(x.to(weight)))
        x.requires_grad_(True)
        both = counted(led)
        halves = 1 if ClassifierFree(backbone, card.cfg, card.cfg_channels).scale == 1 else 2
        return cls(half, tap, both - half, encode, decode, halves)

    def vanilla(self, ipc: int, steps: int) -> int:
        """A class by plain sampling."""
        return ipc * (steps * self.halves * self.half + self.decode)

    def dap(self, ipc: int, steps: int, reals: int) -> int:
        """A class by the paper's form. Its real features serve all images of the class."""
        return self.vanilla(ipc, steps) + ipc * steps * self.back + reals * (self.encode + steps * self.tap)

    def auto(self, ipc: int, steps: int) -> int:
        """A class by `auto`."""
        reals = (AUTO_REALS + PULLING) * self.encode + PULLING * TIMES * self.tap
        begun = round(MIDDLE * steps) * self.halves * self.half if ipc >= MANY else 0
        return reals + ipc * (begun + MOVES * (self.tap + self.back) + 2 * self.decode)


def stable_diffusions_autoencoder() -> Any:
    """The autoencoder that DiT and Stable Diffusion 1 share, without weights."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    with torch.device("meta"):
        return kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )


def check() -> None:
    """Print the operations of whole runs on the starter beside those of the formulas."""
    import dap

    backbone = dap.backbones.load("starter", device="cpu", dtype="float32")
    costs = Costs.of(backbone, backbone.pipe.vae)  # pyright: ignore[reportAttributeAccessIssue]
    ipc, steps, reals, classes = 10, 20, 64, ["Bag", "Dress"]
    print("| method | whole run, TFLOP | formula, TFLOP | formula / run |\n|---|---|---|---|")
    for method, wanted in {
        "vanilla": costs.vanilla(ipc, steps),
        "dap": costs.dap(ipc, steps, reals),
        "auto": costs.auto(ipc, steps),
    }.items():
        said = {"reals": reals} if method == "dap" else {}
        with tempfile.TemporaryDirectory() as folder:
            recipe = dap.Recipe(method=method, ipc=ipc, steps=steps, classes=classes, **said)
            spent = counted(lambda recipe=recipe, folder=folder: dap.distill(recipe, out=Path(folder) / "set"))
        formula = wanted * len(classes)
        print(f"| {method} | {spent / 1e12:.3f} | {formula / 1e12:.3f} | {formula / spent:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reals", type=int, default=64, help="real images of a class, of the method dap")
    parser.add_argument("--rate", type=float, default=200, help="TFLOP/s that the GPU reaches in these networks")
    parser.add_argument("--check", action="store_true", help="hold the formulas against runs of the product")
    args = parser.parse_args()
    if args.check:
        return check()
    for shape in args.shape:
        backbone = build(shape, torch.device("meta"), torch.float32)
        costs = Costs.of(backbone, stable_diffusions_autoencoder())
        shown = {"half": "pass", "tap": f"pass to layer {backbone.card.layer}", "back": "gradient from there"}
        shown |= {"encode": "encoding", "decode": "decoding"}
        print(f"{NAMES[shape]}, GFLOP an image: ", end="")
        print(", ".join(f"{name} {getattr(costs, field) / 1e9:.0f}" for field, name in shown.items()) + ".\n")
        print("| images per class | method | EFLOP | hours at " + f"{args.rate:g} TFLOP/s | beside vanilla |")
        print("|---|---|---|---|---|")
        for ipc in args.ipc:
            plain = costs.vanilla(ipc, args.steps)
            for method, each in {
                "vanilla": plain,
                f"dap, {args.reals} real images": costs.dap(ipc, args.steps, args.reals),
                "auto": costs.auto(ipc, args.steps),
            }.items():
                whole = each * args.classes
                hours = whole / (args.rate * 1e12) / 3600
                print(f"| {ipc} | {method} | {whole / 1e18:.2f} | {hours:.1f} | {each / plain:.2f} |")
        print()


if __name__ == "__main__":
    main()
