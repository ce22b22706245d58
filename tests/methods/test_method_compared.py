"""Methods that tell classes apart refuse data of one class: its loss is 0 whatever the images are, so they would do nothing."""

from __future__ import annotations

import pytest

from dap.base.errors import DapError
from dap.recipe import Recipe
from dap.workshop import Workshop

NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, images):
        return images.mean((2, 3))[:, : self.n]


def build(class_names):
    return Net(len(class_names))
"""


@pytest.fixture
def prepared(pipeline_folder, tmp_path):
    (tmp_path / "net.py").write_text(NET)

    def prepared(method, path, classes=None, **options):
        data = {"path": str(path), "size": 8} | ({"classes": classes} if classes else {})
        values = {"method": method, "ipc": 1, "data": data, "options": options}
        if method in ("rded", "cao2"):
            values["classifier"] = f"{tmp_path / 'net.py'}:build"
        if method in ("cao2", "minimax", "d3hr"):
            values |= {"backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 3}}
        made, task = Workshop("cpu").task(Recipe.parse(values))
        return made.prepare(task)

    return prepared


@pytest.mark.parametrize("method", ["dc", "dsa", "mtt", "rded", "cao2"])
def test_one_class_is_refused_and_two_are_not(method, prepared, colours, tmp_path):
    with pytest.raises(
        DapError, match=f"'{method}' compares classes and needs at least 2, not 'red' alone .--classes "
    ):
        prepared(method, colours, ["red"])
    (tmp_path / "one" / "train").mkdir(parents=True)
    (tmp_path / "one" / "train" / "red").symlink_to(colours / "train" / "red")
    with pytest.raises(DapError, match=r"not 'red' alone \(the data have only this one; give more\)"):
        prepared(method, tmp_path / "one")
    prepared(method, colours, ["red", "blue"])


@pytest.mark.parametrize("method", ["dm", "minimax", "d3hr"])
def test_methods_that_look_at_each_class_by_itself_take_one(method, prepared, colours):
    prepared(method, colours, ["red"])
