"""What tests of energies share: random tensors, a state with features, and real features that are simply there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dap.guidance import State


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(features, labels):
    n = len(features)
    x = torch.zeros(n, 1, 2, 2)
    return State(x, x, x, x, features, 10, 0, 1, 1.0, 0.1, torch.tensor(labels), torch.arange(n))


@dataclass(frozen=True)
class Reals:
    """Real features that are simply there."""

    features: dict[int, torch.Tensor]
    layer: str = "x"
    branch: str = "cond"

    def begin(self, labels): ...

    def at(self, label, t):
        return self.features[label]

    def shares(self, label):
        return None

    def transform(self, features, label, t):
        return features.flatten(1)
