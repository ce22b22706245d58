"""U-ViT, MDTv2 and latent diffusion's ImageNet model: their authors' files against the equations of the papers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import originals
import tiny
from conftest import NAMES, tiny_vae
from dap import imagenet
from dap.backbones import load
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.networks.labelled_unet import LabelledUNet2DModel
from dap.networks.mdt import MDTTransformer2DModel
from dap.networks.uvit import UViT2DModel

State = dict[str, torch.Tensor]
WIDTH, HEADS, PATCH, GRID, CHANNELS, LABELS = 16, 2, 2, 2, 4, 3

pytestmark = pytest.mark.usefixtures("no_network")


def uvit(**how: Any) -> UViT2DModel:
    shape = {
        "sample_size": GRID * PATCH,
        "patch_size": PATCH,
        "in_channels": CHANNELS,
        "hidden_size": WIDTH,
        "num_layers": 4,
    }
    shape |= {"num_attention_heads": HEADS, "intermediate_size": 24, "num_classes": LABELS}
    return tiny.seeded(lambda: UViT2DModel(**shape | how), 0.3)


def mdt(**how: Any) -> MDTTransformer2DModel:
    shape = {"sample_size": GRID * PATCH, "patch_size": PATCH, "in_channels": CHANNELS, "out_channels": 2 * CHANNELS}
    shape |= {"hidden_size": WIDTH, "num_layers": 6, "decoder_layers": 2, "num_attention_heads": HEADS}
    return tiny.seeded(lambda: MDTTransformer2DModel(**shape, intermediate_size=24, num_classes=LABELS, **how), 0.15)


def as_published(network: Any) -> State:
    """The tensors of a network as their authors' file has them."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if isinstance(network, MDTTransformer2DModel):
        table = "attn.rel_pos_bias.relative_position_bias_table"
        index = {
            n.replace("bias_table", "index"): torch.zeros(GRID**2, GRID**2).long() for n in state if n.endswith(table)
        }
        side = {
            f"sideblocks.0.{n.removeprefix('en_inblocks.0.')}": t + 1 for n, t in state.items() if "en_inblocks.0." in n
        }
        state |= {**index, **side, "mask_token": torch.ones(1, 1, WIDTH)}
    return state


# --- the papers' equations, in float64, on the tensors of the authors' files ---------------------------------------


