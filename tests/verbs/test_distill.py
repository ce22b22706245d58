"""`distill`: recipes, keywords and objects lead to the same set; guidances of one's own; what is built once; kills and edits."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.data.real.sources import FolderSource, open_source
from dap.guidance import Energy, Guidance, Scaled
from dap.methods import Made, Method
from dap.methods.diffusion.vanilla import Vanilla
from dap.recipe import Recipe
from dap.verbs import compare
from dap.verbs.distill import distill
from dap.verbs.options import Judging, Machine
from dap.workshop import Workshop

OWN = """
from dap.guidance import Energy, Guidance

class Inward(Guidance):
    def __call__(self, state):
        return -0.05 * state.proposal

class Small(Energy):
    def __call__(self, state):
        return state.x.flatten(1).square().sum(1)

class Flat(Small):
    grad_through = "nothing"

class Neither:
    pass
"""


class Inward(Guidance):
    def __init__(self, strength: float = 0.05) -> None:
        self.strength = strength

    def __call__(self, state):
        return -self.strength * state.proposal


class Small(Energy):
    def __call__(self, state):
        return state.x.flatten(1).square().sum(1)


class Pulled(Vanilla):
    """A method of one's own."""

    def build(self, task):
        del task
        return Inward()


@pytest.fixture
def asked(colours, pipeline_folder):
    """Keywords of a small sampled set."""
    return {
        "method": "vanilla",
        "ipc": 1,
        "steps": 3,
        "data": str(colours),
        "backbone": str(pipeline_folder),
        "machine": Machine(device="cpu"),
    }


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def hashes(made):
    return [record["sha256"] for record in made.records]


def kept(made, name):
    return json.loads((made.path / name).read_text())


