"""The authors' files of PixArt-α and PixArt-Σ: the transformer alone, beside which T5 and the autoencoder are named."""

from __future__ import annotations

import re

import pytest
import torch

import tiny_text
from conftest import tiny_vae
from dap.backbones import from_pipeline, load
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.cli.main import main

PLACES = {
    "x_embedder.proj": "pos_embed.proj",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}
TOLD = {
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
}
WIDER = {"num_attention_heads": 3, "cross_attention_dim": 24}
"""Sizes are told by embeddings of a third of the width."""


def published(pipe, rows, positions=True):
    """The tensors of a transformer by the names of its authors."""
    theirs, config = pipe.transformer.state_dict(), pipe.transformer.config
    state = {"final_layer.scale_shift_table": theirs["scale_shift_table"]}
    places = PLACES | (TOLD if config.use_additional_conditions else {})
    for kind in ("weight", "bias"):
        state |= {f"{mine}.{kind}": theirs[f"{there}.{kind}"] for mine, there in places.items()}
        for i in range(config.num_layers):
            block, there = f"blocks.{i}", f"transformer_blocks.{i}"

            def under(*names, there=there, kind=kind):
                return torch.cat([theirs[f"{there}.{name}.{kind}"] for name in names])

            state |= {
                f"{block}.attn.qkv.{kind}": under("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                f"{block}.attn.proj.{kind}": under("attn1.to_out.0"),
                f"{block}.cross_attn.q_linear.{kind}": under("attn2.to_q"),
                f"{block}.cross_attn.kv_linear.{kind}": under("attn2.to_k", "attn2.to_v"),
                f"{block}.cross_attn.proj.{kind}": under("attn2.to_out.0"),
                f"{block}.mlp.fc1.{kind}": under("ff.net.0.proj"),
                f"{block}.mlp.fc2.{kind}": under("ff.net.2"),
                f"{block}.scale_shift_table": theirs[f"{there}.scale_shift_table"],
            }
    state["y_embedder.y_embedding"] = torch.ones(rows, 16)
    if positions:
        state["pos_embed"] = pipe.transformer.pos_embed.pos_embed.clone()
    return state


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folder of a pipeline whose parts are named beside a file."""
    folder, pipe = tmp_path_factory.mktemp("parts") / "pixart", tiny_text.pixart()
    pipe.vae.register_to_config(scaling_factor=0.5)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alpha():
    """The tensors of a PixArt-α."""
    return published(tiny_text.pixart(), 120)


@pytest.mark.parametrize(
    ("file", "kind", "rows", "fields", "options"),
    [
        ("PixArt-XL-2-512x512.pth", "Alpha", 120, {}, {}),
        ("PixArt-XL-2-1024-MS.pth", "Alpha", 120, {"use_additional_conditions": True, **WIDER}, {}),
        ("x.pth", "Sigma", 300, {"interpolation_scale": 2.0}, {}),
        ("PixArt-Sigma-XL-2-256x256.pth", "Sigma", 300, {"interpolation_scale": 0.5}, {"positions": False}),
    ],
)
def test_a_published_file_becomes_the_folder_that_diffusers_has(file, kind, rows, fields, options, parts, tmp_path):
    """The same prediction as diffusers' own transformer, from a file in the authors' names and shapes."""
    pipe = tiny_text.pixart(kind, **fields)
    heads = pipe.transformer.config.num_attention_heads
    state = published(pipe, rows, **options)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / file)
    said = {} if options == {} else {"size": 32}  # without a table of positions the size is told
    convert(tmp_path / file, tmp_path / "out", encoder=str(parts), heads=heads, **said)
    made, wanted = load(str(tmp_path / "out"), device="cpu"), from_pipeline(pipe, name="pixart")
    assert type(made._pipe).__name__ == f"PixArt{kind}Pipeline"
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    conditions = [one.condition(["dress", "bag"]) for one in (made, wanted)]
    said, theirs = (one.predict(x, 300, c) for one, c in zip((made, wanted), conditions, strict=True))
    assert theirs.eps.std() > 0.1, "a difference would be seen"
    if options == {}:
        torch.testing.assert_close(said.eps, theirs.eps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(said.variance, theirs.variance, rtol=1e-5, atol=1e-5)
    config = made.denoiser.config
    assert config.interpolation_scale == fields.get("interpolation_scale", 1.0)
    assert (config.out_channels, config.num_layers) == (8, 3)
    assert made.schedule.level(500) == wanted.schedule.level(500)
    assert not list((tmp_path / "out").rglob("*.bin")), "safetensors alone"


@pytest.mark.parametrize(("size", "kind", "scale"), [(256, "Alpha", 1), (256, "Sigma", 0.5), (1024, "Sigma", 2)])
def test_without_a_table_the_positions_are_those_of_the_published_weights(size, kind, scale, alpha):
    """`interpolation_scale` of diffusers' own conversion, and of the folders on the hub."""
    from pathlib import Path

    from dap.backbones.converting.parts import Said
    from dap.backbones.converting.with_encoder.pixart import config_of

    state = {name: value for name, value in alpha.items() if name != "pos_embed"}
    config = config_of(Path(f"PixArt-XL-2-{size}-MS.pth"), state, kind, Said(heads=2))
    assert (config["sample_size"], config["interpolation_scale"]) == (size // 8, scale)


@pytest.mark.parametrize(
    ("file", "change", "options", "words"),
    [
        ("x.pth", {}, {"encoder": None}, "holds no text encoder; give --encoder"),
        ("x.pth", {}, {"heads": None}, "how many attention heads its width 16"),
        ("x.pth", {}, {"heads": 3}, "--heads, a number that divides the width"),
        ("x.pth", {"pos_embed": None}, {}, "does not say the size of its images; give --size"),
        ("x.pth", {"pos_embed": None}, {"size": 20}, "give a --size that 16 divides"),
        ("x.pth", {"y_embedder.y_embedding": None}, {}, "put the word alpha or sigma into its name"),
        ("x-lcm.pth", {}, {}, "was distilled to few steps, by its name"),
        ("x.pth", {"blocks.0.attn.sr.weight": torch.ones(2)}, {}, "normed queries or compressed keys"),
        ("x.pth", {"blocks.1.attn.proj.bias": None}, {}, "it lacks transformer_blocks.1.attn1.to_out.0.bias"),
        ("x.pth", {"blocks.1.more": torch.ones(2)}, {}, "it also has blocks.1.more"),
        ("x.pth", {"t_block.1.bias": torch.ones(2)}, {}, "another shape of adaln_single.linear.bias"),
        ("x.pth", {"x_embedder.proj.weight": torch.ones(2)}, {}, "x_embedder.proj.weight has the shape (2,)"),
        ("x.pth", {}, {"family": "dit"}, "--family and --path are for a DiT"),
        ("x.pth", {}, {"prediction": "epsilon"}, "all of them predict noise"),
        ("x.pth", {}, {"encoder": "/nowhere"}, "There is no"),
        ("x.pth", {}, {"encoder": "{parts}/text_encoder"}, "holds no autoencoder; give --vae"),
        ("x.pth", {}, {"encoder": "{parts}/vae", "vae": "{parts}"}, "not of a t5"),
        ("x.pth", {}, {"encoder": "{parts}/text_encoder", "vae": "{parts}"}, "no tokenizer.json and no spiece.model"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(file, change, options, words, parts, alpha, tmp_path):
    state = alpha | change
    torch.save({"state_dict": {name: value for name, value in state.items() if value is not None}}, tmp_path / file)
    given = {"encoder": "{parts}", "heads": 2} | options
    given = {k: v.format(parts=parts) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(DapError, match=re.escape(words)):
        convert(tmp_path / file, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_parts_may_lie_apart_and_must_fit(parts, alpha, tmp_path):
    """A T5 and its tokenizer by folders of their own; the autoencoder of the other kind is seen by its factor."""
    torch.save(alpha | {"y_embedder.y_embedding": torch.ones(300, 16)}, tmp_path / "x.pth")
    apart = {"encoder": str(parts / "text_encoder"), "tokenizer": str(parts / "tokenizer"), "vae": str(parts / "vae")}
    flags = [word for name, value in apart.items() for word in (f"--{name}", value)]
    assert main(["convert", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out"), "--heads", "2", *flags]) == 0
    assert load(str(tmp_path / "out"), device="cpu").card.size == 8
    vae = tiny_vae()
    assert vae.config.scaling_factor == 0.18215
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(DapError, match="is a PixArt-Sigma, and .* is the autoencoder of a PixArt-Alpha"):
        convert(tmp_path / "x.pth", tmp_path / "other", heads=2, **apart | {"vae": str(tmp_path / "vae")})
    tiny_text.t5(300, 24)[1].save_pretrained(tmp_path / "t5")
    with pytest.raises(DapError, match="reads a text encoder of width 16, and that of .* has 24"):
        convert(tmp_path / "x.pth", tmp_path / "other", heads=2, **apart | {"encoder": str(tmp_path / "t5")})
