"""Clips: how files become them, sources of them, sets of them, and what leaves a set."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import clips
from dap.base.errors import DapError
from dap.data.real.clips import times
from dap.data.real.clips.moving import clip_pixels, decode_clip, encode_clip, is_moving, preview
from dap.data.real.clips.times import middles
from dap.data.real.decode import BrokenImage, decode, encode_png, pixels
from dap.data.real.held import Part
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export
from dap.evaluation.labelling import store_labels
from dap.evaluation.training.protocol import load_protocol


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return clips.folder(tmp_path_factory.mktemp("clips"))


def test_the_frames_are_the_middles_of_equal_parts():
    assert middles([0, 1, 2, 3], 4, 4) == [0, 1, 2, 3]
    assert middles([0, 1, 2, 3], 4, 2) == [1, 3]
    assert middles([0, 1, 2, 3], 4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert middles([0], 5, 3) == [0, 0, 0]
    assert middles([0, 10], 11, 4) == [0, 0, 0, 0]  # the second is shown too short
    assert middles([7, 8], 9, 2) == [0, 1]  # a film need not begin at zero


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
@pytest.mark.parametrize("still", [False, True])
def test_a_stored_clip_comes_back_bit_for_bit(frames, still):
    clip = np.random.default_rng(frames).integers(0, 256, (frames, 9, 7, 3), dtype=np.uint8)
    clip[frames // 2 :] = clip[frames // 2]  # frames that stand still become one that is shown longer
    if still:
        clip[:] = clip[0]
    data = encode_clip(clip)
    assert (clip_pixels(data, frames) == clip).all()
    assert (pixels(data) == clip[0]).all()  # who knows no animated PNG sees the first frame
    assert data == encode_clip(clip)
    assert is_moving(data) == (not still and frames > 1)


@pytest.mark.parametrize(
    "kind", [("mp4", "libx264"), ("mp4", "mpeg4"), ("matroska", "ffv1"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")]
)
def test_films_of_every_container_give_their_frames_in_order(kind):
    clip = np.stack([np.full((32, 32, 3), 10 * k, np.uint8) for k in range(20)])
    data = clips.film(clip, *kind)
    for frames in (20, 5):
        found = decode_clip(data, frames, 16)
        wanted = torch.tensor([10.0 * k for k in middles(list(range(20)), 20, frames)]) / 255
        assert found.shape == (3, frames, 16, 16)
        assert (found.mean((0, 2, 3)) - wanted).abs().max() < 4 / 255  # the codecs lose a little


def test_animated_images_follow_their_times_and_lie_on_white():
    clip = np.stack([np.full((8, 8, 3), 50 * k, np.uint8) for k in range(4)])
    for kind in ("GIF", "WEBP", "PNG"):
        data = clips.animated(clip, kind, **({"lossless": True} if kind == "WEBP" else {}))
        assert (decode_clip(data, 4, 8).mean((0, 2, 3)) * 255).round().tolist() == [0, 50, 100, 150]
    slow = clips.animated(clip, "GIF", duration=[700, 100, 100, 100])
    assert (decode_clip(slow, 4, 8).mean((0, 2, 3)) * 255).round().tolist() == [0, 0, 0, 100]
    seen = np.zeros((3, 8, 8, 4), np.uint8)
    seen[1:, :4] = 255  # opaque white above, transparent black below
    assert decode_clip(clips.animated(seen, "PNG"), 3, 8).min() == 1
    still = clips.animated(clip[1:2], "PNG")
    assert torch.equal(decode_clip(still, 3, 8), decode_clip(still, 1, 8).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("frames", [1, 3])
def test_every_frame_is_turned_upright_as_an_image_is(kind, frames):
    seen, exif = np.random.default_rng(0).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 6
    data = clips.animated(seen, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    found = decode_clip(data, frames, 8)
    assert torch.equal(found[:, 0], decode(data, 8))
    wanted = torch.from_numpy(np.rot90(seen, -1, (1, 2)).copy()).permute(3, 0, 1, 2) / 255
    torch.testing.assert_close(found, wanted)


def test_frames_are_made_square_as_images_are():
    wide = np.random.default_rng(0).integers(0, 256, (2, 10, 30, 3), dtype=np.uint8)
    found = decode_clip(encode_clip(wide), 2, 8)
    assert torch.equal(found[:, 1], decode(encode_png(wide[1]), 8))


def test_damaged_files_are_broken_and_say_why():
    film = clips.film(clips.moving(0, 0))
    for data, reason in (
        (b"", "empty"),
        (b"GIF89a", "not an image"),
        (film[: len(film) // 2], "|".join(["pictures", "invalid", "end of file"])),
        (film[:40] + bytes(len(film) - 40), "invalid|pictures"),
        (encode_clip(clips.moving(0, 0))[:300], "truncated|not an image|broken"),
    ):
        with pytest.raises(BrokenImage, match=f"(?i){reason}"):
            decode_clip(data, 4, 8)
    with pytest.raises(DapError, match="at least 1 frame"):
        decode_clip(film, 0, 8)


def test_too_many_frames_are_refused(monkeypatch):
    monkeypatch.setattr(times, "LONGEST", 6)
    for data in (clips.film(clips.moving(0, 0)), clips.animated(clips.moving(0, 0))):
        with pytest.raises(BrokenImage, match="8 frames, more than 6; cut it into clips"):
            decode_clip(data, 4, 8)
    monkeypatch.undo()
    monkeypatch.setattr(times, "ROOM", 1000)
    with pytest.raises(BrokenImage, match="make them smaller"):
        decode_clip(clips.animated(clips.moving(0, 0)), 4, 8)


def test_without_pyav_a_film_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DapError, match=r"pip install 'diffusion-as-priors\[video\]'"):
        decode_clip(b"\0\0\0\x18ftypisom" + bytes(40), 4, 8)
    assert decode_clip(clips.animated(clips.moving(0, 0)), 4, 8).shape == (3, 4, 8, 8)


def test_a_source_of_clips(data):
    source = open_source(data, "train", size=16, frames=5)
    assert source.frames == 5 and source.shape == (3, 5, 16, 16)
    assert source.understood().startswith("3 classes, 18 clips of 5 frames")
    images = source.images(0, [1, 0])
    assert images.shape == (2, 3, 5, 16, 16)
    assert torch.equal(images[1], decode_clip(data / "train" / "Bag" / "0.gif", 5, 16))
    assert source.keys(0, [1]) == ["Bag/1.mp4"]
    whole, labels = source.tensors(dtype=torch.uint8)
    assert whole.shape == (18, 3, 5, 16, 16) and labels.bincount().tolist() == [6, 6, 6]
    assert source.fingerprint() != open_source(data, "train", size=16, frames=4).fingerprint()
    assert source.fingerprint() == open_source(data, "train", size=16, frames=5).fingerprint()
    part = Part(source, "validation", 0.3)
    assert part.images(0, [0]).shape == (1, 3, 5, 16, 16) and part.frames == 5
    assert open_source(data, "test", size=16, frames=5).count(0) == 4
    assert open_source(data, "train", size=16, frames=5, classes=["Shirt"]).class_names == ("Shirt",)


def test_where_clips_lie(data, tmp_path):
    with pytest.raises(DapError, match="no clips found in .*accepted are one folder of clips for each class"):
        open_source(tmp_path, "train", size=8, frames=4)
    with pytest.raises(DapError, match="has no test split, but .*test is beside it; give .* add --split test=../test"):
        open_source(data / "train", "test", size=8, frames=4)
    assert open_source(data / "train", "train", size=8, frames=4).count(0) == 6
    assert open_source(data / "test", "test", size=8, frames=4).count(0) == 4  # its own name says it
    chosen = open_source(data, "train", size=8, frames=4, chosen={"train": "test"})
    assert chosen.count(0) == 4
    with pytest.raises(DapError, match="does not exist"):
        open_source(data, "train", size=8, frames=4, chosen={"train": "nowhere"})
    with pytest.raises(DapError, match="1 to 4,096 frames"):
        open_source(data, "train", size=8, frames=5000)
    with pytest.raises(DapError, match="images and no clips"):
        open_source("fashion-mnist", "train", size=8, frames=4)


def test_a_broken_clip_is_left_out(tmp_path):
    root = clips.folder(tmp_path / "data", train=4, test=1)
    (root / "train" / "Bag" / "0.gif").write_bytes(b"GIF89a")
    source = open_source(root, "train", size=8, frames=3)
    assert len(source.good(0, 3, seed=0)) == 3 and source.bad[0][0] == "Bag/0.gif"


def recipe(**data):
    return {"method": "random", "ipc": 2, "seed": 0, "data": {"path": "x", "size": 9, **data}}


def made_of(path, frames=5):
    made = DistilledSet.create(path, ["a", "b"], 2, recipe(frames=frames))
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (4, 3, frames, 9, 9), generator=generator)
    for i, clip in enumerate(stored):
        made.add(i // 2, i % 2, clip.float() / 255, seed=i)
    return made, stored


def test_a_set_of_clips_gives_back_what_was_put_in(tmp_path):
    made, stored = made_of(tmp_path / "set")
    again = DistilledSet.open(tmp_path / "set")
    assert again.frames == 5 and not again.verify()
    images, labels = again.tensors(dtype=torch.uint8)
    assert torch.equal(images, stored.byte()) and labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(again[3][0], stored[3].float() / 255)
    small, _ = again.tensors(4)
    assert small.shape == (4, 3, 5, 4, 4)
    with Image.open(made.path / "images" / "a" / "00000.png") as image:
        assert image.n_frames == 5
    with pytest.raises(DapError, match="non-finite"):
        made.add(0, 0, torch.full((3, 5, 9, 9), torch.nan))


def test_a_recipe_that_says_nonsense_is_refused(tmp_path):
    made, _ = made_of(tmp_path / "set")
    for said in ("many", True, 0, 10**6):
        (made.path / "recipe.json").write_text(json.dumps(recipe(frames=said)))
        with pytest.raises(DapError, match="no number of frames"):
            DistilledSet.open(made.path)


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "pt"])
def test_clips_leave_a_set_whole(layout, tmp_path):
    made, stored = made_of(tmp_path / "set")
    export(made, tmp_path / "out", layout)
    if layout == "pt":
        held = torch.load(tmp_path / "out" / "images.pt", weights_only=True)
        assert torch.equal(held["images"], stored.byte())
    elif layout == "imagefolder":
        for i, clip in enumerate(stored):
            data = (tmp_path / "out" / "ab"[i // 2] / f"{i % 2:05d}.png").read_bytes()
            assert (clip_pixels(data, 5) == clip.permute(1, 2, 3, 0).numpy()).all()
    assert "animated PNG" in (tmp_path / "out" / "README.md").read_text()


def test_what_knows_images_alone_refuses_clips(tmp_path):
    made, _ = made_of(tmp_path / "set")
    with pytest.raises(DapError, match="scores images and no clips"):
        export(made, tmp_path / "out", "ddranking")
    with pytest.raises(DapError, match="no teacher of clips"):
        store_labels(made, load_protocol("fkd-soft"), tmp_path / "out", teacher="torchvision:resnet18")


def test_a_preview_plays_and_is_small():
    clip = np.stack([np.roll(clips.moving(0, 0, 1, 128)[0], 8 * k, axis=1) for k in range(12)])
    with Image.open(io.BytesIO(preview(encode_clip(clip), 96))) as seen:
        assert seen.n_frames == 12 and seen.size == (96, 96) and seen.format == "WEBP"