def test_recipes_mappings_files_and_keywords_say_the_same(asked, tmp_path):
    by_keyword = distill(out=tmp_path / "a", **asked)
    values = {
        "method": "vanilla",
        "ipc": 5,
        "sampling": {"steps": 3},
        "data": {"path": asked["data"]},
        "backbone": {"path": asked["backbone"]},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(values))
    for place, recipe in enumerate((Recipe.parse(values), values, file, str(file))):
        made = distill(recipe, tmp_path / f"b{place}", ipc=1, machine=asked["machine"])
        assert hashes(made) == hashes(by_keyword)
        assert kept(made, "recipe.json") == kept(by_keyword, "recipe.json")
    assert "own_guidance" not in kept(made, "recipe.json") and "objects" not in kept(made, "inputs.json")
    assert Recipe.parse(kept(made, "recipe.json")).method == "vanilla", "recipe.json is a recipe again"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"step": 3}, "no field 'step'. Did you mean 'steps'"),
        ({"method": "nothing"}, "Unknown method 'nothing'"),
        ({"method": 3}, "method should be a name or an object of a subclass of dap.methods.base.Method, not a int"),
        (
            {"guidance": object()},
            "guidance should be a name or an object of a subclass of .*Guidance or .*Energy, not a object",
        ),
        ({"source": 3}, "a mapping from class name to images"),
        ({"recipe": 3}, "A recipe is a dap.Recipe, nested values, a file, .* not 3"),
        ({"machine": "cpu"}, r"The argument machine takes a dap.Machine\(\.\.\.\), not 'cpu'"),
        ({"engine": "ray"}, r"The argument engine takes a dap.Engine\(\.\.\.\), not 'ray'"),
        ({"workshop": "here"}, r"The keyword workshop takes a dap.Workshop\(\.\.\.\), not 'here'"),
        ({"source": {"red": [torch.full((3, 8, 8), 2.0)]}}, r"floats in \[0, 1\] or bytes"),
    ],
)
def test_a_wrong_keyword_is_named_before_any_work(asked, tmp_path, fields, says):
    given = {**asked, **fields, **({"data": None} if "source" in fields else {})}
    with pytest.raises(DapError, match=says):
        distill(out=tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()
    with pytest.raises(DapError, match="give out"):
        distill(**asked)


def test_options_given_as_text_become_what_they_say_or_are_refused(asked, tmp_path):
    machine = Machine(device="cpu", cache=str(tmp_path / "cache"))
    assert machine == Machine(device="cpu", cache=tmp_path / "cache")
    distill(out=tmp_path / "a", **{**asked, "machine": machine, "method": "dap", "reals": 3})
    assert (tmp_path / "cache").is_dir()
    for wrong in ({"cache": 3}, {"device": 0}, {"memory": "4"}, {"threads": 1.5}, {"vram": True}):
        with pytest.raises(DapError, match=f"Machine takes .*{next(iter(wrong))} as"):
            Machine(**wrong)
    judging = Judging(labels="stored", networks="convnet3", measures="mine.py:Sharp")
    assert (judging.labels, judging.networks, judging.measures) == (Path("stored"), ("convnet3",), ("mine.py:Sharp",))


def test_objects_take_the_place_of_names(asked, tmp_path, source, backbone):
    named = distill(out=tmp_path / "a", **asked)
    images = {name: source.images(label, range(12)) for label, name in enumerate(source.class_names)}
    objects = {key: value for key, value in asked.items() if key != "data"}
    objects |= {"backbone": backbone, "source": images, "method": Vanilla}
    made = distill(out=tmp_path / "b", **objects)
    assert hashes(made) == hashes(named)
    assert made.class_names == source.class_names
    told = kept(made, "inputs.json")["objects"]
    assert told["method"] == {"class": "dap.methods.diffusion.vanilla:Vanilla"}
    assert told["backbone"]["class"] == "dap.backbones.kinds.dit:DiT"
    assert kept(made, "recipe.json")["data"]["path"] == "images in memory"
    opened = distill(out=tmp_path / "c", **{**objects, "source": source})
    assert hashes(opened) == hashes(named)


def test_images_in_memory_have_several_forms(asked, tmp_path, source):
    stacked = torch.cat([source.images(label, range(12)) for label in range(3)])
    labels = torch.arange(3).repeat_interleave(12)
    pictures = [(image, int(label)) for image, label in zip(stacked, labels, strict=True)]
    common = {key: value for key, value in asked.items() if key not in ("data", "backbone", "steps")}
    common |= {"method": "random", "size": 8, "ipc": 2}
    pair = distill(out=tmp_path / "a", source=(stacked, labels), **common)
    listed = distill(out=tmp_path / "b", source=pictures, **common)
    assert hashes(pair) == hashes(listed) and pair.class_names == ("0", "1", "2")
    bytes_ = {"red": (stacked[:12] * 255).round().byte(), "green": stacked[12:24], "blue": stacked[24:]}
    larger = distill(out=tmp_path / "c", source=bytes_, **{**common, "size": 16})
    assert larger.tensors()[0].shape == (6, 3, 16, 16)


def test_classes_and_size_choose_among_the_images_of_an_object(colours, tmp_path, source):
    """Both were dropped without a word beside source=."""
    images = {name: source.images(label, range(12)) for label, name in enumerate(source.class_names)}
    chosen = [source.class_names[2], source.class_names[0]]
    common = {"method": "random", "ipc": 2, "classes": chosen, "size": 4, "machine": Machine(device="cpu")}
    named = distill(out=tmp_path / "a", data=str(colours), **common)
    for number, given in enumerate((source, images)):
        made = distill(out=tmp_path / f"b{number}", source=given, **common)
        assert made.class_names == tuple(chosen) and made.tensors()[0].shape == (4, 3, 4, 4)
        data = kept(made, "recipe.json")["data"]
        assert (data["classes"], data["size"]) == (chosen, 4)
    assert hashes(distill(out=tmp_path / "c", source=source, **common)) == hashes(named)
    recipe = {"data": {"path": "elsewhere", "classes": chosen}, "method": "random", "ipc": 1}
    assert distill(recipe, tmp_path / "d", source=images).class_names == tuple(chosen)
    with pytest.raises(DapError, match="unknown class 'zzz'"):
        distill(out=tmp_path / "e", source=source, **{**common, "classes": ["zzz"]})
    assert not (tmp_path / "e").exists()


def test_a_source_keeps_the_fit_that_it_was_opened_with(colours, tmp_path):
    from dap.data.real.sources import open_source

    common = {"method": "random", "ipc": 1, "machine": Machine(device="cpu")}
    made = [
        distill(out=tmp_path / fit, source=open_source(colours, size=16, fit=fit), **common) for fit in ("pad", "crop")
    ]
    padded, cropped = (one.tensors()[0] for one in made)
    assert padded[:, :, 0].max() == 0 and cropped[:, :, 0].max() > 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data": "elsewhere"}, "as data or as source, and not as both"),
        ({"split": {"train": "nope"}}, "split=.* has no use beside a source that is given as an object"),
        ({"frames": 4}, "frames=4 has no use beside a source"),
        ({"max_bad_fraction": 0.5}, "max_bad_fraction=0.5 has no use beside a source"),
    ],
)
def test_a_keyword_that_an_object_decides_is_refused(tmp_path, source, fields, says):
    with pytest.raises(DapError, match=says):
        distill(out=tmp_path / "a", method="random", ipc=1, source=source, **fields)
    images = {name: source.images(label, range(2)) for label, name in enumerate(source.class_names)}
    if "max_bad_fraction" not in fields:
        with pytest.raises(DapError, match=says):
            distill(out=tmp_path / "a", method="random", ipc=1, source=images, **fields)
    assert not (tmp_path / "a").exists()


