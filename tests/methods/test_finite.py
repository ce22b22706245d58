"""Units that leave the finite numbers: again in float32 from the same noise, else recorded, while the others are made."""

from __future__ import annotations

import json

import pytest
import torch

from dap.backbones import load
from dap.backbones.kinds.dit import DiT
from dap.base.errors import DapError, NotFinite
from dap.cli.main import main
from dap.data.sets.contents import FAILED as FILE
from dap.data.sets.distilled import DistilledSet
from dap.methods.base import Made, Method
from dap.methods.finite import ENOUGH, _in_float32
from dap.objects import Objects
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine
from dap.workshop import Workshop

COMMON = {"machine": Machine(device="cpu"), "steps": 3, "ipc": 4, "block": 2, "method": "dap", "reals": 3}


def overflowing(monkeypatch, of: str, factor: float = 1e6) -> list[torch.dtype]:
    """Let a step of the network leave the range of float16 for one class: the value passes through float16's largest number."""
    run, seen = DiT.run, []

    def overflows(self, x, t, condition):
        out = run(self, x, t, condition)
        label = self.condition([of])[0]
        if (condition == label).any():
            dtype = next(self.denoiser.parameters()).dtype
            seen.append(dtype)
            out = (out.to(dtype) * factor).float() / factor  # exact to float32's rounding, infinite in float16
        return out

    monkeypatch.setattr(DiT, "run", overflows)
    return seen


def half(pipeline_folder, **more):
    return load(str(pipeline_folder), dtype="float16", device="cpu", **more)


def images_of(made: DistilledSet) -> dict[str, bytes]:
    return {record["path"]: (made.path / record["path"]).read_bytes() for record in made.records}


def test_a_unit_that_overflows_is_made_again_in_float32_from_the_same_noise(
    pipeline_folder, colours, tmp_path, monkeypatch, caplog
):
    plain = distill(out=tmp_path / "plain", backbone=half(pipeline_folder), source=str(colours), **COMMON)
    with monkeypatch.context() as patch:
        seen = overflowing(patch, "green")
        made = distill(out=tmp_path / "set", backbone=half(pipeline_folder), source=str(colours), **COMMON)
    assert {torch.float16, torch.float32} == set(seen)
    told = {record["class_name"]: record.get("dtype") for record in made.records}
    assert told == {"red": None, "green": "float32", "blue": None} and made.verify() == []
    assert "leaves the range of float16" in caplog.text and not (made.path / FILE).exists()
    for record in made.records:
        mine, usual = (
            made[made.records.index(record)][0],
            plain[plain.records.index(next(r for r in plain.records if r["path"] == record["path"]))][0],
        )
        if record["class_name"] != "green":
            assert torch.equal(mine, usual)
        else:  # the same noise and weights, computed in another number format
            assert (mine - usual).abs().mean() < 0.02
    assert not torch.equal(made[0][0], made[1][0])


def test_a_resumed_set_has_the_same_bytes_as_one_that_was_not_interrupted(
    pipeline_folder, colours, tmp_path, monkeypatch
):
    overflowing(monkeypatch, "green")
    whole = distill(out=tmp_path / "a", backbone=half(pipeline_folder), source=str(colours), **COMMON)
    torn = distill(out=tmp_path / "b", backbone=half(pipeline_folder), source=str(colours), **COMMON)
    for record in torn.records:
        if record["slot"] >= 2:
            (torn.path / record["path"]).unlink()
    again = distill(out=tmp_path / "b", backbone=half(pipeline_folder), source=str(colours), **COMMON)
    assert images_of(again) == images_of(whole) and len(again) == 12


def test_the_weights_are_what_they_were_after_a_retry(pipeline_folder):
    backbone = half(pipeline_folder)
    before, digest = {name: value.clone() for name, value in backbone.state().items()}, backbone.weights_hash()
    with backbone.widened() as wider:
        assert wider and next(backbone.denoiser.parameters()).dtype == torch.float32
    assert backbone.weights_hash() == digest
    assert all(
        torch.equal(before[name], value) and before[name].dtype == value.dtype
        for name, value in backbone.state().items()
    )
    with load(str(pipeline_folder), device="cpu").widened() as wider:
        assert not wider


