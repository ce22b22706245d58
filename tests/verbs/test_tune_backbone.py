"""`dap tune-backbone`: a backbone of others learns new classes, and stays an ordinary pipeline of the same licence."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

import dap
import tiny_text
from conftest import tiny_transformer
from dap.backbones.hub import formats_of, open_pipeline
from dap.base.errors import DapError
from dap.cli.main import main
from dap.pretraining.tuning import LabelTuner, relabelled
from dap.verbs.options import Machine

NAMES = ("blue", "gold", "red")
HOW = {"steps": 3, "machine": Machine(device="cpu")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three classes of 12 images, of which the tiny DiT knows two by name."""
    folder = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(NAMES):
        (folder / name).mkdir()
        for k in range(12):
            pixel = [20 * k % 90] * 3
            pixel[label] = 200
            Image.new("RGB", (16, 16), tuple(pixel)).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def label_tuned(pictures, pipeline_folder, tmp_path_factory):
    return dap.tune_backbone(pipeline_folder, pictures, tmp_path_factory.mktemp("dit") / "tuned", **HOW)


@pytest.fixture(scope="module")
def prompt_tuned(pictures, sd_folder, tmp_path_factory):
    return dap.tune_backbone(sd_folder, pictures, tmp_path_factory.mktemp("sd") / "tuned", rank=2, **HOW)


def changed(one, other) -> list[str]:
    before, after = one.state(), other.state()
    return [
        n for n in before if n in after and before[n].shape == after[n].shape and not torch.equal(before[n], after[n])
    ]


