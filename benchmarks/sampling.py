"""What DAP costs beside vanilla sampling, side by side in one run.

    python benchmarks/sampling.py --backbone starter --ipc 10 --reals 64 --steps 20 --rounds 3

Rows, each as seconds a class and as a multiple of vanilla (the rounds are interleaved, so a machine that changes its speed
hits all rows; the ratio is the median over rounds):

    vanilla       the same loop without guidance
    dap           real features computed on the way, once a class and step
    dap cached    real features kept from an earlier run
    plain loop    the way of the field's scripts: one graph through both halves, a second pass for the features, the real
                  features recomputed for every image's batch with the whole network
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dap.backbones import Backbone, ClassifierFree, load
from dap.data.bank import BankOptions, FeatureBank
from dap.data.sources import open_source
from dap.engine import peak_memory_gb
from dap.guidance import Descend, Guidance, Representative
from dap.kernels import Linear
from dap.sampling import Batch, latents
from dap.seeding import generators, normal
from dap.solvers import make


def plain_loop(
    backbone: Backbone, cfg: float, batch: Batch, reals: torch.Tensor, scale: float, steps: int
) -> torch.Tensor:
    """DAP without any of the savings; the result is the same kind of sample."""
    solver, gens = make(backbone, "ddpm", steps), generators(batch.seeds)
    x = normal(backbone.latent_shape, gens, reals)
    label, null = backbone.condition([batch.class_names[k] for k in batch.labels]), backbone.null(len(batch.labels))
    layer, kernel = backbone.card.layer, Linear()
    of_reals = label[:1].expand(len(reals))
    for index, t in enumerate(solver.timesteps):
        x = x.detach().requires_grad_()
        both = backbone.predict(torch.cat([x, x]), t, torch.cat([label, null]), grad_through="denoiser")
        cond, free = both.eps.chunk(2)
        eps = free + cfg * (cond - free)
        variance = None if both.variance is None else both.variance.chunk(2)[0].detach()
        features = backbone.predict(x, t, label, layer=layer, grad_through="denoiser").features
        alpha, sigma = backbone.schedule.level(t)
        noised = alpha * reals + sigma * torch.randn_like(reals)
        with torch.no_grad():
            real = backbone.predict(noised, t, of_reals, layer=layer).features
        assert features is not None and real is not None
        distance = kernel.distance(features.flatten(1), real.flatten(1)).mean(1)
        (gradient,) = torch.autograd.grad(distance.sum(), x)
        with torch.no_grad():
            x0 = backbone.schedule.eps_to_x0(x, t, eps)
            x = solver.step(index, x, eps.detach(), x0, variance, gens) - scale * gradient
    return x.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of DAP beside vanilla sampling.")
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--reals", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load(args.backbone)
    source = open_source(args.data, size=backbone.card.size)
    model = ClassifierFree(backbone, backbone.card.cfg, backbone.card.cfg_channels)
    batch = Batch.of(source.class_names, [0] * args.ipc, range(args.ipc), 0)
    options = BankOptions(reals=args.reals)

    def dap(keep: bool) -> Guidance:
        bank = FeatureBank(source, backbone, options, ipc=args.ipc, keep=keep)
        bank.begin([0])  # decoding and encoding the reals is a cost of the class, not of the sampling loop
        return Descend(Representative(bank), 0.01)

    fresh, cached = dap(False), dap(True)
    reals = backbone.encode(source.images(0, source.good(0, args.reals, 0)).to(backbone.device))
    rows: dict[str, Callable[[], torch.Tensor]] = {
        "vanilla": lambda: latents(model, None, batch, steps=args.steps),
        "dap": lambda: latents(model, fresh, batch, steps=args.steps),
        "dap cached": lambda: latents(model, cached, batch, steps=args.steps),
        "plain loop": lambda: plain_loop(backbone, backbone.card.cfg, batch, reals, 0.01, args.steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(args.rounds + 1):
        for name, run in rows.items():
            began = time.perf_counter()
            run()
            if backbone.device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first warms up, and fills the cache
                seconds[name].append(time.perf_counter() - began)
    print(
        f"{backbone.card.name}, layer {backbone.card.layer}, ipc {args.ipc}, N {args.reals}, {args.steps} steps, ",
        end="",
    )
    print(f"{backbone.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| | seconds a class | times vanilla (median, min–max) |\n|---|---|---|")
    for name, values in seconds.items():
        ratios = [v / base for v, base in zip(values, seconds["vanilla"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {name} | {statistics.median(values):.2f} | {spread} |")
    print(f"peak memory of the process: {peak_memory_gb()} GB")


if __name__ == "__main__":
    main()
