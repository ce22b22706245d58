"""A small Stable Diffusion is trained on what it is asked for later, and trainings of earlier versions keep their meaning."""

from __future__ import annotations

import hashlib
import json

import pytest
from PIL import Image

import dap
from dap.base.errors import DapError
from dap.pretraining import training
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Notes, Stage, read_notes, write_notes
from dap.verbs.options import Machine
from dap.verbs.picking.fitting import _was_trained_on
from dap.verbs.training.backbone import opened

HOW = {
    "kind": "unet",
    "minutes": 0.01,
    "steps": 2,
    "autoencoder_steps": 2,
    "size": 16,
    "machine": Machine(device="cpu"),
}
WISHES = {name: HOW[name] for name in HOW if name != "machine"} | {"seed": 0, "flip": True, "frames": None}
SIZES = Sizes(kind="unet", size=16, levels=[8, 16], width=32, depth=1, batch_images=4, batch_latents=4)


def folder(place, *names):
    for label, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for k in range(15):
            Image.new("RGB", (16, 16), (10 * k, 100 * label, 90)).save(place / name / f"{k}.png")
    return place


def begun(data, out, done=False):
    """A training as an earlier version left it: its notes say nothing of prompts."""
    ready = opened(data, out, WISHES, machine=HOW["machine"])
    stages = {"autoencoder": Stage(planned=2), "denoiser": Stage(planned=2)}
    notes = Notes(asked=ready.asked.model_copy(update={"spoken": None}), sizes=SIZES, done=done, **stages)
    out.mkdir()
    write_notes(out, notes)
    said = json.loads((out / "training.json").read_text())
    del said["asked"]["spoken"]
    (out / "training.json").write_text(json.dumps(said))
    if done:
        (out / "model_index.json").write_text("{}")
    return ready


def test_classes_without_a_prompt_of_their_own_are_refused_before_any_training(tmp_path):
    """The whole training went through, and then no set could be made from it."""
    for names, said in (
        (("cat", "n02084071"), "has no name to make a prompt of"),
        (("Big", "big"), "as the same tokens"),
    ):
        data = folder(tmp_path / "-".join(names), *names)
        with pytest.raises(DapError, match=said):
            dap.train_backbone(data, tmp_path / "out", **HOW)
        assert not (tmp_path / "out").exists()
        opened(data, tmp_path / "dit", {**WISHES, "kind": "dit"}, machine=HOW["machine"])  # it is told labels


@pytest.mark.parametrize("done", [False, True])
def test_a_training_of_an_earlier_version_on_other_prompts_is_refused(tmp_path, done):
    data, out = folder(tmp_path / "data", "ok", "sea_lion"), tmp_path / "old"
    ready = begun(data, out, done)
    assert ready.asked.spoken == ["ok", "sea lion"]
    with pytest.raises(
        DapError, match="its prompts say 'sea_lion', and whatever uses the backbone asks it for 'sea lion'"
    ):
        dap.train_backbone(data, out, **HOW)
    assert not _was_trained_on(out, ready.real.whole), "`auto` looks at it as at any other backbone"


def test_a_training_of_an_earlier_version_on_the_same_prompts_goes_on(tmp_path):
    data, out = folder(tmp_path / "data", "ok", "two words"), tmp_path / "old"
    ready = begun(data, out)
    asked, sizes = (getattr(read_notes(out), part).model_dump() for part in ("asked", "sizes"))
    for part, names in ((asked, ("spoken", "template", "frames")), (sizes, ("frames",))):
        for name in names:
            assert part.pop(name) is None
    keys = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Checkpoint", lambda file, key, every: keys.append(key) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dap.train_backbone(data, out, **HOW)
    assert keys == [hashlib.sha256(json.dumps([asked, sizes, "autoencoder", 2]).encode()).hexdigest()[:16]]
    write_notes(out, read_notes(out).but(done=True))
    assert _was_trained_on(out, ready.real.whole)
