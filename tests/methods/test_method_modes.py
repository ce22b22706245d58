"""MGD3 and ManifoldGD as methods: whose modes they are, what does not move them, and whole runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dap.backbones import Mixture
from dap.base.errors import DapError
from dap.base.store import Store
from dap.guidance import Descend, Deviation, Manifold, Modes, Window
from dap.methods import METHODS as KNOWN
from dap.methods import Unit
from dap.methods.base import Given
from dap.methods.diffusion.dap import Dap
from dap.methods.diffusion.mgd3 import ClassModes, Mgd3, ModeOptions, find_modes
from dap.methods.diffusion.vanilla import Vanilla
from dap.recipe import GuidanceOptions, Recipe
from dap.solvers import SOLVERS as ALL
from dap.verbs.distill import distill
from dap.workshop import Workshop

SOLVERS = [solver for solver in ALL if solver != "sde"]
"""Those of schedules with betas."""

METHODS = ("mgd3", "manifold-gd")


@pytest.fixture
def make(pipeline_folder, colours):
    """A recipe on the tiny pipeline and the three colours."""

    def of(method="mgd3", ipc=2, seed=0, block=None, classes=None, backbone=pipeline_folder, sampling=None, **options):
        sampling = {"steps": 4} | (sampling or {})
        data = {"path": str(colours), "classes": classes}
        chosen = {"method": method, "ipc": ipc, "seed": seed, "block": block, "options": options, "sampling": sampling}
        return Recipe.parse(chosen | {"data": data, "backbone": {"path": str(backbone)}})

    return of


def run(wanted, out):
    return distill(wanted, out, workshop=Workshop("cpu"))


def bytes_of(made):
    return {(made.class_names[record["label"]], record["slot"]): record["sha256"] for record in made.records}


def modes_of(wanted, labels=(0, 1, 2)):
    _, task = Workshop("cpu").task(wanted)
    found = ClassModes(task, task.options)
    found.begin(list(labels))
    return task, found


def latents_of(task, label):
    images = task.source.images(label, range(task.source.count(label)))
    return task.backbone.encode(images).flatten(1)


# ---- modes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("discovery", ["kmeans", "tree", "nearest"])
def test_duplicates_are_told_in_words_once(discovery, caplog):
    points = torch.eye(2).repeat(6, 1)
    assert len(find_modes(points, 3, discovery, 7, "Bag")) == 3
    (said,) = caplog.messages
    assert "Of 12 real images of class 'Bag' only 2 differ, fewer than the 3 centres" in said
    caplog.clear()
    find_modes(points, 2, discovery, 7, "Bag")
    assert not caplog.messages


def test_modes_of_well_parted_blobs_by_hand():
    """Four blobs of 3, 5, 7 and 9 points. k-means and the tree give their means, nearest a point of each."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [0.0, 90.0], [100.0, 0.0], [100.0, 80.0]])
    blobs = [corner + torch.randn(3 + 2 * i, 2, generator=generator) for i, corner in enumerate(corners)]
    points = torch.cat(blobs)[torch.randperm(24, generator=generator)]
    means = torch.stack([blob.mean(0) for blob in blobs])
    for discovery in ("kmeans", "tree", "nearest"):
        found = find_modes(points, 4, discovery, 7)
        order = torch.cdist(found, corners).argmin(1)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        if discovery == "nearest":
            wanted = [blob[(blob - blob.mean(0)).norm(dim=1).argmin()] for blob in blobs]
            assert torch.equal(found, torch.stack(wanted)[order])
        else:
            torch.testing.assert_close(found, means[order])
    # One split of a tree is by the long way; its second is of the leaf with the larger squared error, here the wider one.
    three = find_modes(points, 3, "tree", 7)
    torch.testing.assert_close(three[three[:, 0] > 50].mean(0), torch.cat(blobs[2:]).mean(0), atol=20.0, rtol=0)
    one = {discovery: find_modes(points, 1, discovery, 7)[0] for discovery in ("kmeans", "tree", "nearest")}
    torch.testing.assert_close(one["kmeans"], points.mean(0))
    torch.testing.assert_close(one["tree"], points.mean(0))
    assert torch.equal(one["nearest"], points[(points - points.mean(0)).norm(dim=1).argmin()])


