"""Typical real images: the ridge regression in closed form, the half that has not seen an image, and the source of those kept."""

from __future__ import annotations

import shutil

import pytest
import torch
from sklearn.linear_model import Ridge

from dap.backbones import load
from dap.base.store import Store
from dap.data import typical
from dap.data.real.sources import open_source
from dap.data.typical import Typical, margins_of, ridge
from dap.evaluation.training.loading import load_trained
from dap.starter import REFERENCE


def features(classes=3, n=20, d=5, seed=0):
    gen = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, 1, d, generator=gen)
    return centres + torch.randn(classes, n, d, generator=gen) * torch.linspace(0.5, 3, d)


@pytest.mark.parametrize("half", [0, 1])
def test_the_regression_is_that_of_scikit_learn(half):
    """On standardised features, with the penalty times the number of images, and only on one half of the images."""
    x, penalty = features(), 0.3
    judges = ridge(lambda label: x[label], 3, penalty)
    seen = x[:, half::2].flatten(0, 1).double()
    y = torch.eye(3).double().repeat_interleave(10, 0) * 2 - 1
    mean, std = seen.mean(0), seen.std(0, correction=0)
    independent = Ridge(alpha=penalty * len(seen)).fit(((seen - mean) / std).numpy(), y.numpy())
    new = features(seed=1).flatten(0, 1)
    expected = torch.from_numpy(independent.predict(((new.double() - mean) / std).numpy()))
    said = new @ judges[half, :-1] + judges[half, -1]
    torch.testing.assert_close(said.double(), expected, atol=1e-4, rtol=1e-4)


def test_classes_of_different_sizes_have_the_regression_of_scikit_learn():
    x = [features()[0], features()[1][:6], features()[2][:11]]
    judges = ridge(lambda label: x[label], 3, 0.1)
    seen = torch.cat([one[::2] for one in x]).double()
    y = torch.eye(3).double()[torch.tensor([0] * 10 + [1] * 3 + [2] * 6)] * 2 - 1
    mean, std = seen.mean(0), seen.std(0, correction=0)
    independent = Ridge(alpha=0.1 * len(seen)).fit(((seen - mean) / std).numpy(), y.numpy())
    said = seen.float() @ judges[0, :-1] + judges[0, -1]
    torch.testing.assert_close(
        said.double(), torch.from_numpy(independent.predict(((seen - mean) / std).numpy())), atol=1e-4, rtol=1e-4
    )


def test_no_image_is_judged_by_a_regression_that_has_seen_it():
    """The regressions change with an image; the one that judges this image does not."""
    x = features()
    before = ridge(x.__getitem__, 3)
    for place in (4, 7):
        other = x.clone()
        other[1, place] += 50
        after = ridge(other.__getitem__, 3)
        changed = [not torch.equal(before[half], after[half]) for half in (0, 1)]
        assert changed == [place % 2 == 0, place % 2 == 1]
    margins = margins_of(x[1], 1, before)
    for place in (4, 7):
        said = x[1, place] @ before[1 - place % 2, :-1] + before[1 - place % 2, -1]
        torch.testing.assert_close(margins[place], said[1] - max(said[0], said[2]))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(typical, "CANDIDATES", 40)


CLOTHES = ("T-shirt", "Pullover", "Shirt")


def test_a_trained_classifier_knows_the_typical_images_better_than_the_others(few):
    """The reference classifier was trained on real images and never saw the backbone's features."""
    whole = open_source("fashion-mnist", "train", classes=CLOTHES, size=32)
    kept = Typical(whole, 0.5, load("starter"), "4", seed=3)
    classifier = load_trained(REFERENCE)
    right = {True: 0, False: 0}
    for label in range(3):
        candidates = kept._order(label)
        assert [kept.count(label), len(candidates)] == [20, 40]
        for chosen, rows in ((True, candidates[:20]), (False, candidates[20:])):
            said = classifier.logits(whole.images(label, rows))
            own = classifier.class_names.index(CLOTHES[label])
            right[chosen] += int((said.argmax(1) == own).sum())
    assert right[True] > right[False] + 5


def test_the_source_of_typical_images_is_a_part_of_the_whole(few, source, backbone):
    kept = Typical(source, 0.5, backbone, "1", seed=1)
    for label in range(len(source.class_names)):
        assert kept.count(label) == -(-source.count(label) // 2)
        rows = kept._rows(label)
        assert len(set(rows)) == len(rows) == kept.count(label)
        torch.testing.assert_close(kept.images(label, range(len(rows))), source.images(label, rows))
        assert kept.keys(label, [0]) == source.keys(label, rows[:1])
    assert kept.fingerprint() != source.fingerprint()
    assert kept.fingerprint() != Typical(source, 0.6, backbone, "1", seed=1).fingerprint()


def test_a_share_of_one_keeps_all_and_enough_images_are_left(few, source, backbone):
    assert [Typical(source, 1.0, backbone, "1").count(0), source.count(0)] == [12, 12]
    assert Typical(source, 0.1, backbone, "1", least=10).count(0) == 10
    assert Typical(source, 0.1, backbone, "1", least=50).count(0) == 12


def test_the_same_images_come_out_of_the_store(few, source, backbone, tmp_path):
    first = Typical(source, 0.5, backbone, "1", seed=1, store=Store(tmp_path))
    rows = [first._rows(label) for label in range(2)]
    told: list[str] = []
    again = Typical(source, 0.5, backbone, "1", seed=1, store=Store(tmp_path), tell=lambda what, *_: told.append(what))
    assert [again._rows(label) for label in range(2)] == rows
    assert not told, "nothing is passed through the backbone again"
    other = Typical(source, 0.5, backbone, "1", seed=2, store=Store(tmp_path))
    assert [other._rows(label) for label in range(2)] != rows


def test_images_that_cannot_be_decoded_are_never_kept_before_others(few, colours, backbone, tmp_path):
    folder = shutil.copytree(colours, tmp_path / "colours")
    for file in sorted((folder / "train" / "green").iterdir())[:3]:
        file.write_bytes(b"no image")
    whole = open_source(folder, "train", size=8, max_bad_fraction=0.5)
    kept = Typical(whole, 0.75, backbone, "1")
    label = whole.class_names.index("green")
    good, images = kept.readable(label, range(kept.count(label)))
    assert len(good) == len(images) == kept.count(label) == 9


def test_one_class_has_nothing_to_be_told_from(few, colours, backbone):
    alone = open_source(colours, "train", size=8, classes=["green"])
    kept = Typical(alone, 0.5, backbone, "1")
    assert kept.count(0) == 6 and kept._rows(0) == kept._candidates(0)[:6]