def test_a_recipe_of_clips_takes_no_images_in_memory(tmp_path):
    recipe = {"data": {"path": "films", "frames": 4}, "method": "random", "ipc": 1}
    with pytest.raises(DapError, match="The data hold images; give frames=None, not 4"):
        distill(recipe, tmp_path / "a", source={"a": torch.rand(2, 3, 8, 8)})


def test_a_prompt_has_no_use_beside_a_backbone_that_is_an_object(asked, tmp_path, backbone):
    with pytest.raises(DapError, match="template='a {}' has no use beside a backbone"):
        distill(out=tmp_path / "a", **{**asked, "backbone": backbone, "template": "a {}"})


def test_a_set_goes_on_with_the_object_it_was_begun_with_alone(asked, tmp_path):
    made = distill(out=tmp_path / "a", guidance=Inward(0.1), **asked)
    told = kept(made, "inputs.json")["objects"]["guidance"]
    assert told["values"] == {"strength": 0.1} and len(told["code"]) == 1
    assert all(len(digest) == 64 for digest in told["code"].values())
    again = distill(out=tmp_path / "a", guidance=Inward(0.1), **asked)
    assert hashes(again) == hashes(made)
    with pytest.raises(DapError, match="objects.guidance.values.strength: 0.1 -> 0.2"):
        distill(out=tmp_path / "a", guidance=Inward(0.2), **asked)
    with pytest.raises(DapError, match='own_guidance.path: "test_distill:Inward" -> "test_distill:Small"'):
        distill(out=tmp_path / "a", guidance=Small(), **asked)
    with pytest.raises(DapError, match="made by another recipe"):
        distill(out=tmp_path / "a", **asked)


def test_a_method_object_and_a_guidance_object_add_up(asked, tmp_path):
    plain = distill(out=tmp_path / "a", **asked)
    guided = distill(out=tmp_path / "b", guidance=Inward(0.05), **asked)
    mine = distill(out=tmp_path / "c", **{**asked, "method": Pulled()})
    assert hashes(guided) == hashes(mine) != hashes(plain)
    off = distill(out=tmp_path / "d", guidance=Inward(0.05), guidance_scale=0, **asked)
    assert hashes(off) == hashes(plain)
    both = distill(out=tmp_path / "e", guidance=Scaled(Inward(0.05), 2.0), **asked)
    twice = distill(out=tmp_path / "f", guidance=Inward(0.05), guidance_scale=2, **asked)
    assert hashes(both) == hashes(twice) != hashes(guided)
    late = distill(out=tmp_path / "g", guidance=Inward(0.05), guidance_start=0.5, **asked)
    assert hashes(late) not in (hashes(plain), hashes(guided))
    energy = distill(out=tmp_path / "h", guidance=Small(), guidance_scale=0.2, **asked)
    assert hashes(energy) != hashes(plain)


