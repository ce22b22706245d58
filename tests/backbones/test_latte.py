"""Latte as a backbone of clips with labels: equal to the paper's equations and to a plain loop, and the whole path of a set."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

import clips
import tiny
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.cards import shape_of
from dap.backbones.converting.convert import convert
from dap.backbones.hub import open_pipeline
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.sampling import Batch, latents
from dap.testing import check_backbone
from dap.verbs.distill import distill
from dap.verbs.planning.roughly import paces
from pretended import used_on_gpu

FRAMES, WIDTH, HEADS, GRID = 3, 16, 2, 2

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("latte")
    tiny.latte().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def vae(folder) -> str:
    return str(folder / "vae")


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return clips.folder(tmp_path_factory.mktemp("clips"), train=4, test=2)


def noise(n: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(n, 4, FRAMES, 4, 4, generator=torch.Generator().manual_seed(seed))


# --- the paper's equations, in float64, token by token, on the tensors of the authors' file -------------------------


def equations(state: dict, x: torch.Tensor, t: int, label: int) -> torch.Tensor:
    """Latte (Ma et al. 2024, section 3.2, variant 1): the noise of one clip (4, frames, 4, 4) and its raw variance."""
    s = {name: value.double() for name, value in state.items()}

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ s[f"{name}.weight"].flatten(1).T + s[f"{name}.bias"]

    def wave(place: float, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        angle = place / 10000.0 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2))
        return angle.sin(), angle.cos()

    def normed(value: torch.Tensor) -> torch.Tensor:
        centred = value - value.mean()
        return centred / (centred.square().mean() + 1e-6).sqrt()

    def attend(name: str, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        heads = [linear(f"{name}.qkv", token).view(3, HEADS, -1) for token in tokens]
        mixed = []
        for q, _, _ in heads:
            parts = []
            for h in range(HEADS):
                scores = torch.stack([q[h] @ k[h] for _, k, _ in heads]) / math.sqrt(WIDTH / HEADS)
                weights = scores.exp() / scores.exp().sum()
                parts.append(sum(w * v[h] for w, (_, _, v) in zip(weights, heads, strict=True)))
            mixed.append(linear(f"{name}.proj", torch.cat(parts)))
        return mixed

    sine, cosine = wave(t, 256)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([cosine, sine]))))
    c = F.silu(c + s["y_embedder.embedding_table.weight"][label])

    def block(name: str, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        shift, scale, gate, shift2, scale2, gate2 = linear(f"{name}.adaLN_modulation.1", c).chunk(6)
        added = attend(f"{name}.attn", [normed(token) * (1 + scale) + shift for token in tokens])
        tokens = [token + gate * more for token, more in zip(tokens, added, strict=True)]
        out = []
        for token in tokens:
            hidden = linear(f"{name}.mlp.fc1", normed(token) * (1 + scale2) + shift2)
            hidden = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
            out.append(token + gate2 * linear(f"{name}.mlp.fc2", hidden))
        return out

    clip: dict[tuple[int, int], torch.Tensor] = {}
    for frame in range(FRAMES):
        for place in range(GRID**2):
            row, column = divmod(place, GRID)
            patch = x[:, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double().flatten()
            where = torch.cat([*wave(column, WIDTH // 2), *wave(row, WIDTH // 2)])
            clip[frame, place] = linear("x_embedder.proj", patch) + where
    for i in range(4):
        groups = [[(f, p) for p in range(GRID**2)] for f in range(FRAMES)]  # the tokens of each frame
        if i % 2:
            groups = [[(f, p) for f in range(FRAMES)] for p in range(GRID**2)]  # all frames of each place
        if i == 1:
            clip = {(f, p): token + torch.cat(wave(f, WIDTH)) for (f, p), token in clip.items()}
        for group in groups:
            clip |= dict(zip(group, block(f"blocks.{i}", [clip[one] for one in group]), strict=True))
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2)
    out = torch.zeros(8, FRAMES, 4, 4)
    for (frame, place), token in clip.items():
        row, column = divmod(place, GRID)
        patch = linear("final_layer.linear", normed(token) * (1 + scale) + shift).view(2, 2, 8).permute(2, 0, 1)
        out[:, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    return out


def test_the_network_predicts_what_the_equations_say(backbone):
    state, x = tiny.latte_transformer().state_dict(), noise(2)
    for t, labels in ((0, [0, 1]), (250, [2, 3]), (999, [1, 3])):  # 3 is the null label
        found = backbone.predict(x, t, torch.tensor(labels))
        wanted = torch.stack([equations(state, one, t, label) for one, label in zip(x, labels, strict=True)])
        torch.testing.assert_close(torch.cat([found.eps, found.variance], 1), wanted, atol=1e-5, rtol=1e-5)
    assert backbone.learned_variance and backbone.null(1).item() == 3


def test_samples_are_those_of_a_plain_loop_and_of_the_plain_pipeline(backbone, folder):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar, network = (1 - betas).cumprod(0), backbone.denoiser
    batch, scale, steps = Batch(("Dress", "Shirt"), (0, 1), (0, 0), (3, 4)), 3.0, 4
    mine = latents(ClassifierFree(backbone, scale), None, batch, steps=steps, solver="ddim")
    x = torch.cat([torch.randn(1, 4, FRAMES, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    pipe, _ = open_pipeline(str(folder), revision=None, dtype="float32", offline=True)
    pipe.scheduler.register_to_config(timestep_spacing="trailing", set_alpha_to_one=True)
    how = {"guidance_scale": scale, "num_inference_steps": steps, "latents": x}
    theirs = pipe([1, 2], **how, output_type="latent").images
    times = [999, 749, 499, 249]
    for t, after in zip(times, [*times[1:], None], strict=True):
        with torch.no_grad():
            at = torch.full((2,), t)
            cond, null = (network(x, at, torch.tensor(y)).sample[:, :4] for y in ([1, 2], [3, 3]))
        eps, end = null + scale * (cond - null), 1.0 if after is None else abar[after].item()
        x0 = (x - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])
        x = math.sqrt(end) * x0 + math.sqrt(1 - end) * eps
    torch.testing.assert_close(theirs, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine, x, atol=1e-4, rtol=1e-4)
    seen = pipe([1, 2], **how, output_type="pt").images
    torch.testing.assert_close(backbone.decode(x), seen, atol=1e-4, rtol=0)
    frames = pipe([1, 2], **how).images
    assert [len(clip) for clip in frames] == [3, 3] and frames[1][2].size == (8, 8)


def test_frames_go_through_the_autoencoder_as_images(backbone):
    clip, scale = torch.rand(2, 3, FRAMES, 8, 8, generator=torch.Generator().manual_seed(0)), 0.18215
    with torch.no_grad():
        wanted = [backbone.vae.encode(clip[:, :, f] * 2 - 1).latent_dist.mean * scale for f in range(FRAMES)]
        made = backbone.encode(clip)
        torch.testing.assert_close(made, torch.stack(wanted, 2), atol=1e-6, rtol=0)
        pixels = [(backbone.vae.decode(made[:, :, f] / scale).sample / 2 + 0.5).clamp(0, 1) for f in range(FRAMES)]
        torch.testing.assert_close(backbone.decode(made), torch.stack(pixels, 2), atol=1e-6, rtol=0)
    drawn = backbone.drawn(clip, torch.Generator().manual_seed(1))
    assert drawn.shape == made.shape and not torch.equal(drawn, made)
    assert backbone.latent_shape == (4, 3, 4, 4) and shape_of(backbone.card) == (3, 3, 8, 8)


def test_prediction_and_features_come_from_one_pass(backbone):
    assert backbone.layers == ("0", "1", "2", "3")
    condition, plain = backbone.condition(["Bag", "Dress"]), backbone.predict(noise(2), 500, torch.tensor([0, 1])).eps
    for layer in backbone.layers:
        x, calls = noise(2).requires_grad_(), []
        handle = backbone.denoiser.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found = backbone.predict(x, 500, condition, layer=layer, grad_through="features")
        handle.remove()
        assert len(calls) == 1 and found.features.shape == (2, FRAMES * GRID**2, WIDTH)
        assert torch.equal(found.eps, plain) and not found.eps.requires_grad
        torch.testing.assert_close(found.features, backbone.tap(x.detach(), 500, condition, layer))
        # A token of the first frame: block 0 attends within frames, so it sees no other frame; later blocks see all.
        (gradient,) = torch.autograd.grad(found.features[0, 0].square().sum(), x)
        assert gradient[0, :, 0].abs().sum() > 0 and bool(gradient[0, :, 1:].abs().sum() > 0) == (layer != "0")


def test_check_passes(backbone):
    assert [str(one) for one in check_backbone(backbone) if one.level == "wrong"] == []


@pytest.mark.parametrize("make", [tiny.latte, tiny.wan])
def test_the_time_of_a_set_is_guessed_for_clips_too(make):
    """Every large backbone is timed before a set is made, so a backbone that is asked for an image would fail there."""
    card = {"size": 16, "frames": 5} if make is tiny.wan else {}
    backbone = from_pipeline(make(), name="clips")
    if card:
        backbone.card = replace(backbone.card, **card)
        backbone.latent_shape = (4, 2, 4, 4)
    assert all(0 < seconds < 60 for seconds in paces(backbone))


# --- files of the authors -------------------------------------------------------------------------------------------


def test_a_published_checkpoint_becomes_a_folder(vae, tmp_path):
    network = tiny.latte_transformer(num_classes=101)
    torch.save({"ema": network.state_dict()}, tmp_path / "ucf101.pt")
    made = load(str(convert(tmp_path / "ucf101.pt", tmp_path / "out", vae=vae, heads=HEADS)))
    assert (made.card.cfg, made.card.cfg_channels, made.card.frames, made.card.size) == (7.0, "all", 3, 8)
    assert yaml.safe_load((tmp_path / "out" / "card.yaml").read_text())["frames"] == 3
    # The authors sort the folders of UCF-101 with capitals first.
    assert made.condition(["ApplyEyeMakeup", "HammerThrow", "Hammering", "JumpRope", "JumpingJack", "YoYo"]).tolist() == [
        0, 34, 35, 46, 47, 100
    ]  # fmt: skip
    x, y = noise(2), torch.tensor([0, 101])
    with torch.no_grad():
        wanted = network(x, torch.tensor([300, 300]), y).sample
    torch.testing.assert_close(made.predict(x, 300, y).eps, wanted[:, :4])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(made.schedule.alphas_cumprod, (1 - betas).cumprod(0).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"y_embedder.embedding_table.weight": None}, {}, "is a Latte that knows no classes"),
        (
            {"y_embedder.embedding_table.weight": None, "text_embedding_projection.1.weight": torch.ones(2, 2)},
            {},
            "is a Latte that reads a text. dap converts those with labels",
        ),
        ({"blocks.1.attn.proj.bias": None}, {}, "not a checkpoint of Latte: it lacks blocks.1.attn.proj.bias"),
        ({"blocks.0.attn.extra": torch.ones(2)}, {}, "it also has blocks.0.attn.extra"),
        ({"blocks.1.attn.proj.weight": torch.ones(2, 2)}, {}, "another shape of blocks.1.attn.proj.weight"),
        ({"blocks.4.attn.proj.weight": torch.ones(2, 2)}, {}, "its 5 blocks are no pairs of space and time"),
        ({"temp_embed": torch.ones(3, WIDTH)}, {}, "temp_embed has the shape"),
        ({"pos_embed": torch.ones(1, 3, WIDTH)}, {}, "its 3 tokens are on no square grid"),
        ({}, {"heads": 3}, "3 heads do not divide the width 16"),
        ({}, {"heads": None}, "how many attention heads its width 16"),
        ({}, {"vae": None}, "holds no autoencoder; give --vae"),
        ({}, {"classes": ["a", "b"]}, "has 3 labels but --classes has 2 names"),
    ],
)
def test_other_checkpoints_are_refused_in_a_sentence(change, options, words, vae, tmp_path):
    state = tiny.latte_transformer().state_dict() | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "x.pt")
    options = dict(options)
    if "classes" in options:
        (tmp_path / "names.json").write_text(json.dumps(options["classes"]))
        options["classes"] = tmp_path / "names.json"
    with pytest.raises(DapError, match=words):
        convert(tmp_path / "x.pt", tmp_path / "out", **{"vae": vae, "heads": HEADS, **options})
    assert not (tmp_path / "out").exists()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_card_of_other_frames_or_another_size_is_refused(folder, tmp_path):
    place = Path(shutil.copytree(folder, tmp_path / "latte"))
    for said, words in (("frames: 5\n", "says frames: 5, but these weights make clips of 3"), ("size: 16\n", "8 px")):
        (place / "card.yaml").write_text(said)
        with pytest.raises(DapError, match=words):
            load(str(place))
    (place / "card.yaml").write_text("frames: 3\nsize: 8\nlicence: CC0-1.0\n")
    assert load(str(place)).card.licence == "CC0-1.0"


def test_text_and_other_parts_are_refused(folder, data, tmp_path):
    with pytest.raises(DapError, match="is conditioned on labels, not on prompts"):
        load(str(folder), template="a video of {}")
    with pytest.raises(DapError, match="takes 6 channels, its autoencoder makes 4"):
        from_pipeline(tiny.latte(in_channels=6, out_channels=12), name="six")
    how = {"ipc": 1, "source": str(data), "out": tmp_path / "set", "backbone": str(folder), "steps": 2}
    with pytest.raises(DapError, match="makes clips of 3 frames.*not 5"):
        distill(method="vanilla", frames=5, **how)
    with pytest.raises(DapError, match="makes clips of 3 frames; read the data as such with --frames 3"):
        distill(method="vanilla", size=8, **{**how, "source": "fashion-mnist"})
    assert not (tmp_path / "set").exists()


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mgd3", "manifold-gd"])
def test_other_methods_of_clips_make_a_set(method, folder, data, tmp_path):
    how = {"steps": 3, "ipc": 2, "frames": 3, "classes": ["Bag", "Shirt"]}
    made = distill(out=tmp_path / "set", method=method, backbone=str(folder), source=str(data), **how)
    assert made.frames == 3 and not made.verify() and made.tensors()[0].shape == (4, 3, 3, 8, 8)


def test_the_command_converts_makes_sets_and_judges_them(vae, data, tmp_path, capsys):
    def dap(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    torch.save({"ema": tiny.latte_transformer().state_dict()}, tmp_path / "0100000.pt")
    (tmp_path / "names.json").write_text(json.dumps(clips.NAMES))
    named = ["--classes", tmp_path / "names.json", "--heads", HEADS]
    dap("convert", tmp_path / "0100000.pt", "--vae", vae, "--out", tmp_path / "latte", *named)
    how = ["--data", data, "--frames", 3, "--backbone", tmp_path / "latte", "--steps", 2, "--ipc", 1, "--quiet"]
    for method in ("vanilla", "dap", "dap-slots"):
        more = [] if method == "vanilla" else ["--reals", 3, "--scale", 1.0, "--layer", 1]
        dap("distill", *how, *more, "--method", method, "--out", tmp_path / method)
    sets = {name: DistilledSet.open(tmp_path / name) for name in ("vanilla", "dap", "dap-slots")}
    assert {made.frames for made in sets.values()} == {3} and not any(made.verify() for made in sets.values())
    assert not torch.equal(sets["vanilla"].tensors()[0], sets["dap"].tensors()[0])
    judging = ["--protocol", "clips-quick", "--set", "epochs=2", "--set", "width=8", "--trials", 1]
    capsys.readouterr()
    dap("evaluate", tmp_path / "dap", *judging, "--out", tmp_path / "report", "--json")
    assert json.loads(capsys.readouterr().out)


def test_it_works_on_a_gpu(folder):
    used_on_gpu(folder)
