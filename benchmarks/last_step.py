"""How large the push of Eq. 8 is at each step, and what the last push adds to the finished latents.

    python benchmarks/last_step.py --backbone starter --scale 1 --ipc 2

In `unit: paper` the push is gamma g_t. Every step but the last is followed by a denoising step. For each step the table
has the mean over images of ||g_t||, of the sampler's own step ||x~_{t-1} - x_t||, and of ||gamma g_t|| / ||x_0||, with x_0
the finished latents. The last line is what `last_step: true` leaves in the images. No accuracy is measured.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from dap import load_backbone, open_source
from dap.backbones import ClassifierFree
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Descend, Guidance, Representative, State, Window
from dap.guidance.base import per_image_norm
from dap.kernels import parse
from dap.sampling import Batch, sample


class Watched(Guidance):
    """A guidance that keeps the mean norm of g_t and of the sampler's step, each time it is called."""

    def __init__(self, inner: Window, scale: float) -> None:
        self.inner, self.scale, self.seen = inner, scale, []
        self.layer, self.branch, self.grad_through = inner.layer, inner.branch, inner.grad_through

    def begin(self, labels: list[int]) -> None:  # type: ignore[override]
        self.inner.begin(labels)

    def active(self, index: int, steps: int) -> bool:
        return self.inner.active(index, steps)

    def __call__(self, state: State) -> Tensor:
        push = self.inner(state)
        step = per_image_norm(state.proposal - state.x.detach()).flatten()
        self.seen.append((state.index, per_image_norm(push).flatten() / self.scale, step))
        return push


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--scale", type=float, default=1.0, help="gamma of Eq. 8")
    parser.add_argument("--ipc", type=int, default=2, help="images of each class")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reals", type=int, default=64)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    backbone = load_backbone(args.backbone)
    source = open_source("fashion-mnist", size=backbone.card.size)
    bank = FeatureBank(source, backbone, BankOptions(reals=args.reals), ipc=args.ipc)
    inner = Window(Descend(Representative(bank, parse("linear")), args.scale, "paper"))
    rows: dict[int, list[Tensor]] = {}
    finished = []
    for label in range(len(source.class_names)):
        guidance = Watched(inner, args.scale)
        batch = Batch.of(source.class_names, [label] * args.ipc, list(range(args.ipc)), args.seed)
        last = None
        for state in sample(ClassifierFree(backbone, args.cfg), guidance, batch, steps=args.steps):
            last = state
        assert last is not None and last.next is not None
        finished.append(per_image_norm(last.next).flatten())
        for index, norm, step in guidance.seen:
            rows.setdefault(index, []).append(torch.stack([norm, step]))
    size = torch.cat(finished).mean().item()
    print(f"{args.backbone}, gamma = {args.scale:g}, {10 * args.ipc} images, mean ||x_0|| = {size:.2f}")
    print("step  ||g_t||  sampler's step  gamma ||g_t|| / ||x_0||")
    shown = {0, 1, args.steps // 4, args.steps // 2, 3 * args.steps // 4, args.steps - 2, args.steps - 1}
    for index in sorted(shown & set(rows)):
        norm, step = torch.cat(rows[index], dim=1).mean(1).tolist()
        print(f"{index + 1:4}  {norm:7.2f}  {step:14.2f}  {args.scale * norm / size:10.3f}")


if __name__ == "__main__":
    main()
