"""Checkpoints of SiT (Ma et al. 2024) and its descendants REPA (Yu et al. 2025), REG (Wu et al. 2025) and LightningDiT (Yao et
al. 2025).

Most of their tensors have the names and shapes of DiT's. So a file says which family it is of by tensors of its own, by the
trainer's arguments in it or by its name. Where none of these tells it, the user says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dap.backbones.cards import image_size
from dap.backbones.converting.autoencoders import autoencoder_for
from dap.backbones.converting.checkpoints import Told
from dap.backbones.converting.parts import filled, heads_of
from dap.backbones.converting.with_encoder.reg import class_encoder
from dap.base.alone import alone
from dap.base.errors import DapError

Family = Literal["dit", "sit", "repa", "lightningdit"]
FAMILIES: tuple[str, ...] = get_args(Family)

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}
"""The number of attention heads for the width of all sizes that the three papers have."""

CARDS: Mapping[str, Mapping[str, Any]] = {
    "sit": {"cfg": 1.5, "cfg_channels": 3},
    "repa": {"cfg": 1.8, "cfg_channels": "all", "cfg_interval": (0.0, 0.7)},
    "reg": {"cfg": 2.3, "cfg_channels": "all", "cfg_interval": (0.0, 0.85)},
    "lightningdit": {"cfg": 6.7, "cfg_channels": 3, "cfg_interval": (0.0, 0.875)},
}
"""How the authors of each family sample their best tables: the README of REPA, the evaluation script of REG, the configuration
file of LightningDiT for 800 epochs (guidance from time 0.125 on, counted from the noise), and section 4 of the paper of SiT."""

PUBLISHED = {
    r"SiT-XL-2-256(x256)?": "willisma/SiT-XL-2-256",
    r"(lightningdit-xl-imagenet256-(?:800|64)ep)": r"hustvl/\1",
}
"""Names of published files, and the keys of their cards."""

TRAINERS = {"Linear": "sit", "GVP": "sit", "VP": "sit", "linear": "repa", "cosine": "repa"}
"""How the trainers of SiT and of REPA write the path among their arguments."""

TOKEN = "cls_projectors2.weight"
"""The tensor of a REG that takes its class token to the width of the network."""

SHIFT = {"lightningdit": 1 / 0.3}
"""The shift of the grid of times towards the noise: LightningDiT's timestep_shift of 0.3 counts from the noise."""


def family_of(path: Path, state: Mapping[str, Tensor], said: Told, asked: str | None) -> str:
    """The family of a checkpoint, one of `FAMILIES`, or "reg", which its tensors tell.

    Args:
        path: the file, for messages.
        state: its tensors.
        said: what it says of itself.
        asked: the user's word, which decides between families whose tensors are the same.

    Raises:
        DapError: the tensors are of a model that is not sampled here, they are not of the family that the user names, or it is a
            flow and nothing says of which family.
    """
    shown = None
    if TOKEN in state:
        shown = "reg"
    elif "blocks.0.norm1.weight" in state or "blocks.0.mlp.w12.weight" in state or "feat_rope.freqs_cos" in state:
        shown = "lightningdit"
    elif any(name.startswith("projectors.") for name in state):
        shown = "repa"
    if shown:
        if asked not in (None, shown):
            raise DapError(
                f"{path} has the tensors of {TITLES[shown]}, not those of {TITLES[asked]}; leave out --family."
            )
        return shown
    if asked:
        return asked
    if said.why is None:
        return "dit"
    if len(said.families - {"sit"}) == 1:
        return next(iter(said.families - {"sit"}))
    if trainer := TRAINERS.get(str(said.arguments.get("path_type"))):
        return trainer
    final, patches = state.get("final_layer.linear.weight"), state.get("x_embedder.proj.weight")
    doubled = final is not None and patches is not None and len(final) == 2 * patches[0].numel()
    if "sit" in said.families and doubled:
        return "sit"
    raise DapError(
        f"{path} is a flow and not a DiT: {said.why}. Its tensors do not say which way its time runs: give --family sit if the "
        "data are at time 1, or --family repa if the noise is there. Other flows, such as MeanFlow, are not supported."
    )


TITLES = {"dit": "DiT", "sit": "SiT", "repa": "REPA", "reg": "REG", "lightningdit": "LightningDiT"}


def published(path: Path, labels: int) -> str | None:
    """The key of the card of published weights in a file of this name, or None."""
    for name, key in PUBLISHED.items():
        if labels == 1000 and (found := re.fullmatch(name, path.stem)):
            return found.expand(key)
    return None


