"""SiT, REPA and LightningDiT: their transformer, their paths, and their samplers, each against the equations."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny
from dap import distill
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.schedules import Interpolant
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.sampling import Batch, latents
from dap.starter import CLASS_NAMES
from dap.testing import check_backbone
from pretended import used_on_gpu

FAMILIES = tuple(tiny.SITS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the transformer, written a second time from the equations of the papers, one token after another where that is plain


def norm(x, weights, name, kind):
    if kind == "rms":
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def turned(x, row, column):
    """A head's numbers as complex ones: the first half of them turned by the row, the second half by the column."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))
    d = len(x) // 2
    speeds = torch.tensor([10000 ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)
    angle = torch.cat([row * speeds, column * speeds])
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def attention(x, weights, name, config):
    batch, _, width = x.shape
    heads, size = config.num_attention_heads, config.attention_head_dim
    grid = config.sample_size // config.patch_size
    q, k, v = linear(x, weights, f"{name}.qkv").split(width, dim=-1)
    out = torch.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            qs, ks, vs = q[b, :, own], k[b, :, own], v[b, :, own]
            if config.qk_norm == "layer":
                part = weights[f"{name}.q_norm.weight"], weights[f"{name}.q_norm.bias"]
                qs = F.layer_norm(qs, (size,), *part)
                ks = F.layer_norm(ks, (size,), weights[f"{name}.k_norm.weight"], weights[f"{name}.k_norm.bias"])
            if config.qk_norm == "rms":
                qs, ks = (norm(part, weights, f"{name}.{of}", "rms") for part, of in ((qs, "q_norm"), (ks, "k_norm")))
            if config.rotary:
                qs, ks = (torch.stack([turned(one, *divmod(i, grid)) for i, one in enumerate(p)]) for p in (qs, ks))
            out[b, :, own] = (qs @ ks.T / math.sqrt(size)).softmax(-1) @ vs
    return linear(out, weights, f"{name}.proj")


def reference(network, x, t, labels):
    """The velocity in the network's own time, in float64."""
    config = network.config
    weights = {name: value.double() for name, value in network.state_dict().items()}
    patch, grid, width = config.patch_size, config.sample_size // config.patch_size, weights["pos_embed"].shape[-1]
    angle = t.double()[:, None] * torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    told = linear(torch.cat([angle.cos(), angle.sin()], dim=1), weights, "t_embedder.mlp.0")
    told = linear(F.silu(told), weights, "t_embedder.mlp.2") + weights["y_embedder.embedding_table.weight"][labels]
    quarter = width // 4
    speeds = torch.tensor([10000 ** (-i / quarter) for i in range(quarter)], dtype=torch.float64)
    tokens = []
    for row in range(grid):
        for column in range(grid):
            piece = x.double()[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            kernel = weights["x_embedder.proj.weight"].flatten(1)
            place = [f(at * speeds) for at in (column, row) for f in (torch.sin, torch.cos)]
            tokens.append(piece.flatten(1) @ kernel.T + weights["x_embedder.proj.bias"] + torch.cat(place))
    h = torch.stack(tokens, dim=1)
    for i in range(config.num_layers):
        name = f"blocks.{i}"
        parts = linear(F.silu(told), weights, f"{name}.adaLN_modulation.1")[:, None].split(width, dim=-1)
        if not config.shifted:
            scale, gate, scale2, gate2 = parts
            parts = (0, scale, gate, 0, scale2, gate2)
        shift, scale, gate, shift2, scale2, gate2 = parts
        normed = norm(h, weights, f"{name}.norm1", config.norm) * (1 + scale) + shift
        h = h + gate * attention(normed, weights, f"{name}.attn", config)
        normed = norm(h, weights, f"{name}.norm2", config.norm) * (1 + scale2) + shift2
        if config.feed_forward == "swiglu":
            a, b = linear(normed, weights, f"{name}.mlp.w12").split(config.hidden_size, dim=-1)
            fed = linear(a * torch.sigmoid(a) * b, weights, f"{name}.mlp.w3")
        else:
            inner = linear(normed, weights, f"{name}.mlp.fc1")
            inner = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            fed = linear(inner, weights, f"{name}.mlp.fc2")
        h = h + gate2 * fed
    shift, scale = linear(F.silu(told), weights, "final_layer.adaLN_modulation.1")[:, None].split(width, dim=-1)
    h = norm(h, weights, "final_layer.norm_final", config.norm) * (1 + scale) + shift
    h = linear(h, weights, "final_layer.linear")
    made = torch.zeros(len(x), config.in_channels, config.sample_size, config.sample_size, dtype=torch.float64)
    for row in range(grid):
        for column in range(grid):
            piece = h[:, row * grid + column].view(-1, patch, patch, config.out_channels)
            for i in range(patch):
                for j in range(patch):
                    made[:, :, row * patch + i, column * patch + j] = piece[:, i, j, : config.in_channels]
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_transformer_is_that_of_the_papers(family):
    network = tiny.sit_transformer(family)
    x, t, labels = draw(2, network.config.in_channels, 4, 4), torch.tensor([0.3, 0.85]), torch.tensor([1, 3])
    with torch.no_grad():
        made = network(x, t, labels).sample
    wanted = reference(network, x, t, labels)
    assert wanted.std() > 0.1, "a difference would be seen"
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_sit_is_a_dit_of_diffusers_whose_time_is_not_counted_in_steps():
    from dap.backbones.converting.dit import config_of, transformer

    network = tiny.sit_transformer("sit", hidden_size=128)
    state = network.state_dict()
    file = Path("sit.pt")
    dit = transformer(state, config_of(state, file, 4), file, torch.float32)
    for block in dit.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, t, labels = draw(2, 4, 4, 4), torch.tensor([0.3, 0.85]), torch.tensor([1, 3])
    with torch.no_grad():
        theirs = dit.eval()(x, timestep=t, class_labels=labels).sample[:, :4]
        torch.testing.assert_close(network(x, t, labels).sample, theirs, rtol=1e-5, atol=1e-5)


# ---- the paths


def level(path, tau):
    """SiT's table of paths in its own time s = 1 − τ, which is 1 at the data."""
    s = 1 - tau
    if path == "linear":
        return s, 1 - s
    if path == "gvp":
        return torch.sin(torch.as_tensor(s) * math.pi / 2), torch.cos(torch.as_tensor(s) * math.pi / 2)
    mean = -0.25 * (1 - s) ** 2 * (20 - 0.1) - 0.5 * (1 - s) * 0.1
    return torch.exp(torch.as_tensor(mean)), torch.sqrt(1 - torch.exp(2 * torch.as_tensor(mean)))


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_a_path_its_slopes_and_what_a_velocity_says(path):
    schedule = Interpolant(1000, path=path)
    assert schedule.level(0) == (1, 0) and schedule.level(1000)[1] == pytest.approx(1, abs=1e-4)
    x0, eps = draw(2, 15).double(), draw(2, 15, seed=1).double()
    for tau in (0.01, 0.3, 0.9):
        at = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        alpha, sigma = level(path, at)
        assert schedule.level(1000 * tau) == pytest.approx((alpha.item(), sigma.item()), rel=1e-9)
        slopes = [torch.autograd.grad(part, at, retain_graph=True)[0].item() for part in (alpha, sigma)]
        assert schedule.slopes(1000 * tau) == pytest.approx(slopes, rel=1e-9)
        x, velocity = alpha.item() * x0 + sigma.item() * eps, slopes[0] * x0 + slopes[1] * eps
        found, clean = schedule.velocity(x, 1000 * tau, velocity)
        torch.testing.assert_close(found, eps, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(clean, x0, rtol=1e-8, atol=1e-8)
    # At pure noise, where a run begins, x_0 is known from the velocity alone.
    alpha, sigma = schedule.level(1000)
    slope, rise = schedule.slopes(1000)
    _, clean = schedule.velocity(alpha * x0 + sigma * eps, 1000, slope * x0 + rise * eps)
    torch.testing.assert_close(clean, x0, rtol=1e-6, atol=1e-6)


# ---- the backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_reads_the_network_in_its_own_time(family):
    pipe = tiny.sit(family)
    backbone, config = from_pipeline(pipe), pipe.transformer.config
    x, tau, labels = draw(2, config.in_channels, 4, 4), 0.4, torch.tensor([1, 2])
    own = 1 - tau if config.data_at else tau
    velocity = reference(pipe.transformer, x, torch.tensor([own, own]), labels) * (-1 if config.data_at else 1)
    at = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    alpha, sigma = level(config.path, at)
    (slope,), (rise,) = (torch.autograd.grad(part, at, retain_graph=True) for part in (alpha, sigma))
    # Two equations with two unknowns: x = alpha x_0 + sigma eps, v = alpha' x_0 + sigma' eps.
    both = torch.linalg.inv(torch.stack([torch.stack([alpha, sigma]), torch.stack([slope, rise])])).detach()
    said = backbone.predict(x, 400.0, labels, layer="1")
    torch.testing.assert_close(said.x0.double(), both[0, 0] * x + both[0, 1] * velocity, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.eps.double(), both[1, 0] * x + both[1, 1] * velocity, rtol=1e-4, atol=1e-4)
    assert said.features.shape == (2, pipe.transformer.grid**2, 32)
    torch.testing.assert_close(backbone.tap(x, 400.0, labels, "1"), said.features)


@pytest.mark.parametrize(("family", "shift"), [("sit", 1.0), ("lightningdit", 10 / 3)])
def test_euler_on_a_straight_path_is_the_pipeline(family, shift):
    pipe = tiny.sit(family, shift)
    backbone = from_pipeline(pipe)
    batch = Batch.of(CLASS_NAMES[:3], [0, 2], [0, 0], 5)
    noise = normal(backbone.latent_shape, generators(batch.seeds), torch.empty(0))
    run = {"guidance_scale": 2.5, "guided_channels": 3, "num_inference_steps": 7, "latents": noise}
    theirs = pipe([0, 2], output_type="latent", **run).images
    mine = latents(ClassifierFree(backbone, 2.5, 3), None, batch, steps=7)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        backbone.decode(mine), pipe([0, 2], output_type="pt", **run).images, rtol=1e-4, atol=1e-4
    )
    assert pipe([1], num_inference_steps=2)[0][0].size == (8, 8)


def test_latents_are_standardised_by_channel():
    pipe = tiny.sit("lightningdit")
    backbone, config = from_pipeline(pipe), pipe.vae.config
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    wanted = [(mean[:, c] - config.latents_mean[c]) / config.latents_std[c] for c in range(6)]
    torch.testing.assert_close(backbone.encode(images), torch.stack(wanted, dim=1))
    with torch.no_grad():
        back = pipe.vae.decode(mean).sample / 2 + 0.5
    torch.testing.assert_close(backbone.decode(backbone.encode(images)), back.clamp(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_opens_again_as_the_same_backbone(family, tmp_path):
    pipe = tiny.sit(family, shift=2.0)
    pipe.save_pretrained(tmp_path)
    again = load(str(tmp_path), device="cpu")
    before = from_pipeline(pipe)
    x, labels = draw(1, *before.latent_shape), torch.tensor([1])
    assert again.class_names == tuple(CLASS_NAMES[:3]) == before.class_names
    assert again.schedule == before.schedule and again.schedule.shift == 2
    assert torch.equal(again.predict(x, 300.0, labels).eps, before.predict(x, 300.0, labels).eps)
    assert again.weights_hash() == before.weights_hash()


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("transformer", "path", "edm", "path is 'edm'; it should be 'linear', 'gvp' or 'vp'"),
        ("transformer", "data_at", 0.5, "data_at is 0.5; it should be 0 or 1"),
        ("vae", "latents_std", [1.0], "latents_std has 1 numbers for 6 latent channels"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(part, field, value, words, tmp_path):
    tiny.sit("lightningdit").save_pretrained(tmp_path)
    file = tmp_path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(DapError, match=re.escape(words)):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("library", ["dap.networks.sit_pipeline", "dap.backbones.kinds.sit", "os"])
def test_a_folder_names_no_other_code_of_this_package(library, tmp_path):
    tiny.sit().save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    assert index["transformer"] == ["dap.networks.sit", "SiTTransformer2DModel"]
    file.write_text(json.dumps(index | {"transformer": [library, "SiTTransformer2DModel"]}))
    with pytest.raises(DapError, match="dap runs no code of a backbone's folder"):
        load(str(tmp_path), device="cpu")


# ---- the whole way


@pytest.fixture
def folder(tmp_path):
    pipe = tiny.sit("repa", path="linear")
    pipe.save_pretrained(tmp_path / "sit")
    (tmp_path / "sit" / "classes.json").write_text(json.dumps(["red", "green", "blue"]))
    (tmp_path / "sit" / "card.yaml").write_text("licence: CC0-1.0\nlayer: 1\ncfg: 2.0\ncfg_interval: [0, 0.7]\n")
    return tmp_path / "sit"


@pytest.mark.parametrize("family", FAMILIES)
def test_it_keeps_the_contract_of_a_backbone(family):
    assert not [finding for finding in check_backbone(from_pipeline(tiny.sit(family))) if finding.level == "wrong"]


def test_a_hub_id_is_read_from_the_cache_and_fetched_whole(folder, tmp_path, monkeypatch):
    """Offline the cache has all; online the whole folder is asked for, and no pickle."""
    from huggingface_hub import constants

    repo = tmp_path / "hub" / "models--ada--SiT-B-2"
    shutil.copytree(folder, repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    local, x = load(str(folder), device="cpu"), draw(1, 4, 4, 4)
    asked = []

    def fetched(source, *names, allow_patterns=(), **options):
        asked.append((source, names, tuple(allow_patterns)))
        return str(repo / "snapshots" / ("a" * 40) / (names[0] if names else ""))

    offline = load("ada/SiT-B-2", offline=True, device="cpu")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    online = load("ada/SiT-B-2", device="cpu")
    assert [names for _, names, _ in asked] == [("model_index.json",), ()]
    assert "*.safetensors" in asked[1][2] and not any("bin" in pattern or "pt" in pattern for pattern in asked[1][2])
    for made in (offline, online):
        assert made.weights_hash() == local.weights_hash()
        assert torch.equal(made.predict(x, 300.0, made.null(1)).eps, local.predict(x, 300.0, local.null(1)).eps)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("vanilla", {}),
        ("vanilla", {"solver": "sde"}),
        ("dap", {"solver": "heun", "reals": 4}),
        ("dap", {"reals": 4}),
        ("auto", {}),
    ],
)
def test_a_set_is_distilled_from_start_to_end(folder, colours, tmp_path, method, options):
    run = {"data": str(colours), "backbone": str(folder), "ipc": 2, "classes": ["red", "blue"]}
    steps = {"steps": 5} if method != "auto" else {}
    made = distill(out=tmp_path / "set", method=method, **run, **steps, **options)
    images = made.tensors()[0]
    assert images.shape == (4, 3, 8, 8) and images.std() > 0.01
    again = distill(out=tmp_path / "again", method=method, **run, **steps, **options)
    assert torch.equal(images, again.tensors()[0])


def test_it_works_on_a_gpu(folder):
    used_on_gpu(folder)
