"""A small part of `make fuzz` that is the same in every run, and what `make fuzz` promises: it feeds every reader."""

from __future__ import annotations

import ast
import json
import sys
import threading
from pathlib import Path
from random import Random

import pytest
from hypothesis import strategies as st

import dap

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import __main__ as command
from fuzz.left_out import LEFT_OUT, SHIPPED
from fuzz.run import all_targets, one_input
from fuzz.shaped import explore, smaller
from fuzz.strategies import strategy
from fuzz.target import Count, Target, judge, put

ROOT = Path(dap.__file__).parent
SLOW = (
    *("page", "one file", "U-ViT", "PixArt", "report", "classifier", "backbone", "text backbone", "convert"),
    *("resume: labels", "resume: checkpoint"),
)
GROUPS = ("sets", "recipes", "data", "weights", "kept", "originals")


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> list[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield all_targets(tmp_path_factory.mktemp("fuzz"))


def fed(target: Target, inputs: int) -> None:
    count, random = Count(), Random(target.name)
    for _ in range(inputs):
        trace, data = one_input(target, random, count)
        assert trace is None, f"{target.name}: {trace}\n{data[:500]!r}"
    assert not explore(target, strategy(target), inputs, 1, count)
    assert count.inputs == count.values + count.sentences >= inputs


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_value_or_a_sentence(targets, group):
    for target in targets:
        if f"/{group}/" in f"{target.folder}/":
            fed(target, 2 if target.name.startswith(SLOW) else 20)


CALLS = {
    "read_json", "read_yaml", "read_lines", "read_bytes", "read_text", "safe_open", "load_file", "ParquetFile", "ZipFile",
    "GzipFile", "from_pretrained", "torch.load", "np.load", "Image.open", "tarfile.open", "csv.reader", "sqlite3.connect",
    "json.load", "yaml.load", "yaml.safe_load",
}  # fmt: skip
"""What reads a file. A file that is opened with "rb" is read too."""


def readers() -> set[str]:
    """`module:function` of all functions of the package that read a file."""
    found = set()

    def walk(node: ast.AST, file: Path, names: tuple[str, ...]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = (*names, node.name)
        if isinstance(node, ast.Call):
            said = ast.unparse(node.func)
            opened = said.endswith("open") and any(isinstance(a, ast.Constant) and a.value == "rb" for a in node.args)
            if said in CALLS or said.rpartition(".")[2] in CALLS or opened:
                found.add(f"{file.relative_to(ROOT).as_posix()}:{'.'.join(names)}")
        for inner in ast.iter_child_nodes(node):
            walk(inner, file, names)

    for file in ROOT.rglob("*.py"):
        walk(ast.parse(file.read_text(encoding="utf-8")), file, ())
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_reader_of_the_package_is_fed(targets):
    """Each function that reads a file runs on the valid input of a target, or `LEFT_OUT` says why it does not."""
    ran = set()

    def seen(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            code = frame.f_code
            place = Path(code.co_filename).relative_to(ROOT).as_posix()
            ran.add(f"{place}:{code.co_qualname.replace('.<locals>', '').removesuffix('.<listcomp>')}")

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        for target in targets:
            if target.seeds:
                target.read(put(target, target.seeds[0]))  # a refusal would hide what comes after it
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    known = readers()
    assert len(known) > 40
    missing = known - ran - LEFT_OUT.keys()
    assert not missing, f"add a target to fuzz/, or say in fuzz/left_out.py why not: {sorted(missing)}"
    assert not LEFT_OUT.keys() - known, "these functions read nothing (any more)"
    fed_too = {name for name in LEFT_OUT.keys() & ran if LEFT_OUT[name] != SHIPPED}
    assert not fed_too, f"take these out of fuzz/left_out.py: {sorted(fed_too)}"


def failing(folder: Path, read) -> Target:
    return Target(
        "x", "json", folder, "x.json", (b'{"name": "cat", "sizes": [1, 2, {"deep": 3}], "more": "text"}',), read
    )


def test_hypothesis_finds_values_inside_a_document_and_makes_them_small(tmp_path):
    def read(path: Path) -> None:
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict) and isinstance(value.get("more"), list):
            raise KeyError("more")
        if isinstance(value, dict) and value.get("name") == "":
            raise IndexError("name")

    target, count = failing(tmp_path, read), Count()
    found = {}
    for number in range(6):  # hypothesis stops soon after the first thing that it finds
        found |= explore(target, strategy(target), 200, number, count)
    assert {place.partition(" ")[0] for place in found} == {"KeyError", "IndexError"}
    assert set(found) == set(count.places) and count.unclear == sum(count.places.values())
    small = next(data for place, (_, data) in found.items() if place.startswith("KeyError"))
    assert json.loads(small)["more"] in ([], ["text"]) and json.loads(small)["name"] == "cat", "two changes or more"
    assert not explore(target, strategy(target), 100, 1, count), "what is known is not found again"


def test_hypothesis_makes_a_damaged_input_smaller(tmp_path):
    def read(path: Path) -> None:
        data = path.read_bytes()
        if b"\xff" in data and data.count(b"7") > 2:
            raise KeyError("x")

    target = failing(tmp_path, read)
    data = bytes(range(256)) * 10 + b"7" * 500
    place = (judge(target, put(target, data), Count()) or "").partition("\n")[0]
    assert sorted(smaller(target, data, place)) == sorted(b"777\xff")


def test_an_answer_that_comes_once_does_not_end_the_run(tmp_path):
    calls = []

    def read(path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise KeyError("x")

    target, count = failing(tmp_path, read), Count()
    assert len(explore(target, st.binary(max_size=9), 50, 1, count)) == 1 and count.unclear == 1


def test_the_command_says_when_atheris_is_missing(monkeypatch):
    monkeypatch.setattr(command, "installed", lambda: False)
    assert "not installed" in command.unguided(left_out=False)
    monkeypatch.setattr(command, "installed", lambda: True)
    assert "left out" in command.unguided(left_out=True) and not command.unguided(left_out=False)


def test_the_judge_can_fail(tmp_path):
    """An exception of another kind, a message without the file and a message of two lines are unclear; a `DapError` has one."""
    from dap.base.errors import DapError

    def answering(error: Exception) -> str | None:
        def read(given: object) -> None:
            raise error

        return judge(Target("x", "json", tmp_path, "x.json", (b"{}",), read, (OSError,)), tmp_path / "x.json", Count())

    assert answering(DapError("x.json is wrong.")) is None
    assert "KeyError" in (answering(KeyError("x.json")) or "")
    assert "without the name" in (answering(DapError("That is wrong.")) or "")
    assert "several lines" in (answering(OSError("x.json is\nwrong.")) or "")
