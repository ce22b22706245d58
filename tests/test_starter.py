"""The embedded backbones: what their weights can do, and the scripts that make them."""

from __future__ import annotations

import sys

import pytest
import torch

import dap.starter.train
import dap.starter.unet
from dap.backbones import ClassifierFree, load
from dap.evaluation.training.loading import load_trained
from dap.pretraining.notes import read_notes
from dap.sampling import Batch, latents
from dap.starter import CLASS_NAMES, PIPELINE, REFERENCE, UNET_PIPELINE
from dap.starter.images import training_images

BOTH = pytest.mark.parametrize("name", ["starter", "starter-unet"])


@BOTH
def test_samples_are_of_their_class(name):
    """The reference network, which never saw a synthetic image, recognises most of 30 samples."""
    backbone = load(name)
    labels = [k for k in range(10) for _ in range(3)]
    batch = Batch.of(CLASS_NAMES, labels, [0, 1, 2] * 10, 0)
    model = ClassifierFree(backbone, backbone.card.cfg, backbone.card.cfg_channels)
    made = backbone.decode(latents(model, None, batch, steps=10, solver="dpm++2m"))
    reference = load_trained(REFERENCE)
    guessed = reference.predict(made)
    assert (guessed == torch.tensor(labels)).float().mean() >= 0.7
    # A class's three samples differ: not one picture each.
    assert made.reshape(10, 3, -1).std(1).mean() > 0.02


@BOTH
def test_the_card_goes_with_the_weights(name):
    backbone = load(name)
    assert backbone.card.name == name and backbone.card.licence == "MIT" and backbone.card.layer in backbone.layers
    rows = backbone.condition(CLASS_NAMES).tolist()  # labels of the DiT; rows of a table of prompts of the U-Net
    assert rows == list(range(rows[0], rows[0] + 10)) and len(backbone.null(2)) == 2


def test_both_share_one_autoencoder():
    one, two = load("starter"), load("starter-unet")
    images = training_images("test")[0][:50].float().expand(-1, 3, -1, -1) / 255
    assert torch.equal(one.encode(images), two.encode(images))
    error = (one.decode(one.encode(images)) - images).square().mean()
    assert -10 * error.log10() > 26, "peak signal to noise in dB"


def test_the_folders_are_small_enough_to_ship():
    size = {
        folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in (PIPELINE, UNET_PIPELINE)
    }
    assert all(bytes_ <= 20e6 for bytes_ in size.values()), size


def few_images(monkeypatch):
    images, labels = training_images("train")
    monkeypatch.setattr("dap.starter.train.training_images", lambda split: (images[:40], labels[:40]))


@pytest.mark.slow
def test_the_second_starter_s_script_is_the_trainer_of_backbones(tmp_path, monkeypatch, capsys):
    few_images(monkeypatch)
    command = ["unet", "--out", str(tmp_path), "--steps", "2", "--batch", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    dap.starter.unet.main()
    notes = read_notes(tmp_path / "pipeline")
    assert notes.done and notes.denoiser.steps == 2 and notes.autoencoder is None and notes.asked.held_out == 1
    assert notes.sizes.kind == "unet" and notes.denoiser.parameters == pytest.approx(8583076, rel=0.01), "as it was"
    backbone = load(str(tmp_path / "pipeline"))
    assert backbone.layers == load("starter-unet").layers and backbone.card.name == "starter-unet"
    images = training_images("test")[0][:2].float().expand(-1, 3, -1, -1) / 255
    assert torch.allclose(backbone.encode(images), load("starter").encode(images), atol=1e-2), "the first one's latents"
    assert torch.isfinite(backbone.predict(torch.randn(1, 4, 8, 8), 500, backbone.condition(["Bag"])).eps).all()


@pytest.mark.slow  # the second starter's, which is the same trainer, is always tested
def test_the_first_starter_s_script_is_the_trainer_of_backbones(tmp_path, monkeypatch, capsys):
    few_images(monkeypatch)
    steps = ["--vae-steps", "2", "--decoder-steps", "1", "--dit-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path), *steps, "--batch", "2", "--device", "cpu"])
    dap.starter.train.main()
    notes = read_notes(tmp_path / "pipeline")
    assert (notes.autoencoder.steps, notes.decoder.steps, notes.denoiser.steps) == (2, 1, 2)
    assert notes.autoencoder.parameters == 681911 > notes.decoder.parameters and notes.sizes.start == "nothing"
    assert notes.denoiser.parameters == pytest.approx(6123104, rel=0.01)
    assert load(str(tmp_path / "pipeline")).class_names == load("starter").class_names
    assert "reconstructions of the test images: " in capsys.readouterr().out
