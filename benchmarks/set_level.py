"""Measures what the set-level energies do in a backbone's features: how a plan shares real images out, and what blocks cost.

    python benchmarks/set_level.py plan --classes Pullover
    python benchmarks/set_level.py blocks --classes Pullover Bag --ipc 20 --block 20 10 5
    python benchmarks/set_level.py graphs --ipc 10 20 50

`plan`: 10 real images of a class are carried to 250 others, under the linear kernel and for several blurs. "reals an image" is
the exponential of the entropy of an image's row of the converged plan, on average: 25 if each has its own, 250 if each has all.
"gradient off by" is the distance between the gradient of `SinkhornDivergence` and that of the converged plan, as a part of the
latter, for two ratios of the temperatures.

`blocks`: the method `auto`, refined in blocks of these sizes. "energy" is the energy distance of all slots to real images that
pulled none of them, without the part of the real images alone, at one noise and the times of the refinement; and of the first 10.

`graphs`: what one gradient of a refinement takes if the graphs of all chunks are held, and if every chunk after the first is
passed twice. Processor seconds on one thread, both ways in turns, median of 5. "same bits" compares the gradients.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial

import torch

from dap.guidance import EnergyDistance
from dap.guidance.transport import SinkhornDivergence, spread
from dap.kernels import Linear
from dap.methods import Task, Unit
from dap.methods.refined import banks_of
from dap.recipe import Recipe
from dap.refining import Descent, refine, time_of
from dap.refining import seen as refining
from dap.sampling import Batch
from dap.workshop import Workshop

BLURS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
ROUNDS = 3000


def task_of(args: argparse.Namespace, ipc: int, block: int | None = None, steps: int = 100) -> tuple[object, Task]:
    data = {"path": args.data, "classes": args.classes}
    values = {"method": "auto", "ipc": ipc, "block": block, "data": data, "backbone": {"path": args.backbone}}
    return Workshop(args.device).task(Recipe.parse({**values, "refine": {"steps": steps}}))


def plan_of(cost: torch.Tensor, eps: float) -> torch.Tensor:
    """The converged plan of two uniform sets."""
    n, m = cost.shape
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    for _ in range(ROUNDS):
        f = -eps * (((g[None] - cost) / eps).logsumexp(1) - math.log(m))
        g = -eps * (((f[:, None] - cost) / eps).logsumexp(0) - math.log(n))
    return ((f[:, None] + g[None] - cost) / eps).exp() / (n * m)


def plan(args: argparse.Namespace) -> None:
    _, task = task_of(args, 10)
    (bank, *_), (other, *_) = banks_of(task), banks_of(task, task.recipe.refine.reals)
    print("| class | time | blur | reals an image | gradient off by, 0.5 | 0.97 |\n|---|--:|--:|--:|--:|--:|")
    for label, name in enumerate(task.source.class_names):
        for fraction in task.recipe.refine.times:
            t = time_of(task.backbone.schedule, fraction)
            for one in (bank, other):
                one.begin([label])
            real, mine = bank.at(label, t).double(), other.at(label, t)[:10].double().requires_grad_(True)
            wide = spread(Linear(), real)
            for blur in BLURS:
                cost = Linear().squared_distance(mine, real) / 2
                found = plan_of(cost.detach(), (blur * wide) ** 2)
                (wanted,) = torch.autograd.grad((found * cost).sum(), mine)
                rows = found / found.sum(1, keepdim=True)
                share = (-(rows * rows.clamp_min(1e-300).log()).sum(1)).exp().mean()
                off = []
                for scaling in (0.5, 0.97):
                    energy = SinkhornDivergence(bank, blur=blur, scaling=scaling)
                    (gradient,) = torch.autograd.grad(energy.cost(Linear(), mine, real, blur * wide), mine)
                    off.append((gradient - wanted).norm() / wanted.norm())
                print(f"| {name} | {fraction:g} | {blur:g} | {share:.0f} | {off[0]:.1%} | {off[1]:.1%} |", flush=True)


def blocks(args: argparse.Namespace) -> None:
    print("| class | block | energy | of the first 10 | s |\n|---|--:|--:|--:|--:|")
    (ipc,) = args.ipc
    for block in (None, *args.block):
        method, task = task_of(args, ipc, block, 100 if block else 0)
        make, size = method.prepare(task), block or ipc  # pyright: ignore[reportAttributeAccessIssue]
        for label, name in enumerate(task.source.class_names):
            began = time.perf_counter()
            units = [Unit(label, tuple(range(s, min(s + size, ipc)))) for s in range(0, ipc, size)]
            z = torch.cat([make(unit).latents for unit in units])
            seconds = time.perf_counter() - began
            found = [energy(task, label, part) for part in (z, z[:10])]
            print(f"| {name} | {block or 'start'} | {found[0]:.3f} | {found[1]:.3f} | {seconds:.0f} |", flush=True)


def graphs(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("| ipc | held, s | passed twice, s | ratio | GiB of a graph | same bits |\n|--:|--:|--:|--:|--:|---|")
    for ipc in args.ipc:
        _, task = task_of(args, ipc)
        energies = [EnergyDistance(bank) for bank in banks_of(task)]
        batch = Batch.of(task.source.class_names, [0] * ipc, range(ipc), 0)
        t = time_of(task.backbone.schedule, task.recipe.refine.times[1])
        z, noise = (torch.randn(ipc, *task.backbone.latent_shape) for _ in "ab")
        seen, found = refining.Seen(task.backbone, batch, None, energies), dict[int, torch.Tensor]()
        spent: dict[int, list[float]] = {2**40: [], 0: []}
        for number in range(6):
            for room, seconds in spent.items():
                refining.GRAPH_BYTES = room
                seen._graphs.clear()
                began = time.process_time()
                found[room] = seen.gradient(z.clone(), t, noise, [(energy, 1.0) for energy in energies])
                if number:
                    seconds.append(time.process_time() - began)
        held, twice = (statistics.median(seconds) for seconds in spent.values())
        x = z[: refining.CHUNK].clone().requires_grad_(True)
        with torch.enable_grad():
            pass_on = partial(task.backbone.features, x, t, seen.condition[: refining.CHUNK], seen.layers)
            size, _ = refining.graph_bytes(pass_on, task.backbone.state().values())
        same = "yes" if torch.equal(*found.values()) else "no"
        print(f"| {ipc} | {held:.3f} | {twice:.3f} | {held / twice:.2f} | {size / 2**30:.3f} | {same} |", flush=True)


def energy(task: Task, label: int, z: torch.Tensor) -> float:
    """The energy distance of latents to real images that pull none, at the refinement's times."""
    refinement, looks = task.recipe.refine, list[float]()
    held = [EnergyDistance(bank) for bank in banks_of(task, refinement.reals)]
    batch = Batch.of(task.source.class_names, [label] * len(z), range(len(z)), 0)
    descent = Descent(0, times=refinement.times, patience=1)
    refine(task.backbone, [], batch, z, descent, held_out=held, looked=lambda step, value: looks.append(value))
    return looks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "blocks", "graphs"])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--classes", nargs="+", default=["Pullover"])
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ipc", type=int, nargs="+", default=[20])
    parser.add_argument("--block", type=int, nargs="+", default=[20, 10])
    args = parser.parse_args()
    {"plan": plan, "blocks": blocks, "graphs": graphs}[args.what](args)


if __name__ == "__main__":
    main()
