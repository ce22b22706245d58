"""Criteria of layers: what each is, by another way of computing it, and what all of them have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dap.base.errors import DapError
from dap.choosing import criteria
from dap.choosing.criteria import CRITERIA, TOLD, energy_distance, medoids
from dap.choosing.features import LEAST, Drawn, Seen, draw, see
from dap.choosing.layers import MOST, Curve, compared, curve
from dap.data.bank import BankOptions, FeatureBank
from dap.data.clusters import herded
from dap.data.pooling import pooled
from dap.kernels import Linear
from dap.refining import time_of


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen_of(blind, labels, told=None):
    labels = torch.tensor(labels)
    held = torch.arange(len(labels)) % 2 == 1
    drawn = Drawn(torch.zeros(len(labels), 1, 1, 1), tuple(f"c{n}" for n in labels.tolist()), labels, held)
    return Seen(drawn, blind, told or {})


def noisy(strength, seed=0):
    """Three classes of 20 images. "knows" carries the class and the image; the layer "noise" carries nothing."""
    labels = [n for n in range(3) for _ in range(20)]
    content = 2 * random(60, 12, seed=seed)
    means = random(3, 12, seed=seed + 1)[labels]
    layers = {
        "knows": strength * means + content,
        "knows too": (strength * means + content) @ random(12, 12, seed=seed + 2),
        "noise": random(60, 12, seed=seed + 3),
    }
    return seen_of(layers, labels, layers)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prefers_a_layer_that_knows_the_images(name):
    seen = noisy(3.0)
    assert CRITERIA[name](seen, "knows") > CRITERIA[name](seen, "noise") + 0.05


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_the_same_in_turned_features(name):
    """Only distances and angles count, so no criterion depends on how a layer's channels are numbered or turned."""
    seen = noisy(2.0)
    turn = torch.linalg.qr(random(12, 12, seed=9).double())[0].float()
    turned = {**seen.blind, "knows": seen.blind["knows"] @ turn}
    assert CRITERIA[name](seen_of(turned, seen.drawn.labels.tolist(), turned), "knows") == pytest.approx(
        CRITERIA[name](seen, "knows"), abs=1e-4
    )


@pytest.mark.parametrize("name", sorted(CRITERIA.keys() - TOLD))
def test_one_class_says_nothing_of_classes(name):
    assert math.isnan(CRITERIA[name](seen_of({"a": random(8, 3)}, [0] * 8), "a"))


def test_transfer_needs_another_layer_and_no_other_class():
    features = {"a": random(20, 4), "b": random(20, 4, seed=1)}
    assert math.isfinite(CRITERIA["transfer"](seen_of({}, [0] * 20, features), "a"))
    assert math.isnan(CRITERIA["transfer"](seen_of({}, [0] * 20, {"a": features["a"]}), "a"))


def test_the_nearest_images_by_trying_all_pairs():
    seen = noisy(1.0)
    x, labels, held = seen.blind["knows"], seen.drawn.labels, seen.drawn.held
    alone = right = 0
    for i in range(60):
        order = sorted((j for j in range(60) if j != i), key=lambda j, i=i: (x[i] - x[j]).norm().item())
        alone += int(labels[order[0]] == labels[i])
        if held[i]:
            votes = labels[[j for j in order if not held[j]][:5]].bincount(minlength=3)
            right += int(votes.argmax() == labels[i])
    assert CRITERIA["leave-one-out"](seen, "knows") == pytest.approx(alone / 60)
    assert CRITERIA["neighbours"](seen, "knows") == pytest.approx(right / 30)


def test_alignment_is_that_of_centred_kernel_matrices():
    seen = noisy(1.0)
    x, n = seen.blind["knows"].double().numpy(), 60
    h = np.eye(n) - 1 / n
    k = h @ x @ x.T @ h
    y = np.eye(3)[seen.drawn.labels.numpy()]
    t = h @ y @ y.T @ h
    wanted = (k * t).sum() / (np.linalg.norm(k) * np.linalg.norm(t))
    assert CRITERIA["alignment"](seen, "knows") == pytest.approx(wanted)


def test_a_probe_is_ridge_regression_in_closed_form(monkeypatch):
    seen = noisy(1.0)
    labels, held = seen.drawn.labels.numpy(), seen.drawn.held.numpy()
    x, y = seen.blind["knows"].double().numpy(), 2 * np.eye(3)[labels] - 1
    mean, target = x[~held].mean(0), y[~held].mean(0)
    a = x[~held] - mean
    weights = np.linalg.solve(a.T @ a + 7.0 * np.eye(12), a.T @ (y[~held] - target))
    said = ((x[held] - mean) @ weights + target).argmax(1)
    monkeypatch.setattr(criteria.np, "logspace", lambda *of: np.array([7.0]))
    assert CRITERIA["probe"](seen, "knows") == pytest.approx((said == labels[held]).mean())


def test_the_energy_distance_by_its_sums_and_by_the_guidance_s_kernel():
    x, y = random(4, 3), random(5, 3, seed=1)
    mean = lambda a, b: np.mean([(p - q).norm().item() for p in a for q in b])  # noqa: E731
    assert energy_distance(x, y) == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), abs=1e-5)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert Linear().distance(x, y).mean().item() == pytest.approx(mean(x, y), abs=1e-5)


