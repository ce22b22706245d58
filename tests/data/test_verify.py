"""`verify` means it: what a set says is compared with everything that lies in its folder, and the other verbs agree."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.decode import encode_png
from dap.data.sets.contents import Classes, ManifestLine, Within, sha256
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import LAYOUTS, export
from dap.data.sets.imports import import_set
from dap.evaluation.judge import check_ready
from pictures import bomb

RECIPE = {"method": "x", "ipc": 2, "data": {"path": "fashion-mnist"}}


def filled(path: Path, names=("cat", "dog"), ipc: int = 2) -> DistilledSet:
    made = DistilledSet.create(path, names, ipc, {**RECIPE, "ipc": ipc})
    generator = torch.Generator().manual_seed(0)
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 4, 4, generator=generator), seed=label)
    return made


def rewritten(folder: Path, name: str, change) -> None:
    said = json.loads((folder / name).read_text())
    change(said)
    (folder / name).write_text(json.dumps(said))


def line_changed(folder: Path, number: int, **fields) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **fields})
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def no_names(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(names=[]))


def flipped_name(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said["names"].__setitem__(0, "cau"))


def flipped_name_everywhere_but_inputs(s: Path) -> None:
    flipped_name(s)
    for number in (0, 1):
        line_changed(s, number, class_name="cau")


def no_recipe(s: Path) -> None:
    (s / "recipe.json").unlink()


def no_recipe_and_no_inputs(s: Path) -> None:
    (s / "recipe.json").unlink()
    (s / "inputs.json").unlink()


def stranger(s: Path) -> None:
    Image.new("RGB", (4, 4)).save(s / "images" / "cat" / "99999.png")


def stranger_in_a_folder_of_its_own(s: Path) -> None:
    (s / "images" / "bird").mkdir()
    Image.new("RGB", (4, 4)).save(s / "images" / "bird" / "00000.png")


def other_size(s: Path) -> None:
    replaced(s, 3, encode_png((torch.rand(5, 5, 3) * 255).byte().numpy()))


def grey(s: Path) -> None:
    Image.new("L", (4, 4)).save(s / "grey.png")
    replaced(s, 3, (s / "grey.png").read_bytes())
    (s / "grey.png").unlink()


def jpeg(s: Path) -> None:
    Image.new("RGB", (4, 4)).save(s / "x.jpg")
    replaced(s, 3, (s / "x.jpg").read_bytes())
    (s / "x.jpg").unlink()


def replaced(s: Path, number: int, data: bytes) -> None:
    """Put another file in the place of an image, with a line that says so."""
    line = json.loads((s / "manifest.jsonl").read_text().splitlines()[number])
    (s / line["path"]).write_bytes(data)
    line_changed(s, number, sha256=sha256(data))


def a_bomb(s: Path) -> None:
    replaced(s, 0, bomb(30_000))


def letters(s: Path) -> None:
    (s / "images" / "cat").rename(s / "images" / "Cat")


def a_folder_for_an_image(s: Path) -> None:
    (s / "images/cat/00000.png").unlink()
    (s / "images/cat/00000.png").mkdir()


def a_pipe(s: Path) -> None:
    os.mkfifo(s / "pipe")
    (s / "images/cat/00000.png").unlink()
    (s / "images/cat/00000.png").symlink_to(s / "pipe")


def a_device(s: Path) -> None:
    (s / "images/cat/00000.png").unlink()
    (s / "images/cat/00000.png").symlink_to("/dev/zero")


def secret_above(s: Path) -> None:
    shutil.copy(s / "images/cat/00000.png", s.parent / "secret.png")
    line_changed(s, 0, path="../secret.png")


def secret_absolute(s: Path) -> None:
    shutil.copy(s / "images/cat/00000.png", s.parent / "secret.png")
    line_changed(s, 0, path=str(s.parent / "secret.png"))


def secret_by_a_link(s: Path) -> None:
    (s / "images/cat/00000.png").rename(s.parent / "secret.png")
    (s / "images/cat/00000.png").symlink_to(s.parent / "secret.png")


def secret_by_a_linked_folder(s: Path) -> None:
    (s / "images/cat").rename(s.parent / "secrets")
    (s / "images/cat").symlink_to(s.parent / "secrets")


def secret_by_a_folder_of_a_class(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(folders=["..", "dog"]))


def lists_of_other_lengths(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said["folders"].pop())


def a_shared_folder(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(folders=["cat", "CAT"]))


def absurd_ipc(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(ipc=10**9))


def ipc_true(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(ipc=True))


def another_ipc(s: Path) -> None:
    rewritten(s, "classes.json", lambda said: said.update(ipc=1))


def no_label(s: Path) -> None:
    line_changed(s, 1, label=7)


def another_label(s: Path) -> None:
    line_changed(s, 1, label=1)


def same_path_twice(s: Path) -> None:
    line_changed(s, 1, path="images/cat/00000.png")


def no_object(s: Path) -> None:
    (s / "manifest.jsonl").write_text((s / "manifest.jsonl").read_text() + "{}\n")


def recipe_is_a_link_out(s: Path) -> None:
    (s / "recipe.json").rename(s.parent / "r.json")
    (s / "recipe.json").symlink_to(s.parent / "r.json")


def inputs_are_no_text(s: Path) -> None:
    (s / "inputs.json").write_bytes(b"\xff\xfe")


DAMAGES = {
    no_names: "names: list should have at least 1 item",
    flipped_name: "manifest.jsonl, line 1: class 0 is called 'cat' here, but 'cau' in classes.json",
    flipped_name_everywhere_but_inputs: "classes.json and inputs.json name other classes (label 0 is 'cau' and 'cat')",
    no_recipe: "recipe.json is missing",
    no_recipe_and_no_inputs: "recipe.json is missing",
    stranger: "images/cat/99999.png: no line of the manifest names this file",
    stranger_in_a_folder_of_its_own: "images/bird/00000.png: no line of the manifest names this file",
    other_size: "images/dog/00001.png: it has 5x5 pixels, but images/cat/00000.png has 4x4",
    grey: "images/dog/00001.png: it is not an upright 8-bit RGB PNG",
    jpeg: "images/dog/00001.png: it is not an upright 8-bit RGB PNG",
    a_bomb: "images/cat/00000.png: it cannot be decoded",
    letters: "There is no file",
    a_folder_for_an_image: "is a folder, not a file",
    a_pipe: "is a pipe, a socket or a device",
    a_device: "is a pipe, a socket or a device",
    secret_above: "line 1: path: this path must lead to a file inside the folder",
    secret_absolute: "line 1: path: this path must lead to a file inside the folder",
    secret_by_a_link: "leads out of",
    secret_by_a_linked_folder: "leads out of",
    secret_by_a_folder_of_a_class: "folders.0: this path must lead to a file inside the folder",
    lists_of_other_lengths: "it has 2 names and 1 folder",
    a_shared_folder: "two classes have the folder 'cat'",
    absurd_ipc: "ipc: the value should be less than or equal to",
    ipc_true: "ipc: the value should be a whole number",
    another_ipc: "there is no slot 1, because classes.json says 1 image per class",
    no_label: "line 2: there is no label 7",
    another_label: "line 2: class 1 is called 'cat' here",
    same_path_twice: "line 2: the path is 'images/cat/00000.png'",
    no_object: "line 5: the key 'path' is missing",
    recipe_is_a_link_out: "leads out of",
    inputs_are_no_text: "is not UTF-8",
}
"""The damages, and what is said of each."""


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_told_by_every_verb(damage, tmp_path, capsys):
    """Paths, special files, and `verify` means it: issue 12, first section."""
    filled(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(DapError) as told:
        DistilledSet.open(tmp_path / "s").check_whole()
    assert DAMAGES[damage] in str(told.value)
    assert main(["verify", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and "whole" not in said.replace("not whole", "").replace("a whole number", "")
    for layout in LAYOUTS:
        with pytest.raises(DapError):
            export(DistilledSet.open(tmp_path / "s"), tmp_path / "out", layout)
    with pytest.raises(DapError):
        import_set(tmp_path / "s", tmp_path / "out", "set")
    assert not (tmp_path / "out").exists()
    if damage not in (other_size, grey, jpeg, a_bomb):  # those the decoding of the images tells
        with pytest.raises(DapError):
            check_ready(DistilledSet.from_folder(tmp_path / "s"), None)  # pyright: ignore[reportArgumentType]
    else:
        assert DistilledSet.from_folder(tmp_path / "s")._repr_html_()


def test_a_whole_set_is_whole_with_what_systems_leave(tmp_path, capsys):
    made = filled(tmp_path / "s")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "s/images/cat" / name).write_bytes(b"x")
    line = json.loads((tmp_path / "s/manifest.jsonl").read_text().splitlines()[0])
    with (tmp_path / "s/manifest.jsonl").open("a") as file:  # as after an image was made again
        file.write(json.dumps(line) + "\n")
    assert made.verify() == [] and DistilledSet.open(tmp_path / "s").verify() == []
    assert main(["verify", str(tmp_path / "s")]) == 0
    assert "is whole: 4 images" in capsys.readouterr().out


def test_a_set_of_an_earlier_version_is_whole(tmp_path):
    """Before inputs.json existed, a set had none."""
    made = filled(tmp_path / "s")
    (tmp_path / "s" / "inputs.json").unlink()
    assert made.verify() == []


def test_an_imported_set_needs_its_import(tmp_path):
    filled(tmp_path / "s")
    made = import_set(tmp_path / "s", tmp_path / "t")
    assert made.verify() == []
    (tmp_path / "t" / "import.json").unlink()
    assert "import.json is missing" in made.verify()[0]
    with pytest.raises(DapError, match="import.json is missing"):
        made.check_whole()


def test_a_download_of_the_hub_is_made_of_links_and_is_whole(tmp_path):
    """The hub's cache keeps files in blobs and links to them."""
    filled(tmp_path / "s")
    snapshot = tmp_path / "datasets--me--s" / "snapshots" / "0123"
    blobs = tmp_path / "datasets--me--s" / "blobs"
    blobs.mkdir(parents=True)
    for file in [f for f in (tmp_path / "s").rglob("*") if f.is_file()]:
        blob = blobs / sha256(str(file).encode())
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(tmp_path / "s")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    made = DistilledSet.open(snapshot)
    assert made.verify() == [] and made.tensors()[0].shape == (4, 3, 4, 4)
    assert export(made, tmp_path / "out")["class_names"] == ["cat", "dog"]