def pipeline(
    path: Path,
    family: str,
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    *,
    vae: str,
    encoder: str | None,
    flow_path: str | None,
    heads: int | None,
    labels: Mapping[int, str],
    dtype: torch.dtype,
    offline: bool,
) -> Any:
    """The `SiTPipeline` of a checkpoint, or the `REGPipeline`.

    Args:
        path: the file, for messages; `latents_stats.pt` beside it says how LightningDiT's latents are standardised.
        family: "sit", "repa", "reg" or "lightningdit".
        state: its tensors.
        arguments: the trainer's arguments, if the file has them.
        vae: the folder, the hub id or the file of the autoencoder.
        encoder: the folder or hub id of the DINOv2 of a REG.
        flow_path: the user's word on the path, see `Interpolant`. None: what the arguments say, else "linear".
        heads: the number of attention heads. None: that of the papers for this width.
        labels: the names of the classes by label.
        dtype: the number format of the weights.
        offline: read only the local cache.

    Raises:
        DapError: a tensor is missing, unknown or of a wrong shape; the model predicts no velocity; the autoencoder does not fit.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    from dap.networks.reg_pipeline import REGPipeline
    from dap.networks.sit_pipeline import SiTPipeline

    kind = str(arguments.get("prediction") or "velocity").lower()
    if kind not in ("v", "velocity"):
        raise DapError(
            f"{path} predicts {kind!r} on a flow; dap reads velocities there, as all published {TITLES[family]} predict."
        )
    config = {**config_of(path, family, state, heads), "path": _path_of(path, arguments, flow_path)}
    network = _network(path, family, config, state, dtype)
    channels, standardised = config["in_channels"], family == "lightningdit"
    autoencoder = autoencoder_for(vae, path, channels, standardised=standardised, dtype=dtype, offline=offline)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT.get(family, 1.0))
    if family != "reg":
        return SiTPipeline(network, autoencoder, scheduler, id2label=labels)
    size, name = image_size(config["sample_size"], autoencoder), str(dtype).removeprefix("torch.")
    told = class_encoder(path, encoder, config["class_token_size"], size, dtype=name, offline=offline)
    return REGPipeline(network, autoencoder, told, scheduler, id2label=labels)


def _path_of(path: Path, arguments: Mapping[str, Any], asked: str | None) -> str:
    names = {"linear": "linear", "gvp": "gvp", "cosine": "gvp", "vp": "vp"}
    word = str(asked or arguments.get("path_type") or "linear").lower()
    if word not in names:
        raise DapError(f"{path} was trained on the path {word[:40]!r}; linear, gvp (cosine) and vp are known.")
    return names[word]


def config_of(path: Path, family: str, state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    """The fields of a `SiTTransformer2DModel` or `REGTransformer2DModel` with these tensors, without its path.

    Raises:
        DapError: a tensor is missing or of another rank, or the number of heads is not known.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in state:
            raise DapError(f"{path} is not a checkpoint of {TITLES[family]}: it lacks {name}.")
        found = tuple(state[name].shape)
        if len(found) != rank or not all(found):
            raise DapError(f"{path} is not a checkpoint of {TITLES[family]}: {name} has the shape {found}.")
        return found

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens = shape("pos_embed", 3)[1] - (family == "reg")
    grid = round(max(tokens, 0) ** 0.5)
    labels = shape("y_embedder.embedding_table.weight", 2)[0] - 1
    outputs, rest = divmod(shape("final_layer.linear.weight", 2)[0], patch**2)
    depth = 1 + max((int(found[1]) for name in state if (found := re.match(r"blocks\.(\d{1,6})\.", name))), default=0)
    if (
        not grid
        or grid**2 != tokens
        or rest
        or outputs not in (channels, 2 * channels)
        or labels < 1
        or depth > len(state)
    ):
        raise DapError(
            f"{path} is not a checkpoint of {TITLES[family]}: it has {tokens} tokens of patches of side {patch}, and gives "
            f"{outputs} channels for {channels}."
        )
    swiglu = "blocks.0.mlp.w12.weight" in state
    hidden = shape("blocks.0.mlp.w12.weight", 2)[0] // 2 if swiglu else shape("blocks.0.mlp.fc1.weight", 2)[0]
    norm = None
    if "blocks.0.attn.q_norm.weight" in state:
        norm = "layer" if "blocks.0.attn.q_norm.bias" in state else "rms"
    rotary = "feat_rope.freqs_cos" in state
    # A head's width is in some tensors; the user's word and the papers' tables are for files without them.
    head = (
        shape("blocks.0.attn.q_norm.weight", 1)[0] if norm else shape("feat_rope.freqs_cos", 2)[1] if rotary else None
    )
    heads = heads_of(width // head if head else heads, HEADS, width, path)
    fields = {
        "sample_size": grid * patch,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": outputs,
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "hidden_size": hidden,
        "num_classes": labels,
        "qk_norm": norm,
        "data_at": 0 if family in ("repa", "reg") else 1,
    }
    if family == "reg":
        return {**fields, "class_token_size": shape(TOKEN, 2)[1]}
    return {
        **fields,
        "norm": "rms" if "blocks.0.norm1.weight" in state else "layer",
        "feed_forward": "swiglu" if swiglu else "gelu",
        "rotary": rotary,
        "shifted": shape("blocks.0.adaLN_modulation.1.weight", 2)[0] != 4 * width,
    }


def _network(
    path: Path, family: str, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """The transformer with these weights.

    Raises:
        DapError: a tensor is missing, unknown or of a wrong shape, or the rotary positions are not those of the paper.
    """
    from accelerate import init_empty_weights

    from dap.networks.reg import REGTransformer2DModel
    from dap.networks.sit import SiTTransformer2DModel, angles

    # The projectors align features with DINOv2 in the training of REPA and REG. No prediction asks for them.
    build: Any = SiTTransformer2DModel if "rotary" in config else REGTransformer2DModel
    unasked = ("projectors.", "feat_rope.") if "rotary" in config else ("projectors.",)
    mine = {name: value for name, value in state.items() if not name.startswith(unasked)}
    if config.get("rotary"):
        turn = angles(config["sample_size"] // config["patch_size"], config["attention_head_dim"])
        for name, wanted in (("freqs_cos", turn.cos()), ("freqs_sin", turn.sin())):
            given = state.get(f"feat_rope.{name}")
            if given is None or given.shape != wanted.shape or (given.float() - wanted).abs().max() > 1e-2:
                raise DapError(f"The rotary positions feat_rope.{name} of {path} are not those of LightningDiT.")
    with alone(), init_empty_weights(include_buffers=False):
        network = build(**config)
    filled(network, mine, path, dtype, TITLES[family])
    return network
