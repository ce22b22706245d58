"""What could make the real features of `dap` cheaper, and how much each thing would give, side by side in one run.

    python benchmarks/floor.py --rounds 7
    python benchmarks/floor.py --shape starter-unet --rounds 7 --compile

The first batch of a class pays for the features of N real images at each step. The rows are ways to compute these
features for one step. Milliseconds are medians of the processor's time on one thread, all rows in turns. "× vanilla"
divides by one step of vanilla sampling of ten images, as median (min–max) over rounds. "dap would take" adds to it
vanilla's step and the gradient of the ten images at the layer of the row. "same bits" compares with what is done today:
without a yes, sets that were made before could not be made again.

    as today                N images in one pass up to the tapped layer
    four steps in one pass  the images of four steps at their own times in one pass
    bfloat16                by autocast
    torch.compile           of the network's blocks up to the tapped one; the time to compile is printed apart
    matrix products         those of today's pass and nothing else, at the rate of one product of 1024 × 1024: what a
                            float32 library without any other cost would take
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dap.backbones import Backbone, ClassifierFree
from shapes import build

TIMES = (980, 660, 340, 20)
BATCH = 10


def rows_of(backbone: Backbone, args: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    card, draw = backbone.card, torch.Generator().manual_seed(0)
    name = backbone.class_names[0] if backbone.class_names else "Dress"
    condition = backbone.condition([name] * args.reals)
    reals = [torch.randn(args.reals, *backbone.latent_shape, generator=draw) for _ in TIMES]
    few = torch.randn(BATCH, *backbone.latent_shape, generator=draw)
    of_few = backbone.condition([name] * BATCH)
    model = ClassifierFree(backbone, card.cfg, card.cfg_channels)

    def step(layer: str | None) -> torch.Tensor:
        x = few.clone().requires_grad_(layer is not None)
        through = "features" if layer else "nothing"
        made = model.predict(x, TIMES[0], of_few, layer=layer, grad_through=through)
        return made.eps if made.features is None else torch.autograd.grad(made.features.sum(), x)[0]

    def fused() -> torch.Tensor:
        times = torch.tensor(TIMES).repeat_interleave(args.reals)
        with torch.no_grad():
            of = backbone.features(torch.cat(reals), times, condition.repeat(len(TIMES)), [card.layer])  # pyright: ignore
        return of[card.layer]

    def narrow() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return backbone.tap(reals[0], TIMES[0], condition, card.layer)

    found: dict[str, Callable[[], torch.Tensor]] = {
        "vanilla": lambda: step(None),
        f"guided {card.layer}": lambda: step(card.layer),
        "as today": lambda: backbone.tap(reals[0], TIMES[0], condition, card.layer),
        "four steps in one pass": fused,
        "bfloat16": narrow,
    }
    for n in (args.reals // 2, args.reals // 4):
        found[f"{n} real images"] = lambda n=n: backbone.tap(reals[0][:n], TIMES[0], condition[:n], card.layer)
    for layer in args.layer or backbone.layers[: backbone.layers.index(card.layer)]:
        found[f"guided {layer}"] = lambda layer=layer: step(layer)
        found[f"layer {layer}"] = lambda layer=layer: backbone.tap(reals[0], TIMES[0], condition, layer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="starter", help="a backbone of benchmarks/shapes.py (%(default)s)")
    parser.add_argument("--reals", type=int, default=64)
    parser.add_argument("--layer", nargs="*", help="other layers (default: all before the card's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    backbone = build(args.shape, cpu, torch.float32)
    rows = rows_of(backbone, args)
    with FlopCounterMode(display=False) as counter:
        usual = rows["as today"]()
    side = 1024
    large = torch.randn(side, side)
    rows["one large product"] = lambda: large @ large
    if args.compile:
        with_compiled(rows, backbone)
    spent: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(args.rounds + 1):
        for name, run in rows.items():
            began = time.process_time()
            run()
            if number:
                spent[name].append((time.process_time() - began) / (len(TIMES) if name.startswith("four") else 1))
    vanilla = spent.pop("vanilla")
    gradients = {
        name.removeprefix("guided "): statistics.median(
            a / b - 1 for a, b in zip(spent.pop(name), vanilla, strict=True)
        )
        for name in list(spent)
        if name.startswith("guided ")
    }
    own = gradients[backbone.card.layer]
    print(
        f"{args.shape}, layer {backbone.card.layer}, {args.reals} real images, torch {torch.__version__}, 1 thread, ",
        end="",
    )
    print(f"{args.rounds} rounds; vanilla {1e3 * statistics.median(vanilla):.1f} ms a step of ten images, ", end="")
    print(f"their gradient {own:.2f} × vanilla\n")
    print(
        "| real features of one step | ms | × vanilla | dap would take, × vanilla | same bits |\n|---|--:|--:|--:|---|"
    )
    part = counter.get_total_flops() / (2 * side**3)
    spent["matrix products at the rate of one large one"] = [part * one for one in spent.pop("one large product")]
    for name, seconds in spent.items():
        ratios = [one / base for one, base in zip(seconds, vanilla, strict=True)]
        middle = statistics.median(ratios)
        shown = f"{middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        whole = 1 + gradients.get(name.removeprefix("layer "), own) + middle
        same = "–"
        if name in rows and name != "as today":
            made = rows[name]()[: len(usual)]
            same = "yes" if made.shape == usual.shape and torch.equal(made, usual) else "no"
        print(f"| {name} | {1e3 * statistics.median(seconds):.1f} | {shown} | {whole:.2f} | {same} |")


def with_compiled(rows: dict[str, Callable[[], torch.Tensor]], backbone: Backbone) -> None:
    """A row whose pass goes through compiled blocks. All other rows go through the blocks as they are."""
    layers = backbone.layers[: backbone.layers.index(backbone.card.layer) + 1]
    blocks = [backbone.module(layer) for layer in layers]  # pyright: ignore[reportAttributeAccessIssue]
    plain = [block.forward for block in blocks]
    fast = [torch.compile(forward) for forward in plain]
    usual = rows["as today"]

    def compiled() -> torch.Tensor:
        for block, forward in zip(blocks, fast, strict=True):
            block.forward = forward
        try:
            return usual()
        finally:
            for block, forward in zip(blocks, plain, strict=True):
                block.forward = forward

    began = time.perf_counter()
    compiled()
    print(f"compiling took {time.perf_counter() - began:.0f} s")
    rows["torch.compile"] = compiled


if __name__ == "__main__":
    main()