def test_links_inside_a_set_are_followed(tmp_path):
    made = filled(tmp_path / "s")
    (tmp_path / "s/images/cat/00000.png").rename(tmp_path / "s/kept.png")
    (tmp_path / "s/images/cat/00000.png").symlink_to("../../kept.png")
    assert made.verify() == [] and len(DistilledSet.open(tmp_path / "s")) == 4


def test_a_file_is_read_only_inside_its_folder_and_up_to_a_bound(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"1")
    within = Within(tmp_path / "in")
    assert within.read("a") == b"12345"
    for relative, says in {"../b": "leads out", "c": "no file", ".": "folder"}.items():
        with pytest.raises(DapError, match=says):
            within.read(relative)
    with pytest.raises(DapError, match="larger than 4 bytes"):
        within.read("a", largest=4)


def test_the_models_are_closed_and_take_what_methods_write():
    line = {"path": "images/a/00000.png", "label": 0, "class_name": "a", "slot": 0, "sha256": "0" * 64}
    for more in ({"seed": 2**63 - 1}, {"real": ["a/1.png"]}, {"prompt": "é"}, {"confidence": 0.5, "correct": True}):
        ManifestLine.model_validate({**line, **more})
    for wrong in (
        {"label": "0"},
        {"label": [0]},
        {"label": True},
        {"slot": -1},
        {"sha256": "x"},
        {"path": "a\0"},
        {"seed": 0.5},
    ):
        with pytest.raises(ValueError):
            ManifestLine.model_validate({**line, **wrong})
    with pytest.raises(ValueError):
        Classes.model_validate({"names": ["a"], "folders": ["a"], "ipc": 1, "more": 1})