def test_real_features_of_a_retry_are_not_those_in_float16_of_a_shared_cache(pipeline_folder, colours, tmp_path):
    """With --offload the hash of the weights is kept from the beginning, so both have one key."""
    asked = {"method": "dap", "ipc": 1, "data": {"path": str(colours)}, "sampling": {"steps": 2}}
    backbone = half(pipeline_folder)
    backbone.keep_hash()
    shop = Workshop("cpu", cache=tmp_path / "cache", objects=Objects(backbone=backbone))
    _, task = shop.task(Recipe.parse({**asked, "guidance": {"reals": 3}}))
    assert (task.cache, _in_float32(task).cache) == (tmp_path / "cache", None)
    assert _in_float32(task).store.inputs["dtype"] == "float32"


def test_what_is_not_finite_in_float32_either_fails_alone_and_the_rest_is_made(
    pipeline_folder, colours, tmp_path, monkeypatch, capsys
):
    words = ["distill", "--method", "dap", "--backbone", str(pipeline_folder), "--data", str(colours), "--steps", "3"]
    words += ["--reals", "3", "--ipc", "4", "--block", "2", "--device", "cpu", "--out", str(tmp_path / "set")]
    with monkeypatch.context() as patch:
        overflowing(patch, "green", factor=float("inf"))
        assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("dap: error") == 1 and "Traceback" not in said
    assert "4 images have failed in " in said and "class 'green', slots 0 to 1: " in said and "slots 2 to 3: " in said
    assert "not finite" in said or "finite numbers" in said
    assert "All others are made. What may help: " in said and "then give another --out" in said
    lines = [json.loads(line) for line in (tmp_path / "set" / FILE).read_text().splitlines()]
    assert [(line["class_name"], line["slots"]) for line in lines] == [("green", [0, 1]), ("green", [2, 3])]
    made = DistilledSet.open(tmp_path / "set")
    assert {record["class_name"] for record in made.records} == {"red", "blue"} and len(made) == 8
    assert main(words) == 0, "the same command makes what is missing where the cause is gone"
    assert not (tmp_path / "set" / FILE).exists() and DistilledSet.open(tmp_path / "set").verify() == []


def test_a_run_in_which_nothing_is_finite_ends_soon(pipeline_folder, colours, tmp_path, monkeypatch):
    calls = []
    run = DiT.run

    def never(self, x, t, condition):
        calls.append(len(x))
        return run(self, x, t, condition) * float("nan")

    backbone = load(str(pipeline_folder), device="cpu")
    monkeypatch.setattr(DiT, "run", never)
    with pytest.raises(DapError, match="No unit was made, so the run ends here. What may help: "):
        distill(out=tmp_path / "set", backbone=backbone, source=str(colours), **COMMON)
    assert len((tmp_path / "set" / FILE).read_text().splitlines()) == ENOUGH


class Nothing(Method):
    """Pixels that are no numbers, in images of one class."""

    def prepare(self, task):
        def make(unit):
            images = torch.rand(len(unit.slots), 3, 8, 8, generator=torch.Generator().manual_seed(unit.label))
            images[:, :, 0, 0] = float("nan") if unit.label == 1 else 0.5
            return Made(images, [{"seed": 0} for _ in unit.slots])

        del task
        return make


def test_pixels_that_are_no_numbers_are_no_black_image(colours, tmp_path):
    with pytest.raises(DapError, match="The finished images hold values that are no numbers.*All others are made"):
        distill(out=tmp_path / "s", method=Nothing(), source=str(colours), ipc=2, size=8, machine=Machine(device="cpu"))
    assert len(DistilledSet.open(tmp_path / "s")) == 4


@pytest.mark.parametrize("clamp", ["step", "end"])
@pytest.mark.parametrize("method", ["dm", "dc", "mtt"])
def test_a_matching_that_diverges_says_so(method, clamp, colours, tmp_path, monkeypatch):
    from dap.methods.matching.base import Run

    descend = Run.descend
    monkeypatch.setattr(Run, "descend", lambda self, gradient: descend(self, gradient * float("nan")))
    options = {"iterations": 3, "network": "convnet1", "width": 4, "clamp": clamp}
    options |= {"experts": 1, "expert_epochs": 2, "start": 0, "ahead": 1, "steps": 1} if method == "mtt" else {}
    with pytest.raises(DapError, match="is no number any more at iteration 1 of 3.*--option lr_images="):
        distill(out=tmp_path / "s", method=method, source=str(colours), ipc=1, size=8, options=options)


def test_what_is_not_finite_can_be_sent_to_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(NotFinite("Sampling left the finite numbers", "lower the scale")))
    assert (error.reason, error.advice) == ("Sampling left the finite numbers", "lower the scale")
    assert str(error) == "Sampling left the finite numbers; lower the scale."
