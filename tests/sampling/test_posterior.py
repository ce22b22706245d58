"""What a backbone believes of an image: gaps by the definition, in stages too, and the temperature by their likelihood."""

from __future__ import annotations

import math

import pytest
import torch

from dap.backbones.mixture import Mixture
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.posterior import Levels, errors, fitted_temperature, gaps, log_likelihood, usual_levels


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mixture():
    return Mixture(draw(5, 2, 2, 2, 2), std=0.6)


@pytest.fixture(scope="module")
def latents(mixture):
    return (mixture.means[:, :1] + 0.6 * draw(5, 4, 2, 2, 2, seed=1)).flatten(0, 1)


def plain(backbone, z, name, times):
    """The mean squared error for one image and class over some times, by the definition."""
    total = 0.0
    for t in times:
        alpha, sigma = backbone.schedule.level(t)
        eps = torch.randn(*backbone.latent_shape, generator=torch.Generator().manual_seed(seed_of(0, "zero-shot", t)))
        found = backbone.predict((alpha * z + sigma * eps)[None], t, backbone.condition([name])).eps[0]
        total += (eps - found).square().mean().item()
    return total / len(times)


def test_gaps_are_differences_to_the_best_class(mixture, latents):
    found = gaps(mixture, latents[::3], mixture.class_names, Levels(4), batch=7)
    for z, row in zip(latents[::3], found, strict=True):
        own = [plain(mixture, z, name, [125, 375, 625, 875]) for name in mixture.class_names]
        assert row.tolist() == pytest.approx([one - min(own) for one in own], abs=1e-6)
    same = errors(mixture, latents[::3], mixture.class_names, Levels(4))
    torch.testing.assert_close(found, same - same.min(1, keepdim=True).values)


def test_a_class_left_out_is_compared_over_the_levels_that_it_saw(mixture, latents):
    names, levels = mixture.class_names, Levels(6, (3, 2))
    first, second, third = levels.stages(mixture)
    found = gaps(mixture, latents, names, levels)
    assert found.isfinite().all() and (found >= 0).all() and ((found == 0).sum(1) >= 1).all()
    for z, row in zip(latents, found, strict=True):
        early, mid, late = (
            [plain(mixture, z, name, times) for name in names]
            for times in (first, first + second, first + second + third)
        )
        three = sorted(range(5), key=early.__getitem__)[:3]
        two = sorted(three, key=mid.__getitem__)[:2]
        best = min(two, key=late.__getitem__)
        for k in range(5):
            seen = late if k in two else mid if k in three else early
            assert row[k].item() == pytest.approx(seen[k] - seen[best], abs=1e-6)


def test_the_temperature_is_the_likeliest():
    """Labels drawn from a posterior give back its temperature, and no other temperature is likelier."""
    true, found = 0.02, draw(20_000, 4).abs() * 0.05
    found -= found.min(1, keepdim=True).values
    found = found.double()
    labels = torch.multinomial((-found / true).softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    fitted = fitted_temperature(found, labels)
    assert fitted == pytest.approx(true, rel=0.05)
    best = log_likelihood(found, labels, fitted)
    assert all(log_likelihood(found, labels, fitted * f) < best for f in (0.5, 0.9, 1.1, 2.0))


def test_the_likelihood_by_a_plain_loop():
    found, labels = draw(5, 3).abs().double(), torch.tensor([0, 1, 2, 0, 1])
    total = 0.0
    for row, label in zip(found.tolist(), labels.tolist(), strict=True):
        weights = [math.exp(-gap / 0.3) for gap in row]
        total += math.log(weights[label] / sum(weights))
    assert log_likelihood(found, labels, 0.3) == pytest.approx(total / 5)


def test_the_temperature_is_bounded_where_the_likelihood_is_not():
    right = torch.tensor([[0.0, 0.2], [0.2, 0.0]]).double()
    sharp = fitted_temperature(right, torch.tensor([0, 1]))
    assert 0.1 / 1000 <= sharp < 0.01 and log_likelihood(right, torch.tensor([0, 1]), sharp) > -1e-8
    assert fitted_temperature(right, torch.tensor([1, 0])) == pytest.approx(0.1 * 1000, rel=0.1)
    with pytest.raises(DapError, match="same noise under every class"):
        fitted_temperature(torch.zeros(2, 2).double(), torch.tensor([0, 1]))


def test_passes_are_counted_before_they_are_made(mixture, latents):
    for levels in (Levels(5), Levels(6, (3, 1)), Levels(7, (4, 2))):
        told = []
        gaps(mixture, latents, mixture.class_names, levels, tell=lambda *done, told=told: told.append(done))
        assert told[-1] == (len(latents) * levels.passes(5),) * 2


def test_many_classes_are_left_out_in_stages():
    assert (
        usual_levels(20).keep == () and usual_levels(1000).keep == (100, 10) and usual_levels(1000).passes(1000) == 3430
    )
    for classes in range(2, 300):
        assert usual_levels(classes).passes(classes) <= 10 * classes
