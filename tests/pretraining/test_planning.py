"""What fits into the minutes of a training, and what is said before any work where too little does."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import dap
from conftest import tiny_vae
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.pretraining import encoding, planning, training
from dap.pretraining import pictures as encoding_pictures
from dap.pretraining.denoisers import learner_of
from dap.pretraining.encoding import Encoding, encoding_of
from dap.pretraining.networks import Sizes, autoencoder
from dap.pretraining.notes import Asked, Notes, Stage, read_notes
from dap.pretraining.pictures import Pictures, versions_of
from dap.pretraining.planning import SPARE, denoiser_seconds_left, denoiser_steps
from dap.pretraining.training import Training
from dap.verbs.options import Machine
from dap.verbs.training.asked import fewer_versions

CPU = torch.device("cpu")
SIZES = Sizes(size=16, levels=[8, 16], width=32, depth=1, batch_images=4, batch_latents=4)


def asked(**values) -> Asked:
    usual = {"kind": "dit", "size": None, "minutes": 10, "autoencoder_steps": None, "steps": None, "seed": 0}
    usual |= {"flip": True, "classes": ["a", "b"], "data": "x", "images": 1000, "held_out": 100}
    return Asked(**usual | values)


@pytest.fixture
def pictures(tmp_path):
    for label, name in enumerate(("blue", "red")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(15):
            Image.new("RGB", (16, 16), (10 * k, 100 * label, 90)).save(tmp_path / "data" / name / f"{k}.png")
    return tmp_path / "data"


def rates(monkeypatch, *, step: float, image: float = 0.0, first: float = 0.01) -> None:
    """Trials find these seconds, and no image may be encoded for a training."""
    monkeypatch.setattr(planning, "learner_seconds", lambda learner, batch, device: step)
    monkeypatch.setattr(encoding, "seconds_of_encoding", lambda vae, sizes, images, device: image)
    monkeypatch.setattr("dap.verbs.training.backbone.chosen", lambda wish: (SIZES, "tiny", first, step))
    monkeypatch.setattr(training, "encoded", lambda *args, **options: pytest.fail("images are encoded"))


def test_too_little_time_for_tuning_is_said_first_and_the_same_folder_takes_more(
    pictures, pipeline_folder, tmp_path, monkeypatch
):
    """All images were encoded first, the folder was bound to the minutes, and --size is no option of the command."""
    out, how = tmp_path / "out", {"machine": Machine(device="cpu")}
    with monkeypatch.context() as patch:
        rates(patch, step=10.0)
        with pytest.raises(
            DapError, match="steps of the tuning, which is too few to learn anything; give more --minutes.$"
        ):
            dap.tune_backbone(pipeline_folder, pictures, out, minutes=1, **how)
    assert not (out / "training.json").exists()
    made = dap.tune_backbone(pipeline_folder, pictures, out, minutes=2, steps=2, **how)
    assert made.notes.done and made.notes.versions is None


def test_classes_that_cannot_be_learned_bind_no_folder(pipeline_folder, sd_folder, tmp_path, pictures):
    (pictures / "red").rename(pictures / "n02084071")
    with pytest.raises(DapError, match="rename the class"):
        dap.tune_backbone(sd_folder, pictures, tmp_path / "out", steps=2, machine=Machine(device="cpu"))
    assert not (tmp_path / "out" / "training.json").exists()


@pytest.mark.parametrize(
    ("rate", "how", "advice"),
    [
        ({"step": 10.0}, {}, "give more --minutes.$"),
        (
            {"step": 0.01, "image": 60.0},
            {},
            r"encoding of the images \(30.0 minutes\), .* 0 steps .*; give more --minutes.$",
        ),
        ({"step": 0.01, "first": 1.0}, {"autoencoder_steps": 999}, "give more --minutes, fewer --autoencoder-steps.$"),
    ],
)
def test_too_little_time_for_the_denoiser_is_said_before_the_autoencoder_is_trained(
    rate, how, advice, pictures, tmp_path, monkeypatch
):
    rates(monkeypatch, **rate)
    with pytest.raises(DapError, match=advice):
        dap.train_backbone(pictures, tmp_path / "out", minutes=4, size=16, machine=Machine(device="cpu"), **how)
    assert not (tmp_path / "out" / "training.json").exists()


def test_a_begun_training_finds_out_before_it_encodes_and_names_another_folder(tmp_path, monkeypatch):
    """Notes of an earlier version have no steps yet."""
    vae, some = tiny_vae(), Pictures(torch.rand(8, 3, 16, 16), torch.arange(8) % 2)
    notes = Notes(asked=asked(minutes=1, size=16), sizes=SIZES, autoencoder=Stage(planned=1))
    monkeypatch.setattr(Training, "_autoencoder", lambda self: vae)
    rates(monkeypatch, step=10.0)
    with pytest.raises(DapError, match="too few to learn anything; give more --minutes, and another --out.$"):
        Training(tmp_path, some, None, notes, CPU).run()


@pytest.mark.parametrize("images", [10, 4000, 300_000])
@pytest.mark.parametrize("each", [1e-5, 1e-2, 10.0])
def test_as_many_versions_are_encoded_as_the_time_allows(images, each, monkeypatch):
    """Encoding took its time beside --minutes: 84 minutes for 300,000 images, whatever was asked."""
    monkeypatch.setattr(encoding, "seconds_of_encoding", lambda vae, sizes, images, device: each)
    wish = asked(images=images, minutes=5)
    usual = versions_of(Pictures(torch.empty(0, 3, 16, 16), torch.empty(images)))
    found, limit = encoding_of(None, wish, SIZES, CPU, usual), encoding.SHARE * 300
    assert found.seconds == pytest.approx(each * found.images) and found.images == found.versions * images + 100
    assert found.seconds <= limit or found.versions == 1
    if found.versions < usual:
        assert each * (found.images + images) > limit, "as many as fit"
    said = asked(images=images, minutes=5, steps=60)
    assert encoding_of(None, said, SIZES, CPU, usual).versions == usual, "the same bytes on any machine"
    assert encoding_of(None, wish, SIZES, CPU, usual, settled=True).versions == usual


def test_all_stages_together_fill_the_minutes_and_no_more():
    for spent, coding in ((200.0, 0.0), (200.0, 90.0), (500.0, 50.0)):
        taken = Encoding(1, 100, coding)
        notes = Notes(asked=asked(), sizes=SIZES, reserved=20.0)
        steps = denoiser_steps(notes, 0.5, taken, spent=spent)
        assert steps * 0.5 <= SPARE * (600 - spent - coding) < (steps + 1) * 0.5
        assert denoiser_seconds_left(notes.asked, spent, taken) == 600 - spent - coding


def test_an_autoencoder_that_took_too_long_leaves_half_of_what_was_planned_and_this_is_said(tmp_path, monkeypatch):
    """It left half of all minutes, so a training took up to half as long again without a word."""
    stage, heard = Stage(planned=9, seconds=590.0), []
    notes = Notes(asked=asked(), sizes=SIZES, autoencoder=stage, reserved=300.0)
    rates(monkeypatch, step=0.5, image=0.001)
    vae = autoencoder(SIZES, 0)
    made = Training(tmp_path, Pictures(torch.rand(4, 3, 16, 16), torch.zeros(4)), None, notes, CPU, heard_by(heard))
    made._plan(vae, learner_of(SIZES, vae, ["a", "b"], made._card(), 0))
    assert (
        made.notes.denoiser.planned == int(150 * SPARE / 0.5) and read_notes(tmp_path).denoiser == made.notes.denoiser
    )
    assert len(heard) == 1 and "so the whole training takes longer than 10 minutes" in heard[0]


def heard_by(heard: list[str]) -> Watcher:
    class Hearing(Watcher):
        def note(self, text: str) -> None:
            heard.append(text)

    return Hearing()


@pytest.mark.parametrize("frames", [None, 8])
@pytest.mark.parametrize("images", [50, 5000, 100_000])
def test_latents_take_no_more_memory_than_there_is(images, frames):
    """Nothing asked how much memory they take."""
    wish, sizes = asked(images=images), SIZES.model_copy(update={"frames": frames})
    usual, whole = encoding.usual_versions(wish, sizes), encoding.latents_bytes(1, wish, sizes)
    for memory in (0, 2**26, whole, 2 * whole, 10 * whole):
        memory = max(memory, encoding.LEAST)
        if whole > memory:
            with pytest.raises(DapError, match="half of --memory.; give a larger --memory, or fewer --classes.$"):
                encoding.versions_in(memory, "--memory", wish, sizes)
            continue
        found = encoding.versions_in(memory, "--memory", wish, sizes)
        assert encoding.latents_bytes(found, wish, sizes) <= memory
        assert found == usual or encoding.latents_bytes(found + 1, wish, sizes) > memory


def test_memory_that_is_too_small_is_said_before_any_work(pictures, pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "LEAST", 0)
    rates(monkeypatch, step=0.001)
    for train in (dap.train_backbone, lambda *of, **how: dap.tune_backbone(pipeline_folder, *of, **how)):
        for steps in (None, 2):
            with pytest.raises(DapError, match="The latents of 30 images of .* px take up to"):
                train(pictures, tmp_path / "out", minutes=9, steps=steps, machine=Machine(device="cpu", memory=1e-6))
    assert not (tmp_path / "out" / "training.json").exists()


def test_fewer_versions_are_recorded_and_told(monkeypatch):
    heard, wish = [], asked(steps=5)
    assert fewer_versions(4, wish, SIZES, heard_by(heard)) is None and not heard
    assert fewer_versions(1, wish, SIZES, heard_by(heard)) == 1 and "encoded in one version" in heard[0]


class Sizing(TorchDispatchMode):
    """Counts the new tensors of so many numbers or more."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.seen = least, dict[int, torch.Tensor]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.numel() >= self.least:
            self.seen.setdefault(found.untyped_storage().data_ptr(), found)  # kept, so that no address comes again
        return found


