"""What a method of one's own gives is checked in one place: wrong images and records are told with the name of the method."""

from __future__ import annotations

import logging

import pytest
import torch

from dap.base.errors import DapError
from dap.data.sets.distilled import DistilledSet
from dap.methods.base import Made, Method
from dap.verbs.distill import distill
from dap.verbs.options import Machine


class Mine(Method):
    """Real images, as a function changes them, with records."""

    def __init__(self, change=lambda x: x, records=lambda n: [{} for _ in range(n)]):
        self.change, self.records = change, records

    def prepare(self, task):
        def make(unit):
            images = task.source.images(unit.label, list(unit.slots))
            return Made(self.change(images), self.records(len(unit.slots)))

        return make


class Bare(Mine):
    def prepare(self, task):
        return lambda unit: task.source.images(unit.label, list(unit.slots))


@pytest.fixture
def made(colours, tmp_path):
    def make(method):
        return distill(
            out=tmp_path / "s", method=method, source=str(colours), ipc=2, size=8, machine=Machine(device="cpu")
        )

    return make


WRONG = [
    (
        lambda x: x * 2 - 1,
        r"run from -\S+ to \S+; they should be in \[0, 1\]\. Images in \[-1, 1\] become x / 2 \+ 0\.5",
    ),
    (lambda x: (x - 0.3) / 0.35, r"should be in \[0, 1\].*undo the normalisation"),
    (lambda x: x * 255, "Divide bytes by 255"),
    (lambda x: x * 8, "Divide them by their largest value"),
    (lambda x: (x * 255).byte(), "images of torch.uint8; give floats"),
    (lambda x: x.numpy(), "images as a ndarray; give one float tensor of shape"),
    (list, "images as a list; give one float tensor"),
    (lambda x: x[:, :1], r"shape \(2, 1, 8, 8\) for 2 images of class 'blue'; the set has \(2, 3, 8, 8\)"),
    (lambda x: x.permute(0, 2, 3, 1), r"shape \(2, 8, 8, 3\)"),
    (lambda x: x[:1], r"shape \(1, 3, 8, 8\) for 2 images"),
    (lambda x: torch.cat([x, x]), r"shape \(4, 3, 8, 8\)"),
    (lambda x: x[..., :5], r"shape \(2, 3, 8, 5\)"),
    (lambda x: torch.rand(2, 3, 9, 9), r"shape \(2, 3, 9, 9\)"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_images_are_told_with_the_method(made, tmp_path, change, says):
    with pytest.raises(
        DapError, match=rf"The method test_made:Mine gives images .*{says}|The method test_made:Mine .*{says}"
    ):
        made(Mine(change))
    assert len(DistilledSet.open(tmp_path / "s")) == 0


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (lambda n: [], "0 records for 2 images"),
        (lambda n: [{}] * (n + 1), "3 records for 2 images"),
        (lambda n: None, "no list of mappings"),
        (lambda n: ["x"] * n, "no list of mappings"),
        (lambda n: [{"w": torch.tensor(1.0)}] * n, "cannot be kept. .* has w = tensor"),
        (lambda n: [{"weight": 0.0}] * n, "cannot be kept. .* has weight = 0.0"),
        (lambda n: [{}, {"energy": float("nan")}], "cannot be kept. .* has energy = nan"),
        (lambda n: [{"label": 2}] * n, "has a field label of its own"),
    ],
)
def test_wrong_records_are_told_with_the_method(made, tmp_path, records, says):
    with pytest.raises(DapError, match=f"The method test_made:Mine gives .*{says}"):
        made(Mine(records=records))
    assert len(DistilledSet.open(tmp_path / "s")) == 0, "nothing of a wrong unit is kept"


def test_a_bare_tensor_is_no_made(made):
    with pytest.raises(DapError, match=r"The method test_made:Bare gives a Tensor .*Made\(images, records\)"):
        made(Bare())


@pytest.mark.parametrize(
    "change", [lambda x: x, lambda x: x.double(), lambda x: x.requires_grad_(), lambda x: x.half()]
)
def test_right_images_are_kept(made, change, caplog):
    assert len(made(Mine(change))) == 6 and "cut off" not in caplog.text


def test_what_overshoots_a_little_is_cut_off_with_one_warning(made, caplog):
    assert len(made(Mine(lambda x: x * 1.2 - 0.1))) == 6
    assert caplog.text.count("what is outside of [0, 1] is cut off") == 1


def test_a_user_of_python_hears_of_doubts(made, caplog):
    with caplog.at_level(logging.WARNING, logger="dap"):
        made(Mine(lambda x: torch.zeros_like(x)))
    assert "images are probably no images of anything" in caplog.text