def test_a_guidance_in_a_file_is_checked_and_hashed(asked, own, tmp_path):
    made = distill(out=tmp_path / "a", guidance=f"{own}:Inward", **asked)
    assert kept(made, "recipe.json")["own_guidance"]["path"] == f"{own}:Inward"
    assert len(kept(made, "inputs.json")[f"code {own}"]) == 64
    assert hashes(made) == hashes(distill(out=tmp_path / "b", guidance=Inward(0.05), **asked))
    wrong = {
        f"{own}:Inwards": "no 'Inwards'",
        f"{own}:Neither": "neither a guidance nor an energy",
        f"{own}:Flat": "no gradient to descend",
        "nowhere.py:Mine": "No file nowhere.py",
        "inward": "Unknown guidance 'inward'",
    }
    for name, says in wrong.items():
        with pytest.raises(DapError, match=says):
            distill(out=tmp_path / "c", guidance=name, **asked)
    picking = {**_unsampled(asked), "method": "random"}
    with pytest.raises(DapError, match="'random' has no use for a guidance of your own"):
        distill(out=tmp_path / "c", guidance=f"{own}:Inward", **picking)
    with pytest.raises(DapError, match="Give --guidance"):
        distill(out=tmp_path / "c", guidance_scale=2, **asked)
    for start, stop in ((0.5, 0.5), (0.999, 1.0)):
        with pytest.raises(
            DapError, match=f"Your own guidance would act in none of the .* starts at {start} .* at {stop}"
        ):
            distill(out=tmp_path / "c", guidance=f"{own}:Inward", guidance_start=start, guidance_stop=stop, **asked)
    assert not (tmp_path / "c").exists()


def _unsampled(asked):
    return {name: value for name, value in asked.items() if name not in ("backbone", "steps")}


def test_a_choice_that_would_do_nothing_is_refused_before_anything_is_made(asked, tmp_path):
    for flags, says in {
        ("method=dap", "start=0.4", "stop=0.4"): "DAP's guidance would act in none of the",
        ("method=dap", "start=0.7", "last_step=false", "steps=2"): "DAP's guidance would act in none of the 2 steps",
        ("method=auto", "refine_energy=mean", "refine_kernel=rbf"): "mean has no kernel",
    }.items():
        given = dict(flag.split("=") for flag in flags)
        with pytest.raises(DapError, match=says):
            distill(out=tmp_path / "c", **{**asked, **given})
    assert not (tmp_path / "c").exists()
    off = distill(out=tmp_path / "d", **{**asked, "method": "dap", "start": 0.4, "stop": 0.4, "scale": 0.0})
    assert hashes(off) == hashes(distill(out=tmp_path / "e", **{**asked, "method": "vanilla"}))


def test_choices_about_sampling_are_said_to_change_nothing_where_nothing_is_sampled(asked, tmp_path, caplog):
    plain = distill(out=tmp_path / "a", **{**_unsampled(asked), "method": "random"})
    assert not caplog.messages
    given = distill(out=tmp_path / "b", **{**asked, "method": "random", "cfg": 2.0})
    assert caplog.messages == ["random samples no backbone, so these change nothing: --steps, --cfg"]
    assert hashes(given) == hashes(plain)


def test_a_cell_is_built_once_and_its_data_and_weights_are_looked_at_once(asked, tmp_path, monkeypatch):
    count: Counter[str] = Counter()

    def counted(owner, name):
        usual = getattr(owner, name)

        def call(*args, **options):
            count[name] += 1
            return usual(*args, **options)

        monkeypatch.setattr(owner, name, call)

    counted(Workshop, "_built")
    counted(FolderSource, "_listing")
    counted(Backbone, "weights_hash")
    monkeypatch.setattr("dap.workshop.open_source", open_source)
    counted(sys.modules["dap.workshop"], "open_source")
    base = {
        "sampling": {"steps": 2},
        "data": {"path": asked["data"]},
        "backbone": {"path": asked["backbone"]},
        "guidance": {"reals": 2},
    }
    fast = Judging(networks=("convnet1",), epochs=1, changes={"width": 4, "size": 8})
    made = compare.compare(base, ["vanilla", "dap"], [1, 2], 1, tmp_path, judging=fast, machine=asked["machine"])
    assert len(made.sets) == 4
    # Training and test images are listed once each. What is hashed is each listing at a size and fit: the training images as
    # the backbone takes them, and training and test images as the evaluation takes them; the measures
    # also ask for the training images at any size, and once as the backbone takes them.
    assert count == {"_built": 4, "open_source": 2, "_listing": 5, "weights_hash": 1}


