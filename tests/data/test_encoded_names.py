"""Sets encode the names of classes in those of folders. Whoever reads such folders finds the classes."""

from __future__ import annotations

import json
import shlex
import shutil
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.names import composed, decoded, encoded, select
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import folders_of

FAST = "--networks convnet1 --set width=4 --set size=8 --set epochs=1"
NAMES = {"red": "Häuser alt", "green": "x:y 100%", "blue": "plain"}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_a_class_and_its_folder_find_each_other(name):
    folder = folders_of([name])[0]
    assert folder == encoded(name) and folder.isascii()
    if name == name.strip():
        assert decoded(folder) == composed(name)
        for known, wanted in (([name, "another class"], folder), ([folder, "another class"], name)):
            assert select(known, [wanted], "here") == ([composed(wanted)], [0])


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXT, st.from_regex(r"[a-z%0-9A-F ]{1,9}", fullmatch=True)))
def test_a_folder_that_no_set_would_write_keeps_its_name(folder):
    if encoded(unquote(folder)) != folder:
        assert decoded(folder) == folder


def test_exact_names_come_first_and_other_names_are_unknown():
    both = ["H%C3%A4user", "Häuser"]
    assert select(both, both, "here")[1] == [0, 1]
    for wanted in ("a%20b", "%e4", "H%C3%A4user%", "b"):  # no set writes these for a known class
        with pytest.raises(DapError, match="unknown class"):
            select(["a b", "ä", "Häuser"], [wanted], "here")
    with pytest.raises(DapError, match="names of one class"):
        select(["Häuser"], both, "here")


@pytest.fixture(scope="module")
def place(colours, tmp_path_factory):
    """Data whose classes have names that are encoded, and a set of them."""
    folder = tmp_path_factory.mktemp("encoded")
    for split in ("train", "test"):
        for old, new in NAMES.items():
            shutil.copytree(colours / split / old, folder / "photos" / split / new)
    assert (
        main(shlex.split(f"distill --data {folder}/photos --method random --ipc 1 --size 8 --out {folder}/made")) == 0
    )
    shutil.copytree(folder / "made" / "images", folder / "loose")
    return folder


def test_class_folders_of_a_set_are_judged_by_the_real_images(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for folder in ("made/images", "loose"):
        name = folder.replace("/", "-")
        assert main(shlex.split(f"evaluate {folder} --data photos --out {name}-judged {FAST}")) == 0
        assert main(shlex.split(f"import {folder} --out {name}-imported")) == 0
        assert main(shlex.split(f"evaluate {name}-imported --data photos {FAST}")) == 0
    accuracies = {json.loads(file.read_text())["last"] for file in place.glob("**/trials.jsonl")}
    assert len(accuracies) == 1  # no label was mixed up
    assert set(DistilledSet.from_folder("made/images").class_names) == set(NAMES.values())
    assert set(DistilledSet.open("made-images-imported").class_names) == set(NAMES.values())


def test_images_of_a_set_stand_in_for_real_images(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert (
        main(
            shlex.split(f"evaluate made --data made/images --split train=../../photos/train,test=. {FAST} --out other")
        )
        == 0
    )


def test_a_damaged_list_of_classes_beside_the_images_is_not_needed(place, tmp_path):
    shutil.copytree(place / "made", tmp_path / "made")
    (tmp_path / "made" / "classes.json").write_text("{")
    found = DistilledSet.from_folder(tmp_path / "made" / "images")
    assert set(found.class_names) == {encoded(name) for name in NAMES.values()}
