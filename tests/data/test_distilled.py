"""The distilled set on disk: atomic, resumable, verifiable, and safe with any class name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dap.base.alone import locked
from dap.base.errors import DapError
from dap.data.sets.differences import differences
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import folders_of

RECIPE = {"method": "x", "guidance": {"scale": 0.1}}


def image(value: float = 0.5):
    return torch.full((3, 4, 4), value)


def filled(path, ipc=2):
    made = DistilledSet.create(path, ["a", "b"], ipc, RECIPE)
    for label, slot in made.missing():
        made.add(label, slot, image((1 + 2 * label + slot) / 255), seed=label)
    return made


def test_round_trip(tmp_path):
    filled(tmp_path / "s")
    opened = DistilledSet.open(tmp_path / "s")
    images, labels = opened.tensors()
    assert labels.tolist() == [0, 0, 1, 1] and opened.missing() == [] and opened.verify() == []
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, torch.tensor([1.0, 2, 3, 4]))
    assert opened.recipe == RECIPE and opened.class_names == ("a", "b") and opened.records[3]["seed"] == 1
    file = tmp_path / "s" / opened.records[0]["path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == opened.records[0]["sha256"]


def test_a_changed_recipe_is_refused_field_by_field(tmp_path):
    filled(tmp_path / "s")
    with pytest.raises(DapError, match=r"guidance.scale: 0.1 -> 0.2; guidance.layer: nothing -> \"3\""):
        DistilledSet.create(tmp_path / "s", ["a", "b"], 2, {"method": "x", "guidance": {"scale": 0.2, "layer": "3"}})
    assert DistilledSet.open(tmp_path / "s").missing() == []


def test_changed_inputs_are_refused(tmp_path):
    """The same recipe over other classes or other weights would mix two sets under one name."""
    DistilledSet.create(tmp_path / "s", ["a", "b"], 2, RECIPE, {"weights": "1"})
    with pytest.raises(DapError, match=r"weights: \"1\" -> \"2\""):
        DistilledSet.create(tmp_path / "s", ["a", "b"], 2, RECIPE, {"weights": "2"})
    with pytest.raises(DapError, match="classes"):
        DistilledSet.create(tmp_path / "s", ["A", "a", "b"], 2, RECIPE, {"weights": "1"})


def test_killed_before_the_first_image(tmp_path):
    """Whatever of the first files is there, the same call goes on."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").touch()
    (tmp_path / "s" / ".tmp-1-abcd").write_text("{")
    filled(tmp_path / "s")
    for name in ("classes.json", "inputs.json"):
        (tmp_path / "s" / name).unlink()
        assert DistilledSet.create(tmp_path / "s", ["a", "b"], 2, RECIPE).missing() == []
    assert not (tmp_path / "s" / ".tmp-1-abcd").exists()


def test_a_foreign_folder_is_not_written_into(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DapError, match="not empty"):
        DistilledSet.create(tmp_path, ["a"], 1, RECIPE)


def test_torn_line_stale_file_flipped_byte_and_deleted_image_are_made_again(tmp_path):
    made = filled(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:3]) + lines[3][:20])  # killed while writing the last line
    files = [tmp_path / "s" / record["path"] for record in made.records]
    damaged = bytearray(files[0].read_bytes())
    damaged[-20] ^= 1
    files[0].write_bytes(damaged)
    files[1].unlink()
    stale = files[2].with_name(".tmp-1-abcd")
    stale.write_bytes(b"half")
    again = DistilledSet.create(tmp_path / "s", ["a", "b"], 2, RECIPE)
    assert again.missing() == [(0, 0), (0, 1), (1, 1)] and not stale.exists()
    assert [p.partition(":")[0] for p in again.verify()] == ["missing", "images/a/00000.png", "images/a/00001.png"]
    for label, slot in again.missing():
        again.add(label, slot, image(), seed=9)
    assert DistilledSet.open(tmp_path / "s").verify() == []
    assert len([json.loads(line) for line in manifest.read_text().splitlines()]) == 6