@pytest.mark.parametrize("method", METHODS)
def test_modes_are_means_of_the_class_s_own_latents(make, method):
    """Whatever batches and classes came before, and in whatever order labels are asked for."""
    for labels in ([2, 0, 1], [1], [0, 2]):
        task, found = modes_of(make(method, ipc=3), labels)
        for label in labels:
            own = latents_of(task, label)
            modes = found.of(label).flatten(1)
            owner = torch.cdist(own, modes).argmin(1)
            if method == "mgd3":  # a fixed point of Lloyd's algorithm; a leaf of a tree need not be
                means = torch.stack([own[owner == slot].mean(0) for slot in range(3)])
                torch.testing.assert_close(modes, means, atol=1e-4, rtol=1e-4)
            shares = torch.linalg.lstsq(own.T, modes.T).solution
            assert (own.T @ shares - modes.T).norm() < 1e-3 * modes.norm(), "they are combinations of its latents"
    assert set(found._modes) == {0, 2}
    found.begin([1])
    assert set(found._modes) == {1}, "other classes are let go"


@pytest.mark.parametrize("method", METHODS)
def test_another_order_of_the_classes_moves_no_image(make, method, tmp_path):
    """The class with the label 0 here is the last one there, and half of them are enough."""
    sets = [
        run(make(method, classes=names), tmp_path / str(i)) for i, names in enumerate((None, ["red", "blue", "green"]))
    ]
    first, turned = map(bytes_of, sets)
    assert [made.class_names.index("red") for made in sets] == [2, 0]
    assert turned == first and len(set(first.values())) == 6
    alone = bytes_of(run(make(method, classes=["green"]), tmp_path / "alone"))
    assert alone == {where: found for where, found in first.items() if where[0] == "green"}


def test_each_image_ends_at_the_mode_of_its_own_class_and_slot(make):
    """On a mixture of the real images, whose classes stand in another order than the data's, the images are the modes."""
    method, task = Workshop("cpu").task(make(ipc=3, discovery="nearest", stop=0.75, scale=1.0, sampling={"steps": 20}))
    names, source = ("red", "green", "blue"), task.source
    assert source.class_names == ("blue", "green", "red")
    reals = {name: source.images(label, range(12)) for label, name in enumerate(source.class_names)}
    backbone = Mixture(torch.stack([reals[name] * 2 - 1 for name in names]), std=0.03, class_names=names)
    task = replace(task, given=Given(backbone=backbone), store=Store())
    modes, draw = ClassModes(task, task.options), method.prepare(task)
    modes.begin([0, 1, 2])
    for label, slots in ((2, (2, 0)), (0, (0, 1, 2)), (1, (1,)), (2, (1,))):
        wanted = modes.of(label)[list(slots)] / 2 + 0.5
        assert (draw(Unit(label, slots)).images - wanted).abs().max() < 0.1
        of_class = reals[source.class_names[label]]
        assert all((of_class - image).abs().flatten(1).amax(1).min() < 1e-5 for image in wanted)
    plain = Vanilla().prepare(task)(Unit(0, (0, 1, 2))).images
    assert (plain - modes.of(0) / 2 - 0.5).abs().flatten(1).amax(1).max() > 0.1


# ---- runs


@pytest.mark.parametrize("method", METHODS)
def test_without_guidance_it_is_vanilla_bit_for_bit(make, method, tmp_path):
    plain = bytes_of(run(make("vanilla"), tmp_path / "plain"))
    off = {"scale": 0, **({"manifold": 0} if method == "manifold-gd" else {})}
    for name, options in {"off": off, "never": {"stop": 0.0}}.items():
        made = run(make(method, **options), tmp_path / name)
        assert bytes_of(made) == plain
        assert not made.noted("cost.json")["prepared"], "nothing is clustered for nothing"
    assert bytes_of(run(make(method), tmp_path / "on")) != plain
    if method == "manifold-gd":
        options = {"discovery": "tree"}
        without = bytes_of(run(make(method, manifold=0), tmp_path / "without"))
        assert without == bytes_of(run(make("mgd3", **options), tmp_path / "mgd3")), "MGD3 is what is left"


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_with_the_same_bytes(make, method, tmp_path):
    wanted = make(method, ipc=3, block=2)
    whole = run(wanted, tmp_path / "whole")
    calls, plain = [], Vanilla.batch

    def killed(self, task, label, slots):
        calls.append((label, slots))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, task, label, slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vanilla, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            run(wanted, tmp_path / "part")
    assert (tmp_path / "part" / ".work").is_dir()
    shutil.rmtree(tmp_path / "part" / ".work")  # what was kept may be gone
    again = run(wanted, tmp_path / "part")
    assert bytes_of(again) == bytes_of(whole)
    assert not (tmp_path / "part" / ".work").exists()


