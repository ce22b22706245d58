"""A set grows from a few images per class to more: what is there stays byte for byte, and methods promise only what they keep."""

from __future__ import annotations

import re

import pytest
import torch

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.cli.main import main
from dap.data.sets.beginning import GROWTH, cuts
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.engines import making
from dap.methods import METHODS, find, plan
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop

UNMET = {"sd": "needs a U-Net", "vlcp": "needs captions"}
"""Methods that the tiny DiT cannot run. Neither promises to grow."""


@pytest.fixture(scope="module")
def asked(pipeline_folder, colours, tmp_path_factory):
    net = tmp_path_factory.mktemp("net") / "mine.py"
    net.write_text(
        "import torch\nfrom torch import nn\n\ndef net(names):\n"
        "    with torch.random.fork_rng():\n        torch.manual_seed(0)\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, len(names)))\n"
    )

    def asked(method="vanilla", ipc=2, block=2, **more):
        return Recipe.parse(
            {
                "method": method,
                "ipc": ipc,
                "block": block,
                "data": {"path": str(colours), "classes": ["red", "blue"], "size": 8},
                "backbone": {"path": str(pipeline_folder)},
                "sampling": {"steps": 2},
                "classifier": f"{net}:net" if "classifier" in find(method).needs else None,
                **more,
            }
        )

    return asked


@pytest.fixture(scope="module")
def shop():
    return Workshop("cpu")


def bytes_of(made):
    return {(r["label"], r["slot"]): (made.path / r["path"]).read_bytes() for r in made.records}


def promises(method, asked, shop):
    """Whether a method says that its sets can grow."""
    _, task = shop.task(asked(method))
    return find(method).grows(task)


KEEPING = ["random", "herding", "k-center", "vanilla", "dit", "dap"]


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(UNMET)))
def test_a_method_says_whether_its_sets_grow(method, asked, shop):
    assert promises(method, asked, shop) == (method in KEEPING)


@pytest.mark.parametrize("method", KEEPING)
def test_a_set_grows_to_the_bytes_of_a_set_that_was_large_from_the_beginning(method, asked, shop, tmp_path):
    small = bytes_of(distill(asked(method), tmp_path / "a", workshop=shop, command="first"))
    grown = distill(asked(method, ipc=5), tmp_path / "a", workshop=shop, command="second")
    large = distill(asked(method, ipc=5), tmp_path / "b", workshop=shop)
    assert len(small) == 4 and len(grown.records) == 10
    assert small.items() <= bytes_of(grown).items()
    assert bytes_of(grown) == bytes_of(large)
    assert grown.recipe == large.recipe and grown.ipc == 5
    assert grown.noted(GROWTH) == {"ipc": [2]} and large.noted(GROWTH) is None
    assert (tmp_path / "a" / "command.txt").read_text() == "first\nsecond\n"
    grown.check_whole()


def test_blocks_that_are_not_whole_are_kept_and_the_rest_is_made(asked, shop, tmp_path):
    """The first three images are a unit of their own, also when a killed run of the larger set goes on."""

    class Killed(Watcher):
        def images(self, name, done, total, what=""):
            if done == 5:
                raise KeyboardInterrupt

    small = bytes_of(distill(asked(ipc=3, block=4), tmp_path / "a", workshop=shop))
    with pytest.raises(KeyboardInterrupt):
        distill(asked(ipc=5, block=4), tmp_path / "a", workshop=shop, watcher=Killed())
    units = []
    find_images = DistilledSet.add

    def added(self, label, slot, image, **record):
        units.append((label, slot))
        return find_images(self, label, slot, image, **record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistilledSet, "add", added)
        grown = distill(asked(ipc=5, block=4), tmp_path / "a", workshop=shop)
        again = distill(asked(ipc=7, block=4), tmp_path / "a", workshop=shop)
    assert units == [(1, 3), (1, 4), (0, 5), (0, 6), (1, 5), (1, 6)]
    assert small.items() <= bytes_of(grown).items() <= bytes_of(again).items()
    assert again.noted(GROWTH) == {"ipc": [3, 5]}


def test_a_set_that_was_not_finished_goes_on_as_the_larger_one(asked, shop, tmp_path):
    made = distill(asked(ipc=2), tmp_path / "a", workshop=shop)
    before = bytes_of(made)
    (made.path / made.records[-1]["path"]).unlink()
    grown = distill(asked(ipc=3), tmp_path / "a", workshop=shop)
    assert before.items() <= bytes_of(grown).items() and len(grown.records) == 6


@pytest.mark.parametrize(
    "more",
    [
        {"method": "dap-slots"},
        {"method": "mgd3"},
        {"method": "dap", "guidance": {"repulsion": 0.5}, "block": 9},
        {"method": "random+refine", "refine": {"steps": 2, "reals": 4}},
    ],
)
def test_a_method_whose_images_depend_on_their_number_says_so(more, asked, shop, tmp_path):
    more = {"block": None, **more}
    made = distill(asked(**{**more, "ipc": 2}), tmp_path / "a", workshop=shop)
    before = {p: p.read_bytes() for p in made.path.rglob("*") if p.is_file()}
    with pytest.raises(DapError, match=r"holds a set of 2 images per class.* cannot grow\. Give another --out\."):
        distill(asked(**{**more, "ipc": 3}), tmp_path / "a", workshop=shop)
    assert {p: p.read_bytes() for p in made.path.rglob("*") if p.is_file()} == before