@pytest.mark.parametrize("when", ["write", "replace"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, when):
    made = DistilledSet.create(tmp_path / "s", ["a", "b"], 2, RECIPE)
    made.add(0, 0, image())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(os, "fsync" if when == "write" else "replace", full)
    with pytest.raises(OSError, match="No space left"):
        made.add(0, 1, image())
    monkeypatch.undo()
    opened = DistilledSet.open(tmp_path / "s")
    assert opened.missing() == [(0, 1), (1, 0), (1, 1)]
    assert not list((tmp_path / "s").rglob(".tmp-*"))


def test_one_writer_at_a_time(tmp_path):
    with locked(tmp_path / "s"), pytest.raises(DapError, match="Another process"), locked(tmp_path / "s"):
        pass
    with locked(tmp_path / "s"):
        pass


def test_non_finite_pixels_are_not_stored(tmp_path):
    made = DistilledSet.create(tmp_path / "s", ["a"], 1, RECIPE)
    with pytest.raises(DapError, match="non-finite"):
        made.add(0, 0, image(float("nan")))
    assert made.missing() == [(0, 0)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=150), min_size=1, max_size=6, unique=True))
def test_any_class_names_give_safe_distinct_folders(names):
    folders = folders_of(names)
    assert len({f.lower() for f in folders}) == len(names)
    for folder in folders:
        assert "/" not in folder and "\0" not in folder and folder.strip(". ") and len(folder.encode()) < 200


def test_plain_names_stay_readable():
    assert folders_of(["Ankle boot", "tench, Tinca tinca", "T-shirt", "../x", "a", "A"]) == [
        "Ankle boot", "tench, Tinca tinca", "T-shirt", "%2E%2E%2Fx", "a", "A~5",
    ]  # fmt: skip


def test_a_folder_of_others_opens_in_natural_order_and_given_class_order(tmp_path):
    for name, value in (("n02", 20), ("n01", 10)):
        (tmp_path / name).mkdir()
        for i in (0, 1, 2, 10):
            Image.new("RGB", (4, 4), (value + i, 0, 0)).save(tmp_path / name / f"{i}.png")
    opened = DistilledSet.from_folder(tmp_path)
    assert (opened.tensors()[0][:, 0, 0, 0] * 255).round().int().tolist() == [10, 11, 12, 20, 20, 21, 22, 30]
    given = DistilledSet.from_folder(tmp_path, ["n02", "n01"])
    assert (given.tensors()[0][:4, 0, 0, 0] * 255).round().int().tolist() == [20, 21, 22, 30]
    with pytest.raises(DapError, match="unknown class 'n03' in .*; known classes: n02, n01"):
        DistilledSet.from_folder(tmp_path, ["n03"])


def test_mistaken_paths(tmp_path):
    with pytest.raises(DapError, match="There is no folder"):
        DistilledSet.open(tmp_path / "none")
    with pytest.raises(DapError, match="no distilled set"):
        DistilledSet.open(tmp_path)
    with pytest.raises(DapError, match="no class folders with images"):
        DistilledSet.from_folder(tmp_path)
    with pytest.raises(DapError, match="no finished image"):
        DistilledSet.create(tmp_path / "s", ["a"], 1, RECIPE).tensors()


def test_differences_name_every_field():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None}) == [
        "a.c: 2 -> 3",
        "d: nothing -> null",
    ]
    assert differences({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_a_set_is_a_dataset_for_torchs_loader(tmp_path):
    from torch.utils.data import DataLoader

    made = filled(tmp_path / "s", ipc=3)
    images, labels = made.tensors()
    assert len(made) == 6 and made.class_names == ("a", "b")
    loaded = list(DataLoader(made, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in loaded]), images)
    assert torch.equal(torch.cat([y for _, y in loaded]), labels)
    image, label = made[-1]
    assert torch.equal(image, images[-1]) and label == 1 and image.dtype == torch.float32
    with pytest.raises(IndexError):
        made[6]
    assert len(list(made)) == 6, "iteration ends"


LOADER = """
import sys
import torch
from torch.utils.data import DataLoader
from dap.data.sets.distilled import DistilledSet

made = DistilledSet.open(sys.argv[1])
images, labels = (torch.cat(part) for part in zip(*DataLoader(made, batch_size=4, num_workers=2), strict=True))
assert torch.equal(images, made.tensors()[0]) and torch.equal(labels, made.tensors()[1])
"""


def test_the_loader_may_have_worker_processes(tmp_path):
    """In a process of its own: workers hand tensors over sockets, which tests here may not open."""
    filled(tmp_path / "s", ipc=3)
    subprocess.run([sys.executable, "-c", LOADER, str(tmp_path / "s")], check=True, timeout=120)


def test_an_added_image_joins_in_its_place(tmp_path):
    made = DistilledSet.create(tmp_path / "s", ["a", "b"], 1, RECIPE)
    assert len(made) == 0 and list(made) == []
    made.add(1, 0, image(1.0))
    assert made[0][1] == 1
    made.add(0, 0, image(0.0))
    assert [label for _, label in made] == [0, 1] and float(made[1][0].mean()) == 1


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    made = filled(tmp_path / "s")
    file = tmp_path / "s" / made.records[1]["path"]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DapError, match=file.name):
        made[1]
    with pytest.raises(DapError, match=file.name):
        made.tensors()
    assert "<img" in made._repr_html_(), "a display does not fail"


