"""Measures against slow loops that follow the definitions, and the reference network whose features they use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import dap.starter.reference
from dap.base.errors import DapError
from dap.evaluation.measures import distributions, measures
from dap.evaluation.training.loading import load_trained, save_classifier
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.trained import train_on_tensors
from dap.kernels import RBF, parse


def cloud(n: int, dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.sum((a - b) ** 2)))


def slow_prdc(synthetic: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    few = min(k, len(synthetic) - 1)
    balls = [radius(real, i, k) for i in range(len(real))]
    synthetic_balls = [radius(synthetic, j, few) for j in range(len(synthetic))]
    precision = sum(any(distance(s, r) < ball for r, ball in zip(real, balls, strict=True)) for s in synthetic)
    density = sum(distance(s, r) < ball for s in synthetic for r, ball in zip(real, balls, strict=True))
    coverage = sum(any(distance(s, r) < ball for s in synthetic) for r, ball in zip(real, balls, strict=True))
    recall = sum(any(distance(s, r) < ball for s, ball in zip(synthetic, synthetic_balls, strict=True)) for r in real)
    return {
        "precision": precision / len(synthetic),
        "density": density / (k * len(synthetic)),
        "coverage": coverage / len(real),
        "recall": recall / len(real),
    }


@pytest.mark.parametrize("count", [2, 4, 15])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_prdc_follows_its_definition(count, chunk, monkeypatch):
    monkeypatch.setattr(measures, "CHUNK", chunk)
    real = cloud(30)
    copies, others = real[: count // 2], cloud(count - count // 2, seed=1) * 1.3  # copies lie on other balls' rims
    synthetic = torch.cat([copies, others])
    expected = slow_prdc(synthetic.double().numpy(), real.double().numpy(), 5)
    assert measures.prdc(synthetic, real, 5) == pytest.approx(expected)


def test_prdc_at_the_extremes():
    real = cloud(20)
    found = measures.prdc(real, real)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] == pytest.approx(1)  # k - 1 neighbours strictly inside, and the centre itself
    assert measures.prdc(real + 100, real) == {"precision": 0, "density": 0, "coverage": 0, "recall": 0}
    assert "recall" not in measures.prdc(real[:1], real)


def test_distances_follow_their_definitions(monkeypatch):
    synthetic, real = cloud(6, seed=1), cloud(25)
    table = np.array([[distance(s, r) for r in real.double().numpy()] for s in synthetic.double().numpy()])
    pairs = [distance(a, b) for i, a in enumerate(synthetic.double().numpy()) for b in synthetic.double().numpy()[:i]]
    for chunk in (4, 1000):
        monkeypatch.setattr(measures, "CHUNK", chunk)
        assert measures.representativeness(synthetic, real) == pytest.approx(table.mean())
        assert measures.nearest(synthetic, real) == pytest.approx(table.min(1).mean())
    assert measures.diversity(synthetic) == pytest.approx(np.mean(pairs))
    assert measures.nearest(real[:5], real) == 0
    assert measures.diversity(real[:1].expand(4, -1)) == 0


def test_close_points_far_from_the_origin_keep_their_distance():
    point = torch.full((1, 1000), 100.0)
    assert measures.nearest(point + 1e-3, point) == pytest.approx(float(point[0, 0] + 1e-3 - 100) * 1000**0.5, rel=1e-6)


@pytest.mark.parametrize("kernel", [None, lambda x, y: x @ y.T, lambda x, y: (-torch.cdist(x, y)).exp()])
def test_mmd2_follows_its_definition(kernel, monkeypatch):
    monkeypatch.setattr(distributions, "CHUNK", 4)
    s, r = cloud(5, seed=1), cloud(9)

    def k(a: Tensor, b: Tensor) -> float:
        if kernel is None:
            return float((a.double() @ b.double() / 4 + 1) ** 3)
        return float(kernel(a.double()[None], b.double()[None]))

    within_s = sum(k(s[i], s[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_r = sum(k(r[i], r[j]) for i in range(9) for j in range(9) if i != j) / 72
    across = sum(k(a, b) for a in s for b in r) / 45
    assert measures.mmd2(s, r, kernel) == pytest.approx(within_s + within_r - 2 * across, rel=1e-6)


def test_mmd2_is_near_zero_for_the_same_distribution_and_not_for_another():
    assert abs(measures.mmd2(cloud(400, seed=1), cloud(400))) < 0.1
    assert measures.mmd2(cloud(400, seed=1) + 1, cloud(400)) > 1


def test_minimax_measures_follow_their_definitions():
    s, r = cloud(5, seed=1), cloud(9)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    closest = min(max(cosine(a, b) for b in r) for a in s)
    assert measures.minimax_representativeness(s, r) == pytest.approx(closest, rel=1e-5)
    widest = 1 - max(cosine(s[i], s[j]) for i in range(5) for j in range(i))
    assert measures.minimax_diversity(s) == pytest.approx(widest, rel=1e-5)
    assert measures.minimax_diversity(3 * s) == pytest.approx(measures.minimax_diversity(s))


@pytest.mark.parametrize("change", ["order", "rotation", "shift", "scale"])
def test_invariances(change):
    s, r = cloud(8, seed=1), cloud(30)
    turn = torch.linalg.qr(cloud(4, seed=2).double()).Q.float()
    moves: dict[str, Callable[[Tensor], Tensor]] = {
        "order": lambda x: x.flip(0),
        "rotation": lambda x: x @ turn,
        "shift": lambda x: x + 3,
        "scale": lambda x: x * 2,
    }
    move, factor = moves[change], 2 if change == "scale" else 1
    assert measures.prdc(move(s), move(r)) == pytest.approx(measures.prdc(s, r))
    for of in (measures.representativeness, measures.nearest):
        assert of(move(s), move(r)) == pytest.approx(factor * of(s, r), rel=1e-5)
    assert measures.diversity(move(s)) == pytest.approx(factor * measures.diversity(s), rel=1e-5)


def test_mgd3_s_pair_follows_its_definition():
    synthetic, real = cloud(6, seed=1), cloud(80)
    table = np.array([[distance(s, r) for r in real.double().numpy()] for s in synthetic.double().numpy()])
    assert measures.mgd3_representativeness(synthetic, real) == pytest.approx(np.sort(table)[:, :50].mean())
    assert measures.mgd3_representativeness(synthetic, real[:20]) == pytest.approx(table[:, :20].mean())
    pairs = [distance(a, b) for i, a in enumerate(synthetic.double().numpy()) for b in synthetic.double().numpy()[:i]]
    assert measures.mgd3_diversity(synthetic) == pytest.approx(min(pairs))
    assert measures.mgd3_diversity(torch.cat([synthetic, synthetic[:1]])) == 0


def test_a_joint_map_keeps_apart_what_is_apart():
    near, far = cloud(10, seed=1), cloud(10, seed=2) + 50
    placed, reals = measures.joint_map(torch.cat([near, far]), cloud(60))
    assert placed.shape == (20, 2) and reals.shape == (60, 2)
    close = [measures.mgd3_representativeness(part, reals) for part in (placed[:10], placed[10:])]
    assert close[0] < close[1]
    assert torch.equal(measures.joint_map(torch.cat([near, far]), cloud(60))[0], placed)


@pytest.mark.parametrize("name", ["linear", "rbf", "polynomial", "laplacian"])
def test_representativeness_under_a_kernel_is_its_distance(name):
    s, r = cloud(4, seed=1).double(), cloud(9).double()
    kernel = parse(name).fit(r)
    expected = [
        max(float(kernel(a[None], a[None]) + kernel(b[None], b[None]) - 2 * kernel(a[None], b[None])), 0) ** 0.5
        for a in s
        for b in r
    ]
    assert measures.representativeness(s, r, kernel) == pytest.approx(np.mean(expected), rel=1e-6)
    if name == "linear":
        assert measures.representativeness(s, r) == pytest.approx(measures.representativeness(s, r, kernel))


# A whole set


def test_a_comparison_says_what_it_leaves_out():
    images, labels = labelled(4, 2, seed=1)
    real, real_labels = labelled(30, 2, seed=0)
    few = labels.clone()
    few[[2, 4, 6]] = 1
    narrow = flat(images)[:, :3], flat(real)[:, :3]
    found = measures.compare((narrow[0], few), (narrow[1], real_labels), 2, distances={"rbf": RBF()})
    assert few.bincount().tolist() == [1, 7]
    assert "diversity" in found.by_class[1] and "diversity" not in found.by_class[0] | found.values
    assert found.notes["diversity"] == "a class has a single image"
    assert found.values["frechet"] > 0 and "frechet" not in found.notes
    assert found.values["representativeness_rbf"] == pytest.approx(
        np.mean([row["representativeness_rbf"] for row in found.by_class])
    )
    wide = measures.compare((flat(images), labels), (flat(real), real_labels), 2)
    assert "48 features needs more than 48 synthetic images, not 8" in wide.notes["frechet"]
    assert "frechet" not in wide.values and all(np.isfinite(value) for value in wide.values.values())


def labelled(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(n * classes, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(classes).repeat(n)
    return images * 0.5 + labels[:, None, None, None] * 0.1, labels


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_measure_averages_over_classes():
    synthetic, real = labelled(4, 3, seed=1), labelled(12, 3, seed=0)
    found = measures.measure(synthetic, real, flat, 3, k=3)
    single = []
    for label in range(3):
        s, r = flat(synthetic[0][synthetic[1] == label]), flat(real[0][real[1] == label])
        single.append(
            {
                **measures.prdc(s, r, 3),
                **{name: getattr(measures, name)(s, r) for name in ("representativeness", "nearest", "mmd2")},
                **{name: getattr(measures, name)(s) for name in ("diversity", "minimax_diversity", "mgd3_diversity")},
                "minimax_representativeness": measures.minimax_representativeness(s, r),
                "mgd3_representativeness": measures.mgd3_representativeness(s, r),
            }
        )
    kid, kid_std = distributions.kid(flat(synthetic[0]), flat(real[0]), subset_size=12)
    expected = {name: np.mean([row[name] for row in single]) for name in single[0]}
    assert found == pytest.approx({**expected, "kid": kid, "kid_std": kid_std})


def test_measure_with_one_image_a_class_leaves_out_what_needs_two():
    alone = measures.measure(labelled(1, 3, seed=1), labelled(12, 3, seed=0), flat, 3)
    pairs = measures.measure(labelled(2, 3, seed=1), labelled(12, 3, seed=0), flat, 3)
    assert set(pairs) - set(alone) == {"diversity", "minimax_diversity", "mgd3_diversity", "recall", "mmd2"}
    assert {"representativeness", "nearest", "precision", "density", "coverage"} < set(alone)


@pytest.mark.parametrize(
    ("synthetic", "real", "features", "message"),
    [
        ((torch.rand(2, 3, 4, 4), torch.tensor([0, 0])), None, flat, "The synthetic set has no image of class 1"),
        (None, labelled(5, 2, seed=0), flat, "Class 0 has 5 real images; 5 neighbours need at least 6"),
        (None, None, lambda x: x, r"gave \(8, 3, 4, 4\) for 8 images"),
        (None, None, lambda x: flat(x) / 0, "values that are not finite"),
        ((torch.rand(2, 3, 4, 4), torch.tensor([0, 2])), None, flat, "labels 0 to 2, but 2 classes"),
    ],
)
def test_measure_refuses_what_it_cannot_judge(synthetic, real, features, message):
    with pytest.raises(DapError, match=message):
        measures.measure(synthetic or labelled(4, 2, seed=1), real or labelled(12, 2, seed=0), features, 2)


# The reference network


def test_a_reference_network_is_trained_saved_and_read_back(tmp_path):
    protocol = load_protocol("reference", epochs=2, looks=2, size=8, width=4, network="convnet2", mean=[0.5], std=[0.5])
    train, test = labelled(10, 3, seed=0), labelled(5, 3, seed=1)
    reference, trial = train_on_tensors(train, test, protocol, 3, seed=1)
    save_classifier(reference, tmp_path / "deep" / "net.safetensors")
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["net.safetensors"]
    again = load_trained(tmp_path / "deep" / "net.safetensors")
    assert (again.accuracy, again.known, again.channels, again.protocol) == (trial.last, 3, 3, protocol)
    assert torch.equal(again(test[0]), reference(test[0]))
    assert again(test[0]).shape == (15, 4 * 2 * 2)
    right = (again.predict(test[0]) == test[1]).float().mean()
    assert right.item() == pytest.approx(trial.last)
    found = measures.measure(test, train, again, 3)
    assert found["nearest"] > 0


def test_a_file_that_is_no_reference_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No classifier .*missing"):
        load_trained(tmp_path / "missing.safetensors")
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(DapError, match=r"net.safetensors is not a classifier of dap train-teacher, or is damaged"):
        load_trained(file)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(DapError, match="is not a classifier of dap train-teacher"):
        load_trained(file)


def test_the_starters_script_writes_weights_and_their_history(tmp_path, monkeypatch, capsys):
    def few(split: str) -> tuple[Tensor, Tensor]:
        images, labels = labelled(2, 10, seed=len(split))
        return images.clamp(0, 1), labels

    monkeypatch.setattr(dap.starter.reference, "real_images", few)
    monkeypatch.setattr(sys, "argv", ["reference", "--out", str(tmp_path), "--epochs", "1", "--device", "cpu"])
    dap.starter.reference.main()
    reference = load_trained(tmp_path / "convnet3.safetensors")
    written = json.loads((tmp_path / "training.json").read_text())
    assert written["trial"]["last"] == reference.accuracy
    assert written["protocol"]["epochs"] == 1
    assert json.loads(capsys.readouterr().out) == written["trial"]


def test_the_starters_images_are_as_the_protocol_expects_them():
    images, labels = dap.starter.reference.real_images("test")
    assert images.shape == (10_000, 3, 32, 32)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [1000] * 10
    protocol = load_protocol("small-hard")
    inner = images[:, 0, 2:30, 2:30]
    assert inner.mean().item() == pytest.approx(protocol.mean[0], abs=2e-3)
    assert inner.std().item() == pytest.approx(protocol.std[0], abs=2e-3)


def test_what_is_kept_of_the_real_images_changes_no_value(monkeypatch):
    """The second set held against the same real ones measures as alone, and no mean over real images is computed anew."""
    real = torch.cat([cloud(12, seed=1), cloud(12, seed=2) + 1]), torch.arange(2).repeat_interleave(12)
    sets = [
        (torch.cat([cloud(4, seed=n), cloud(4, seed=n + 9) + 1]), torch.arange(2).repeat_interleave(4)) for n in (3, 4)
    ]
    kept: dict = {}
    options = {"distances": {"rbf": RBF()}}
    first = measures.compare(sets[0], real, 2, kept=kept, **options)
    assert first == measures.compare(sets[0], real, 2, **options)
    asked = []
    plain = distributions.within

    def watched(x, kernel=None):
        asked.append(x)
        return plain(x, kernel)

    for module in (measures, distributions):
        monkeypatch.setattr(module, "within", watched)
    second = measures.compare(sets[1], real, 2, kept=kept, **options)
    assert second != first and {len(x) for x in asked} == {4, 8}, "of the distilled images alone"
    assert sum(len(x) == 8 for x in asked) == 1, "the whole set once, not once a draw"
    monkeypatch.undo()
    assert second == measures.compare(sets[1], real, 2, **options)