def linear(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    bias = s.get(f"{name}.bias")
    x = x @ s[f"{name}.weight"].flatten(1).T
    return x if bias is None else x + bias


def normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def attention(s: State, name: str, x: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    q, k, v = linear(s, f"{name}.qkv", x).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias).softmax(-1)
    return linear(s, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(x.shape))


def cut(x: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) as patches (B, tokens, C · patch²)."""
    return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)


def joined(tokens: torch.Tensor, channels: int) -> torch.Tensor:
    """Tokens, whose numbers are (row, column, channel) of a patch, as an image."""
    rows = [
        torch.cat([tokens[:, i * GRID + j].reshape(-1, PATCH, PATCH, channels) for j in range(GRID)], dim=2)
        for i in range(GRID)
    ]
    return torch.cat(rows, dim=1).permute(0, 3, 1, 2)


def wave(t: float, width: int) -> torch.Tensor:
    angle = t * 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([angle.cos(), angle.sin()])


def uvit_equations(state: State, x: torch.Tensor, level: float, y: torch.Tensor) -> torch.Tensor:
    """U-ViT (Bao et al. 2023, figure 1): the noise where the network is told this time."""
    s = {name: value.double() for name, value in state.items()}

    def layer_norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return normed(value, 1e-5) * s[f"{name}.weight"] + s[f"{name}.bias"]

    def block(name: str, value: torch.Tensor) -> torch.Tensor:
        value = value + attention(s, f"{name}.attn", layer_norm(f"{name}.norm1", value))
        hidden = linear(s, f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", value))
        return value + linear(s, f"{name}.mlp.fc2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)

    time = wave(level, WIDTH)
    if "time_embed.0.weight" in s:
        time = linear(s, "time_embed.2", F.silu(linear(s, "time_embed.0", time)))
    told = torch.stack([s["label_emb.weight"][y], time.expand(len(x), -1)], dim=1)
    tokens = torch.cat([told, linear(s, "patch_embed.proj", cut(x.double()))], dim=1) + s["pos_embed"]
    kept = []
    for i in range(2):
        tokens = block(f"in_blocks.{i}", tokens)
        kept.append(tokens)
    tokens = block("mid_block", tokens)
    for i in range(2):
        tokens = block(f"out_blocks.{i}", linear(s, f"out_blocks.{i}.skip_linear", torch.cat([tokens, kept.pop()], -1)))
    out = joined(linear(s, "decoder_pred", layer_norm("norm", tokens))[:, 2:], CHANNELS)
    if "final_layer.weight" in s:
        out = F.conv2d(out, s["final_layer.weight"], s["final_layer.bias"], padding=1)
    return out.float()


def mdt_equations(state: State, x: torch.Tensor, t: int, y: torch.Tensor) -> torch.Tensor:
    """MDTv2 (Gao et al. 2023) without masks: the noise and its raw variance."""
    s = {name: value.double() for name, value in state.items() if value.is_floating_point()}
    time = linear(s, "t_embedder.mlp.2", F.silu(linear(s, "t_embedder.mlp.0", wave(t, 256))))
    c = F.silu(time + s["y_embedder.embedding_table.weight"][y])[:, None]

    def block(name: str, value: torch.Tensor, earlier: torch.Tensor | None = None) -> torch.Tensor:
        if earlier is not None:
            value = linear(s, f"{name}.skip_linear", torch.cat([value, earlier], -1))
        table = s[f"{name}.attn.rel_pos_bias.relative_position_bias_table"]
        bias = torch.zeros(HEADS, GRID**2, GRID**2, dtype=torch.float64)
        for a in range(GRID**2):
            for b in range(GRID**2):
                down, right = a // GRID - b // GRID, a % GRID - b % GRID
                bias[:, a, b] = table[(down + GRID - 1) * (2 * GRID - 1) + right + GRID - 1]
        shift, scale, gate, shift2, scale2, gate2 = linear(s, f"{name}.adaLN_modulation.1", c).chunk(6, -1)
        value = value + gate * attention(s, f"{name}.attn", normed(value, 1e-6) * (1 + scale) + shift, bias)
        hidden = linear(s, f"{name}.mlp.fc1", normed(value, 1e-6) * (1 + scale2) + shift2)
        hidden = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
        return value + gate2 * linear(s, f"{name}.mlp.fc2", hidden)

    first = tokens = linear(s, "x_embedder.proj", cut(x.double())) + s["pos_embed"]
    kept = []
    for i in range(2):
        tokens = block(f"en_inblocks.{i}", tokens)
        kept.append(tokens)
    for i in range(2):
        tokens = block(f"en_outblocks.{i}", tokens, kept.pop())
    tokens = tokens + s["decoder_pos_embed"]
    for i in range(2):
        tokens = block(f"de_blocks.{i}", tokens, first)
    shift, scale = linear(s, "final_layer.adaLN_modulation.1", c).chunk(2, -1)
    return joined(linear(s, "final_layer.linear", normed(tokens, 1e-6) * (1 + scale) + shift), 2 * CHANNELS).float()


# --- files of the authors -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


def latents(n: int, channels: int = CHANNELS) -> torch.Tensor:
    return torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(7))


NETWORKS = {
    "uvit": (uvit, uvit_equations, lambda t: t + 1),
    # Its authors tell it 999 times the time of the SDE, which is (t + 1) / 1000 here.
    "uvit-more": (
        lambda: uvit(qkv_bias=True, time_mlp=True, conv=True),
        uvit_equations,
        lambda t: 999 * (t + 1) / 1000,
    ),
    "mdt": (mdt, mdt_equations, lambda t: t),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_file_predicts_what_the_equations_say(name, vae_folder, tmp_path):
    make, equations, told_time = NETWORKS[name]
    state = as_published(make())
    torch.save(state, tmp_path / "x.pth")
    backbone = load(str(convert(tmp_path / "x.pth", tmp_path / "out", vae=str(vae_folder), heads=HEADS)))
    assert backbone.null(1).item() == LABELS and backbone.latent_shape == (CHANNELS, 4, 4)
    y, x = torch.cat([torch.arange(LABELS), backbone.null(1)]), latents(4)
    for t in (0, 1, 250, 999):
        found = backbone.predict(x, t, y)
        told = found.eps if found.variance is None else torch.cat([found.eps, found.variance], dim=1)
        torch.testing.assert_close(told, equations(state, x, told_time(t), y), atol=1e-5, rtol=1e-5)
    assert backbone.learned_variance == (name == "mdt")


@pytest.mark.parametrize("conv", [False, True])
def test_the_noise_levels_of_a_u_vit_are_those_that_it_was_trained_on(conv, vae_folder, tmp_path):
    """The authors' sde.py (VPSDE) for the networks with a convolution at the end, and Stable Diffusion's betas for the others."""
    torch.save(as_published(uvit(conv=conv)), tmp_path / "x.pth")
    schedule = load(str(convert(tmp_path / "x.pth", tmp_path / "out", vae=str(vae_folder), heads=HEADS))).schedule
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    for t in (0, 1, 500, 999):
        time = (t + 1) / 1000
        share = math.exp(-0.1 * time - 19.9 * time**2 / 2) if conv else (1 - betas[: t + 1]).prod().item()
        assert schedule.level(t)[0] ** 2 == pytest.approx(share, rel=1e-4)
        assert schedule.level(t)[1] ** 2 == pytest.approx(1 - share, rel=1e-3)


def test_published_u_vits_have_a_licence_and_the_scale_of_their_size(vae_folder, tmp_path, monkeypatch):
    from dap.backbones.converting import labelled

    torch.save(as_published(uvit(num_classes=1000)), tmp_path / "imagenet512_uvit_large.pth")
    how = {"vae": str(vae_folder), "heads": HEADS}
    other = load(str(convert(tmp_path / "imagenet512_uvit_large.pth", tmp_path / "a", **how))).card
    assert (other.licence, other.cfg) == ("unknown", 1.4), "it has another size than the published file of this name"
    for side, cfg in ((256, 1.4), (512, 1.7)):
        known = {"num_classes": 1000, "sample_size": side // 8}
        assert labelled.published(Path(f"imagenet{side}_uvit_huge.pth"), known) == f"baofff/imagenet{side}_uvit"
        monkeypatch.setattr(labelled, "published", lambda path, config, side=side: f"baofff/imagenet{side}_uvit")
        card = load(str(convert(tmp_path / "imagenet512_uvit_large.pth", tmp_path / str(side), **how))).card
        monkeypatch.undo()
        assert (card.licence, card.cfg, card.size) == ("MIT", cfg, 8)
    assert labelled.published(Path("imagenet64_uvit_large.pth"), {"num_classes": 1000, "sample_size": 8}) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_give_the_tokens_of_the_image_in_the_same_pass(name, vae_folder, tmp_path):
    torch.save(as_published(NETWORKS[name][0]()), tmp_path / "x.pth")
    backbone = load(str(convert(tmp_path / "x.pth", tmp_path / "out", vae=str(vae_folder), heads=HEADS)))
    x, y = latents(2), torch.tensor([0, 1])
    plain = backbone.predict(x, 500, y).eps
    for layer in backbone.layers:
        found = backbone.predict(x, 500, y, layer=layer)
        assert found.features.shape == (2, GRID**2, WIDTH) and torch.equal(found.eps, plain)
        torch.testing.assert_close(backbone.tap(x, 500, y, layer), found.features, atol=1e-6, rtol=0)


def test_a_thousand_labels_are_imagenet_s(vae_folder, tmp_path):
    torch.save(as_published(uvit(num_classes=1000)), tmp_path / "x.pth")
    backbone = load(str(convert(tmp_path / "x.pth", tmp_path / "out", vae=str(vae_folder), heads=HEADS)))
    assert list(backbone.class_names) == list(imagenet.names().values()) and backbone.null(1).item() == 1000
    assert backbone.card.cfg == 1.4 and backbone.card.guessed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("label_emb.weight"), "is a U-ViT that knows no classes"),
        (
            lambda s: s.update({"patch_embed.proj.weight": torch.ones(WIDTH, 3, 2, 2)}),
            "one of pixels, which dap does not sample",
        ),
        (lambda s: s.pop("norm.bias"), "not a checkpoint of U-ViT: it lacks norm.bias"),
        (lambda s: s.update({"norm.scale": torch.ones(1)}), "not a checkpoint of U-ViT: it also has norm.scale"),
        (lambda s: s.update({"norm.bias": torch.ones(3)}), "it has another shape of norm.bias"),
        (lambda s: s.update({"pos_embed": torch.ones(1, 5, WIDTH)}), "its 3 tokens are on no square grid"),
        (lambda s: s.update({"mid_block.mlp.fc1.weight": torch.ones(3)}), "mid_block.mlp.fc1.weight has the shape"),
    ],
)
def test_other_u_vits_are_refused_in_a_sentence(change, says, vae_folder, tmp_path):
    state = as_published(uvit())
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(DapError, match=says):
        convert(tmp_path / "x.pth", tmp_path / "out", vae=str(vae_folder), heads=HEADS)
    assert not (tmp_path / "out").exists()


def test_what_a_file_does_not_say_is_asked_for(vae_folder, tmp_path):
    torch.save(as_published(uvit()), tmp_path / "x.pth")
    for options, says in (
        ({}, "does not say how many attention heads its width 16 is split into; give --heads"),
        ({"heads": 3}, "3 heads do not divide the width 16"),
        ({"heads": 2, "vae": None}, "holds no autoencoder; give --vae"),
    ):
        with pytest.raises(DapError, match=says):
            convert(tmp_path / "x.pth", tmp_path / "out", **{"vae": str(vae_folder), **options})
    first = {n.replace("en_inblocks", "blocks"): t for n, t in as_published(mdt()).items()}
    torch.save(first, tmp_path / "mdt.pt")
    with pytest.raises(DapError, match="is an MDT of the first version"):
        convert(tmp_path / "mdt.pt", tmp_path / "out", vae=str(vae_folder))
    torch.save(as_published(mdt()), tmp_path / "mdt.pt")  # its tables of biases say the number of heads
    assert convert(tmp_path / "mdt.pt", tmp_path / "out", vae=str(vae_folder)).is_dir()


# --- latent diffusion -----------------------------------------------------------------------------------------------


def latent(labels: int = LABELS) -> tuple[LabelledUNet2DModel, Any, State]:
    """A tiny latent diffusion of ImageNet: its network, its autoencoder, and the tensors of its authors' file."""
    from diffusers import VQModel

    network = tiny.seeded(
        lambda: LabelledUNet2DModel(
            sample_size=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
            attention_head_dim=1, cross_attention_dim=16, num_classes=labels,
        ), 0.1,
    )  # fmt: skip
    vae = tiny.seeded(
        lambda: VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64), layers_per_block=1, latent_channels=3, num_vq_embeddings=40, scaling_factor=1.0,
        ), 0.1,
    )  # fmt: skip
    state = {f"model.diffusion_model.{name}": value for name, value in originals.unet(network.unet).items()}
    state |= {f"first_stage_model.{name}": value for name, value in originals.autoencoder(vae).items()}
    steps = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square()
    state |= {"cond_stage_model.embedding.weight": network.embedding.weight.data, "betas": steps.float()}
    return network, vae, {name: value.clone() for name, value in state.items()}


