"""Measures the cost of DAP in comparison with vanilla sampling, side by side in one run.

    python benchmarks/sampling.py --shape starter --batch 10 --reals 64
    python benchmarks/sampling.py --shape dit-xl-2 --dtype bfloat16 --layer 8 12 --batch 1 8 32 64 --reals 16 64 256 --compile
    python benchmarks/sampling.py --shape sd-1.5 --dtype bfloat16 --batch 1 8 32 --reals 64

The ways below take turns in rounds, so that a change of the machine's speed affects all of them:

    vanilla       the same loop without guidance
    fresh         DAP that computes the real features during sampling, as for the first batch of a class
    cached        DAP with real features that were kept, as for the later batches of a class or after an earlier run
    plain loop    DAP as the field's scripts do it: images one at a time, one graph through both halves, a second pass
                  for the features, and the real features computed for every image with the whole network

A class of ipc images needs one fresh batch; its other batches are cached. All costs are per image, and also as a
multiple of vanilla at the same batch (median over rounds). "share of peak" is for the cached way. It divides two rates:
the matrix arithmetic per second of vanilla sampling and of the gradient (with frozen weights, the gradient costs the
tapped part once more), and the rate of one large matrix product on the same device in the same run. The cached features
are those of the timed steps. Encoding the real images, which happens once for each class, and decoding are not timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from dap.backbones import Backbone, ClassifierFree
from dap.base.seeding import generators, normal
from dap.cost import peak_memory_gb
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Descend, Guidance, Representative
from dap.kernels import Linear
from dap.sampling import Batch, latents
from dap.solvers import make
from shapes import SHAPES, build

NAME = "0"


class RandomReals:
    """Noise in place of real images, because the content of the images does not change the time."""

    def __init__(self, class_name: str, size: int) -> None:
        self.class_names, self.size = (class_name,), size

    def count(self, label: int) -> int:
        return 100_000

    def good(self, label: int, n: int, seed: int, least: int | None = None) -> list[int]:
        return list(range(n))

    def images(self, label: int, indices: Sequence[int]) -> torch.Tensor:
        return torch.rand(len(indices), 3, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def fingerprint(self) -> str:
        return "noise"


def plain_loop(
    backbone: Backbone, cfg: float, layer: str, batch: Batch, reals: torch.Tensor | None, scale: float, steps: int
) -> torch.Tensor:
    """Sample with DAP as the field's scripts do, without any of our savings. The result is the same kind of sample.

    `reals` are clean latents of real images of the class of the batch. None: as the field's scripts sample without guidance.
    """
    solver, gens = make(backbone, None, steps), generators(batch.seeds)
    x = normal(backbone.latent_shape, gens, torch.empty(0, device=backbone.device))
    label, null = backbone.condition([batch.class_names[k] for k in batch.labels]), backbone.null(len(batch.labels))
    kernel = Linear()
    for index, t in enumerate(solver.timesteps):
        x = x.detach().requires_grad_(reals is not None)
        through = "nothing" if reals is None else "denoiser"
        both = backbone.predict(torch.cat([x, x]), t, torch.cat([label, null]), grad_through=through)
        cond, free = both.eps.chunk(2)
        eps = free + cfg * (cond - free)
        variance = None if both.variance is None else both.variance.chunk(2)[0].detach()
        if reals is None:
            with torch.no_grad():
                x = solver.step(index, x, eps, backbone.schedule.eps_to_x0(x, t, eps), variance, gens)
            continue
        of_reals = label[:1].expand(len(reals))
        features = backbone.predict(x, t, label, layer=layer, grad_through="denoiser").features
        alpha, sigma = backbone.schedule.level(t)
        noised = alpha * reals + sigma * torch.randn_like(reals)
        with torch.no_grad():
            real = backbone.predict(noised, t, of_reals, layer=layer).features
        assert features is not None and real is not None
        distance = kernel.distance(features.float().flatten(1), real.float().flatten(1)).mean(1)
        (gradient,) = torch.autograd.grad(distance.sum(), x)
        with torch.no_grad():
            x0 = backbone.schedule.eps_to_x0(x, t, eps)
            x = solver.step(index, x, eps.detach(), x0, variance, gens) - scale * gradient
    return x.detach()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def memory_of(run: Callable[[], object], device: torch.device) -> float:
    """Peak memory in GB on a GPU while `run` runs, with the weights. NaN on a CPU, where the process never gives memory
    back."""
    if device.type != "cuda":
        return math.nan
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e9


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product: the best of ten runs."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def operations(model: ClassifierFree, batch: Batch, layer: str, steps: int) -> float:
    """Floating-point operations of a guided batch with cached real features: torch counts the forward passes."""
    backbone = model.backbone
    x = torch.zeros(len(batch.seeds), *backbone.latent_shape, device=backbone.device)
    condition = backbone.condition([batch.class_names[label] for label in batch.labels])
    t = make(backbone, None, steps).timesteps[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(x, t, condition)
        backbone.tap(x, t, condition, layer)
    return counter.get_total_flops() * steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of DAP beside vanilla sampling.")
    parser.add_argument("--shape", choices=SHAPES, default="starter", help="random weights but for the starters")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--layer", nargs="+", help="default: the card's")
    parser.add_argument("--batch", type=int, nargs="+", default=[10])
    parser.add_argument("--reals", type=int, nargs="+", default=[64])
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--steps", type=int, default=20, help="timed; images per second are for 50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain loop")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    backbone = build(args.shape, device, dtype)
    card, peak = backbone.card, peak_flops(device, dtype)
    name = backbone.class_names[0] if backbone.class_names else NAME
    source, model = RandomReals(name, card.size), ClassifierFree(backbone, card.cfg, card.cfg_channels)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.shape}, {args.dtype}, {chip}, torch {torch.__version__}, compile {args.compile}, {args.steps} steps, ",
        end="",
    )
    print(f"{args.rounds} rounds; one large matrix product: {peak / 1e12:.3g} TFLOP/s\n")
    shown = "".join(f" ipc {ipc} |" for ipc in args.ipc)
    print(
        f"| layer | N | batch | vanilla, img/s | cached |{shown} plain loop | share of peak | peak GB (vanilla/fresh/cached) |"
    )
    print("|---" * (8 + len(args.ipc)) + "|")
    alone = Batch.of(source.class_names, [0], [0], 0)
    layers = [str(layer) for layer in args.layer or [card.layer]]
    work = {  # counted before compiling, because torch sees no operations inside a fused kernel
        (layer, size): operations(model, Batch.of(source.class_names, [0] * size, range(size), 0), layer, args.steps)
        for layer in layers
        for size in args.batch
    }
    if args.compile:
        for layer in backbone.layers:
            block = backbone.module(layer)  # pyright: ignore[reportAttributeAccessIssue]
            block.forward = torch.compile(block.forward)
    for layer in layers:
        for reals in args.reals:
            options = BankOptions(reals=reals, layer=layer)

            def dap(keep: bool, options: BankOptions = options) -> Guidance:
                bank = FeatureBank(source, backbone, options, ipc=max(args.ipc), keep=keep)
                bank.begin([0])  # encoding the real images is a cost of the class, not of the loop
                return Descend(Representative(bank), 0.01)

            real = torch.randn(reals, *backbone.latent_shape, device=device)
            for size in args.batch:
                batch = Batch.of(source.class_names, [0] * size, range(size), 0)

                def sampled(guidance: Guidance | None, batch: Batch = batch) -> Callable[[], object]:
                    return lambda: latents(model, guidance, batch, steps=args.steps)

                rows = {"vanilla": sampled(None), "fresh": sampled(dap(False))}
                memory = [memory_of(run, device) for run in rows.values()]  # while no features are kept
                rows["cached"] = sampled(dap(True))
                if not args.no_plain:
                    rows["plain"] = lambda real=real, layer=layer: plain_loop(
                        backbone, card.cfg, layer, alone, real, 0.01, args.steps
                    )
                each: dict[str, list[float]] = {way: [] for way in rows}
                for round_ in range(args.rounds + 1):
                    for way, run in rows.items():
                        spent = timed(run, device) / (1 if way == "plain" else size)
                        if round_:  # the first round warms up and fills the cache
                            each[way].append(spent)
                share = work[layer, size] / statistics.median(each["cached"]) / size / peak

                def times(costs: Iterable[float], vanilla: Sequence[float] = each["vanilla"]) -> str:
                    ratios = [cost / base for cost, base in zip(costs, vanilla, strict=True)]
                    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"

                cells = [layer, str(reals), str(size)]
                cells += [
                    f"{args.steps / 50 / statistics.median(each['vanilla']):.3g}",
                    times(each["cached"]),
                ]
                for ipc in args.ipc:
                    batches = math.ceil(ipc / size)
                    pairs = zip(each["fresh"], each["cached"], strict=True)
                    cells.append(times((first + (batches - 1) * later) / batches for first, later in pairs))
                cells.append("–" if args.no_plain else times(each["plain"]))
                memory.append(memory_of(rows["cached"], device))
                shown_memory = " / ".join(f"{gb:.2f}" for gb in memory)
                cells += [f"{share:.0%}", "–" if math.isnan(memory[0]) else shown_memory]
                print(f"| {' | '.join(cells)} |", flush=True)
    if device.type != "cuda":
        print(f"\npeak memory of the process: {peak_memory_gb()} GB")


if __name__ == "__main__":
    main()
