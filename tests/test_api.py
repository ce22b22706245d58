"""The names of `import dap`: listed, typed and lazy, each from one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dap
from dap.base.errors import DapError


def seen_by_type_checkers() -> dict[str, str]:
    """Each name that the block for type checkers imports, as module:name."""
    tree = ast.parse(Path(dap.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {a.asname: f"{node.module}:{a.name}" for node in block.body for a in node.names}  # type: ignore[union-attr]


def test_dir_lists_the_public_names_alone():
    assert dir(dap) == sorted([*dap.__all__, "__version__"])
    assert "distill" in dir(dap) and "importlib" not in dir(dap)


@pytest.mark.parametrize("name", dap.__all__)
def test_a_name_is_what_its_module_has_and_what_type_checkers_see(name):
    found = getattr(dap, name)
    module, _, attribute = dap._HOMES[name].partition(":")
    assert seen_by_type_checkers()[name] == f"{module}:{attribute or name}"
    assert found is getattr(dap, name) and callable(found)
    assert found.__doc__, f"dap.{name} has no docstring"


def test_every_public_name_is_in_both_lists():
    assert set(dap.__all__) == set(dap._HOMES) == set(seen_by_type_checkers())
    assert (Path(dap.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        dap.distil  # noqa: B018


def test_no_module_hides_a_public_function():
    """A module `dap/distill.py` would replace the function `dap.distill` as soon as somebody imports it."""
    beside = {path.stem for path in Path(dap.__file__).parent.iterdir()}
    assert not beside & set(dap.__all__)


@pytest.mark.parametrize("wrong", [None, 5, object(), [1], "nowhere"])
@pytest.mark.parametrize(
    "call",
    [
        lambda wrong, out: dap.export(wrong, out),
        lambda wrong, out: dap.import_set(wrong, out),
        lambda wrong, out: dap.push(wrong, "me/mine"),
        lambda wrong, out: dap.look(wrong),
        lambda wrong, out: dap.report(wrong, out),
        lambda wrong, out: dap.evaluate(wrong, out=out),
        lambda wrong, out: dap.classify(wrong),
    ],
    ids=["export", "import_set", "push", "look", "report", "evaluate", "classify"],
)
def test_what_is_no_set_is_told_in_a_sentence(call, wrong, tmp_path):
    with pytest.raises(DapError, match=r"\.$|nowhere does not exist"):
        call(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_takes_the_folder_of_a_set(colours, tmp_path):
    dap.distill(data=str(colours), method="random", ipc=1, out=tmp_path / "set")
    assert dap.export(str(tmp_path / "set"), tmp_path / "out")["layout"] == "imagefolder"