def test_its_repr_counts(tmp_path):
    made = filled(tmp_path / "s")
    assert repr(made) == f"DistilledSet('{tmp_path / 's'}': 4 images of 2 classes, 2 a class)"
    begun = DistilledSet.create(tmp_path / "t", ["a", "b"], 2, RECIPE)
    begun.add(0, 0, image())
    assert "1 image of 2 classes, 2 a class, 3 missing" in repr(begun)
    plain = DistilledSet.from_folder(tmp_path / "s" / "images")
    assert "4 images of 2 classes)" in repr(plain)


def test_the_contact_sheet_is_one_bounded_escaped_piece_of_html(tmp_path):
    from html.parser import HTMLParser

    names = ["<script>alert(1)</script>", 'a" onload="x', *(f"class {k}" for k in range(30))]
    made = DistilledSet.create(tmp_path / "<b>s", names, 20, RECIPE)
    noise = torch.rand(3, 96, 40, generator=torch.Generator().manual_seed(0))
    for label in range(14):
        for slot in range(15):
            made.add(label, slot, noise)
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(page := made._repr_html_())
    sources = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert sources and all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert {tag for tag, _ in tags} == {"div", "p", "table", "tr", "td", "img"}
    assert all(set(attrs) <= {"src", "alt", "style"} for _, attrs in tags)
    assert "&lt;script&gt;" in page and "and 3 more" in page and "and 20 more classes" in page
    assert len(page) < 500_000


RECORDS = st.dictionaries(
    st.sampled_from(["weight", "seed", "doubt", "label", "slot", "path", "sha256", "energy", "more"]),
    st.one_of(
        st.floats(),
        st.integers(-(10**25), 10**25),
        st.text(max_size=8),
        st.sampled_from(
            [torch.ones(2), torch.tensor(0.5), {1}, [float("nan")], b"x", "x" * 10_001, {"a": [1]}, None, True]
        ),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_a_line_is_written_only_if_a_reader_takes_it(record):
    """Else the image would count as missing for ever, whatever ran again, and nobody would know why."""
    with tempfile.TemporaryDirectory() as folder:
        made = DistilledSet.create(Path(folder) / "s", ["a"], 1, RECIPE)
        try:
            made.add_unit(0, [0], image()[None], [record])
        except DapError as error:
            assert "The record of image 0 of class 'a'" in str(error) and any(name in str(error) for name in record)
            assert not list((made.path / "images").rglob("*.png")) and DistilledSet.open(made.path).missing() == [
                (0, 0)
            ]
        else:
            assert DistilledSet.open(made.path).missing() == []


@pytest.mark.parametrize(("field", "value"), [("weight", 0.0), ("energy", float("nan")), ("of", torch.ones(1)), (1, 2)])
def test_the_field_that_no_line_holds_is_named(tmp_path, field, value):
    made = DistilledSet.create(tmp_path / "s", ["a"], 1, RECIPE)
    with pytest.raises(DapError, match=f"The record of image 0 of class 'a' has {field} = "):
        made.add_unit(0, [0], image()[None], [{field: value}])
