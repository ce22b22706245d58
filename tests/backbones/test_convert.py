"""Weights in the forms people have them: the original DiT checkpoint, and folders laid out like the hub's."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from conftest import tiny_transformer, tiny_vae
from dap import imagenet
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.converting.checkpoints import folded, opened, tensors_of
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.sampling import Batch, images

WIDTH, DEPTH, HEADS, PATCH, GRID, CHANNELS, LABELS = 32, 2, 4, 2, 4, 4, 7
NAMES = ["tench, Tinca tinca", "crane", "crane"]  # two labels of one name, as ImageNet has
MAIN, OTHER = "a" * 40, "b" * 40


# --- the original layout, and what it means -------------------------------------------------------------------------


def positions(grid: int = GRID, width: int = WIDTH) -> torch.Tensor:
    """The fixed table (1, grid², width): sin and cos of the column, then of the row."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = torch.arange(grid, dtype=torch.float64)[:, None] * rates
    one = torch.cat([place.sin(), place.cos()], dim=1)
    columns, rows = one[None].expand(grid, -1, -1), one[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, grid**2, width).float()


def original(labels: int = LABELS, learned: bool = True, grid: int = GRID, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict with the names and shapes of facebookresearch/DiT."""
    generator, state = torch.Generator().manual_seed(seed), {}

    def layer(name: str, *shape: int) -> None:
        scale = 0.5 / math.sqrt(math.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3

    layer("x_embedder.proj", WIDTH, CHANNELS, PATCH, PATCH)
    layer("t_embedder.mlp.0", WIDTH, 256)
    layer("t_embedder.mlp.2", WIDTH, WIDTH)
    for i in range(DEPTH):
        layer(f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        layer(f"blocks.{i}.attn.proj", WIDTH, WIDTH)
        layer(f"blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH)
        layer(f"blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH)
        layer(f"blocks.{i}.adaLN_modulation.1", 6 * WIDTH, WIDTH)
    layer("final_layer.linear", PATCH**2 * CHANNELS * (1 + learned), WIDTH)
    layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    state["y_embedder.embedding_table.weight"] = torch.randn(labels + 1, WIDTH, generator=generator)
    return state | {"pos_embed": positions(grid)}


def equations(state: dict[str, torch.Tensor], x: torch.Tensor, t: int, y: torch.Tensor) -> torch.Tensor:
    """DiT (Peebles & Xie 2023, section 3 and figure 3) in float64 on an original state dict: (B, 2C, h, w)."""
    s = {name: value.double() for name, value in state.items()}

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ s[f"{name}.weight"].flatten(1).T + s[f"{name}.bias"]

    def norm(value: torch.Tensor) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    n, side = len(x), x.shape[-1] // PATCH
    patches = x.double().reshape(n, CHANNELS, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    tokens = linear("x_embedder.proj", patches.reshape(n, side**2, -1)) + s["pos_embed"]
    phase = t * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    wave = torch.cat([phase.cos(), phase.sin()])
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    c = F.silu(time + s["y_embedder.embedding_table.weight"][y])[:, None]
    for i in range(DEPTH):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, -1)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(tokens) * (1 + scale1) + shift1)
        q, k, v = qkv.reshape(n, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v
        tokens = tokens + gate1 * linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).reshape(n, -1, WIDTH))
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(tokens) * (1 + scale2) + shift2)
        hidden = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
        tokens = tokens + gate2 * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, -1)
    out = linear("final_layer.linear", norm(tokens) * (1 + scale) + shift)
    out = out.reshape(n, side, side, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(n, -1, side * PATCH, side * PATCH).float()


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(vae_folder, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("original") / "0400000.pt"
    torch.save(original(), file)
    return convert(file, file.with_name("out"), vae=str(vae_folder), heads=HEADS)


def latents(n: int) -> torch.Tensor:
    return torch.randn(n, CHANNELS, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(7))


def error(backbone, t: int) -> float:
    """Largest difference of noise and variance to the equations, over three labels and the null label."""
    y = torch.cat([torch.tensor([0, 3, LABELS - 1]), backbone.null(1)])
    mine = backbone.predict(latents(4), t, y)
    return (torch.cat([mine.eps, mine.variance], dim=1) - equations(original(), latents(4), t, y)).abs().max().item()


@pytest.mark.parametrize("t", [0, 1, 250, 999])
def test_an_original_checkpoint_predicts_what_the_equations_say(converted, t):
    backbone = load(str(converted))
    assert backbone.null(1).item() == LABELS and backbone.learned_variance
    assert backbone.latent_shape == (CHANNELS, GRID * PATCH, GRID * PATCH)
    assert {module.eps for module in backbone.denoiser.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert error(backbone, t) < 1e-5


def test_the_frequencies_of_the_original_matter(converted, tmp_path):
    card = yaml.safe_load((converted / "card.yaml").read_text())
    assert card["frequency_shift"] == 0
    shutil.copytree(converted, tmp_path / "shifted")
    (tmp_path / "shifted" / "card.yaml").write_text(yaml.safe_dump(card | {"frequency_shift": 1}))
    assert error(load(str(tmp_path / "shifted")), 999) > 1e-4


def test_a_trainer_s_checkpoint_gives_its_average_and_half_precision_is_kept(vae_folder, tmp_path):
    options = Namespace(lr=1e-4, results_dir="results")
    other = original(seed=1)
    torch.save({"model": other, "ema": original(), "opt": {"state": {}}, "args": options}, tmp_path / "both.pt")
    torch.save({"model": other}, tmp_path / "model.pt")
    ema = load(str(convert(tmp_path / "both.pt", tmp_path / "ema", vae=str(vae_folder), heads=HEADS)))
    assert error(ema, 5) < 1e-5
    made = convert(tmp_path / "model.pt", tmp_path / "model", vae=str(vae_folder), heads=HEADS, dtype="bfloat16")
    from safetensors.torch import load_file

    weights = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(weights["pos_embed.proj.bias"], other["x_embedder.proj.bias"].bfloat16())


def test_names_and_card_of_the_published_weights(vae_folder, tmp_path):
    torch.save(original(labels=1000, grid=16), tmp_path / "DiT-XL-2-256x256.pt")
    made = convert(tmp_path / "DiT-XL-2-256x256.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS)
    backbone = load(str(made))
    assert list(backbone.class_names) == list(imagenet.names().values())
    assert backbone.condition(["n01440764", "n15075141"]).tolist() == [0, 999]
    assert (backbone.card.licence, backbone.card.layer, backbone.card.frequency_shift) == ("CC-BY-NC-4.0", "8", 0)
    torch.save(original(learned=False), tmp_path / "mine.pt")
    (tmp_path / "names.json").write_text(json.dumps(list("abcdefg")))
    mine = convert(
        tmp_path / "mine.pt", tmp_path / "mine", vae=str(vae_folder), heads=HEADS, classes=tmp_path / "names.json"
    )
    backbone = load(str(mine))
    assert backbone.class_names == tuple("abcdefg") and not backbone.learned_variance
    assert backbone.card.licence == "unknown"


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("state", "options", "says"),
    [
        (lambda: {"weight": torch.zeros(2)}, {}, "no model that dap knows; its tensors are called weight and so on"),
        (lambda: {"final_layer.linear.weight": torch.zeros(2, 2)}, {}, "it lacks x_embedder.proj.weight, .* and .* more"),
        (lambda: without(original(), "pos_embed"), {}, "it lacks pos_embed"),
        (lambda: without(original(), "blocks.1.mlp.fc2.bias"), {}, "it lacks blocks.1.mlp.fc2.bias"),
        (lambda: original() | {"blocks.0.attn.q_norm.weight": torch.ones(8)}, {}, "also has blocks.0.attn.q_norm.weight"),
        (lambda: original() | {"pos_embed": positions() + 0.01}, {}, "position table of .* is not the sinusoids"),
        (lambda: original() | {"blocks.0.mlp.fc1.bias": torch.zeros(3)}, {}, "size mismatch for .*ff.net.0.proj.bias"),
        (lambda: original() | {"final_layer.linear.weight": torch.zeros(48, WIDTH)}, {}, "does not predict noise"),
        (original, {"heads": None}, "how many attention heads its width 32 is split into; give --heads"),
        (original, {"heads": 5}, "5 heads do not divide the width 32"),
        (original, {"vae": None}, "holds no autoencoder; give --vae"),
        (original, {"vae": "no/such/folder"}, "no autoencoder at 'no/such/folder'"),
        (original, {"vae": "owner/vae", "offline": True}, "autoencoder 'owner/vae' .*hf download owner/vae"),
        (original, {"vae": "."}, "\\. has no diffusion_pytorch_model.safetensors or .bin, so it is no autoencoder"),
        (original, {"revision": "main"}, "--revision is for hub ids"),
        (original, {"dtype": "int8"}, "Unknown dtype 'int8'"),
        (lambda: original() | {"x_embedder.proj.weight": torch.zeros(WIDTH, 4)}, {}, "not on a grid of square patches"),
        (lambda: original() | {"pos_embed": positions()[:, :15]}, {}, "position table of"),
        (lambda: original() | {"blocks.0.attn.qkv.weight": torch.zeros(2)}, {}, "not a checkpoint of the original DiT"),
        (lambda: [1, 2], {}, "holds a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_checkpoint_is_said_and_nothing_is_written(state, options, says, vae_folder, tmp_path):
    torch.save(state(), tmp_path / "x.pt")
    with pytest.raises(DapError, match=says):
        convert(tmp_path / "x.pt", tmp_path / "out", **{"vae": str(vae_folder), "heads": HEADS} | options)
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_autoencoder_from_a_hub_id_and_from_a_pipeline(suffix, cache, tmp_path):
    pipeline = hub_dit(tmp_path / "dit", suffix)
    in_cache(cache, "stabilityai/sd-vae-ft-ema", main=(MAIN, pipeline / "vae"))
    torch.save(original(), tmp_path / "x.pt")
    for i, vae in enumerate(("stabilityai/sd-vae-ft-ema", pipeline)):
        state = load(str(convert(tmp_path / "x.pt", tmp_path / f"{i}", vae=str(vae), heads=HEADS))).state()
        assert all(torch.equal(value, state[f"vae.{name}"]) for name, value in tiny_vae().state_dict().items())


def test_an_autoencoder_of_other_latents_and_a_list_of_other_length(vae_folder, tmp_path):
    from diffusers import AutoencoderKL

    torch.save(original(), tmp_path / "x.pt")
    AutoencoderKL(latent_channels=16, block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "vae16")
    with pytest.raises(DapError, match="works on 4 latent channels, the autoencoder .*vae16 has 16"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(tmp_path / "vae16"), heads=HEADS)
    (tmp_path / "names.json").write_text('["a"]')
    with pytest.raises(DapError, match="has 7 labels but --classes has 1 names"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS, classes=tmp_path / "names.json")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_file_that_would_run_code_or_is_none_at_all(vae_folder, tmp_path):
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": Evil(tmp_path / "ran")}))
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:300])
    for name in ("evil.pt", "old.pt", "text.pt", "text.safetensors", "torn.pt"):
        says = "is no whole" if name.endswith("safetensors") else "not a checkpoint that can be opened without running"
        with pytest.raises(DapError, match=says):
            convert(tmp_path / name, tmp_path / "out", vae=str(vae_folder))
    assert not (tmp_path / "ran").exists()


# --- folders and ids as on the hub ----------------------------------------------------------------------------------

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def as_old_vae(folder: Path, suffix: str) -> None:
    """The names that the attention layers of autoencoders had in 2022, which the hub's files still have."""
    from safetensors.torch import load_file, save_file

    file = folder / f"diffusion_pytorch_model.{suffix}"
    state = torch.load(file) if suffix == "bin" else load_file(file)
    for new, old in OLD_NAMES.items():
        state = {name.replace(new, old) if "attentions" in name else name: v for name, v in state.items()}
    torch.save(state, file) if suffix == "bin" else save_file(state, file)


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def hub_dit(folder: Path, suffix: str, seed: int = 0) -> Path:
    """Laid out like facebook/DiT-XL-2-256: class names in model_index.json, configurations and weights of 2022."""
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipe = DiTPipeline(tiny_transformer(seed=seed), tiny_vae(), scheduler)
    pipe.save_pretrained(folder, safe_serialization=suffix != "bin")
    edit(
        folder / "model_index.json",
        id2label={str(i): name for i, name in enumerate(NAMES)},
        transformer=["diffusers", "Transformer2DModel"],
    )
    old = {"cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False}
    edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel", only_cross_attention=False, **old)
    as_old_vae(folder / "vae", suffix)
    return folder


def hub_sd(folder: Path, suffix: str, checker: bool) -> Path:
    """Laid out like Stable Diffusion 1.5. The index names a safety checker, whose files are there or not."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from dap.pretraining.words import SCHEDULE, build_text_encoder, build_tokenizer
    from dap.starter import CLASS_NAMES

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    tokenizer = build_tokenizer(CLASS_NAMES, 16)
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(),
        unet=unet,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=suffix != "bin")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    if suffix == "bin":  # transformers no longer writes pickles; the hub has them
        (folder / "text_encoder" / "model.safetensors").unlink()
        torch.save(pipe.text_encoder.state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    index = json.loads((folder / "model_index.json").read_text())
    del index["requires_safety_checker"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    if checker:
        for part, file in (("safety_checker", "config.json"), ("feature_extractor", "preprocessor_config.json")):
            (folder / part).mkdir()
            (folder / part / file).write_text("{}")
        (folder / "safety_checker" / f"model.{suffix}").write_bytes(b"never opened")
    as_old_vae(folder / "vae", suffix)
    return folder


def in_cache(cache: Path, name: str, **folders: tuple[str, Path]) -> None:
    """Put folders into a hub cache as downloads would: ref=(commit, folder)."""
    repo = cache / f"models--{name.replace('/', '--')}"
    for ref, (commit, folder) in folders.items():
        shutil.copytree(folder, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def sample(backbone, *names: str) -> torch.Tensor:
    batch = Batch(names, tuple(range(len(names))), (0,) * len(names), tuple(range(len(names))))
    made = images(ClassifierFree(backbone, backbone.card.cfg, backbone.card.cfg_channels), None, batch, steps=3)
    assert made.shape == (len(names), 3, 8, 8) and made.isfinite().all()
    return made


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_hub_s_dit(suffix, cache, tmp_path, caplog):
    folder = hub_dit(tmp_path / "dit", suffix)
    in_cache(cache, "facebook/DiT-XL-2-256", main=(MAIN, folder), pr1=(OTHER, hub_dit(tmp_path / "pr", suffix, seed=1)))
    local, hub = load(str(folder)), load("facebook/DiT-XL-2-256")
    assert hub.class_names == local.class_names == tuple(NAMES)
    assert (hub.card.licence, hub.card.layer, hub.card.frequency_shift) == ("CC-BY-NC-4.0", "8", 0)
    weights = {f"denoiser.{k}": v for k, v in tiny_transformer().state_dict().items()}
    weights |= {f"vae.{k}": v for k, v in tiny_vae().state_dict().items()}
    assert all(torch.equal(value, weights[name]) for name, value in (hub.state() | local.state()).items())
    # The id's card has the original's time embedding, and a folder of another name does not: another model.
    assert hub.weights_hash() != local.weights_hash()
    assert torch.equal(sample(local, "tench"), sample(load(str(folder), offline=True), "tench"))
    other = load("facebook/DiT-XL-2-256", revision="pr1", offline=True)
    assert other.weights_hash() == load("facebook/DiT-XL-2-256", revision=OTHER).weights_hash() != hub.weights_hash()
    with pytest.raises(DapError, match="'facebook/DiT-XL-2-256' at revision 'v9' .*cache"):
        load("facebook/DiT-XL-2-256", revision="v9")


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("checker", [True, False])
def test_the_hub_s_stable_diffusion(suffix, checker, cache, tmp_path, caplog):
    folder = hub_sd(tmp_path / "sd", suffix, checker)
    in_cache(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", main=(MAIN, folder), fp32=(OTHER, folder))
    local = load(str(folder))
    hub = load("stable-diffusion-v1-5/stable-diffusion-v1-5", revision="fp32")
    assert hub.card.licence == "CreativeML OpenRAIL-M" and hub.card.layer == "mid"
    assert hub.weights_hash() == local.weights_hash()
    assert torch.equal(sample(local, "dress", "coat"), sample(hub, "dress", "coat"))
    assert "safety" not in caplog.text
    made = load(str(convert("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "out", revision="fp32")))
    assert made.card == hub.card and made.weights_hash() == hub.weights_hash()
    assert not {p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt") or "checker" in p.name}
    assert torch.equal(sample(made, "dress"), sample(hub, "dress"))


def test_a_repository_that_is_not_in_the_cache(cache):
    with pytest.raises(DapError, match="'owner/name' is not in this machine's cache .*'hf download owner/name'"):
        load("owner/name", offline=True)
    with pytest.raises(DapError, match="'owner/name' is not in this machine's cache"):
        load("owner/name")


def test_half_precision_variants_alone(tmp_path):
    from diffusers import DiffusionPipeline

    plain = hub_dit(tmp_path / "plain", "safetensors")
    pipe = DiffusionPipeline.from_pretrained(str(plain), dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    backbone = load(str(tmp_path / "half"))
    state = backbone.state()
    assert all(v.dtype == torch.float32 for v in state.values())
    assert all(torch.equal(v.half(), state[k].half()) for k, v in load(str(plain), dtype="float16").state().items())
    # One part in both precisions, the other in one; then a part without any.
    for file in (tmp_path / "half" / "vae").glob("*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    assert load(str(tmp_path / "half")).weights_hash() == backbone.weights_hash()
    for file in (tmp_path / "half" / "transformer").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(DapError, match="no weights of its transformer; transformer/ should hold"):
        load(str(tmp_path / "half"))


def test_a_repository_with_half_precision_alone_is_asked_for_it(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants

    whole = hub_dit(tmp_path / "whole", "safetensors")
    bare = shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    asked = []

    def download(name, variant=None, **options):
        asked.append((name, variant, options["safety_checker"]))
        return whole if variant else bare

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file, **options: str(bare / file))
    assert load("owner/dit").class_names == tuple(NAMES)
    assert asked == [("owner/dit", None, None), ("owner/dit", "fp16", None)]


def test_a_tensor_that_is_in_no_file_is_named(tmp_path):
    folder = hub_dit(tmp_path / "dit", "bin")
    file = folder / "transformer" / "diffusion_pytorch_model.bin"
    torch.save(without(torch.load(file), "proj_out_1.bias"), file)
    with pytest.raises(DapError, match="the transformer in .*dit lack proj_out_1.bias"):
        load(str(folder))


def test_a_pickle_in_a_folder_runs_nothing(tmp_path):
    folder = hub_dit(tmp_path / "dit", "bin")
    torch.save({"proj_out_1.bias": Evil(tmp_path / "ran")}, folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(DapError, match="could not be loaded"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


# --- converting a pipeline ------------------------------------------------------------------------------------------


def test_a_converted_hub_id_behaves_as_the_id(cache, tmp_path):
    in_cache(cache, "facebook/DiT-XL-2-256", main=(MAIN, hub_dit(tmp_path / "dit", "bin")))
    hub = load("facebook/DiT-XL-2-256")
    out = convert("facebook/DiT-XL-2-256", tmp_path / "out")
    made = load(str(out))
    assert made.card == hub.card and made.class_names == hub.class_names == tuple(NAMES)
    assert made.weights_hash() == hub.weights_hash()
    assert torch.equal(sample(made, "tench"), sample(hub, "tench"))
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".json", ".yaml", ".safetensors"}
    assert json.loads((out / "conversion.json").read_text()) | {
        "source": "facebook/DiT-XL-2-256",
        "commit": MAIN,
    } == json.loads((out / "conversion.json").read_text())
    assert not [p for p in out.rglob("*.*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()]


def test_what_a_folder_says_of_itself_is_kept(tmp_path, pipeline_folder):
    out = convert(str(pipeline_folder), tmp_path / "out")
    for name in ("card.yaml", "classes.json"):
        assert (out / name).read_bytes() == (pipeline_folder / name).read_bytes()
    made, source = load(str(out)), load(str(pipeline_folder))
    assert made.weights_hash() == source.weights_hash()


def test_a_dit_fine_tuned_to_other_classes(tmp_path):
    folder = hub_dit(tmp_path / "dit", "safetensors")
    names = [f"kind {i}" for i in range(9)]
    edit(folder / "model_index.json", id2label={str(i): name for i, name in enumerate(names)})
    with pytest.raises(DapError, match="has 3 labels but 9 class names; put the right list into classes.json"):
        load(str(folder))
    (tmp_path / "names.json").write_text('["red", "green", "blue"]')
    made = load(str(convert(folder, tmp_path / "out", classes=tmp_path / "names.json")))
    assert made.class_names == ("red", "green", "blue") and made.null(1).item() == 3
    sample(made, "red", "blue")
    (folder / "classes.json").write_text('["x", "y", "z"]')
    assert load(str(folder)).condition(["z"]).item() == 2


def test_a_pipeline_that_diffusers_loaded_finds_its_card_by_its_id(cache, tmp_path):
    from diffusers import DiTPipeline

    in_cache(cache, "facebook/DiT-XL-2-256", main=(MAIN, hub_dit(tmp_path / "dit", "safetensors")))
    pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256", local_files_only=True)
    assert from_pipeline(pipe).card == load("facebook/DiT-XL-2-256").card


def test_a_copy_of_a_hub_folder_is_known_by_its_place_or_name(cache, tmp_path):
    in_cache(cache, "facebook/DiT-XL-2-512", main=(MAIN, hub_dit(tmp_path / "DiT-XL-2-256", "safetensors")))
    snapshot = cache / "models--facebook--DiT-XL-2-512" / "snapshots" / MAIN
    shutil.copytree(snapshot, tmp_path / "other")
    for folder, size, shift in ((tmp_path / "DiT-XL-2-256", 8, 0), (snapshot, 8, 0), (tmp_path / "other", 8, None)):
        card = load(str(folder)).card
        assert (card.size, card.frequency_shift) == (size, shift)


def test_the_output_is_whole_or_as_it_was(tmp_path, pipeline_folder, monkeypatch):
    from diffusers import DiTPipeline

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DapError, match="mine is not empty and not from an earlier dap convert"):
        convert(str(pipeline_folder), tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    shutil.copytree(pipeline_folder, tmp_path / "source")
    with pytest.raises(DapError, match="is not empty"):
        convert(tmp_path / "source", tmp_path / "source")
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "source", tmp_path / "empty") == tmp_path / "empty"
    with pytest.raises(DapError, match="is also the --out"):
        convert(tmp_path / "empty", tmp_path / "empty")
    edit(tmp_path / "source" / "model_index.json")
    (tmp_path / "source" / "classes.json").write_text('["a", "b", "c"]')
    convert(tmp_path / "source", tmp_path / "empty")  # its own earlier output is replaced
    assert load(str(tmp_path / "empty")).class_names == ("a", "b", "c")

    shutil.copytree(tmp_path / "empty", tmp_path / ".empty.partial" / "old")  # of a kill at the very end
    convert(tmp_path / "source", tmp_path / "empty")
    assert not (tmp_path / ".empty.partial").exists()

    def torn(self, folder, **options):
        Path(folder).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiTPipeline, "save_pretrained", torn)
    for out in ("empty", "new"):
        with pytest.raises(OSError, match="No space"):
            convert(tmp_path / "source", tmp_path / out)
    assert load(str(tmp_path / "empty")).class_names == ("a", "b", "c")
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine", "source"]


def test_mistakes(tmp_path, pipeline_folder):
    sd = hub_sd(tmp_path / "sd", "safetensors", False)
    (tmp_path / "names.json").write_text('["a", "b", "c"]')
    (tmp_path / "wrong.json").write_text('{"a": 1}')
    for source, options, says in (
        (sd, {"classes": tmp_path / "names.json"}, "takes prompts made from the data's class names"),
        (pipeline_folder, {"classes": tmp_path / "wrong.json"}, "must hold a list of class names"),
        (pipeline_folder, {"classes": tmp_path / "none.json"}, "There is no file .*none.json"),
        (pipeline_folder, {"revision": "main"}, "--revision is for hub ids"),
        (pipeline_folder, {"vae": "owner/vae"}, "--vae and --heads are for a checkpoint file"),
        (tmp_path / "none.pt", {}, "There is no file .*none.pt"),
    ):
        with pytest.raises(DapError, match=says):
            convert(str(source), tmp_path / "out", **options)
    torch.save(original(), tmp_path / "x.pt")
    with pytest.raises(DapError, match="x.pt is a file, not a folder; 'dap convert"):
        load(str(tmp_path / "x.pt"))
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------------------------------


def dap(*args: object, home: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "dap", "convert", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)


def test_the_command_on_a_hub_id(tmp_path):
    in_cache(tmp_path / "hub", "owner/dit", main=(MAIN, hub_dit(tmp_path / "dit", "bin")))
    done = dap("owner/dit", "--out", tmp_path / "out", "--revision", "main", "--offline", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and f"dap distill --backbone {tmp_path / 'out'}" in done.stdout
    assert load(str(tmp_path / "out")).class_names == tuple(NAMES)


def test_the_command_on_an_original_checkpoint(vae_folder, tmp_path):
    torch.save(original(), tmp_path / "x.pt")
    done = dap(tmp_path / "x.pt", "--out", tmp_path / "out", "--vae", vae_folder, "--heads", HEADS, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the last one is taken for the null label" in done.stderr and error(load(str(tmp_path / "out")), 3) < 1e-5


def state_of(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, as `dap convert` takes it for a DiT."""
    return folded(tensors_of(file, opened(file)), file)


def factored(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint with the four factors of MinimaxDiffusion in its first block, as its models.py names them."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"attn.gamma1": 3 * WIDTH, "attn.gamma2": WIDTH, "gamma1": WIDTH, "gamma2": WIDTH}
    return state | {f"blocks.0.{name}": 1 + 0.5 * torch.randn(n, generator=generator) for name, n in shapes.items()}


def test_the_factors_of_minimax_are_folded_exactly(tmp_path):
    """Case 27: against a forward pass of the block that multiplies by the factors where MinimaxDiffusion's models.py does."""
    from torch.nn import functional as F

    def block(state: dict[str, torch.Tensor], x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, state[f"blocks.0.{name}.weight"].double(), state[f"blocks.0.{name}.bias"].double())

        def times(name: str) -> torch.Tensor:
            return state.get(f"blocks.0.{name}", torch.ones(1)).double()

        shift, scale, gate, shift2, scale2, gate2 = linear("adaLN_modulation.1", F.silu(c)).chunk(6)
        normed = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        qkv = times("attn.gamma1") * linear("attn.qkv", normed)
        q, k, v = qkv.reshape(1, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, WIDTH)
        x = x + times("gamma1") * gate * (times("attn.gamma2") * linear("attn.proj", attended))
        normed = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale2) + shift2
        hidden = F.gelu(linear("mlp.fc1", normed), approximate="tanh")
        return x + times("gamma2") * gate2 * linear("mlp.fc2", hidden)

    state = {name: value.double() for name, value in factored(original()).items()}
    torch.save({"ema": state}, tmp_path / "minimax.pt")
    plain = state_of(tmp_path / "minimax.pt")
    assert not any("gamma" in name for name in plain)
    x, c = torch.randn(1, 9, WIDTH, dtype=torch.float64), torch.randn(WIDTH, dtype=torch.float64)
    torch.testing.assert_close(block(plain, x, c), block(state, x, c), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(block(plain, x, c), block(original(), x, c), atol=1e-3)


def test_a_minimax_checkpoint_converts(vae_folder, tmp_path):
    """Case 27."""
    torch.save({"ema": factored(original())}, tmp_path / "0012000.pt")
    convert(tmp_path / "0012000.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS)
    assert load(str(tmp_path / "out")).class_names[0] == "0"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "ema."])
@pytest.mark.parametrize("wrapper", [(), ("state_dict",), ("ema",), ("model", "state_dict")])
def test_prefixes_and_wrappers_of_trainers_are_taken_off(prefix, wrapper, tmp_path):
    """Case 28: DDP, torch.compile, Lightning and both at once."""
    found: object = {prefix + name: value for name, value in original().items()}
    for key in reversed(wrapper):
        found = {key: found, "epoch": 3}
    torch.save(found, tmp_path / "x.pt")
    assert state_of(tmp_path / "x.pt").keys() == original().keys()


def test_a_lightning_checkpoint_with_other_modules_beside_the_network(tmp_path):
    """Case 28."""
    state = {"model." + name: value for name, value in original().items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    assert state_of(tmp_path / "x.ckpt").keys() == original().keys()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("x.pt", {"prediction": "velocity"}),
        ("x.pt", {"sample_eps": 0.001}),
        ("mean_flow.pt", {}),
    ],
)
def test_a_checkpoint_that_says_that_it_is_a_flow_is_refused(name, args, vae_folder, tmp_path):
    """Case 2: SiT has the tensors of DiT."""
    torch.save({"ema": original(), "args": Namespace(**args)}, tmp_path / name)
    with pytest.raises(DapError, match="is a flow and not a DiT"):
        convert(tmp_path / name, tmp_path / "out", vae=str(vae_folder), heads=HEADS)
    assert not (tmp_path / "out").exists()


def test_the_help_says_what_is_not_converted(capsys):
    """Case 2."""
    from dap.cli.main import main

    with contextlib.suppress(SystemExit):
        main(["convert", "--help"])
    assert "SiT" in capsys.readouterr().out


def test_a_table_without_a_null_row(tmp_path, vae_folder, caplog):
    """Case 30: ten labels and no null label; --classes tells, and without it a sentence says what is assumed."""
    torch.save(original(), tmp_path / "nonull.pt")
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"c{i}" for i in range(LABELS + 1)]))
    with pytest.raises(DapError, match="class_dropout_prob=0"):
        convert(tmp_path / "nonull.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS, classes=names)
    convert(tmp_path / "nonull.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS)
    assert "the last one is taken for the null label" in caplog.text


def test_advice_of_torch_is_not_repeated(tmp_path, vae_folder):
    """Case 25: a pickle that needs code, as EDM's files do."""
    torch.save({"ema": Path("x")}, tmp_path / "edm.pkl")
    with pytest.raises(DapError, match="never runs code from a pickle") as refused:
        convert(tmp_path / "edm.pkl", tmp_path / "out", vae=str(vae_folder))
    assert "weights_only=False" not in str(refused.value)


def test_a_flipped_bit_in_a_checkpoint_is_a_sentence_or_a_value(tmp_path):
    """Found by fuzzing: an OSError of the system for a damaged list of the archive's contents."""
    file = tmp_path / "x.pt"
    torch.save(original(), file)
    whole, told = file.read_bytes(), set()
    places = [*range(80), *range(len(whole) - 400, len(whole))]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x88]) + whole[place + 1 :])
        try:
            state_of(file)
        except DapError as error:
            told.add(str(error))
    assert len(told) > 5 and all("x.pt" in one for one in told)