@pytest.mark.parametrize("method", METHODS)
def test_blocks_change_the_last_bits_alone(make, method, tmp_path):
    together, apart = (run(make(method, ipc=3, block=block), tmp_path / str(block)).tensors()[0] for block in (3, 1))
    assert (together.int() - apart.int()).abs().max() <= 1


@pytest.mark.parametrize("folder", ["pipeline_folder", pytest.param("sd_folder", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_every_solver_and_backbone_takes_them(make, method, folder, request, tmp_path):
    """Under classifier-free guidance of all channels; neutral they are vanilla there too."""
    backbone = request.getfixturevalue(folder)
    for solver in SOLVERS:
        base = {"ipc": 1, "classes": ["green"], "backbone": backbone}
        base["sampling"] = {"solver": solver, "cfg": 3.0, "cfg_channels": "all"}
        made, plain, off = (
            bytes_of(run(make(name, **base, **options), tmp_path / f"{solver}-{i}"))
            for i, (name, options) in enumerate([(method, {}), ("vanilla", {}), (method, {"stop": 0.0})])
        )
        assert off == plain and made != plain


class WithDap(Dap):
    """DAP and MGD3 in one run."""

    modes = 0.1

    def build(self, task):
        return super().build(task) + Window(Modes(ClassModes(task, ModeOptions()), self.modes), stop=0.48)


class WithDeviation(Mgd3):
    """MGD3, and later IGD's deviation from the class's earlier images."""

    def build(self, task):
        return super().build(task) + Window(Descend(Deviation(), 5.0), start=0.5)


def test_papers_add_up(make, tmp_path, monkeypatch):
    """Each with the other's scale at 0 is alone; a part that looks back makes the whole do so."""
    for method in (WithDap, WithDeviation):
        monkeypatch.setitem(KNOWN, method.__name__, method)

    def images(method, scale=None, **values):
        guidance = None if scale is None else GuidanceOptions(scale=scale, reals=6)
        wanted = make(method, **values).model_copy(update={"guidance": guidance})
        return bytes_of(run(wanted, tmp_path / str(len(list(tmp_path.iterdir())))))

    both, alone, modes = images("WithDap", 0.1), images("dap", 0.1), images("mgd3")
    assert images("WithDap", 0.0) == modes and len({both["red", 0], alone["red", 0], modes["red", 0]}) == 3
    monkeypatch.setattr(WithDap, "modes", 0.0)
    assert images("WithDap", 0.1) == alone
    one, later = images("mgd3", block=1), images("WithDeviation")
    assert {where for where in one if one[where] == later[where]} == {("red", 0), ("green", 0), ("blue", 0)}


def test_one_image_a_class_is_drawn_to_the_mean(make):
    for method in METHODS:
        task, found = modes_of(make(method, ipc=1))
        for label in range(3):
            mean = latents_of(task, label).mean(0)
            torch.testing.assert_close(found.of(label).flatten(1)[0], mean, atol=1e-4, rtol=1e-4)


def test_as_many_images_as_real_ones_and_no_more(make, tmp_path):
    for method in METHODS:
        task, found = modes_of(make(method, ipc=12), [1])
        gaps = torch.cdist(found.of(1).flatten(1), latents_of(task, 1))
        assert sorted(gaps.argmin(1).tolist()) == list(range(12)) and gaps.amin(1).max() < 1e-2
        for options in ({"ipc": 13}, {"ipc": 5, "reals": 4}):
            with pytest.raises(DapError, match="clusters of class 'blue' need as many real images; it has 12"):
                run(make(method, **options), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_slots_without_a_target_are_said_before_the_first_class_is_made(make, colours, tmp_path):
    """The last class has fewer real images than slots; the others would have been made."""
    shutil.copytree(colours, tmp_path / "data")
    for i in range(3, 12):
        (tmp_path / "data" / "train" / "red" / f"{i}.png").unlink()
    wanted = make("dap-slots", ipc=4)
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"path": str(tmp_path / "data")})})
    with pytest.raises(DapError, match="Class 'red' has 3 real images, too few for 4 targets"):
        run(wanted, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    run(wanted.model_copy(update={"guidance": GuidanceOptions(scale=0.0)}), tmp_path / "vanilla")


def test_mistakes_are_said_before_any_work(make, tmp_path):
    def refused(words, method="manifold-gd", **values):
        with pytest.raises(DapError, match=words):
            run(make(method, **values), tmp_path / "a")

    refused("Unknown key 'lambda'", method="mgd3", **{"lambda": 1})
    refused("discovery", method="mgd3", discovery="dbscan")
    refused("stop", stop=1.5)
    refused("cannot have 64; lower tangent", tangent=64, neighbours=80)
    refused("cannot be fitted", tangent=12)
    assert not (tmp_path / "a").exists()


def test_sets_share_modes_and_each_counts_them_in_full(make, tmp_path):
    """The second of two equal sets finds the modes of all classes in the cache; its cost names each of them."""
    workshop = Workshop("cpu", cache=tmp_path / "cache")
    sets = [distill(make(scale=scale), tmp_path / str(scale), workshop=workshop) for scale in (0.1, 0.2)]
    prepared = [made.noted("cost.json")["prepared"] for made in sets]
    assert [len(parts) for parts in prepared] == [3, 3], "a class each"
    assert [{part["made"] for part in parts.values()} for parts in prepared] == [{True}, {False}]
    assert bytes_of(sets[0]) != bytes_of(sets[1])
    for i, other in enumerate(({"seed": 1}, {"reals": 7}, {"discovery": "tree"}, {"ipc": 3})):
        made = distill(make(**other), tmp_path / f"other{i}", workshop=workshop)
        assert all(part["made"] for part in made.noted("cost.json")["prepared"].values()), "modes of their own"


@pytest.mark.parametrize("name", ["starter", "starter-unet"])
@pytest.mark.parametrize("method", METHODS)
def test_on_the_starter(method, name, tmp_path):
    values = {"method": method, "ipc": 2, "sampling": {"steps": 4}, "options": {"reals": 12}}
    values |= {"data": {"path": "fashion-mnist", "classes": ["Bag", "Trouser"]}, "backbone": {"path": name}}
    workshop = Workshop("cpu", offline=True)
    made = distill(Recipe.parse(values), tmp_path / "made", workshop=workshop)
    plain = distill(Recipe.parse(values | {"method": "vanilla", "options": {}}), tmp_path / "plain", workshop=workshop)
    images, others = made.tensors()[0], plain.tensors()[0]
    assert images.shape == (4, 3, 32, 32) and not any(torch.equal(a, b) for a, b in zip(images, others, strict=True))
    assert json.loads((tmp_path / "made" / "recipe.json").read_text())["options"]["stop"] == 0.48


def test_the_defaults_are_the_papers(make):
    _, task = Workshop("cpu").task(make("manifold-gd"))
    method, plain = Workshop("cpu").task(make("mgd3"))
    window = method.build(plain)
    assert isinstance(window, Window) and isinstance(window.guidance, Modes) and window.guidance.scale == 0.1
    assert [index for index in range(50) if window.active(index, 50)] == list(range(24)), "respaced steps 49 … 26"
    modes, manifold = Workshop("cpu").task(make("manifold-gd"))[0].build(task).guidance.guidances
    assert isinstance(manifold, Manifold) and modes.centres is manifold.centres
    assert (manifold.scale, manifold.radius, manifold.bandwidth, manifold.tangent) == (0.1, 0.1, 0.2, 3)
    assert (manifold.neighbours, manifold.points, manifold.widening, manifold.warm) == (12, 300, 2.0, 0.1)
    assert task.options.discovery == "tree" and plain.options.discovery == "kmeans"