HANGS = """
import os, time, torch
from dap.methods import Made, Method

class Trains(Method):
    needs = frozenset({"training"})

    def prepare(self, task):
        made = task.store.get("network", {"seed": task.recipe.seed}, lambda: {"x": torch.rand(3, 8, 8)})["x"]
        while os.environ.get("HANGS"):
            time.sleep(0.01)
        return lambda unit: Made(made.expand(len(unit.slots), 3, 8, 8), [{} for _ in unit.slots])
"""


def test_a_run_that_is_killed_while_a_method_prepares_goes_on(colours, tmp_path):
    file, out = tmp_path / "hangs.py", tmp_path / "set"
    file.write_text(HANGS)
    words = ["--method", f"{file}:Trains", "--data", str(colours), "--size", "8", "--ipc", "1", "--out", str(out)]
    command = [sys.executable, "-m", "dap", "distill", *words]
    process = subprocess.Popen(command, env={**os.environ, "HANGS": "1"}, stderr=subprocess.DEVNULL)
    while not list(out.glob(".work/*.safetensors")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "recipe.json").exists()
    kept_before = next(out.glob(".work/*.safetensors")).read_bytes()
    made = distill(out=out, method=f"{file}:Trains", data=str(colours), size=8, ipc=1)
    assert len(made.records) == 3 and not (out / ".work").exists()
    assert kept_before


def test_the_code_that_runs_is_the_code_that_is_hashed(asked, own, tmp_path, monkeypatch):
    """A file that is edited in one process, and a module of a package."""
    first = distill(out=tmp_path / "a", guidance=f"{own}:Inward", **asked)
    workshop = Workshop("cpu")
    values = {"method": "vanilla", "ipc": 1, "sampling": {"steps": 3}, "data": {"path": asked["data"]}}
    values |= {"backbone": {"path": asked["backbone"]}, "own_guidance": {"path": f"{own}:Inward"}}
    shared = distill(values, tmp_path / "b", workshop=workshop)
    assert hashes(shared) == hashes(first)
    own.write_text(OWN.replace("0.05", "0.50"))
    with pytest.raises(DapError, match="What changed: code .*own.py"):
        distill(values, tmp_path / "b", workshop=workshop)
    edited = distill(values, tmp_path / "c", workshop=workshop)
    assert hashes(edited) != hashes(first)
    assert kept(edited, "inputs.json")[f"code {own}"] != kept(first, "inputs.json")[f"code {own}"]
    assert hashes(edited) == hashes(distill(out=tmp_path / "d", guidance=Inward(0.5), **asked))

    (tmp_path / "pulling").mkdir()
    (tmp_path / "pulling" / "__init__.py").write_text("")
    (tmp_path / "pulling" / "inward.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = distill(out=tmp_path / "e", guidance="pulling.inward:Inward", **asked)
    assert hashes(made) == hashes(first)
    before = kept(made, "inputs.json")["code pulling.inward"]
    (tmp_path / "pulling" / "inward.py").write_text(OWN.replace("0.05", "0.50"))
    with pytest.raises(DapError, match="What changed: code pulling.inward"):
        distill(out=tmp_path / "e", guidance="pulling.inward:Inward", **asked)
    again = distill(out=tmp_path / "f", guidance="pulling.inward:Inward", **asked)
    assert hashes(again) == hashes(edited) and kept(again, "inputs.json")["code pulling.inward"] != before


def test_a_method_that_has_not_asked_is_told_how_to(asked, tmp_path):
    class Hasty(Method):
        def prepare(self, task):
            task.backbone.encode(task.source.images(0, [0]))
            return lambda unit: Made(torch.zeros(1, 3, 8, 8), [{}])

    with pytest.raises(DapError, match='uses task.backbone, so its `needs` must name "backbone"'):
        distill(out=tmp_path / "a", **{**_unsampled(asked), "method": Hasty()})


def test_threads_are_those_of_before_when_a_function_ends(colours, tmp_path, monkeypatch):
    told = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1] if told else 5)
    make = functools.partial(distill, data=str(colours), method="random", ipc=1)
    make(out=tmp_path / "set", machine=Machine(threads=2, device="cpu"))
    assert told == [2, 5]
    with pytest.raises(DapError, match="unknown class"):
        make(out=tmp_path / "other", classes=["grey"], machine=Machine(threads=3, device="cpu"))
    assert told == [2, 5, 3, 5]
