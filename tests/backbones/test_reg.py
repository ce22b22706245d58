"""REG: its transformer against the equations, the token in a latent, the authors' sampler, and their files."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import tiny
from dap import distill
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.sampling import Batch, latents
from dap.starter import CLASS_NAMES
from dap.testing import check_backbone
from pretended import used_on_gpu

BATCH = Batch.of(CLASS_NAMES[:3], [0, 2], [0, 0], 5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipe():
    return tiny.reg()


# ---- the transformer, a second time from the equations: a SiT whose first token is the class token


def reference(network, x, t, labels, token):
    """The velocities of latent and token in float64, without a module of the network."""
    config, w = network.config, {name: value.double() for name, value in network.state_dict().items()}
    patch, grid = config.patch_size, config.sample_size // config.patch_size
    width, heads = w["pos_embed"].shape[-1], config.num_attention_heads

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def plain(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def told(name, count):
        return linear(F.silu(condition), name)[:, None].split(width, dim=-1)[:count]

    angle = t.double()[:, None] * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    condition = linear(F.silu(linear(torch.cat([angle.cos(), angle.sin()], 1), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    condition = condition + w["y_embedder.embedding_table.weight"][labels]
    pieces = F.unfold(x.double(), patch, stride=patch).transpose(1, 2)
    patches = pieces @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]
    speeds = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(grid).double() for _ in range(2))
    places = [
        torch.cat([f(at * speeds) for at in (column, row) for f in (torch.sin, torch.cos)])
        for row in rows
        for column in columns
    ]
    first = plain(linear(token.double(), "cls_projectors2")) * w["wg_norm.weight"] + w["wg_norm.bias"]
    h = torch.cat([first[:, None], patches + torch.stack(places)], dim=1)  # the class token has no place
    for i in range(config.num_layers):
        shift, scale, gate, shift2, scale2, gate2 = told(f"blocks.{i}.adaLN_modulation.1", 6)
        q, k, v = linear(plain(h) * (1 + scale) + shift, f"blocks.{i}.attn.qkv").split(width, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        q, k = (
            plain_of(part) * w[f"blocks.{i}.attn.{name}.weight"] + w[f"blocks.{i}.attn.{name}.bias"]
            for part, name in ((q, "q_norm"), (k, "k_norm"))
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1) @ v
        h = h + gate * linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        inner = linear(plain(h) * (1 + scale2) + shift2, f"blocks.{i}.mlp.fc1")
        inner = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        h = h + gate2 * linear(inner, f"blocks.{i}.mlp.fc2")
    shift, scale = told("final_layer.adaLN_modulation.1", 2)
    h = plain(h) * (1 + scale) + shift
    out = linear(h[:, 1:], "final_layer.linear").unflatten(-1, (patch**2, -1)).transpose(2, 3).flatten(2)
    made = F.fold(out.transpose(1, 2), config.sample_size, patch, stride=patch)
    return made, linear(h[:, 0], "final_layer.linear_cls")


def plain_of(x):
    """The norm of queries and keys, whose epsilon is torch's."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_the_transformer_is_that_of_the_paper(pipe):
    network = pipe.transformer
    given = draw(2, 4, 8, 8), torch.tensor([0.3, 0.85]), torch.tensor([1, 3]), draw(2, 80, seed=1)
    with torch.no_grad():
        made = network(*given)
    latent, token = reference(network, *given)
    assert latent.std() > 0.1 and token.std() > 0.1, "a difference would be seen"
    torch.testing.assert_close(made.sample.double(), latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.class_token.double(), token, rtol=1e-5, atol=1e-5)
    other = reference(network, *given[:3], given[3] + 1)[0]
    assert (other - latent).abs().max() > 1e-3, "the latent sees the token"


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"), [(12, 768, 12, 132), (24, 1024, 16, 460), (28, 1152, 16, 677)]
)
def test_the_three_sizes_have_as_many_weights_as_the_paper_says(layers, width, heads, millions):
    """Table 1 of the paper; SiT without the token has 2 million less."""
    from accelerate import init_empty_weights

    from dap.networks.reg import REGTransformer2DModel

    sizes = {"num_attention_heads": heads, "attention_head_dim": width // heads, "hidden_size": 4 * width}
    with init_empty_weights():
        network = REGTransformer2DModel(num_layers=layers, **sizes)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


# ---- the latent that holds the token


def test_a_latent_holds_the_token_and_zeros(pipe):
    backbone = from_pipeline(pipe)
    assert backbone.latent_shape == (6, 8, 8)
    latent, token = draw(2, 4, 8, 8), draw(2, 80, seed=1)
    x = backbone.joined(latent, token)
    assert torch.equal(x[:, :4], latent) and torch.equal(x[:, 4].flatten(1), token[:, :64])
    assert torch.equal(x[:, 5].flatten(1)[:, :16], token[:, 64:]) and not x[:, 5].flatten(1)[:, 16:].any()
    assert [part.shape[1] for part in backbone.parted(x)] == [4, 80, 48]
    assert torch.equal(backbone.decode(x), backbone.decode(backbone.joined(latent, -token))), (
        "pixels come of the latent"
    )


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("t", [20.0, 400.0, 1000.0])
def test_a_prediction_is_that_of_both_parts_and_knows_the_zeros(path, t):
    pipe = tiny.reg(path=path)
    backbone, tau, labels = from_pipeline(pipe), t / 1000, torch.tensor([0, 2])
    alpha, sigma = (1 - tau, tau) if path == "linear" else (math.cos(math.pi * tau / 2), math.sin(math.pi * tau / 2))
    slope, rise = (-1, 1) if path == "linear" else (-math.pi / 2 * sigma, math.pi / 2 * alpha)
    noise, clean = draw(2, 6, 8, 8), backbone.joined(draw(2, 4, 8, 8, seed=1), draw(2, 80, seed=2))
    x = alpha * clean + sigma * noise
    latent, token, _ = backbone.parted(x)
    moved = reference(pipe.transformer, latent, torch.full((2,), tau), labels, token)
    moved = backbone.joined(moved[0].float(), moved[1].float())
    said, inverse = backbone.predict(x, t, labels), alpha * rise - slope * sigma
    wanted = (rise * x - sigma * moved) / inverse, (alpha * moved - slope * x) / inverse
    for found, theirs in ((said.x0, wanted[0]), (said.eps, wanted[1])):
        for mine, own in zip(backbone.parted(found)[:2], backbone.parted(theirs)[:2], strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.parted(said.eps)[2], backbone.parted(noise)[2], rtol=1e-4, atol=1e-4)
    assert backbone.parted(said.x0)[2].abs().max() < 1e-4
    # A time for each image gives the same as one for all.
    both = backbone.run(x, torch.tensor([t, t / 2]), labels)
    torch.testing.assert_close(both[:1], backbone.run(x[:1], t, labels[:1]))
    torch.testing.assert_close(both[1:], backbone.run(x[1:], t / 2, labels[1:]))


def test_features_are_of_the_patches_and_a_gradient_reaches_the_token(pipe):
    backbone, x, labels = from_pipeline(pipe), draw(2, 6, 8, 8).requires_grad_(), torch.tensor([0, 2])
    said = backbone.predict(x, 400.0, labels, layer="1", grad_through="features")
    assert said.features.shape == (2, 16, 32)
    torch.testing.assert_close(backbone.tap(x.detach(), 400.0, labels, "1"), said.features.detach())
    (found,) = torch.autograd.grad(said.features.square().sum(), x)
    latent, token, rest = backbone.parted(found)
    assert latent.abs().max() > 0 and token.abs().max() > 0 and not rest.any()


def test_real_images_have_the_class_token_of_dinov2(pipe):
    backbone = from_pipeline(pipe)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shown = F.interpolate((images - mean.view(3, 1, 1)) / std.view(3, 1, 1), (28, 28), mode="bicubic")
    with torch.no_grad():
        wanted = pipe.class_encoder(shown).pooler_output
        latent = pipe.vae.encode(images * 2 - 1).latent_dist.mean * 0.7
    found = backbone.encode(images)
    torch.testing.assert_close(backbone.parted(found)[0], latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.parted(found)[1], wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0.1 and not backbone.parted(found)[2].any()
    drawn = backbone.drawn(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(backbone.parted(drawn)[1], wanted, rtol=1e-5, atol=1e-5)


# ---- sampling


def test_euler_is_the_pipeline():
    pipe = tiny.reg(shift=2.0)
    backbone = from_pipeline(pipe)
    latent, token, _ = backbone.parted(normal(backbone.latent_shape, generators(BATCH.seeds), torch.empty(0)))
    run = {"guidance_scale": 1.5, "num_inference_steps": 6, "latents": latent, "class_tokens": token}
    card = dict(vars(backbone.card)) | {"cfg_interval": None}
    backbone.card = type(backbone.card)(**card)
    for channels, scale in (("all", None), (4, 1.0)):
        theirs = pipe([0, 2], output_type="latent", token_guidance_scale=scale, **run).images
        mine = latents(ClassifierFree(backbone, 1.5, channels), None, BATCH, steps=6)
        torch.testing.assert_close(mine[:, :4], theirs, rtol=1e-4, atol=1e-4)
    images = pipe([0, 2], output_type="pt", token_guidance_scale=1.0, **run).images
    torch.testing.assert_close(backbone.decode(mine), images, rtol=1e-4, atol=1e-4)
    assert pipe([1], num_inference_steps=2)[0][0].size == (32, 32)


def test_the_sde_is_the_loop_of_the_authors(pipe):
    """Two states, latent and token, each with its score and its noise; both halves are guided for τ ≤ 0.85 alone."""
    backbone, network, labels, cfg = from_pipeline(pipe), pipe.transformer, torch.tensor([0, 2]), 1.4
    gens = generators(BATCH.seeds)

    def noise():
        return [part.double() for part in backbone.parted(normal(backbone.latent_shape, gens, torch.empty(0)))[:2]]

    states = noise()
    times = [*torch.linspace(1, 0.04, 8, dtype=torch.float64).tolist(), 0.0]
    for now, after in pairwise(times):
        slopes = []
        for told in (labels, torch.full_like(labels, 3)):
            with torch.no_grad():
                found = network(states[0].float(), torch.full((2,), now), told, states[1].float())
            velocities = found.sample.double(), found.class_token.double()
            # The score of x = (1 − τ) x_0 + τ eps from its velocity, as in SiT's paper.
            scores = [((1 - now) * -v - x) / now for v, x in zip(velocities, states, strict=True)]
            slopes.append([v - now * s for v, s in zip(velocities, scores, strict=True)])
        cond, null = slopes
        if now <= 0.85:
            cond = [n + cfg * (c - n) for c, n in zip(cond, null, strict=True)]
        states = [x + (after - now) * d for x, d in zip(states, cond, strict=True)]
        if after:
            states = [x + math.sqrt(2 * now * (now - after)) * z for x, z in zip(states, noise(), strict=True)]
    assert backbone.card.cfg_interval == (0, 0.85) and backbone.card.cfg == 2.3
    mine = latents(ClassifierFree(backbone, cfg), None, BATCH, steps=8, solver="sde")
    for found, theirs in zip(backbone.parted(mine)[:2], states, strict=True):
        torch.testing.assert_close(
            found / theirs.abs().max(), (theirs / theirs.abs().max()).float(), rtol=1e-5, atol=1e-5
        )


# ---- folders and files


def test_a_folder_opens_again_as_the_same_backbone_and_its_parts_must_fit(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "reg")
    again, before = load(str(tmp_path / "reg"), device="cpu"), from_pipeline(pipe)
    x, labels = draw(1, 6, 8, 8), torch.tensor([1])
    assert again.class_names == tuple(CLASS_NAMES[:3])
    assert torch.equal(again.predict(x, 300.0, labels).eps, before.predict(x, 300.0, labels).eps)
    assert again.weights_hash() == before.weights_hash()
    index = json.loads((tmp_path / "reg" / "model_index.json").read_text())
    assert index["class_encoder"] == ["transformers", "Dinov2Model"]
    file = tmp_path / "reg" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data_at": 1}))
    with pytest.raises(DapError, match="data_at is 1; it should be 0"):
        load(str(tmp_path / "reg"), device="cpu")
    from transformers import Dinov2Config, Dinov2Model

    for fields, words in (
        ({"hidden_size": 40}, "denoises a class token of 80 numbers, its class_encoder makes 40"),
        (
            {"image_size": 42},
            "has positions for 9 patches, and images of 32 px have 4; write the folder with dap convert",
        ),
    ):
        config = {
            "hidden_size": 80,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        }
        other = Dinov2Model(Dinov2Config(**config | fields))
        parts = {**pipe.components, "class_encoder": other}
        with pytest.raises(DapError, match=re.escape(words)):
            from_pipeline(type(pipe)(**parts, id2label=pipe.config.id2label))


def test_it_keeps_the_contract_of_a_backbone(pipe):
    assert not [finding for finding in check_backbone(from_pipeline(pipe)) if finding.level == "wrong"]


@pytest.fixture(scope="module")
def parts(pipe, tmp_path_factory):
    """The autoencoder, a DINOv2 as its authors publish it, for larger images, and one of another width."""
    from transformers import Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("parts")
    pipe.vae.save_pretrained(root / "vae")
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}
    for name, width in (("dino", 80), ("other", 40)):
        tiny.seeded(lambda width=width: Dinov2Model(Dinov2Config(hidden_size=width, **config))).save_pretrained(
            root / name
        )
    return root


def published(pipe):
    """The tensors as the authors' trainer saves them."""
    return dict(pipe.transformer.state_dict()) | {f"projectors.0.{i}.weight": torch.ones(2, 2) for i in (0, 2, 4)}


def test_a_published_checkpoint_becomes_a_folder(pipe, parts, tmp_path):
    from timm.layers.pos_embed import resample_abs_pos_embed

    torch.save({"ema": published(pipe), "opt": {}}, tmp_path / "4000000.pt")
    given = {"vae": str(parts / "vae"), "encoder": str(parts / "dino"), "heads": 4}
    convert(tmp_path / "4000000.pt", tmp_path / "out", **given)
    made = load(str(tmp_path / "out"), device="cpu")
    card = made.card
    assert (card.cfg, card.cfg_channels, card.cfg_interval) == (2.3, "all", (0, 0.85))
    assert (made.denoiser.config.class_token_size, made.denoiser.config.qk_norm) == (80, "layer")
    x, labels = draw(2, 4, 8, 8), torch.tensor([1, 3])
    given = x, torch.tensor([0.2, 0.9]), labels, draw(2, 80)
    with torch.no_grad():
        said, theirs = made.denoiser(*given), pipe.transformer(*given)
    torch.testing.assert_close(said.sample, theirs.sample)
    torch.testing.assert_close(said.class_token, theirs.class_token)
    # The positions of DINOv2 are resampled once for the images of these weights, as the authors' training does.
    from transformers import Dinov2Model

    dino = Dinov2Model.from_pretrained(parts / "dino")
    table = resample_abs_pos_embed(dino.embeddings.position_embeddings.detach(), [2, 2])
    torch.testing.assert_close(made.class_encoder.embeddings.position_embeddings, table)
    assert made.class_encoder.config.image_size == 28
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"encoder": None}, "is a REG, which denoises the class token of a DINOv2; give --encoder"),
        ({}, {"encoder": "{parts}/other"}, "denoises a class token of 80 numbers, and that of"),
        ({}, {"encoder": "{parts}/vae"}, "not of a dinov2"),
        ({}, {"encoder": "{parts}"}, "has no config.json"),
        ({}, {"family": "repa"}, "has the tensors of REG, not those of REPA"),
        ({"wg_norm.bias": None}, {}, "it lacks wg_norm.bias"),
        ({"feat_rope.freqs_cos": torch.ones(16, 8)}, {}, "it also has feat_rope.freqs_cos"),
        ({"pos_embed": torch.ones(1, 16, 32)}, {}, "it has 15 tokens of patches"),
        ({"cls_projectors2.weight": torch.ones(2)}, {}, "cls_projectors2.weight has the shape (2,)"),
        ({"cls_projectors2.weight": None}, {"family": "repa"}, "--encoder is for a checkpoint file of PixArt or REG"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(change, options, words, pipe, parts, tmp_path):
    state = {name: value for name, value in (published(pipe) | change).items() if value is not None}
    torch.save({"ema": state}, tmp_path / "x.pt")
    given = {"vae": "{parts}/vae", "encoder": "{parts}/dino", "heads": 4} | options
    given = {k: v.format(parts=parts) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(DapError, match=re.escape(words)):
        convert(tmp_path / "x.pt", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    pipe.save_pretrained(root)
    (root / "classes.json").write_text(json.dumps(["red", "green", "blue"]))
    (root / "card.yaml").write_text("licence: CC0-1.0\nlayer: 1\ncfg: 1.5\n")
    return root


@pytest.mark.parametrize(
    ("method", "options"),
    [("vanilla", {"solver": "sde"}), ("dap", {"reals": 4}), ("dap", {"reals": 4, "solver": "dpm++2m"}), ("auto", {})],
)
def test_a_set_is_distilled_from_start_to_end(method, options, folder, colours, tmp_path):
    run = {"data": str(colours), "backbone": str(folder), "ipc": 2, "classes": ["red", "blue"]}
    options = {"steps": 5, **options} if method != "auto" else {"refine_steps": 4}
    made = distill(out=tmp_path / "set", method=method, **run, **options)
    images = made.tensors()[0]
    assert images.shape == (4, 3, 32, 32) and images.std() > 0.01
    if options.get("solver") is None and method == "dap":
        # A set with a lost image is made again in the same batch, bit for bit.
        lost = sorted((tmp_path / "set" / "images").rglob("*.png"))[1]
        before = lost.read_bytes()
        lost.unlink()
        distill(out=tmp_path / "set", method=method, **run, **options)
        assert lost.read_bytes() == before


def test_it_works_on_a_gpu(folder):
    used_on_gpu(folder)
