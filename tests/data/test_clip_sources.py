"""Clips in parquet files and in folders of frames."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import clips
from dap.base.errors import DapError
from dap.data.real.clips import times
from dap.data.real.clips.finding import locate_clips
from dap.data.real.clips.frames import decode_frames, frame_names
from dap.data.real.clips.moving import decode_clip, encode_clip
from dap.data.real.decode import BrokenImage
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export

FRAMES = 4
NAMES = ["Bag", "Dress"]


def spread(folder, clip, ending="png"):
    """The frames of a clip as image files 1.png, 2.png, …"""
    folder.mkdir(parents=True)
    for k, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{k + 1}.{ending}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two classes of three clips of twelve frames each, under train/, and one each under test/."""
    root = tmp_path_factory.mktemp("frames")
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(NAMES):
            for i in range(count):
                spread(root / split / name / f"clip{i}", clips.moving(label, i, 12))
    return root


def test_a_folder_of_frames_is_the_clip_of_its_frames(folders):
    source = open_source(folders, "train", size=16, frames=FRAMES)
    assert source.shape == (3, FRAMES, 16, 16) and source.understood() == "2 classes, 6 clips of 4 frames, 20 × 20"
    assert source.keys(1, [0, 2]) == ["Dress/clip0/", "Dress/clip2/"]
    assert source.notes == ("6 folders of frames are read as clips",)
    wanted = decode_clip(encode_clip(clips.moving(1, 2, 12)), FRAMES, 16)
    assert torch.equal(source.images(1, [2])[0], wanted)
    assert open_source(folders, "test", size=16, frames=FRAMES).count(0) == 1
    long = decode_frames(folders / "train" / "Bag" / "clip0", 24, 8)  # a shorter file repeats frames
    assert torch.equal(long[:, ::2], long[:, 1::2]) and (long[:, 0] != long[:, 2]).any()


def test_a_folder_without_clips_is_left_out_unless_its_clips_may_be_lost(folders, tmp_path):
    for name in NAMES:
        (tmp_path / name).symlink_to(folders / "train" / name)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "list.txt").write_text("x")
    source = open_source(tmp_path, size=8, frames=FRAMES)
    assert list(source.class_names) == NAMES and "left out: docs/, which holds no clip" in source.notes
    Image.new("RGB", (8, 8)).save(tmp_path / "docs" / "one.jpg")
    with pytest.raises(DapError, match="no images in docs"):
        open_source(tmp_path, size=8, frames=FRAMES)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("9.jpg", "10.jpg", "a2b10.png", "a2b9.png", "2.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    assert frame_names(tmp_path) == ["2.JPG", "9.jpg", "10.jpg", "a2b9.png", "a2b10.png"]


def test_the_fingerprint_follows_every_frame(folders, tmp_path):
    def fingerprint(root, **how):
        return open_source(root, "train", **{"size": 8, "frames": FRAMES, **how}).fingerprint()

    for name in NAMES:
        spread(tmp_path / name / "clip0", clips.moving(0, 0, 12))
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path) and first != fingerprint(tmp_path, frames=3)
    assert fingerprint(tmp_path, size=9) != first
    last = tmp_path / "Dress" / "clip0" / "12.png"  # one that four frames of twelve do not take
    was = last.read_bytes()
    Image.new("RGB", (20, 20)).save(last)
    changed = fingerprint(tmp_path)
    last.write_bytes(was)
    assert changed != first and fingerprint(tmp_path) == first
    last.unlink()
    assert fingerprint(tmp_path) != first


def test_files_and_folders_of_frames_lie_side_by_side(tmp_path):
    clip = clips.moving(0, 0)
    spread(tmp_path / "a" / "frames", clip, "jpg")
    (tmp_path / "a" / "one.gif").write_bytes(clips.animated(clip))
    spread(tmp_path / "a" / "mixed", clip[:3], "jpg")  # beside a film images are no frames
    (tmp_path / "a" / "mixed" / "whole.mp4").write_bytes(clips.film(clip))
    moving = tmp_path / "a" / "moving"
    moving.mkdir()
    for i in range(2):
        (moving / f"{i}.png").write_bytes(encode_clip(clip))
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "cover.jpg")
    source = open_source(tmp_path, "train", size=8, frames=3)
    keys = ["a/frames/", "a/mixed/whole.mp4", "a/moving/0.png", "a/moving/1.png", "a/one.gif"]
    assert source.keys(0, range(5)) == keys and source.count(0) == 5
    assert source.notes == ("1 folder of frames is read as clips", "left out: 4 files that are no clips (.jpg 4)")
    assert source.fingerprint() == open_source(tmp_path, "train", size=8, frames=3).fingerprint()


