"""Checkpoints of SiT, REPA and LightningDiT as their authors save them, and VA-VAE's file."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import tiny
from dap.backbones import load
from dap.backbones.base import Card
from dap.backbones.converting.autoencoders import from_checkpoint
from dap.backbones.converting.convert import convert
from dap.backbones.guided import ClassifierFree
from dap.backbones.mixture import Mixture
from dap.base.errors import DapError
from dap.networks.sit import angles


def published(family, **options):
    """(the network, its tensors as the authors' trainer saves them)."""
    network = tiny.sit_transformer(family, **options)
    state = dict(network.state_dict())
    if family == "repa":
        state |= {f"projectors.0.{i}.weight": torch.ones(2, 2) for i in (0, 2, 4)}
    if network.config.rotary:
        turn = angles(network.grid, network.config.attention_head_dim)
        state |= {"feat_rope.freqs_cos": turn.cos(), "feat_rope.freqs_sin": turn.sin()}
    return network, state


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    """Folders of autoencoders: of 4 channels, and of 6 with latents that are standardised by channel."""
    root = tmp_path_factory.mktemp("vaes")
    for family in ("sit", "lightningdit"):
        tiny.sit(family).vae.save_pretrained(root / family)
    return {"sit": str(root / "sit"), "repa": str(root / "sit"), "lightningdit": str(root / "lightningdit")}


@pytest.mark.parametrize(
    ("file", "family", "args", "path", "card"),
    [
        ("SiT-XL-2-256.pt", "sit", None, "linear", {"cfg": 1.5, "cfg_channels": 3}),
        ("0400000.pt", "sit", {"model": "SiT-XL/2", "path_type": "VP", "prediction": "velocity"}, "vp", {"cfg": 1.5}),
        ("last.pt", "repa", None, "linear", {"cfg": 1.8, "cfg_channels": "all", "cfg_interval": [0.0, 0.7]}),
        ("last.pt", "repa", {"path_type": "cosine", "prediction": "v"}, "gvp", {"cfg": 1.8}),
        ("x.pt", "lightningdit", None, "linear", {"cfg": 6.7, "cfg_channels": 3, "cfg_interval": [0.0, 0.875]}),
    ],
)
def test_a_published_checkpoint_becomes_a_folder(file, family, args, path, card, vaes, tmp_path):
    network, state = published(family)
    named = {f"module.{name}": value for name, value in state.items()} if family == "lightningdit" else state
    torch.save({"ema": named, "opt": {}} | ({"args": Namespace(**args)} if args else {}), tmp_path / file)
    convert(tmp_path / file, tmp_path / "out", vae=vaes[family], heads=4)
    made = load(str(tmp_path / "out"), device="cpu")
    config = made.denoiser.config
    assert (config.path, config.data_at) == (path, network.config.data_at)
    said = yaml.safe_load((tmp_path / "out" / "card.yaml").read_text())
    assert {name: said[name] for name in card} == card
    assert made.schedule.shift == pytest.approx(1 / 0.3 if family == "lightningdit" else 1)
    x, t, labels = torch.randn(2, *made.latent_shape), torch.tensor([0.2, 0.9]), torch.tensor([1, 3])
    with torch.no_grad():
        torch.testing.assert_close(made.denoiser(x, t, labels).sample, network(x, t, labels).sample)
    assert made.class_names == ("0", "1", "2")
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_a_thousand_labels_are_imagenet_s_and_a_published_name_has_its_card(vaes, tmp_path):
    _, state = published("lightningdit", num_classes=1000)
    torch.save({"ema": state}, tmp_path / "lightningdit-xl-imagenet256-64ep.pt")
    convert(tmp_path / "lightningdit-xl-imagenet256-64ep.pt", tmp_path / "out", vae=vaes["lightningdit"])
    said = yaml.safe_load((tmp_path / "out" / "card.yaml").read_text())
    assert (said["cfg"], said["licence"], said["cfg_interval"]) == (10.0, "MIT", [0, 0.875])
    assert "tench" in json.loads((tmp_path / "out" / "classes.json").read_text())[0]


@pytest.mark.parametrize(
    ("file", "change", "options", "words"),
    [
        ("flow.pt", {}, {}, "do not say which way its time runs: give --family sit"),
        ("x.pt", {}, {"family": "repa"}, None),
        ("x.pt", {}, {"family": "sit"}, None),
        ("sit.pt", {"blocks.1.attn.proj.bias": None}, {}, "it lacks blocks.1.attn.proj.bias"),
        ("sit.pt", {"blocks.0.attn.extra": torch.ones(2)}, {}, "it also has blocks.0.attn.extra"),
        (
            "sit.pt",
            {"blocks.1.attn.proj.weight": torch.ones(2, 2)},
            {},
            "has another shape of blocks.1.attn.proj.weight",
        ),
        ("sit.pt", {"pos_embed": torch.ones(1, 3, 32)}, {}, "it has 3 tokens of patches of side 2"),
        ("sit.pt", {"projectors.0.0.weight": torch.ones(2, 2)}, {"family": "sit"}, "has the tensors of REPA, not"),
        ("sit.pt", {}, {"heads": 5}, "5 heads do not divide the width 32"),
        ("sit.pt", {}, {"heads": None}, "how many attention heads its width 32"),
        ("dit.pt", {}, {"flow_path": "vp"}, "--path is for flows"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(file, change, options, words, vaes, tmp_path):
    _, state = published("sit", hidden_size=128)
    state = {name: value for name, value in (state | change).items() if value is not None}
    torch.save(state, tmp_path / file)
    given = {"vae": vaes["sit"], "heads": 4} | options
    if words is None:
        convert(tmp_path / file, tmp_path / "out", **given)
        config = load(str(tmp_path / "out"), device="cpu").denoiser.config
        assert config.data_at == (0 if options["family"] == "repa" else 1)
        return
    with pytest.raises(DapError) as caught:
        convert(tmp_path / file, tmp_path / "out", **given)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_noise_on_a_flow_is_not_read_as_a_velocity(vaes, tmp_path):
    _, state = published("sit")
    torch.save(
        {"ema": state, "args": Namespace(model="SiT-S/2", path_type="GVP", prediction="score")}, tmp_path / "x.pt"
    )
    with pytest.raises(DapError, match="predicts 'score' on a flow; dap reads velocities"):
        convert(tmp_path / "x.pt", tmp_path / "out", vae=vaes["sit"], heads=4)


# ---- VA-VAE


class Residual(nn.Module):
    def __init__(self, given, made):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, given, eps=1e-6), nn.Conv2d(given, made, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, made, eps=1e-6), nn.Conv2d(made, made, 3, padding=1)
        if given != made:
            self.nin_shortcut = nn.Conv2d(given, made, 1)

    def forward(self, x):
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return inner + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attends(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2) for part in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view(x.shape))


def part(**modules):
    made = nn.Module()
    for name, module in modules.items():
        setattr(made, name, module)
    return made


class Latent(nn.Module):
    """The autoencoder of latent diffusion's code: two levels, attention in the second of them and in the middle."""

    def __init__(self, widths=(32, 64), channels=6):
        super().__init__()
        first, last = widths
        middle = {"block_1": Residual(last, last), "attn_1": Attends(last), "block_2": Residual(last, last)}
        self.encoder = part(
            conv_in=nn.Conv2d(3, first, 3, padding=1),
            down=nn.ModuleList(
                [
                    part(
                        block=nn.ModuleList([Residual(first, first)]),
                        attn=nn.ModuleList(),
                        downsample=part(conv=nn.Conv2d(first, first, 3, 2)),
                    ),
                    part(block=nn.ModuleList([Residual(first, last)]), attn=nn.ModuleList([Attends(last)])),
                ]
            ),
            mid=part(**middle),
            norm_out=nn.GroupNorm(32, last, eps=1e-6),
            conv_out=nn.Conv2d(last, 2 * channels, 3, padding=1),
        )
        middle = {"block_1": Residual(last, last), "attn_1": Attends(last), "block_2": Residual(last, last)}
        self.decoder = part(
            conv_in=nn.Conv2d(channels, last, 3, padding=1),
            mid=part(**middle),
            up=nn.ModuleList(
                [
                    part(block=nn.ModuleList([Residual(last, first), Residual(first, first)]), attn=nn.ModuleList()),
                    part(
                        block=nn.ModuleList([Residual(last, last), Residual(last, last)]),
                        attn=nn.ModuleList([Attends(last), Attends(last)]),
                        upsample=part(conv=nn.Conv2d(last, last, 3, padding=1)),
                    ),
                ]
            ),
            norm_out=nn.GroupNorm(32, first, eps=1e-6),
            conv_out=nn.Conv2d(first, 3, 3, padding=1),
        )
        self.quant_conv, self.post_quant_conv = (
            nn.Conv2d(2 * channels, 2 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def encode(self, x):
        e, (first, second) = self.encoder, self.encoder.down
        x = first.block[0](e.conv_in(x))
        x = first.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        x = second.attn[0](second.block[0](x))
        x = e.mid.block_2(e.mid.attn_1(e.mid.block_1(x)))
        return self.quant_conv(e.conv_out(F.silu(e.norm_out(x)))).chunk(2, dim=1)[0]

    def decode(self, z):
        d, (first, second) = self.decoder, self.decoder.up
        x = d.conv_in(self.post_quant_conv(z))
        x = d.mid.block_2(d.mid.attn_1(d.mid.block_1(x)))
        for block, attend in zip(second.block, second.attn, strict=True):
            x = attend(block(x))
        x = second.upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return d.conv_out(F.silu(d.norm_out(first.block[1](first.block[0](x)))))


def test_an_autoencoder_of_latent_diffusion_is_the_same_in_diffusers(tmp_path):
    latent = tiny.seeded(Latent)
    beside = {"loss.logvar": torch.ones(1), "foundation_model.model.norm.weight": torch.ones(2)}
    torch.save({"state_dict": latent.state_dict() | beside, "epoch": 3}, tmp_path / "vavae.pt")
    made = from_checkpoint(tmp_path / "vavae.pt", torch.float32).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = latent.encode(images)
        assert z.std() > 0.1
        torch.testing.assert_close(made.encode(images).latent_dist.mean, z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.decode(z).sample, latent.decode(z), rtol=1e-4, atol=1e-5)


def test_lightningdit_with_va_vae_and_the_statistics_beside_it(tmp_path):
    _, state = published("lightningdit")
    latent = tiny.seeded(Latent)
    torch.save({"ema": state}, tmp_path / "lightningdit.pt")
    torch.save({"state_dict": latent.state_dict()}, tmp_path / "vavae.pt")
    given = {"vae": str(tmp_path / "vavae.pt")}
    with pytest.raises(DapError, match="put the latents_stats.pt that its authors publish"):
        convert(tmp_path / "lightningdit.pt", tmp_path / "out", **given)
    mean, std = torch.linspace(-1, 1, 6), torch.linspace(0.5, 3, 6)
    statistics = {"mean": mean.view(1, 6, 1, 1), "std": std.view(1, 6, 1, 1)}
    torch.save(statistics | {"std": -statistics["std"]}, tmp_path / "latents_stats.pt")
    with pytest.raises(DapError, match="should hold a mean and a positive std of 6 channels"):
        convert(tmp_path / "lightningdit.pt", tmp_path / "out", **given)
    torch.save(statistics, tmp_path / "latents_stats.pt")
    convert(tmp_path / "lightningdit.pt", tmp_path / "out", **given)
    made = load(str(tmp_path / "out"), device="cpu")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (latent.encode(images * 2 - 1) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        torch.testing.assert_close(made.encode(images), wanted, rtol=1e-4, atol=1e-4)
        back = latent.decode(wanted * std.view(-1, 1, 1) + mean.view(-1, 1, 1)) / 2 + 0.5
    torch.testing.assert_close(made.decode(wanted), back.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_what_is_no_autoencoder_is_said(tmp_path):
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.ones(2)}}, tmp_path / "vae.pt")
    with pytest.raises(
        DapError, match="is no autoencoder of latent diffusion's code: it has no encoder.conv_in.weight"
    ):
        from_checkpoint(tmp_path / "vae.pt", torch.float32)


# ---- the interval of guidance


def test_guidance_is_off_outside_the_card_s_interval(tmp_path):
    pipe = tiny.sit("repa")
    pipe.save_pretrained(tmp_path)
    plain = load(str(tmp_path), device="cpu")
    (tmp_path / "card.yaml").write_text("cfg_interval: [0, 0.7]\n")
    made = load(str(tmp_path), device="cpu")
    assert made.card.cfg_interval == (0, 0.7) and made.weights_hash() != plain.weights_hash()
    x, labels = torch.randn(2, *made.latent_shape), torch.tensor([0, 1])
    for t, on in ((699.0, True), (701.0, False)):
        said = ClassifierFree(made, 3.0).predict(x, t, labels).eps
        other = ClassifierFree(plain, 3.0 if on else 1.0).predict(x, t, labels).eps
        assert torch.equal(said, other)
    # The null half still gives the features where they are asked of it.
    features = ClassifierFree(made, 3.0).predict(x, 900.0, labels, layer="1", branch="null").features
    torch.testing.assert_close(features, made.tap(x, 900.0, made.null(2), "1"))
    (tmp_path / "card.yaml").write_text("cfg_interval: [0.8, 0.7]\n")
    with pytest.raises(DapError, match="give two rising numbers from 0 to 1"):
        load(str(tmp_path), device="cpu")


def test_without_an_interval_a_card_and_a_hash_say_nothing_of_it():
    assert "cfg_interval" not in Card("x", "MIT", 8, 1.0, "all", "0", 0.1, "step").written()
    assert "cfg_interval" not in Mixture(torch.zeros(1, 1, 1, 2, 2)).settings()
