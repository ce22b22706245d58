"""What tests of training share: a tiny protocol, a separable set, and a network that starts alike for every seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dap.evaluation.training.batches import Images
from dap.evaluation.training.fitting import fit
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.transforms import split

TINY: dict[str, Any] = {
    "name": "tiny", "source": "test", "network": "convnet2", "size": 8, "width": 4, "mean": [0.5], "std": [0.25],
    "train": [{"op": "resize"}, {"op": "normalize"}], "test": [{"op": "resize"}, {"op": "normalize"}],
    "epochs": 6, "batch": 64, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "score": "last", "looks": 3,
}  # fmt: skip


def tiny(**changes: object) -> Protocol:
    return Protocol.model_validate({**TINY, **changes})


def stripes(n: int, seed: int = 0, noise: float = 0.2, size: int = 8) -> tuple[Tensor, Tensor]:
    """Horizontal (0) and vertical (1) stripes under noise, in [0, 1]."""
    labels = torch.arange(n) % 2
    wave = (torch.arange(size) % 2).float().expand(size, size)
    images = torch.stack([wave if label else wave.T for label in labels])[:, None].expand(-1, 3, -1, -1)
    pixels = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return images * (1 - noise) + noise * pixels, labels


class Linear(nn.Module):
    """Logits of the flattened image, with the same start for every seed."""

    def __init__(self, channels: int, classes: int, size: int, **others: object) -> None:
        super().__init__()
        self.map = nn.Linear(channels * size * size, classes)
        weights = torch.linspace(-0.1, 0.1, self.map.weight.numel()).sin()
        nn.init.zeros_(self.map.bias)
        self.map.weight.data.copy_(weights.view_as(self.map.weight))

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.flatten(1))


LINEAR = f"{__file__}:Linear"

AUGMENTED: dict[str, Any] = {
    "train": [
        {"op": "random_resized_crop", "scale": [0.5, 1]},
        {"op": "flip"},
        {"op": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
        {"op": "lighting", "std": 0.1},
        {"op": "normalize"},
    ],
    "mix": {"op": "cutmix"},
    "batch": 8,
}


def trained(train: tuple[Tensor, Tensor], protocol: Protocol, seed: int, **options: Any) -> nn.Module:
    ready = Images(train, split(protocol.train_steps)[0], torch.device("cpu"))
    options = {"network": protocol.network, "channels": train[0].shape[1], "classes": 2, **options}
    return fit(ready, protocol, seed, **options)


class Exploding(Linear):
    """Logits too large for float32."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 1e30 * 1e30


EXPLODING = f"{__file__}:Exploding"


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """What the trainings on a set gave, in order and without times."""
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return sorted((line | {"seconds": 0} for line in lines), key=lambda line: (line["network"], line["seed"]))
