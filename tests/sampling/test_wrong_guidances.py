"""What a guidance of one's own can get wrong is said in a sentence: labels of other classes, and shapes that would broadcast."""

from __future__ import annotations

import itertools

import pytest
import torch

from dap.backbones import ClassifierFree
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.sources import open_source
from dap.guidance import Descend, Energy, Representative, Scaled, Sum, Window
from dap.refining import Descent, refine
from dap.sampling import Batch, latents


class Holding(Energy):
    """An energy of one's own that holds a bank somewhere."""

    grad_through = "denoiser"

    def __init__(self, bank):
        self._by_name = {"reals": [Reals(bank)]}

    def __call__(self, state):
        return state.x0_hat.flatten(1).sum(1)


class Reals:
    """Real features of one's own around a bank."""

    def __init__(self, bank):
        self.bank = bank

    def begin(self, labels):
        self.bank.begin(labels)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda bank: Descend(Representative(bank), 0.1),
        lambda bank: Window(Scaled(Sum((Descend(Representative(bank), 0.1),)), 2.0), 0.5),
        lambda bank: Descend(Holding(bank), 0.1),
    ],
)
def test_labels_mean_the_same_classes_in_the_bank_and_in_the_batch(backbone, colours, wrap):
    """Bare numbers would pull an image of one class towards real images of another one."""
    model, names = ClassifierFree(backbone, 1.0), ("blue", "green", "red")
    for mine, theirs in itertools.product((("green", "red"), ("red", "blue")), ((*names,), ("red",), ("red", "blue"))):
        source = open_source(colours, "train", size=8, classes=list(theirs))
        guidance = wrap(FeatureBank(source, backbone, BankOptions(reals=2), ipc=1))
        for labels in ([0], [1], [0, 1]):
            batch = Batch.of(mine, labels, [0] * len(labels), 0)
            if all(label < len(theirs) and theirs[label] == mine[label] for label in labels):
                assert latents(model, guidance, batch, steps=2).isfinite().all()
                continue
            with pytest.raises(
                DapError, match=r"in the real images of the guidance .* Open these images with the same classes"
            ):
                latents(model, guidance, batch, steps=2)


def test_a_refinement_asks_the_same(backbone, source):
    energy = Representative(FeatureBank(source, backbone, BankOptions(reals=2), ipc=1))
    batch = Batch.of(("red", "blue"), [0], [0], 0)
    with pytest.raises(DapError, match="'red' has the label 0 in what is sampled, but"):
        refine(backbone, [energy], batch, torch.zeros(1, *backbone.latent_shape), Descent(1))
