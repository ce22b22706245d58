"""A small part of `make fuzz` that is the same in every run: each fast reader gets some damaged inputs."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import of_data, of_recipes, of_sets
from fuzz.run import one_input
from fuzz.target import Count, Target, judge

SLOW = ("page", "report", "classifier")
INPUTS = 30


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, list[Target]]:
    folder = tmp_path_factory.mktemp("fuzz")
    groups = {"sets": of_sets, "recipes": of_recipes, "data": of_data}
    return {name: group.targets(folder / name) for name, group in groups.items()}


@pytest.mark.parametrize("group", ["sets", "recipes", "data"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_value_or_a_sentence(targets, group):
    for target in targets[group]:
        if target.name.startswith(SLOW):
            continue
        count, random = Count(), Random(target.name)
        for _ in range(INPUTS):
            trace, data = one_input(target, random, count)
            assert trace is None, f"{target.name}: {trace}\n{data[:500]!r}"
        assert count.inputs == count.values + count.sentences == INPUTS


def test_the_seeds_are_valid(targets):
    """A seed that is refused would hide the reader behind its first check."""
    for target in [target for group in ("sets", "data") for target in targets[group]]:
        if target.kind == "tree":
            continue
        (target.folder / target.file).write_bytes(target.seeds[0])
        target.read(target.folder / target.file)


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
