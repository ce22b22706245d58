"""Measures how much faster our instance norm makes a training step on a CPU, in comparison with torch's own GroupNorm.

Our instance norm has a gradient of its own.

    python benchmarks/norm.py                     # a table: networks by threads, the ratio of the times of a step
    python benchmarks/norm.py --clock cpu --threads 1   # seconds of the processor, for a machine that does other work too

Both ways train the same network on the same random images, channels-last, in slices as `Training` does: forward, cross-entropy,
backward and a step of SGD. The ways take turns after each step, so that a change of the machine's speed affects both. A
ratio is GroupNorm / ours; where it is above 1, ours is faster. The table shows the median of the ratios over the
rounds, and their quartiles. With several threads, processor seconds also count the time in which threads wait for each
other. So `--clock cpu` is for one thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from dap.evaluation.training.batches import slice_size
from dap.evaluation.training.networks import InstanceNorm, build

CASES = (("convnet3", 32, 64), ("convnet6", 64, 32), ("resnetap10", 64, 32))
"""Each case: the network, the side of the images in pixels, and the number of images in a step."""


def with_group_norm(net: nn.Module) -> nn.Module:
    """A copy of a network that normalises by torch's own GroupNorm, with the same weights."""
    net = copy.deepcopy(net)
    for path, part in list(net.named_modules()):
        if isinstance(part, InstanceNorm):
            norm = nn.GroupNorm(part.num_groups, part.num_channels, part.eps)
            norm.weight, norm.bias = part.weight, part.bias
            net.set_submodule(path, norm)
    return net


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def step(net: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, clock: str) -> float:
    """Seconds of one training step."""
    now = CLOCKS[clock]
    began = now()
    optimiser.zero_grad()
    size = slice_size(*x.shape[2:], x.device)
    for images, labels in zip(x.split(size), y.split(size), strict=True):  # pyright: ignore[reportArgumentType]
        logits = net(images.contiguous(memory_format=torch.channels_last))
        (F.cross_entropy(logits, labels, reduction="sum") / len(x)).backward()
    optimiser.step()
    return now() - began


def measure(network: str, size: int, batch: int, rounds: int, clock: str) -> tuple[float, list[float]]:
    """The median seconds of a step with our norm, and the ratio of every round."""
    torch.manual_seed(0)
    ours = build(network, classes=10, size=size).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    nets = {"ours": ours, "torch": with_group_norm(ours)}
    steps = {name: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True) for name, net in nets.items()}
    x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    times: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(rounds + 2):
        for name in sorted(nets, reverse=bool(number % 2)):
            spent = step(nets[name], steps[name], x, y, clock)
            if number >= 2:  # the first two steps do not count, because kernels are chosen in them
                times[name].append(spent)
    ratios = [torchs / mine for torchs, mine in zip(times["torch"], times["ours"], strict=True)]
    return statistics.median(times["ours"]), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="steps each way (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch (%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted (%(default)s)")
    args = parser.parse_args()
    print("| network | px | images a step | threads | a step with ours, s | GroupNorm / ours (quartiles) |")
    print("|---|---|---|---|---|---|")
    for network, size, batch in CASES:
        for threads in args.threads:
            torch.set_num_threads(threads)
            seconds, ratios = measure(network, size, batch, args.rounds, args.clock)
            low, middle, high = statistics.quantiles(ratios, n=4)
            shown = f"{middle:.2f} ({low:.2f}–{high:.2f})"
            print(f"| {network} | {size} | {batch} | {threads} | {seconds:.3f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
