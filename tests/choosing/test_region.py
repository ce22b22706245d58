"""The region of trust of a scale: what is found where the answer is known, and what the error is."""

from __future__ import annotations

import math

import pytest
import torch

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.choosing.region import LARGEST, ROOM, SMALLEST, TIMES, largest, log_errors, rounded
from dap.refining import time_of

BEFORE = [torch.tensor([0.0, 0.2, 0.4]), torch.tensor([5.0, 5.3])]
"""Log errors of unguided images of two classes. The spread within a class is known by hand; classes differ by far more."""
SPREAD = math.sqrt((0.04 + 0 + 0.04 + 2 * 0.0225) / 3)


def trial_of(change, calls=None):
    def trial(scale):
        if calls is not None:
            calls.append(scale)
        return [errors + change(scale) for errors in BEFORE]

    return trial


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("limit", [0.02, 0.1, 0.5])
def test_the_largest_scale_whose_error_is_about_as_it_was(sign, limit):
    """The change is proportional to the scale, so the border is known; it is found from below, in both directions."""
    slope = ROOM * SPREAD / limit
    found = largest(trial_of(lambda scale: sign * slope * scale), rounds=8)
    assert found.scale <= limit * 1.001 and found.scale > limit / 1.1
    assert found.room == pytest.approx(ROOM * SPREAD, rel=1e-5)
    assert found.changes == pytest.approx([sign * slope * scale for scale in found.tried], rel=1e-4)
    assert list(found.tried) == sorted(found.tried) and found.images == 5


def test_the_spread_within_classes_is_what_counts():
    far = [errors + 100 * number for number, errors in enumerate(BEFORE)]
    assert largest(lambda scale: far).room == pytest.approx(ROOM * SPREAD, rel=1e-3)


def test_ends_of_the_search():
    calls = []
    every = largest(trial_of(lambda scale: 0.0, calls), rounds=5)
    assert calls[0] == 0 and len(calls) == 6 and LARGEST / 1.2 < every.scale <= LARGEST
    none = largest(trial_of(lambda scale: 10.0 * (scale > 0)), rounds=5)
    assert none.scale == 0 and min(none.tried) < 1.2 * SMALLEST


def test_a_push_by_which_sampling_fails_is_outside():
    def trial(scale):
        if scale > 0.05:
            raise DapError("Sampling left the finite numbers.")
        return BEFORE

    found = largest(trial, rounds=6)
    assert 0.04 < found.scale <= 0.05
    assert all(math.isnan(change) == (scale > 0.05) for scale, change in zip(found.tried, found.changes, strict=True))

    def broken(scale):
        raise DapError("no such class")

    with pytest.raises(DapError, match="no such class"):
        largest(broken)


def test_one_image_of_a_class_is_too_few():
    with pytest.raises(DapError, match="at least two images of a class"):
        largest(lambda scale: [torch.tensor([1.0])])


def test_the_error_is_that_of_the_denoiser_under_the_same_noise(backbone):
    z = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found = log_errors(backbone, z, "red")
    for row in range(3):
        logs = []
        for fraction in TIMES:
            t = time_of(backbone.schedule, fraction)
            alpha, sigma = backbone.schedule.level(t)
            gen = torch.Generator().manual_seed(seed_of(0, "red", "region", t, row))
            noise = torch.randn(4, 4, 4, generator=gen)
            eps = backbone.predict((alpha * z[row] + sigma * noise)[None], t, backbone.condition(["red"])).eps[0]
            logs.append(math.log((eps - noise).square().mean()))
        assert found[row].item() == pytest.approx(sum(logs) / 3, abs=1e-4)
    assert torch.allclose(log_errors(backbone, z[:2], "red"), found[:2], atol=1e-5)


def test_scales_have_two_digits():
    assert [rounded(x) for x in (0.123456, 0.0066666, 1.0)] == [0.12, 0.0067, 1.0]