def test_a_set_does_not_shrink_and_the_advice_can_be_followed(asked, shop, tmp_path):
    made = distill(asked(ipc=3), tmp_path / "a", workshop=shop)
    with pytest.raises(DapError, match=r"a set does not shrink.* dap import .*/a --ipc 2 --out DIR\."):
        distill(asked(ipc=2), tmp_path / "a", workshop=shop)
    taken = import_set(tmp_path / "a", tmp_path / "b", ipc=2)
    assert list(bytes_of(taken).values()) == [v for (_, slot), v in bytes_of(made).items() if slot < 2]


def killed_growth(asked, shop, folder, monkeypatch, at):
    """A set of 1 image per class whose growth to 4 is killed: after its recipe or after its classes, or in its first unit."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    made = distill(asked(ipc=1, block=1), folder, workshop=shop)
    where = {"recipe": (making.DistilledSet, "create"), "classes": (making, "add_up"), "unit": (making, "tried")}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(*where[at], kill)
        distill(asked(ipc=4, block=1), folder, workshop=shop)
    return made


@pytest.mark.parametrize("at", ["recipe", "classes", "unit"])
def test_the_smaller_set_can_be_taken_out_of_a_growth_that_was_killed(at, asked, shop, tmp_path, monkeypatch, capsys):
    made = killed_growth(asked, shop, tmp_path / "a", monkeypatch, at)
    with pytest.raises(DapError, match="holds a set of 4 images per class, and a set does not shrink") as error:
        distill(asked(ipc=1, block=1), tmp_path / "a", workshop=shop)
    advice = re.search(r"dap (import .* --out )DIR\.$", str(error.value))[1].split()
    assert main([*advice, str(tmp_path / "b")]) == 0, capsys.readouterr().err
    assert list(bytes_of(DistilledSet.open(tmp_path / "b")).values()) == list(bytes_of(made).values())
    grown = distill(asked(ipc=4, block=1), tmp_path / "a", workshop=shop)
    assert len(grown) == 8 and bytes_of(made).items() <= bytes_of(grown).items()


def test_what_a_part_needs_must_be_there_and_a_draw_needs_all(asked, shop, tmp_path, monkeypatch):
    killed_growth(asked, shop, tmp_path / "a", monkeypatch, "unit")
    with pytest.raises(DapError, match=r"not whole.*missing: red, slot 1"):
        import_set(tmp_path / "a", tmp_path / "b", ipc=2)
    with pytest.raises(DapError, match="not whole"):
        import_set(tmp_path / "a", tmp_path / "b", ipc=1, pick="random")
    with pytest.raises(DapError, match="not whole"):
        import_set(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "images" / "blue" / "00000.png").write_bytes(b"other")
    with pytest.raises(DapError, match=r"images/blue/00000\.png: its sha256 is not the manifest's"):
        import_set(tmp_path / "a", tmp_path / "b", ipc=1)


def test_another_change_beside_the_number_is_told_as_ever(asked, shop, tmp_path):
    distill(asked(ipc=2), tmp_path / "a", workshop=shop)
    with pytest.raises(DapError, match=r"made by another recipe\. What changed: seed: 0 -> 1"):
        distill(asked(ipc=3, seed=1), tmp_path / "a", workshop=shop)


def test_a_kill_between_the_two_files_leaves_the_smaller_set(asked, shop, tmp_path):
    made = distill(asked(ipc=2), tmp_path / "a", workshop=shop)
    made.note(GROWTH, {"ipc": [2, 4]})
    assert distill(asked(ipc=2), tmp_path / "a", workshop=shop).records == made.records
    assert distill(asked(ipc=3), tmp_path / "a", workshop=shop).noted(GROWTH) == {"ipc": [2]}


def test_the_plan_is_cut_where_the_set_grew():
    assert plan(2, 5, 2) == plan(2, 5, 2, [2]) == plan(2, 5, 2, [2, 4])
    assert [unit.slots for unit in plan(1, 7, 4, [3, 5])] == [(0, 1, 2), (3, 4), (5, 6)]
    assert [unit.slots for unit in plan(1, 3, 4, [3, 9])] == [(0, 1, 2)]
    assert [unit.slots for unit in plan(1, 6, 4, [1])] == [(0,), (1, 2, 3, 4), (5,)]


def test_a_set_of_clips_does_not_shrink_and_an_import_is_no_way_out(tmp_path):
    """`dap import` keeps the first frame of each clip alone."""
    recipe = {"ipc": 2, "method": "random", "data": {"frames": 4}}
    made = DistilledSet.create(tmp_path / "a", ("ant",), 2, recipe)
    with pytest.raises(DapError, match=r"a set of 2 clips per class, and a set does not shrink\. Give another --out\."):
        cuts(made.path, {**recipe, "ipc": 1}, can_grow=True)
    for slot in range(2):
        made.add(0, slot, torch.rand(3, 4, 8, 8))
    with pytest.raises(DapError, match="holds clips of 4 frames, and dap import takes images alone"):
        import_set(made.path, tmp_path / "b")