def test_picks_are_different_images():
    points = random(20, 4)
    rows = herded(points, points.mean(0), 6)
    assert len(set(rows)) == 6
    best = min(range(20), key=lambda i: (points[i] - points.mean(0)).norm().item())
    assert rows[0] == best
    again = medoids(points, 6, seed=1)
    assert again == medoids(points, 6, seed=1) and len(set(again)) == len(again) <= 6


def test_halves_share_no_image_and_few_images_are_refused(source, backbone):
    drawn = draw(source, backbone)
    assert drawn.held.sum() == 18 and len(drawn.latents) == 36 and drawn.chance == pytest.approx(1 / 3)
    flat = drawn.latents.flatten(1)
    assert torch.cdist(flat[drawn.held], flat[~drawn.held]).min() > 1e-3
    assert torch.equal(draw(source, backbone).latents, drawn.latents)

    class Few:
        class_names = ("red",)
        count = staticmethod(lambda label: LEAST - 1)

    with pytest.raises(DapError, match=r"Class 'red' has 3 images, and a layer is chosen by at least 4"):
        draw(Few(), backbone)  # pyright: ignore[reportArgumentType]


def test_features_are_those_of_the_backbone_and_know_the_class_only_where_told(source, backbone):
    drawn = draw(source, backbone)
    t = time_of(backbone.schedule, 0.2)
    seen = see(backbone, drawn, backbone.layers, t, pool="2x2", normalise="none")
    other = Drawn(drawn.latents, tuple(reversed(drawn.names)), drawn.labels, drawn.held)
    turned = see(backbone, other, backbone.layers, t, pool="2x2", normalise="none")
    for layer in backbone.layers:
        assert torch.equal(seen.blind[layer], turned.blind[layer])
        assert not torch.equal(seen.told[layer], turned.told[layer])
    clean = see(backbone, drawn, ["1"], 0, pool="2x2", normalise="none")
    alpha, sigma = backbone.schedule.level(0)
    plain = pooled(backbone.tap(alpha * drawn.latents, 0, backbone.condition(drawn.names), "1"), "2x2").flatten(1)
    assert (clean.told["1"] - plain).abs().max() < 20 * sigma  # as in the bank, but for a little noise
    assert see(backbone, drawn, ["1"], t, told=False).told == {}


def test_channels_are_measured_by_images_that_are_not_held_out(source, backbone):
    drawn = draw(source, backbone)
    x = see(backbone, drawn, ["1"], 10, pool="2x2").blind["1"].unflatten(1, (4, -1))
    kept = x[~drawn.held]
    assert kept.mean(0).abs().max() < 1e-4
    assert see(backbone, drawn, ["1"], 10, normalise="l2").blind["1"].norm(dim=1).sub(1).abs().max() < 1e-4


@pytest.mark.parametrize("pool", ["none", "mean", "2x2"])
def test_pooling_is_that_of_the_bank(pool, source, backbone):
    bank = FeatureBank(source, backbone, BankOptions(layer="1", pool=pool), ipc=1)
    features = random(2, 4, 16)
    assert torch.equal(bank.transform(features, 0, 5), pooled(features, pool).flatten(1))
    assert torch.equal(pooled(random(2, 5, 3), "2x2", odd="mean"), random(2, 5, 3).mean(1, keepdim=True))


def test_a_curve_is_the_mean_over_noise_levels_and_the_same_each_time(source, backbone):
    told = []
    names = tuple(CRITERIA)
    found = curve(backbone, source, names, times=(0.1, 0.4), tell=lambda what, done, total: told.append((done, total)))
    assert found == curve(backbone, source, names, times=(0.1, 0.4))
    assert told[-1] == (36 * 2 * 2, 36 * 2 * 2)
    assert set(found.scores) == set(CRITERIA) and found.layers == backbone.layers
    each = [curve(backbone, source, names, times=(t,)) for t in (0.1, 0.4)]
    for name in CRITERIA:
        mean = [(a + b) / 2 for a, b in zip(each[0].scores[name], each[1].scores[name], strict=True)]
        assert found.scores[name] == pytest.approx(mean)


def test_the_best_layer_and_a_weak_one():
    def of(probe, criterion="probe", chance=0.1, held=100):
        return Curve(("a", "b", "c"), {criterion: probe}, (0.1,), 200, held, chance)

    assert of((0.2, 0.5, 0.5)).best("probe") == "b"
    assert of((math.nan, 0.1, 0.3)).best("probe") == "c"
    assert of((math.nan,) * 3).best("probe") == "b"
    assert of((0.1, 0.15, 0.12)).weak() == 0.15  # a gain of 6 % of what there is to gain
    assert of((0.1, 0.5, 0.12)).weak() is None
    assert of((0.1, 0.5, 0.12), held=4, chance=0.34).weak() == 0.5  # four images prove nothing
    assert of((0.1, 0.2, 0.3), "transfer").weak() is None and of((math.nan,) * 3).weak() is None


def test_layers_of_a_deep_backbone_are_spread_over_its_depth(backbone):
    class Deep:
        layers = tuple(map(str, range(28)))

    found = compared(Deep())  # pyright: ignore[reportArgumentType]
    assert len(set(found)) == MOST and found[0] == "0" and found[-1] == "27"
    assert compared(backbone) == backbone.layers