@pytest.mark.parametrize("trained", [True, False])
def test_latents_are_not_copied(trained, tmp_path, monkeypatch):
    """They were kept in parts, put together, standardised into new ones and multiplied by 1: five times their memory."""
    vae, some = tiny_vae().requires_grad_(False), Pictures(torch.rand(600, 3, 8, 8), torch.arange(600) % 2)
    notes, factor = Notes(asked=asked(images=600), sizes=SIZES, versions=3), vae.config.scaling_factor
    monkeypatch.setattr(encoding_pictures, "TOGETHER", 100 * 8**2)
    made = Training(tmp_path, some, None, notes, CPU, vae=None if trained else vae)
    plain = encoding_pictures.encoded(vae, some, CPU, seed=0, versions=3)
    with Sizing(3 * 600 * 4 * 4 * 4) as counted:
        latents, _ = made._latents(vae)
    assert len(counted.seen) <= (3 if trained else 2), [one.shape for one in counted.seen.values()]
    assert len(latents.mean) == 3
    if not trained:
        assert factor != 1 and torch.equal(latents.mean, plain.mean * factor)
        assert torch.equal(latents.std, plain.std * factor)


@pytest.mark.parametrize("frames", [None, 3])
def test_the_trial_encodes_as_a_training_does(frames):
    sizes = SIZES.model_copy(update={"frames": frames})
    assert 0 < encoding.seconds_of_encoding(autoencoder(sizes, 0).requires_grad_(False), sizes, 5, CPU) < 60