def test_a_block_of_an_enormous_number_is_missing_its_neighbours(tmp_path, vae_folder):
    """Found by reading: the names of all blocks before it were listed first."""
    torch.save({**original(), "blocks.999999999999.attn.qkv.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(DapError, match="it lacks blocks.2"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS)


def test_an_autoencoder_that_lacks_a_tensor_and_one_of_a_million_layers(tmp_path, vae_folder):
    """Found by fuzzing: a NotImplementedError while the folder was written, and hours of making layers."""
    torch.save(original(), tmp_path / "x.pt")
    shutil.copytree(vae_folder, tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file(without(state, "decoder.conv_in.bias"), file, {"format": "pt"})
    with pytest.raises(DapError, match="the autoencoder in .*vae lack decoder.conv_in.bias"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(tmp_path / "vae"), heads=HEADS)
    save_file(state, file, {"format": "pt"})
    edit(tmp_path / "vae" / "config.json", layers_per_block=1_000_000)
    with pytest.raises(DapError, match="config.json asks for about .* layers, .*layers_per_block 1000000"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(tmp_path / "vae"), heads=HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("blocks.0.mlp.fc1.bias", torch.zeros(4 * WIDTH, device="meta"), "blocks.0.mlp.fc1.bias is no plain tensor"),
        ("x_embedder.proj.weight", torch.zeros(0, CHANNELS, PATCH, PATCH), "x_embedder.proj.weight has the shape"),
        ("y_embedder.embedding_table.weight", torch.zeros(()), "embedding_table.weight has the shape"),
        ("final_layer.linear.weight", torch.zeros(()), "final_layer.linear.weight has the shape"),
    ],
)
def test_a_tensor_that_is_no_plain_one_or_empty_is_named(name, value, says, vae_folder, tmp_path):
    """Found by fuzzing: NotImplementedError while the folder was written, and ZeroDivisionError."""
    torch.save({**original(), name: value}, tmp_path / "x.pt")
    with pytest.raises(DapError, match=f"x.pt.*{says}"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=str(vae_folder), heads=HEADS)
