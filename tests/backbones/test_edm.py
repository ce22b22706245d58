"""EDM and EDM2: each network against one written again from the papers' equations, their samplers, and their files."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import re
import shutil
import sys
import types

import pytest
import torch
from torch.nn import functional as F

import tiny
from dap import distill
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.converting import edm as converting
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.memory import MemorySource
from dap.guidance import MeanMatching
from dap.networks.edm import EDMUNet2DModel
from dap.networks.edm2 import EDM2UNet2DModel
from dap.networks.edm_pipeline import EDMPipeline
from dap.refining import Descent, refine
from dap.sampling import Batch, latents
from dap.testing import check_backbone

SMALL = {"sample_size": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
KINDS = {
    "adm": (EDMUNet2DModel, {"style": "adm", "channels_per_head": 8, "num_class_embeds": 3}),
    "ddpm++": (EDMUNet2DModel, {"style": "song", "num_class_embeds": 3}),
    "ncsn++": (
        EDMUNet2DModel,
        {"fourier": True, "residual": True, "resample_filter": [1, 3, 3, 1], "channel_mult_noise": 2},
    ),
    "edm2": (EDM2UNet2DModel, {"in_channels": 3, "channels_per_head": 8, "num_class_embeds": 3}),
}


def network(kind, **options):
    of, own = KINDS[kind]
    return tiny.seeded(lambda: of(**SMALL | own | options), std=0.3)


def pipeline(kind, **options):
    from diffusers import EDMEulerScheduler

    return EDMPipeline(network(kind, **options), EDMEulerScheduler())


@pytest.fixture
def narrow(monkeypatch):
    """As if the published heads were 8 wide."""
    monkeypatch.setattr(converting, "HEAD", 8)


class Equations:
    """D(x; σ) from a state dict alone, by functions of the papers' text: tables 1 and 2 and appendix F.1 of EDM, B of EDM2."""

    def __init__(self, model):
        self.w, self.c = model.state_dict(), model.config
        self.two = isinstance(model, EDM2UNet2DModel)
        self.song = not self.two and self.c.style == "song"

    def __call__(self, x, sigma, labels):
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        f = self.network(x / (sigma**2 + 0.25) ** 0.5, torch.full((len(x),), math.log(sigma) / 4), labels)
        return skip * x + out * f

    def mp(self, name, x, gain=1.0):
        w = self.w[f"{name}.weight"]
        n = w[0].numel()
        rows = w.flatten(1)
        rows = rows / (1e-4 + rows.norm(dim=1, keepdim=True) / math.sqrt(n)) / math.sqrt(n) * gain
        return x @ rows.T if w.ndim == 2 else F.conv2d(x, rows.view_as(w), padding=w.shape[-1] // 2)

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def conv(self, name, x):
        w = self.w[f"{name}.weight"]
        return F.conv2d(x, w, padding=w.shape[-1] // 2) + self.w[f"{name}.bias"].view(1, -1, 1, 1)

    def norm(self, name, x, eps):
        groups = min(32, x.shape[1] // 4)
        parts = x.reshape(len(x), groups, -1)
        parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return parts.view_as(x) * self.w[f"{name}.weight"].view(1, -1, 1, 1) + self.w[f"{name}.bias"].view(1, -1, 1, 1)

    def filtered(self, x, mode):
        """By an explicit sum over the taps, on a padded grid."""
        taps = torch.tensor([1.0, 1.0] if self.two else [float(tap) for tap in self.c.resample_filter])
        taps = taps / taps.sum()
        n, (b, c, h, w) = len(taps), x.shape
        pad = (n - 1) // 2
        if mode == "down":
            wide = F.pad(x, (pad, pad, pad, pad))
            return sum(
                taps[i] * taps[j] * wide[:, :, i : i + h - 1 + (h % 2) : 2, j : j + w - 1 + (w % 2) : 2]
                for i in range(n) for j in range(n)
            )  # fmt: skip
        out = torch.zeros(b, c, 2 * h + 2 * n, 2 * w + 2 * n)
        for i in range(n):
            for j in range(n):
                out[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += 4 * taps[i] * taps[j] * x
        return out[:, :, pad : pad + 2 * h, pad : pad + 2 * w]

    def attention(self, qkv, heads):
        """Place by place; `qkv` has the channels in the order head, channel, (q, k, v)."""
        b, c3, h, w = qkv.shape
        parts = qkv.reshape(b, heads, c3 // 3 // heads, 3, h * w)
        if self.two:
            parts = parts / (1e-4 + parts.norm(dim=2, keepdim=True) / math.sqrt(parts.shape[2]))
        q, k, v = parts[..., 0, :], parts[..., 1, :], parts[..., 2, :]
        weights = (torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(q.shape[2])).softmax(-1)
        return torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(b, c3 // 3, h, w)

    def block(self, name, x, emb):
        if self.two:
            return self.block2(name, x, emb)
        eps, mode = (1e-6 if self.song else 1e-5), next((m for m in ("down", "up") if name.endswith(m)), None)
        h = F.silu(self.norm(f"{name}.norm0", x, eps))
        h = self.conv(f"{name}.conv0", self.filtered(h, mode) if mode else h)
        told = self.linear(f"{name}.affine", emb)[..., None, None]
        if self.song:
            h = self.norm(f"{name}.norm1", h + told, eps)
        else:
            half = told.shape[1] // 2
            h = told[:, half:] + self.norm(f"{name}.norm1", h, eps) * (1 + told[:, :half])
        h = self.conv(f"{name}.conv1", F.silu(h))
        short = self.filtered(x, mode) if mode else x
        if f"{name}.skip.weight" in self.w:
            short = self.conv(f"{name}.skip", short)
        x = (short + h) * (math.sqrt(0.5) if self.song else 1)
        if f"{name}.qkv.weight" in self.w:
            heads = 1 if self.song else x.shape[1] // self.c.channels_per_head
            a = self.attention(self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x, eps)), heads)
            x = (self.conv(f"{name}.proj", a) + x) * (math.sqrt(0.5) if self.song else 1)
        return x

    def block2(self, name, x, emb):
        silu, total = (lambda y: F.silu(y) / 0.596), (lambda a, b: (0.7 * a + 0.3 * b) / math.sqrt(0.58))
        mode = next((m for m in ("down", "up") if name.endswith(m)), None)
        x, skip = (self.filtered(x, mode) if mode else x), f"{name}.conv_skip.weight" in self.w
        if name.startswith("enc"):
            x = self.mp(f"{name}.conv_skip", x) if skip else x
            x = x / (1e-4 + x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]))
        told = self.mp(f"{name}.emb_linear", emb, self.w[f"{name}.emb_gain"]) + 1
        h = self.mp(f"{name}.conv_res1", silu(self.mp(f"{name}.conv_res0", silu(x)) * told[..., None, None]))
        x = total(self.mp(f"{name}.conv_skip", x) if skip and name.startswith("dec") else x, h)
        if f"{name}.attn_qkv.weight" in self.w:
            a = self.attention(self.mp(f"{name}.attn_qkv", x), x.shape[1] // self.c.channels_per_head)
            x = total(x, self.mp(f"{name}.attn_proj", a))
        return x.clamp(-256, 256)

    def embedding(self, noise, labels):
        told = F.one_hot(labels, self.c.num_class_embeds).float() if self.c.num_class_embeds else None
        if self.two:
            wave = (noise[:, None] * self.w["emb_fourier.freqs"] + self.w["emb_fourier.phases"]).cos() * math.sqrt(2)
            both = self.mp("emb_noise", wave) + self.mp("emb_label", told * math.sqrt(told.shape[1]))
            return F.silu(both / math.sqrt(2)) / 0.596
        width = self.w["map_layer0.weight"].shape[1]
        if self.c.fourier:
            angles = noise[:, None] * 2 * math.pi * self.w["map_noise.freqs"]
        else:
            steps = width // 2 - (1 if self.song else 0)
            angles = noise[:, None] * torch.tensor([10000 ** (-i / steps) for i in range(width // 2)])
        waves = [angles.sin(), angles.cos()] if self.song else [angles.cos(), angles.sin()]
        emb = torch.cat(waves, 1)
        if self.song:
            if told is not None:
                emb = emb + self.linear("map_label", told * math.sqrt(told.shape[1]))
            return F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", emb))))
        emb = self.linear("map_layer1", F.silu(self.linear("map_layer0", emb)))
        return F.silu(emb + self.linear("map_label", told))

    def network(self, x, noise, labels):
        """The order of SMALL's two levels, written out."""
        emb = self.embedding(noise, labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1) if self.two else x
        image, conv = x, self.mp if self.two else self.conv
        skips = [conv("enc.8x8_conv", x)]
        skips.append(self.block("enc.8x8_block0", skips[-1], emb))
        down = self.block("enc.4x4_down", skips[-1], emb)
        if not self.two and self.c.residual:
            w = self.w["enc.4x4_aux_residual.weight"]
            wide = F.conv2d(image, w, padding=1 + 1)[:, :, :, :]
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            small = F.conv2d(wide, (taps[:, None] * taps).expand(len(w), 1, 4, 4), stride=2, groups=len(w))
            down = (down + small + self.w["enc.4x4_aux_residual.bias"].view(1, -1, 1, 1)) / math.sqrt(2)
        skips += [down, self.block("enc.4x4_block0", down, emb)]
        x = self.block("dec.4x4_in1", self.block("dec.4x4_in0", skips[-1], emb), emb)
        for name in ("4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
            if "block" in name:
                skip = skips.pop()
                if self.two:
                    n, m = x.shape[1], skip.shape[1]
                    c = math.sqrt((n + m) / 0.5) / 2
                    x, skip = x * c / math.sqrt(n), skip * c / math.sqrt(m)
                x = torch.cat([x, skip], 1)
            x = self.block(f"dec.{name}", x, emb)
        if self.two:
            return self.mp("out_conv", x, self.w["out_gain"])
        if self.song:
            return self.conv("dec.8x8_aux_conv", F.silu(self.norm("dec.8x8_aux_norm", x, 1e-6)))
        return self.conv("out_conv", F.silu(self.norm("out_norm", x, 1e-5)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_papers_equations(kind):
    model = network(kind)
    x, labels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1])
    for sigma in (0.002, 0.7, 80.0):
        noisy = x * (0.25 + sigma**2) ** 0.5
        torch.testing.assert_close(
            model(noisy, sigma, labels).sample, Equations(model)(noisy, sigma, labels), rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("kind", ["ddpm++", "edm2"])
def test_dap_samples_what_edm_s_own_equation_gives(kind):
    """Euler's method on dx/dσ = (x − D(x; σ)) / σ in EDM's own variables, and "ddim" in dap's; and Heun's of the pipeline."""
    pipe = pipeline(kind)
    backbone = from_pipeline(pipe, name="edm", class_names=["a", "b", "c"])
    batch = Batch.of(("a", "c"), [0, 1], [0, 0], 0)
    noise = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in batch.seeds])
    grid = [0.002 ** (1 / 7) + i / 999 * (80 ** (1 / 7) - 0.002 ** (1 / 7)) for i in range(1000)]
    times, labels = [999, 799, 599, 399, 199], torch.tensor([0, 2])
    levels = [grid[t] ** 7 for t in times]
    abar = [backbone.schedule.alphas_cumprod[t].item() for t in times]
    for level, a in zip(levels, abar, strict=True):
        assert math.sqrt((1 - a) / a) == pytest.approx(level, rel=2e-3 if level < 0.1 else 1e-4)
    exact = [math.sqrt((1 - a) / a) for a in abar]
    x = noise * math.sqrt(1 + exact[0] ** 2)
    for now, after in zip(exact, [*exact[1:], 0.0], strict=True):
        x = x + (after - now) * (x - pipe.unet(x, now, labels).sample) / now
    mine = latents(ClassifierFree(backbone, 1.0), None, batch, steps=5, solver="ddim")
    torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-4)
    d = pipe.unet
    y = 80.0 * noise
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    for now, after in ((80.0, middle), (middle, 0.002), (0.002, 0.0)):
        first = (y - d(y, now, labels).sample) / now
        guess = y + (after - now) * first
        second = first if after == 0 else (guess - d(guess, after, labels).sample) / after
        y = y + (after - now) * (first + second) / 2
    theirs = pipe([0, 2], num_inference_steps=3, latents=noise, output_type="latent").images
    torch.testing.assert_close(theirs, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_of_a_backbone(kind):
    classes = ["a", "b", "c"] if kind != "ncsn++" else None
    found = from_pipeline(pipeline(kind), name="edm", class_names=classes)
    assert not [f for f in check_backbone(found) if f.level == "wrong"]
    assert found.layers[:2] == ("enc.8x8_block0", "enc.4x4_down") and found.card.layer == "dec.4x4_in0"
    x, names = torch.randn(2, 3, 8, 8), ["a", "b"]
    for layer in found.layers:
        leaf = x.clone().requires_grad_()
        cut = found.predict(leaf, 500, found.condition(names), layer=layer, grad_through="features")
        full = found.predict(leaf, 500, found.condition(names), layer=layer, grad_through="denoiser")
        assert not cut.eps.requires_grad
        both = [torch.autograd.grad(p.features.square().sum(), leaf, retain_graph=True)[0] for p in (cut, full)]
        torch.testing.assert_close(*both)
    with pytest.raises(DapError, match="--cfg 1 instead of 2"):
        ClassifierFree(found, 2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_refined_as_a_whole(kind):
    """As `auto` does: encoded reals, an energy in pooled features at several noise levels, its gradient, and the prior."""
    names = ("a", "b", "c")
    found = from_pipeline(pipeline(kind), name="edm", class_names=names if kind != "ncsn++" else None)
    reals = {name: torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)}
    options = BankOptions(reals=4, pool="2x2", normalise="channel", layer="dec.4x4_block0")
    bank = FeatureBank(MemorySource(reals, size=8), found, options, ipc=2)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    batch = Batch.of(names, [0, 0], [0, 1], 0)
    after = refine(found, [MeanMatching(bank)], batch, z, Descent(2, 0.1, prior=1.0), usual=lambda label, t: 0.0)
    assert after.shape == z.shape and torch.isfinite(after).all() and not torch.allclose(after, z)


def published(model, prefix):
    """The tensors by the authors' names, with what only training needs."""
    state = {f"{prefix}.{name}": value for name, value in model.state_dict().items()}
    if prefix == "unet":
        return state | {"logvar_fourier.freqs": torch.ones(4), "logvar_linear.weight": torch.ones(1, 4)}
    return state | {"model.map_augment.weight": torch.ones(8, 9)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_is_converted_loaded_and_distilled(narrow, kind, tmp_path, colours, monkeypatch):
    model = network(kind)
    for name in ("edm", "edm2", "edm_pipeline"):  # as in a process that has not used them yet
        monkeypatch.delitem(sys.modules, f"dap.networks.{name}", raising=False)
    file, names = tmp_path / "edm-imagenet-64x64-cond-adm.pt", tmp_path / "names.json"
    names.write_text('["red", "green", "blue"]')
    torch.save(published(model, "unet" if kind == "edm2" else "model"), file)
    folder = convert(file, tmp_path / "folder", classes=names if kind != "ncsn++" else None)
    found = load(str(shutil.copytree(folder, tmp_path / "copy")))
    mine = dict(model.config)
    assert {n: list(v) if isinstance(v, (list, tuple)) else v for n, v in found.denoiser.config.items() if n[0] != "_"} == {
        n: list(v) if isinstance(v, (list, tuple)) else v
        for n, v in (mine | {"channels_per_head": 8}).items() if n[0] != "_"
    }  # fmt: skip
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    alpha, sigma = found.schedule.level(500)
    given = found.predict(x, 500, found.condition(["blue", "red"]))
    torch.testing.assert_close(given.x0, model(x / alpha, sigma / alpha, labels).sample)
    run = {"data": str(colours), "classes": ["red", "blue"], "ipc": 1, "steps": 3, "reals": 4}
    made = distill(out=tmp_path / "set", backbone=str(folder), method="dap", **run)
    assert made.tensors()[0].shape == (2, 3, 8, 8)
    assert found.card.licence == ("CC-BY-NC-SA-4.0" if kind == "ncsn++" else "unknown")


def test_edm2_on_latents_has_the_authors_standardisation(narrow, tmp_path):
    """z = (mean of the autoencoder − its mean) / its deviation · 0.5, and back; the folder holds the numbers."""
    from conftest import tiny_vae

    model = network("edm2", in_channels=4)
    tiny_vae().save_pretrained(tmp_path / "vae")
    torch.save(published(model, "unet"), tmp_path / "edm2-img512-s.pt")
    with pytest.raises(DapError, match="4 channels: give --vae stabilityai/sd-vae-ft-mse"):
        convert(tmp_path / "edm2-img512-s.pt", tmp_path / "folder")
    found = load(str(convert(tmp_path / "edm2-img512-s.pt", tmp_path / "folder", vae=str(tmp_path / "vae"))))
    assert found.latent_shape == (4, 8, 8) and found.card.size == 16
    images = torch.rand(2, 3, 16, 16)
    z = tiny_vae().encode(images * 2 - 1).latent_dist.mean
    mean, std = (torch.tensor(part).view(1, 4, 1, 1) for part in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]))
    torch.testing.assert_close(found.encode(images), (z - mean) / std * 0.5)
    torch.testing.assert_close(
        found.decode(found.encode(images)), (tiny_vae().decode(z).sample / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4
    )
    three = network("edm2")
    torch.save(published(three, "unet"), tmp_path / "edm2-img64-s.pt")
    with pytest.raises(DapError, match="3 channels: leave out --vae"):
        convert(tmp_path / "edm2-img64-s.pt", tmp_path / "pixels", vae=str(tmp_path / "vae"))


class Persistent(torch.nn.Module):
    """An object as the authors' `torch_utils.persistence` pickles it: with source code that is run when it is loaded."""

    ran = None

    def __reduce__(self):
        import torch_utils.persistence as persistence

        source = f"__import__('pathlib').Path({str(self.ran)!r}).touch()"
        state = {name: value for name, value in self.__dict__.items() if name != "named"}
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.named, "state": state}
        return persistence._reconstruct_persistent_obj, (meta,), None


def persistent(module, named):
    """The module and all modules in it, except torch's own containers, as persistent objects."""
    inner = {name: persistent(one, "Block") for name, one in module._modules.items() if one is not None}
    if isinstance(module, torch.nn.ModuleDict):
        return torch.nn.ModuleDict(inner)
    made = Persistent()
    made.named, made._parameters, made._buffers, made._modules = named, module._parameters, module._buffers, inner
    made.__dict__["_init_kwargs"] = EasyDict(label_dim=torch.ones(1).numpy())
    return made


class EasyDict(dict):
    """As `dnnlib.util.EasyDict`."""


@pytest.fixture
def authors(monkeypatch, tmp_path):
    """The modules of the authors' code that a pickle names, for writing one."""
    ran = tmp_path / "ran"
    monkeypatch.setattr(Persistent, "ran", ran)
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def reconstruct(meta):
        exec(meta["module_src"])

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    sys.modules["torch_utils"].persistence = sys.modules["torch_utils.persistence"]
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    sys.modules["dnnlib.util"].EasyDict = EasyDict

    def write(file, kind, preconditioning, **attributes):
        model = network(kind)
        outer = torch.nn.Module()
        setattr(outer, "unet" if kind == "edm2" else "model", model)
        made = persistent(outer, preconditioning)
        made.__dict__.update(attributes)
        file.write_bytes(pickle.dumps({"ema": made, "dataset_kwargs": EasyDict(path="x")}))
        return model

    yield write
    assert not ran.exists(), "the source code in the pickle was run"


@pytest.mark.parametrize("kind", ["ddpm++", "ncsn++", "edm2"])
def test_the_authors_pickle_is_read_and_nothing_of_it_runs(narrow, authors, tmp_path, kind):
    file = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    model = authors(file, kind, "Precond" if kind == "edm2" else "EDMPrecond", sigma_data=0.25)
    with contextlib.suppress(Exception):  # the shell that comes out is no network, which does not matter here
        pickle.loads(file.read_bytes())
    assert Persistent.ran.exists(), "a plain pickle.load would have run it"
    Persistent.ran.unlink()
    found = load(str(convert(file, tmp_path / "folder")))
    assert found.denoiser.config.sigma_data == 0.25 and found.weights_hash()
    for name, value in model.state_dict().items():
        assert torch.equal(found.denoiser.state_dict()[name], value), name


def test_what_is_no_network_of_edm_is_refused(narrow, authors, tmp_path):
    file = tmp_path / "baseline-cifar10.pkl"
    authors(file, "ddpm++", "VPPrecond")
    whole = file.read_bytes()
    with pytest.raises(DapError, match="baseline of EDM's paper, with VPPrecond"):
        convert(file, tmp_path / "folder")
    for data in (
        whole[: len(whole) // 2],
        pickle.dumps({"ema": 3}),
        pickle.dumps([1, 2]),
        whole.replace(b"ema", b"amr"),
    ):
        file.write_bytes(data)
        with pytest.raises(DapError, match="never runs code from a pickle"):
            convert(file, tmp_path / "folder")
    for attack in (
        pickle.dumps({"ema": os.system}),
        b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x04cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
        b"\x80\x04P1\n.",
        b"\x80\x04\x82\x01.",
    ):
        file.write_bytes(attack)
        with pytest.raises(DapError, match="never runs code from a pickle"):
            convert(file, tmp_path / "folder")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("model.map_layer1.bias"), "it lacks map_layer1.bias"),
        (lambda s: s.update({"model.odd": torch.ones(1)}), "it also has odd"),
        (lambda s: s.update({"model.enc.8x8_conv.bias": torch.ones(3)}), "another shape of enc.8x8_conv.bias"),
        (lambda s: s.update(u=torch.ones(3)), "noise levels of iDDPM"),
        (lambda s: s.update({"model.enc.3x3_block0.conv1.weight": torch.ones(1)}), "do not halve"),
        (lambda s: s.update({"model.enc.4x4_aux_skip.weight": torch.ones(1)}), "skips beside its encoder"),
    ],
)
def test_another_network_of_the_same_code_is_refused(narrow, tmp_path, change, says):
    state = published(network("adm"), "model")
    change(state)
    torch.save(state, tmp_path / "edm.pt")
    with pytest.raises(DapError, match=re.compile(says)):
        convert(tmp_path / "edm.pt", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
