"""`NAME+refine` in a run: blocks that see earlier ones, what the store keeps, real images that are held out, and what is told."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.choices import Refinement
from dap.data.bank import FeatureBank
from dap.data.sets.distilled import DistilledSet
from dap.methods.base import Unit
from dap.methods.refined import banks_of, judging_energy
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop
from energies import Reals, state


@pytest.fixture(scope="module")
def asked(pipeline_folder, colours):
    def asked(method="random+refine", ipc=4, block=2, **refine):
        return Recipe.parse(
            {
                "method": method,
                "ipc": ipc,
                "block": block,
                "data": {"path": str(colours), "classes": ["red", "blue"]},
                "backbone": {"path": str(pipeline_folder)},
                "sampling": {"steps": 3},
                "refine": {"steps": 6, "reals": 6, **refine},
            }
        )

    return asked


@pytest.fixture(scope="module")
def shop():
    return Workshop("cpu")


def bytes_of(made: DistilledSet) -> dict[tuple[int, int], str]:
    return {(record["label"], record["slot"]): record["sha256"] for record in made.records}


@pytest.mark.parametrize("energy", ["distance", "mmd", "mean", "sinkhorn"])
def test_the_first_slots_are_those_of_a_smaller_set_and_the_others_see_them(energy, asked, shop, tmp_path):
    """The starts of `random` are those of the smaller set too, so every block is what it was; the second is not what a set of
    its own would be."""
    small, large, apart = (
        distill(asked(ipc=ipc, block=block, energy=energy), tmp_path / name, workshop=shop)
        for name, ipc, block in (("small", 2, 2), ("large", 6, 2), ("whole", 6, 6))
    )
    first, all_of, whole = (bytes_of(made) for made in (small, large, apart))
    assert len(all_of) == 12 and first.items() <= all_of.items()
    assert not set(whole.values()) & set(all_of.values())
    assert "refined" not in small.records[0]


def test_a_block_depends_on_the_finished_ones(asked, shop):
    """The second block alone, beside its first block, and beside another: three results from one start."""
    method, task = shop.task(asked())
    make, unit = method.prepare(task), Unit(0, (2, 3))
    before, made = make.before(unit), make.make(unit)
    other = replace(before, latents=before.latents.flip(1))
    found = [make.refined(unit, made, old)[0] for old in (None, before, other)]
    assert torch.equal(make(unit).latents, found[1]) and make.before(Unit(0, (0, 1))) is None
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


@pytest.mark.parametrize("method", ["random+refine", "vanilla+refine", "auto"])
@pytest.mark.parametrize("lost", [[(0, 3)], [(0, 0)], [(0, 1), (0, 2), (1, 3)]])
def test_a_lost_image_is_made_again_with_the_same_bytes(method, lost, asked, shop, tmp_path):
    """In another process, whether the latents of earlier blocks were kept or, with a finished set, are gone."""
    made = distill(asked(method), tmp_path / "a", workshop=shop)
    before = bytes_of(made)
    for label, slot in lost:
        (made.path / next(r["path"] for r in made.records if (r["label"], r["slot"]) == (label, slot))).unlink()
    again = distill(asked(method), tmp_path / "a", workshop=Workshop("cpu"))
    assert bytes_of(again) == before and len(before) == 8


class Killed(Watcher):
    def __init__(self, after):
        self.after, self.told = after, []

    def images(self, name, done, total, what=""):
        if done == self.after:
            raise KeyboardInterrupt

    def work(self, what, done, total):
        self.told.append((what, done, total))


@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_killed_run_goes_on_from_the_latents_that_were_kept(after, asked, shop, tmp_path):
    """Earlier blocks are not refined again: they come out of the store."""
    whole = distill(asked(patience=3, repel=0.5), tmp_path / "whole", workshop=shop)
    with pytest.raises(KeyboardInterrupt):
        distill(asked(patience=3, repel=0.5), tmp_path / "part", workshop=shop, watcher=Killed(after))
    watcher = Killed(-1)
    again = distill(asked(patience=3, repel=0.5), tmp_path / "part", workshop=Workshop("cpu"), watcher=watcher)
    assert bytes_of(again) == bytes_of(whole) and again.records == whole.records
    ends = [what for what, done, total in watcher.told if done == total]
    assert len(ends) == 4 - after // 2


def test_two_makers_that_share_a_cache_give_the_same_bytes_and_wait_for_no_circle(asked, shop, tmp_path):
    """Two threads make the same set in two folders at one time.

    Each asks the store for blocks that the other is making. A maker holds one lock at a time, so neither waits for ever.
    """
    recipe = asked()
    alone = distill(recipe, tmp_path / "alone", workshop=shop)
    done: dict[str, DistilledSet] = {}

    def make(name):
        torch.set_num_threads(1)
        done[name] = distill(recipe, tmp_path / name, workshop=Workshop("cpu", cache=tmp_path / "cache"))

    makers = [threading.Thread(target=make, args=(name,), daemon=True) for name in ("first", "second")]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(120)
    assert bytes_of(done["first"]) == bytes_of(done["second"]) == bytes_of(alone)
    assert (
        len([file for file in (tmp_path / "cache").rglob("refined *.safetensors")]) == 2
    )  # the first block of each class


def test_the_layers_of_a_refinement_encode_the_real_images_once(asked, shop, monkeypatch):
    """Also those that are held out, which are other images than those that pull."""
    _, task = shop.task(asked(layers=["0", "1", "2"]))
    calls = []
    encode = type(task.backbone).encode

    def counted(self, images):
        calls.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(task.backbone), "encode", counted)
    pull, held = banks_of(task), banks_of(task, skip=6)
    for bank in [*pull, *held]:
        bank.begin([0])
    assert calls == [6, 6]
    assert all(torch.equal(bank.latents(0), pull[0].latents(0)) for bank in pull)
    alone = FeatureBank(task.source, task.backbone, pull[2].options, ipc=4, run_seed=task.recipe.seed)
    alone.begin([0])
    assert torch.equal(alone.at(0, 50), pull[2].at(0, 50))
    both = torch.cat([pull[0].latents(0), held[0].latents(0)]).flatten(1)
    assert torch.pdist(both).min() > 0.1
    for bank in pull:
        bank.begin([1])
    assert torch.equal(pull[1].latents(1), pull[0].latents(1)) and not torch.equal(pull[0].latents(1), alone.latents(0))


def test_the_cache_tells_held_out_images_from_others(asked, shop, tmp_path):
    _, task = shop.task(asked())
    options = banks_of(task)[0].options
    for _ in "ab":
        first, other = (
            FeatureBank(task.source, task.backbone, options, ipc=4, cache=tmp_path, skip=skip) for skip in (0, 6)
        )
        first.begin([0])
        other.begin([0])
        assert (first.at(0, 10) - other.at(0, 10)).abs().max() > 0.1


def test_the_held_out_curve_stands_in_the_manifest(asked, shop, tmp_path):
    """Each image says after how many steps it was kept, and the first of a block how the energy went."""
    made = distill(asked(ipc=4, block=2, patience=2), tmp_path / "a", workshop=shop)
    records = [json.loads(line)["refined"] for line in (tmp_path / "a" / "manifest.jsonl").read_text().splitlines()]
    assert len(records) == 8
    for first, second in zip(records[::2], records[1::2], strict=True):
        curve = first["held_out"]
        assert [step for step, _ in curve] == [0, 2, 4, 6][: len(curve)]
        best = min(curve, key=lambda look: look[1])[0]
        assert first["steps"] == second["steps"] == best and set(second) == {"steps"}
        assert len(curve) == 4 or curve[-1][0] - best >= 2
    assert made.recipe["refine"]["patience"] == 2


@pytest.mark.parametrize("energy", ["distance", "mmd", "mean", "sinkhorn"])
def test_what_judges_a_set_is_lowest_for_real_images(energy):
    """Many real images have a lower value than as many that are all alike, and than as many that are too far apart.

    Of a few images in many dimensions, transport prefers centres of shares, which lie nearer to each other than real images.
    """
    draw = torch.Generator().manual_seed(0)
    real, ten = torch.randn(200, 2, generator=draw), torch.randn(100, 2, generator=draw)
    judge = judging_energy(energy, Reals({0: real}), "linear")
    spread = ten - ten.mean(0)
    values = {scale: judge(state((scale * spread)[:, None], [0] * 100)).sum().item() for scale in (0.05, 1.0, 2.0)}
    if energy in ("distance", "sinkhorn"):
        assert values[1.0] < min(values[0.05], values[2.0])
    else:  # under the linear kernel these see the mean alone, which is the same
        assert values[0.05] == pytest.approx(values[2.0], abs=1e-4)
        moved = judge(state((spread + 1)[:, None], [0] * 100)).sum().item()
        assert values[1.0] < moved


def test_patience_needs_real_images_that_pull_nothing(asked, shop):
    method, task = shop.task(asked(patience=5, reals=12))
    with pytest.raises(DapError, match=r"'red' has 12 real images, and 12 of them pull.*lower refine.reals"):
        method.prepare(task)
    method, task = shop.task(asked(patience=5, reals=11))
    method.prepare(task)


def test_new_choices_change_the_recipe_of_no_earlier_set(asked, shop):
    """A set that was begun before there were these goes on, and its recipe is still read."""
    kept = shop.task(asked())[1].recipe.values()
    assert not {"repel", "patience"} & set(kept["refine"])
    other = shop.task(asked(repel=0.5, patience=4))[1].recipe.values()["refine"]
    assert (other["repel"], other["patience"]) == (0.5, 4)
    assert shop.task(Recipe.parse({**kept, "method": "random+refine"}))[1].recipe.values() == kept
    assert Refinement.model_validate(kept["refine"]).repel == 0


def test_a_repulsion_moves_the_images_elsewhere(asked, shop, tmp_path):
    plain, apart = (distill(asked(repel=r), tmp_path / str(r), workshop=shop) for r in (0.0, 2.0))
    assert not set(bytes_of(plain).values()) & set(bytes_of(apart).values())


def test_the_progress_of_a_refinement_is_told(asked, shop, tmp_path):
    watcher = Killed(-1)
    distill(asked(ipc=2), tmp_path / "a", workshop=shop, watcher=watcher)
    assert [told for told in watcher.told if told[0] == "refining red"] == [("refining red", k, 6) for k in range(1, 7)]
