"""Which code of users may run: what a caller or a command line names, and nothing that only a file names."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

import dap
from dap.base import permission
from dap.base.errors import DapError
from dap.base.permission import allow_code, asked_for, command_line, is_code, refuse_code
from dap.base.registry import code_of, resolve


@pytest.fixture
def evil(tmp_path) -> Path:
    """A file that leaves a mark where it runs."""
    file = tmp_path / "evil.py"
    file.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\nclass X:\n    pass\n\ndef make(*a, **k):\n    return X()\n"
    )
    return file


def ran(evil: Path) -> bool:
    return (evil.parent / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("my.py:Name", True),
        ("a folder/my.py:Name", True),
        ("0.5 * evil.py:K", True),  # a file may be called "0.5 * evil.py"
        ("os:getcwd", True),
        ("package.module:Name", True),
        ("torchvision:resnet18", False),
        ("timm:resnet18", False),
        ("torchvision.io:read_file", True),
        ("torchvision:../..", False),
        ("timm:__class__", False),
        ("linear + 0.5 * rbf(bandwidth=3)", False),
        ("red: a colour", False),
        ("C:\\models", False),
        ("https://a.test/b", False),
        ("", False),
        (":", False),
        (":x", False),
        ("x:", False),
    ],
)
def test_what_names_code(spec, code):
    assert is_code(spec) == code


def test_a_file_does_not_name_code_to_a_python_program(evil, caplog):
    values = {"backbone": {"path": f"{evil}:X"}, "options": {"nets": ["convnet3", f"{evil}:make"]}}
    with pytest.raises(
        DapError, match=r"^s/recipe.json names the code .*evil.py:.*Read the code; if you trust it, call dap"
    ):
        refuse_code(values, "s/recipe.json")
    assert not ran(evil)
    refuse_code({"data": {"path": "red:fox"}, "template": "photo:dog", "classes": ["a:b"]}, "s/recipe.json")  # texts
    with allow_code(), caplog.at_level(logging.WARNING):
        refuse_code(values, "s/recipe.json")
        assert resolve(f"{evil}:X", {}, "backbone").__name__ == "X"
        resolve(f"{evil}:X", {}, "backbone")
    digest = next(iter(code_of(f"{evil}:X").values()))
    assert [r.getMessage() for r in caplog.records] == [
        f"running the code {evil}:X, which s/recipe.json names (sha256 {digest})"  # once
    ]
    caplog.clear()
    resolve(f"{evil}:X", {}, "backbone")  # the program's own word needs no permission and no announcement
    assert not caplog.records


@pytest.mark.parametrize(
    "word",
    ["{}:X", "--kernel={}:X", "convnet3,{}:X", "net={}:X", "net=[a.py:A, {}:X]", "0.5*{}:X+linear", "{}:X@starter"],
)
def test_a_command_line_names_code(evil, word):
    with command_line(["distill", word.format(evil), "--ipc", "1"]):
        refuse_code(f"{evil}:X", "recipe.json")
        resolve(f"{evil}:X", {}, "kernel")
        assert ran(evil)
        with pytest.raises(DapError, match="make, which does not stand on the command line, .*add --allow-code"):
            resolve(f"{evil}:make", {}, "kernel")  # another name of the same file


def test_another_spelling_of_the_same_path_is_the_same_code(evil, monkeypatch):
    monkeypatch.chdir(evil.parent)
    with command_line(["--kernel", "./evil.py:X"]):
        resolve(f"{evil}:X", {}, "kernel")


@pytest.mark.parametrize("look", [lambda spec: resolve(spec, {}, "kernel"), code_of])
def test_whatever_loads_code_asks_first(evil, look):
    """Also where a reader forgot to call `refuse_code`, in another thread, and for modules."""
    found = []

    def other() -> None:
        try:
            look(f"{evil}:X")
        except DapError as error:
            found.append(error)

    with command_line(["classify", "SET"]):
        for spec in (f"{evil}:X", "os:getcwd", "this:c"):
            with pytest.raises(DapError, match="does not stand on the command line"):
                look(spec)
        with allow_code():  # a new thread has not the permission, so it errs to the safe side
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert found and not ran(evil)


def test_permissions_nest_and_end(evil):
    with allow_code():
        with allow_code(False):
            refuse_code(f"{evil}:X", "a file")
        with dap.allow_code():
            refuse_code(f"{evil}:X", "a file")
        assert permission.code_is_allowed()
    assert not permission.code_is_allowed()
    with pytest.raises(DapError, match="names the code"):
        refuse_code([{"deep": [f"{evil}:X"]}], "a file")


def test_what_a_worker_is_given_is_what_its_parent_may_run():
    values = {"cells": [{"method": "mine.py:M"}, {"guidance": {"kernel": "other.py:K"}}], "networks": ["convnet3"]}
    assert sorted(asked_for(values)) == ["mine.py:M", "other.py:K"]  # a Python program named both
    with command_line(["compare", "--methods", "random,mine.py:M"]):
        assert asked_for(values) == ["mine.py:M"]


def test_the_hash_of_a_module_is_found_without_running_it(tmp_path, monkeypatch, caplog):
    package = tmp_path / "strangers"
    package.mkdir()
    (package / "__init__.py").write_text("import dap.base.permission as p\np.seen = True\n")
    (package / "inner.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = permission._sha256("strangers.inner:X")
    assert len(digest) == 64 and not hasattr(permission, "seen")
    with command_line([]), allow_code(), caplog.at_level(logging.WARNING):
        assert resolve("strangers.inner:X", {}, "kernel") == 1
    assert f"running the code strangers.inner:X, which a file names (sha256 {digest})" in caplog.text
    monkeypatch.delattr(permission, "seen")


@pytest.mark.parametrize("text", ["{} + linear", "linear+0.5*{}", "{}(a=1)", "rbf(bandwidth={})", "0.5 * {} * rbf"])
def test_code_inside_an_expression_of_a_file_is_refused(text):
    for code in ("evil.py:K", "os:getcwd"):
        with pytest.raises(DapError, match=f"names the code .*{code}"):
            refuse_code({"guidance": {"kernel": text.format(code)}}, "recipe.yaml")