def test_folders_of_images_are_no_clips(tmp_path):
    for split in ("train", "test"):
        for name in NAMES:
            spread(tmp_path / split / name, clips.moving(0, 0), "jpg")
    with pytest.raises(DapError, match="no clips found in .*in class folders a folder of its frames"):
        open_source(tmp_path, "train", size=8, frames=3)


def test_a_broken_frame_is_said_by_its_name(folders, tmp_path, monkeypatch):
    for i in range(2):
        spread(tmp_path / "a" / f"clip{i}", clips.moving(0, i))
    (tmp_path / "a" / "clip0" / "2.png").write_bytes(b"\x89PNG")
    source = open_source(tmp_path, "train", size=8, frames=8)
    assert source.good(0, 1, seed=0, least=1) and len(source.tensors()[1]) == 1
    ((key, reason),) = source.bad
    assert key == "a/clip0/" and reason.startswith("its frame 2.png is broken: ")
    monkeypatch.setattr(times, "LONGEST", 7)
    with pytest.raises(BrokenImage, match="8 frames, more than 7; cut it into clips"):
        decode_frames(tmp_path / "a" / "clip1", 3, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenImage, match="holds no images"):
        decode_frames(tmp_path / "empty", 3, 8)


def table(rows, note=None):
    made = pa.Table.from_pylist(rows)
    if note is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": note}})})