def test_latent_diffusion_predicts_and_decodes_as_diffusers_does(tmp_path):
    network, vae, state = latent()
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    backbone = load(str(convert(tmp_path / "model.ckpt", tmp_path / "out", size=8)))
    assert backbone.layers == ("down.0", "down.1", "mid", "up.0", "up.1") and backbone.card.size == 8
    x, y = latents(4, 3), torch.cat([torch.arange(LABELS), backbone.null(1)])
    with torch.no_grad():
        for t in (0, 400, 999):
            words = network.embedding.weight[y][:, None]
            torch.testing.assert_close(
                backbone.predict(x, t, y).eps, network.unet(x, t, words).sample, atol=1e-5, rtol=0
            )
        pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        z = vae.quant_conv(vae.encoder(pixels * 2 - 1))
        torch.testing.assert_close(backbone.encode(pixels), z, atol=1e-5, rtol=0)
        codes = vae.quantize.embedding.weight
        nearest = codes[torch.cdist(x.permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(1)].view(4, 4, 4, 3)
        decoded = vae.decoder(vae.post_quant_conv(nearest.permute(0, 3, 1, 2)))
        torch.testing.assert_close(backbone.decode(x), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square()
    torch.testing.assert_close(backbone.schedule.alphas_cumprod, (1 - betas).cumprod(0).float(), atol=1e-6, rtol=0)


def test_other_latent_diffusions_are_refused_in_a_sentence(tmp_path):
    _, _, state = latent()
    other = {"betas": torch.linspace(1e-4, 0.02, 1000)}
    four = "model.diffusion_model.input_blocks.0.0.weight"
    for change, options, says in (
        (other, {}, "it keeps 1000 noise levels from 0.0001 to 0.02, and the published"),
        ({four: torch.ones(32, 4, 3, 3)}, {}, "not the published cin256-v2.* give dap convert --heads"),
        ({"first_stage_model.encoder.more": torch.ones(1)}, {}, "its autoencoder also has encoder.more"),
        ({"first_stage_model.quant_conv.weight": torch.ones(1)}, {}, "no quant_conv.weight of 4 dimensions"),
        ({}, {"prediction": "epsilon"}, "are not for .*model.safetensors, which has labels and its own autoencoder"),
    ):
        save_file(state | change, tmp_path / "model.safetensors")
        with pytest.raises(DapError, match=says):
            convert(tmp_path / "model.safetensors", tmp_path / "out", size=8, **options)


def test_a_vq_autoencoder_is_refused_in_other_pipelines(sd_folder, tmp_path):
    folder = Path(shutil.copytree(sd_folder, tmp_path / "sd"))
    shutil.rmtree(folder / "vae")
    latent()[1].save_pretrained(folder / "vae")
    index = (folder / "model_index.json").read_text().replace('"AutoencoderKL"', '"VQModel"')
    (folder / "model_index.json").write_text(index)
    with pytest.raises(DapError, match="the autoencoder is VQModel"):
        load(str(folder))


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uvit", "mdt", "ldm"])
def test_the_command_goes_the_whole_way(name, vae_folder, colours, tmp_path):
    file, more = tmp_path / "x.ckpt", ["--vae", str(vae_folder), "--heads", str(HEADS)]
    if name == "ldm":
        torch.save({"state_dict": latent()[2]}, file)
        more = ["--size", "8"]
    else:
        torch.save(as_published(NETWORKS[name][0]()), file)
    (tmp_path / "names.json").write_text(str(NAMES).replace("'", '"'))
    folder = tmp_path / "made"
    assert main(["convert", str(file), "--out", str(folder), "--classes", str(tmp_path / "names.json"), *more]) == 0
    assert main(["check", str(folder)]) == 0
    chosen = ["--method", "dap", "--ipc", "2", "--steps", "3", "--data", str(colours)]  # its layer is chosen as by auto
    assert main(["distill", "--backbone", str(folder), *chosen, "--out", str(tmp_path / "set")]) == 0
    assert len(DistilledSet.open(tmp_path / "set")) == 6 and (tmp_path / "set" / "chosen.json").is_file()


@pytest.mark.parametrize("name", ["uvit", "mdt", "ldm"])
def test_samples_are_those_of_the_plain_pipeline(name, vae_folder, tmp_path):
    from dap.backbones.hub import open_pipeline

    file, how = tmp_path / "x.ckpt", {"vae": str(vae_folder), "heads": HEADS}
    if name == "ldm":
        torch.save({"state_dict": latent()[2]}, file)
        how = {"size": 8}
    else:
        torch.save(as_published(NETWORKS[name][0]()), file)
    folder = convert(file, tmp_path / "out", **how)
    pipe, _ = open_pipeline(str(folder), revision=None, dtype="float32", offline=True)
    backbone = load(str(folder))
    assert type(pipe).__module__ == "dap.networks.labelled_pipeline"
    x = start = latents(2, backbone.latent_shape[0])
    pipe.scheduler.set_timesteps(4)
    for t in pipe.scheduler.timesteps.tolist():
        cond, null = (backbone.predict(x, t, y).eps for y in (torch.tensor([0, 2]), backbone.null(2)))
        x = pipe.scheduler.step(null + 1.5 * (cond - null), t, x).prev_sample
    how = {"num_inference_steps": 4, "latents": start}
    found = pipe([0, 2], guidance_scale=1.5, **how, output_type="latent").images
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    seen = pipe([0, 2], guidance_scale=1.5, **how, output_type="pt").images
    torch.testing.assert_close(seen, backbone.decode(x), atol=1e-5, rtol=0)
