"""cost.json: what a killed sitting spent counts, and what another process spent does not count twice."""

from __future__ import annotations

import pytest
import torch

from dap import cost
from dap.base import store
from dap.base.store import Store
from dap.cost import Meter
from dap.data.sets.distilled import DistilledSet
from dap.methods.selection.random import Random
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (cost, store):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


def test_a_killed_run_s_time_is_counted(colours, tmp_path, monkeypatch):
    """Killed in the middle, without a chance to write anything at the end."""
    clock, plain, made = Clock(monkeypatch), Random.prepare, []

    def prepare(self, task):
        make = plain(self, task)

        def slow(unit):
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(unit)
            clock.passes(10)
            return make(unit)

        return slow

    monkeypatch.setattr(Random, "prepare", prepare)
    recipe = Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(colours), "size": 8}})
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, tmp_path, workshop=Workshop("cpu"))
    found = DistilledSet.open(tmp_path).noted("cost.json")
    assert (found["seconds"], found["images"]) == (20, 2)
    made.clear()
    found = distill(recipe, tmp_path, workshop=Workshop("cpu")).noted("cost.json")
    assert (found["seconds"], found["images"]) == (30, 3)
    assert distill(recipe, tmp_path, workshop=Workshop("cpu")).noted("cost.json") == found, (
        "looking at it costs nothing"
    )


def test_the_time_in_a_checkpoint_is_counted_once(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def work(kept, seconds, killed=False):
        checkpoint = kept.checkpoint("training", {})
        checkpoint.read()
        clock.passes(seconds)
        checkpoint.write({"step": 1})
        if killed:
            raise KeyboardInterrupt
        return {"x": torch.ones(1)}

    for seconds in (100, 20):
        with pytest.raises(KeyboardInterrupt):
            kept = Store(tmp_path / "work")
            kept.get("a", {}, lambda kept=kept, seconds=seconds: work(kept, seconds, killed=True))
    kept = Store(tmp_path / "work")
    made = DistilledSet.create(tmp_path / "set", ["a"], 1, {"method": "x"})
    meter = Meter(made, ["training"], kept)
    kept.get("a", {}, lambda: work(kept, 3))
    assert kept.used["a"] == {"seconds": 123, "made": True}
    kept.get("b", {}, lambda: (clock.passes(5), {"x": torch.ones(1)})[1])
    assert kept.used["b"]["seconds"] == 5
    meter.add(1)
    assert made.noted("cost.json")["seconds"] == 128


def test_waiting_for_another_process_s_work_is_no_cost(tmp_path, monkeypatch):
    """What is taken from a shared store counts with the seconds of its making; waiting until it was made does not count."""
    clock = Clock(monkeypatch)
    Store(tmp_path / "cache").get("a", {}, lambda: (clock.passes(50), {"x": torch.ones(1)})[1])
    kept = Store(tmp_path / "cache")
    made = DistilledSet.create(tmp_path / "set", ["a"], 1, {"method": "x"})
    meter, alone = Meter(made, [], kept), kept._alone

    def waits(mark):
        clock.passes(40)
        return alone(mark)

    monkeypatch.setattr(kept, "_alone", waits)
    kept.get("a", {}, dict)
    clock.passes(2)
    meter.add(1)
    found = made.noted("cost.json")
    assert found["seconds"] == 2 and found["prepared"] == {"a": {"seconds": 50, "made": False}}


def test_the_peak_is_that_of_the_gpu_in_use(tmp_path, monkeypatch):
    """On "cuda:1" the memory of GPU 0 is neither reset nor read; on a CPU no GPU is asked."""
    asked = []
    allocated = {0: 9_000_000_000, 1: 2_500_000_000, 2: 0}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(device.index))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocated[device.index])

    def peak(name, device):
        made = DistilledSet.create(tmp_path / name, ["a"], 1, {"method": "x"})
        meter = Meter(made, [], Store(), torch.device(device))
        meter.add(1)
        meter.write()
        return made.noted("cost.json")["peak_memory_gb"]

    assert peak("one", "cuda:1") == 2.5 and asked == [1]
    resident = peak("cpu", "cpu")
    assert 0 < resident < 9 and asked == [1]
    assert peak("two", "cuda:2") >= resident, "nothing was allocated there, so the process's memory counts"


def test_a_set_is_measured_on_its_backbone_s_device(colours, pipeline_folder, tmp_path, monkeypatch):
    seen, workshop = [], Workshop("cpu")
    monkeypatch.setattr(cost, "forget_peak_memory", seen.append)
    monkeypatch.setattr(cost, "peak_memory_gb", lambda device: seen.append(device) or 1.0)
    values = {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 2}}
    recipe = Recipe.parse({"method": "vanilla", "ipc": 1, **values})
    distill(recipe, tmp_path, workshop=workshop)
    assert recipe.backbone is not None
    device = workshop.backbone(recipe.backbone).device
    assert seen and all(asked is device for asked in seen)