def files_of(label, i):
    clip = clips.moving(label, i)
    return (clips.animated(clip), encode_clip(clip), clips.film(clip))[i % 3]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A data set as `datasets` writes a Video column, with a picture of each clip beside it."""
    root = tmp_path_factory.mktemp("parquet")
    (root / "data").mkdir()
    note = {
        "video": {"_type": "Video"},
        "thumbnail": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": NAMES},
    }
    for split, count in (("train", 3), ("test", 1)):
        rows = [
            {
                "video": {"bytes": files_of(label, i), "path": f"{i}.mp4"},
                "thumbnail": {"bytes": b"no picture", "path": None},
                "label": label,
            }
            for label in range(2)
            for i in range(count)
        ]
        pq.write_table(table(rows, note), root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return root


def test_clips_in_parquet_files(parquet):
    source = open_source(parquet, "train", size=16, frames=FRAMES)
    assert source.class_names == tuple(NAMES) and source.shape == (3, FRAMES, 16, 16)
    assert source.understood().startswith("2 classes, 6 clips of 4 frames")
    for i in range(3):
        assert torch.equal(source.images(1, [i])[0], decode_clip(files_of(1, i), FRAMES, 16))
    assert source.keys(1, [2]) == ["train-00000-of-00001.parquet#5"]
    test = open_source(parquet, "test", size=16, frames=FRAMES, classes=source.class_names)
    assert test.count(0) == 1
    assert source.fingerprint() != open_source(parquet, "train", size=16, frames=5).fingerprint()
    assert source.fingerprint() == open_source(parquet, "train", size=16, frames=FRAMES).fingerprint()
    assert source.place != test.place


def test_a_column_of_bytes_and_files_beside_it(tmp_path):
    pq.write_table(
        table([{"clip": files_of(i, 0), "cover": b"", "label": "ab"[i]} for i in range(2)]), tmp_path / "a.parquet"
    )
    source = open_source(tmp_path, "train", size=8, frames=3)
    assert source.class_names == ("a", "b")
    assert torch.equal(source.images(1, [0])[0], decode_clip(files_of(1, 0), 3, 8))
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.gif").write_bytes(files_of(0, 0))
    rows = [{"video": {"bytes": None, "path": f"films/{name}.gif"}, "label": "a"} for name in ("one", "none")]
    pq.write_table(table(rows), tmp_path / "b.parquet")
    source = open_source(tmp_path, "train", size=8, frames=3, chosen={"train": "b.parquet"})
    assert source.good(0, 1, seed=0, least=1) == [0] or source.bad
    source.tensors()
    assert "films/none.gif" in source.bad[0][1]
    before = source.fingerprint()
    (tmp_path / "films" / "one.gif").write_bytes(files_of(1, 0))
    assert open_source(tmp_path, "train", size=8, frames=3, chosen={"train": "b.parquet"}).fingerprint() != before


def test_parquet_files_without_clips_say_so(tmp_path):
    def opened(rows):
        pq.write_table(table(rows), tmp_path / "a.parquet")
        return open_source(tmp_path, "train", size=8, frames=3)

    with pytest.raises(DapError, match="no column of clips among text, label; write the clips as bytes of files"):
        opened([{"text": "a", "label": 0}])
    with pytest.raises(DapError, match="several columns that could be the clips: a, b; call the right one 'clip'"):
        opened([{"a": b"x", "b": b"y", "label": 0}])
    with pytest.raises(DapError, match="column 'video' of .* holds list.*encode each clip as one file"):
        opened([{"video": [1, 2], "label": 0}])
    with pytest.raises(DapError, match="no column of labels"):
        opened([{"video": b"x"}])
    with pytest.raises(DapError, match="1 to 4,096 frames"):
        open_source(tmp_path, "train", size=8, frames=0)
    source = opened([{"video": b"GIF89a", "label": 0}, {"video": files_of(0, 0), "label": 0}])
    assert len(source.tensors()[1]) == 1 and source.bad[0][0] == "a.parquet#0"


def test_class_folders_come_before_tables_beside_them(tmp_path):
    clips.folder(tmp_path / "films", train=1, test=1)
    pq.write_table(table([{"video": files_of(0, 0), "label": 0}]), tmp_path / "films" / "metadata.parquet")
    assert open_source(tmp_path / "films", "train", size=8, frames=3).class_names == ("Bag", "Dress", "Shirt")


def test_an_exported_set_of_clips_is_read_again(tmp_path):
    recipe = {"method": "random", "ipc": 1, "seed": 0, "data": {"path": "x", "size": 9, "frames": 3}}
    made = DistilledSet.create(tmp_path / "set", ["a", "b"], 1, recipe)
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 9, 9))
    for label in range(2):
        made.add(label, 0, torch.from_numpy(stored[label]).float() / 255, seed=0)
    export(made, tmp_path / "out", "parquet")
    source = open_source(tmp_path / "out", "train", size=9, frames=3)
    images, labels = source.tensors(dtype=torch.uint8)
    assert torch.equal(images, torch.from_numpy(stored).byte()) and labels.tolist() == [0, 1]


def touched(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_folders_of_clips_that_are_splits_or_classes_stop_as_those_of_images_do(tmp_path):
    """Before, the test clips inside class folders were training clips, and en/ and fr/ were left out without a word."""
    inner = tmp_path / "inner"
    touched(
        *(inner / name / split / f"{i}.gif" for name in ("cat", "dog") for split in ("train", "test") for i in "01")
    )
    with pytest.raises(DapError, match="holds splits inside its class folders, .*--split train=."):
        locate_clips(inner, "train")
    assert locate_clips(inner, "train", {"train": "."}).root == inner
    touched(inner / "fox" / "0.gif")
    with pytest.raises(DapError, match="can be read in two ways: its class folders hold splits"):
        locate_clips(inner, "train")
    words = tmp_path / "words"
    touched(*(words / name / below / "0.gif" for name in ("en", "fr", "te", "tr") for below in "xy"))
    with pytest.raises(DapError, match="--split train=tr,test=te.*classes en, fr, te, tr"):
        locate_clips(words, "train")
    more = tmp_path / "more"
    touched(*(more / name / below / "0.gif" for name in ("train", "test", "extra") for below in "xy"))
    assert locate_clips(more, "train").notes == (f"extra/ in {more} belongs to no split and is not read",)