def test_a_dit_gets_the_labels_of_the_folder_and_learns_light_parts(label_tuned, pipeline_folder):
    source, made = (dap.load_backbone(str(p), device="cpu") for p in (pipeline_folder, label_tuned.folder))
    assert made.class_names == NAMES and made.card.licence == source.card.licence and made.card.name == "tuned"
    moved = changed(source, made)
    assert moved and all(name.startswith("denoiser.") for name in moved), "the autoencoder stays as it is"
    assert any("bias" in name for name in moved)
    x = torch.randn(3, *made.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(made.predict(x, 500, made.condition(NAMES)).eps).all()
    assert set(made.state()) == set(source.state()), "factors are merged into the weights"


def test_the_merged_dit_predicts_what_the_one_that_learned_did(backbone):
    """With random factors, so that a factor that is merged into the wrong layer shows."""
    pipe = Namespace(components={}, register_modules=lambda **parts: None)
    learner = LabelTuner(pipe, backbone, ["red", "other"], torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, *backbone.latent_shape, generator=generator)
    before = learner.backbone.predict(x, 500, learner.backbone.condition(["red", "other"])).eps
    learner.pipeline(backbone.vae)
    merged = learner._plain
    after = merged.predict(x, 500, merged.condition(["red", "other"])).eps
    assert torch.allclose(before, after, atol=1e-4)
    assert (after - backbone.predict(x, 500, backbone.condition(["red", "blue"])).eps).abs().max() > 1e-2


def test_known_classes_keep_their_embeddings(backbone):
    made = relabelled(backbone, ["other", "red"])
    old, new = (
        one.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        for one in (backbone, made)
    )
    assert torch.equal(new[1], old[backbone.class_names.index("red")]) and torch.equal(new[2], old[-1])
    assert torch.allclose(new[0], old[:-1].mean(0)) and made.class_names == ("other", "red")
    x = torch.randn(1, *backbone.latent_shape)
    assert torch.equal(
        made.predict(x, 100, made.condition(["red"])).eps, backbone.predict(x, 100, backbone.condition(["red"])).eps
    )
    assert torch.equal(made.predict(x, 100, made.null(1)).eps, backbone.predict(x, 100, backbone.null(1)).eps)


def test_a_stable_diffusion_gets_lora_in_its_attention(prompt_tuned, sd_folder):
    source, made = (dap.load_backbone(str(p), device="cpu") for p in (sd_folder, prompt_tuned.folder))
    moved = changed(source, made)
    assert moved and all(".to_" in name and "denoiser." in name for name in moved), moved
    assert set(made.state()) == set(source.state()), "the matrices are merged into the weights"
    assert made.card.licence == source.card.licence and made.card.template == source.card.template
    before, after = source.state(), made.state()
    ranks = [torch.linalg.matrix_rank((after[n] - before[n]).float(), rtol=1e-3).item() for n in moved]
    assert max(ranks) <= 2 and prompt_tuned.notes.asked.rank == 2


def test_each_part_keeps_the_number_format_of_the_file_that_is_loaded(label_tuned, pipeline_folder, pictures, tmp_path):
    assert formats_of(label_tuned.folder) == formats_of(pipeline_folder)
    mixed = shutil.copytree(pipeline_folder, tmp_path / "mixed")
    pipe, _ = open_pipeline(str(mixed), revision=None, dtype="float32", offline=True)
    pipe.transformer.to(torch.float16).save_pretrained(mixed / "transformer")
    assert formats_of(mixed) == {"transformer": torch.float16, "vae": torch.float32}
    made = dap.tune_backbone(mixed, pictures, tmp_path / "tuned", **HOW)
    assert formats_of(made.folder) == formats_of(mixed)
    before, after = (dap.load_backbone(str(p), device="cpu") for p in (mixed, made.folder))
    assert all(name.startswith("denoiser.") for name in changed(before, after)), "the autoencoder stays as it is"
    pipe.transformer.save_pretrained(mixed / "transformer", variant="fp16")
    pipe.transformer.to(torch.float32).save_pretrained(mixed / "transformer")
    names = {file.name for file in (mixed / "transformer").glob("*.safetensors")}
    assert len(names) == 2 and formats_of(mixed)["transformer"] == torch.float32, "diffusers takes the plain file"


def test_a_stable_diffusion_xl_learns_too(pictures, tmp_path):
    tiny_text.sdxl().save_pretrained(tmp_path / "xl")
    made = dap.tune_backbone(
        tmp_path / "xl", pictures, tmp_path / "tuned", rank=2, steps=1, machine=Machine(device="cpu")
    )
    before, after = (dap.load_backbone(str(p), device="cpu") for p in (tmp_path / "xl", made.folder))
    moved = changed(before, after)
    assert moved and all(".to_" in name and "denoiser." in name for name in moved), moved


def test_check_passes_and_distill_takes_it(label_tuned, prompt_tuned, pictures, tmp_path, capsys):
    assert main(["check", str(label_tuned.folder), "--device", "cpu"]) == 0, capsys.readouterr().out
    for made in (label_tuned, prompt_tuned):
        how = {"method": "vanilla", "ipc": 1, "steps": 2, "machine": Machine(device="cpu")}
        found = dap.distill(out=tmp_path / made.notes.asked.kind, source=pictures, backbone=made.folder, **how)
        assert found.class_names == NAMES


def test_made_again_it_is_there_and_other_weights_are_refused(label_tuned, pictures, pipeline_folder, tmp_path):
    assert dap.tune_backbone(pipeline_folder, pictures, label_tuned.folder, **HOW).again
    tiny = tiny_transformer(seed=5)
    other = tmp_path / "other"
    shutil.copytree(pipeline_folder, other)
    tiny.save_pretrained(other / "transformer")
    with pytest.raises(DapError, match="begun with another backbone"):
        dap.tune_backbone(other, pictures, label_tuned.folder, **HOW)


def test_another_template_is_another_training(prompt_tuned, sd_folder, pictures, tmp_path):
    """Another prompt gave back the old backbone, and a training that was resumed learned two prompts."""
    usual, how = prompt_tuned.notes.asked, {"rank": 2, **HOW}
    assert usual.template is None
    card = dap.load_backbone(str(sd_folder), device="cpu").card
    same = dap.tune_backbone(sd_folder, pictures, prompt_tuned.folder, template=card.template, **how)
    assert same.again, "the template of the card is the same, said or not"
    with pytest.raises(DapError, match="begun with --template of the backbone's card, and now it is 'x {} y'"):
        dap.tune_backbone(sd_folder, pictures, prompt_tuned.folder, template="x {} y", **how)
    made = dap.tune_backbone(sd_folder, pictures, tmp_path / "made", template="x {} y", **how)
    assert made.notes.asked.template == "x {} y"
    assert dap.load_backbone(str(made.folder), device="cpu").card.template == "x {} y"
    with pytest.raises(DapError, match="begun with --template 'x {} y', and now it is of the backbone's card"):
        dap.tune_backbone(sd_folder, pictures, made.folder, **how)


def test_a_tuning_that_an_earlier_version_began_goes_on(prompt_tuned, sd_folder, pictures, tmp_path):
    """Its training.json and the keys of its checkpoints know no template."""
    import hashlib
    import json

    from dap.pretraining import training

    old = shutil.copytree(prompt_tuned.folder, tmp_path / "old")
    said = json.loads((old / "training.json").read_text())
    for name in ("template", "spoken"):  # fields that came later
        del said["asked"][name]
    (old / "training.json").write_text(json.dumps({**said, "done": False, "denoiser": {"planned": 3}}))
    keys = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Checkpoint", lambda file, key, every: keys.append(key) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dap.tune_backbone(sd_folder, pictures, old, rank=2, **HOW)
    parts = [said["asked"], said["sizes"]]
    for part in parts:
        part.pop("frames", None)
    assert keys == [hashlib.sha256(json.dumps([*parts, "denoiser", 3]).encode()).hexdigest()[:16]]
    assert not dap.tune_backbone(sd_folder, pictures, old, rank=2, **HOW).again


def test_what_cannot_be_tuned_is_said(pictures, pipeline_folder, sd_folder, tmp_path, monkeypatch):
    with pytest.raises(DapError, match="--rank takes a whole number from 1 to 1024, such as 8, not 0"):
        dap.tune_backbone(sd_folder, pictures, tmp_path / "a", rank=0, **HOW)
    with pytest.raises(DapError, match="There is no backbone at 'nowhere'"):
        dap.tune_backbone("nowhere", pictures, tmp_path / "a", **HOW)
    with pytest.raises(DapError, match="conditioned on labels, not on prompts"):
        dap.tune_backbone(pipeline_folder, pictures, tmp_path / "a", template="a {}", **HOW)
    with pytest.raises(DapError, match="--rank is of LoRA, for a Stable Diffusion, and .* is a DiT; leave --rank out"):
        dap.tune_backbone(pipeline_folder, pictures, tmp_path / "a", rank=8, **HOW)
    tiny_text.lcm().save_pretrained(tmp_path / "lcm")
    with pytest.raises(DapError, match="was distilled to few steps, and dap tune-backbone would undo that"):
        dap.tune_backbone(tmp_path / "lcm", pictures, tmp_path / "a", **HOW)
    few = shutil.copytree(pipeline_folder, tmp_path / "few")
    (few / "card.yaml").write_text("steps: 4\n")
    with pytest.raises(DapError, match="distilled to few steps"):
        dap.tune_backbone(few, pictures, tmp_path / "a", **HOW)
    velocity = shutil.copytree(pipeline_folder, tmp_path / "velocity")
    scheduler = velocity / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(
        DapError, match="dap tune-backbone trains only backbones that predict noise, and .*velocity does not"
    ):
        dap.tune_backbone(velocity, pictures, tmp_path / "a", **HOW)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DapError, match=r"needs peft; pip install 'diffusion-as-priors\[tune\]'"):
        dap.tune_backbone(sd_folder, pictures, tmp_path / "a", **HOW)
    assert not (tmp_path / "a").exists()
