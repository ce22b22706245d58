"""What is measured of clips: features averaged over the frames, and near-copies of real clips."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import clips
from dap.base.errors import DapError
from dap.data.real.clips.moving import encode_clip
from dap.data.real.clips.times import middles
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.measures.embedding import embedding, over_frames
from dap.evaluation.measures.inspection import Inspector
from dap.evaluation.measures.neighbours import Search
from dap.evaluation.measures.own import own_measures
from dap.evaluation.measures.pictures import SEEN, Pictures
from dap.recipe import Data
from dap.starter import REFERENCE
from dap.verbs.judges import loader
from dap.verbs.options import Judging, Machine
from dap.workshop import Workshop

FRAMES, SIZE = 10, 16


def textured(seed):
    """A clip of its own: smooth noise that drifts, (FRAMES, SIZE, SIZE, 3)."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    wide = np.asarray(small.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC))
    speed = random.integers(-1, 2, 2)
    return np.stack([np.roll(wide, tuple(speed * t), (0, 1))[:SIZE, :SIZE] for t in range(FRAMES)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    for label, name in enumerate("ab"):
        (root / name).mkdir()
        for i in range(20):
            (root / name / f"{i:02d}.png").write_bytes(encode_clip(textured((label, i))))
    return open_source(root, "train", size=SIZE, frames=FRAMES)


@pytest.fixture(scope="module")
def features():
    return over_frames(embedding("clips", SIZE))


def folded(clips):
    return clips.flatten(1, 2)


def test_features_of_a_clip_are_the_mean_of_its_frames(source, features):
    name, of = features
    assert name == "ConvNet-3 with random weights, averaged over the frames"
    _, of_images = embedding("clips", SIZE)
    shown = source.images(0, [0, 1])
    frames = torch.stack([of_images(shown[:, :, t]) for t in range(FRAMES)])
    torch.testing.assert_close(of(folded(shown)), frames.mean(0))
    torch.testing.assert_close(of(folded(shown.flip(2))), frames.mean(0))  # they do not see the order
    assert (of(folded(shown))[0] - of(folded(shown))[1]).norm() > 0.1


def test_pictures_of_a_clip_are_those_of_frames_over_all_its_time(source, features):
    reals = Pictures(source, features[1])
    assert reals.pictures[0].shape == (20, 3 * SEEN, SIZE, SIZE) and reals.searched == 40
    shown = source.images(1, [4])
    wanted = shown[:, :, middles(range(FRAMES), FRAMES, SEEN)].mul(255).round().byte()
    assert torch.equal(reals.pictures[1][4:5].unflatten(1, (3, -1)), wanted)
    assert torch.equal(reals.images([(1, 4)]), folded(shown))


def test_copies_of_real_clips_are_found_and_fresh_clips_are_not(source, features):
    search = Search(Pictures(source, features[1]))
    real = source.images(0, [3, 8])
    generator = torch.Generator().manual_seed(0)
    noisy = (real + 0.02 * torch.randn(real.shape, generator=generator)).clamp(0, 1)
    shifted = real.roll(1, -1)
    shifted[..., 0] = real[..., 0]
    fresh = torch.from_numpy(np.stack([textured((9, i)) for i in range(6)])).permute(0, 4, 1, 2, 3) / 255
    still = real[:, :, :1].expand(-1, -1, FRAMES, -1, -1)  # the first frame, standing still
    for copies in (real, real.flip(-1), noisy, shifted):
        found = search(folded(copies), torch.zeros(2, dtype=torch.int64), features[1](folded(copies)).double())
        assert [(one.original.label, one.original.index) for one in found] == [(0, 3), (0, 8)]
    wrong = search(folded(real), torch.ones(2, dtype=torch.int64), features[1](folded(real)).double())
    assert [one.original.label for one in wrong] == [0, 0]  # a copy under a wrong label
    labels = torch.arange(6) % 2
    assert not [one for one in search(folded(fresh), labels, features[1](folded(fresh)).double()) if one.original]
    moved = search(folded(still), torch.zeros(2, dtype=torch.int64), features[1](folded(still)).double())
    assert all(one.pixel.distance > 0.02 for one in moved)  # other frames count, not the first one alone


def test_a_set_of_clips_is_inspected(source, features, tmp_path):
    recipe = {"method": "random", "ipc": 1, "seed": 0, "data": {"path": "x", "size": SIZE, "frames": FRAMES}}
    made = DistilledSet.create(tmp_path / "set", ["a", "b"], 1, recipe)
    made.add(0, 0, source.images(0, [5])[0], seed=0)
    made.add(1, 0, torch.from_numpy(textured((7, 7))).permute(3, 0, 1, 2) / 255, seed=0)
    (tmp_path / "mine.py").write_text(
        "def shapes(subject):\n    'How many frames.'\n"
        "    assert subject.real.frames == subject.images.shape[2]\n"
        "    yield 'frames_of_mine', subject.images.shape[2]\n"
        "    yield 'widths', len(subject.features(subject.images)[0])\n"
    )
    own = own_measures([f"{tmp_path / 'mine.py'}:shapes"])
    images, labels = made.tensors(dtype=torch.uint8)
    test = (folded(source.images(0, [0, 1, 2])), torch.tensor([0, 0, 1]))
    Inspector(source, test, features, own=own)(made, folded(images), labels, "key")
    found = json.loads((made.results / "images.json").read_text())
    assert [one["copy"] for one in found["images"]] == [True, False] and found["copies"] == 1
    assert found["images"][0]["original"]["key"] == "a/05.png"
    assert found["real"] == {"test": 3, "test_in_train": 3, "set": 2, "set_in_test": 0}
    with Image.open(made.results / found["images"][0]["original"]["file"]) as shown:
        assert shown.n_frames == FRAMES and shown.size == (SIZE, SIZE)
    measures = json.loads((made.results / "measures.json").read_text())
    assert measures["nearest"] >= 0 and "label_agreement" not in measures
    ((_, mine),) = measures["own"].items()
    assert mine["values"] == {"frames_of_mine": FRAMES, "widths": 512}


def test_a_reference_of_images_does_not_measure_clips(tmp_path):
    clips.folder(tmp_path / "data", train=1, test=1)
    judging = Judging(protocol="clips-quick", reference=REFERENCE)
    with pytest.raises(DapError, match="is a network of images, and .*data is read as clips; leave out --reference"):
        loader(judging, Machine(), Workshop())(Data(path=str(tmp_path / "data"), size=16, frames=4))
