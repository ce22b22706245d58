"""PixArt-α and PixArt-Σ (Chen et al. 2024) as their authors save them: the transformer alone, whose T5 and autoencoder are named.

The names of the tensors in diffusers are those of its own conversion (scripts/convert_pixart_sigma_to_diffusers.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.checkpoints import tensors_of, unwrapped
from dap.backbones.converting.parts import Said, ranked
from dap.backbones.converting.with_encoder.opening import EXAMPLES, folder_of, open_encoder, open_t5_tokenizer
from dap.backbones.honoured import check_fields
from dap.backbones.hub import DTYPES, open_autoencoder
from dap.backbones.known import KINDS
from dap.base.alone import alone
from dap.base.errors import DapError
from dap.base.files import expanded
from dap.networks.sit import sinusoids

OWN = "y_embedder.y_proj.fc1.weight"
"""A tensor that a PixArt has and a DiT has not."""

HEADS = {1152: 16}
"""The number of attention heads by the width of the published transformers."""

LONGEST = {120: "Alpha", 300: "Sigma"}
"""How many tokens of a prompt each kind reads, which is how many rows its embedding of the empty prompt has."""

SCALINGS = {"Alpha": 0.18215, "Sigma": 0.13025}
"""The factor of the latents of the autoencoder that each kind was trained with: Stable Diffusion's, and SDXL's."""

TABLE = 1e-3
"""The largest difference of two tables of positions that are the same; files may hold them in half precision."""

NAMES = (
    (r"^x_embedder\.", "pos_embed."),
    (r"^y_embedder\.y_proj\.fc(\d)\.", r"caption_projection.linear_\1."),
    (r"^t_embedder\.mlp\.0\.", "adaln_single.emb.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "adaln_single.emb.timestep_embedder.linear_2."),
    (r"^csize_embedder\.mlp\.0\.", "adaln_single.emb.resolution_embedder.linear_1."),
    (r"^csize_embedder\.mlp\.2\.", "adaln_single.emb.resolution_embedder.linear_2."),
    (r"^ar_embedder\.mlp\.0\.", "adaln_single.emb.aspect_ratio_embedder.linear_1."),
    (r"^ar_embedder\.mlp\.2\.", "adaln_single.emb.aspect_ratio_embedder.linear_2."),
    (r"^t_block\.1\.", "adaln_single.linear."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"^blocks\.(\d+)\.cross_attn\.q_linear\.", r"transformer_blocks.\1.attn2.to_q."),
    (r"^blocks\.(\d+)\.cross_attn\.proj\.", r"transformer_blocks.\1.attn2.to_out.0."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"^blocks\.(\d+)\.scale_shift_table$", r"transformer_blocks.\1.scale_shift_table"),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.scale_shift_table$", "scale_shift_table"),
)
"""Names of tensors in the authors' code, and in diffusers."""

SPLIT = (
    (r"^blocks\.(\d+)\.attn\.qkv\.", "attn1", "qkv"),
    (r"^blocks\.(\d+)\.cross_attn\.kv_linear\.", "attn2", "kv"),
)
"""Tensors that hold several layers of diffusers, one under the other."""


def open_pixart(path: Path, found: Mapping[str, Any], said: Said, *, dtype: str, offline: bool) -> Any:
    """The `PixArtAlphaPipeline` or `PixArtSigmaPipeline` of a checkpoint. None if the file holds something else.

    Args:
        path: the file, for its name.
        found: what it holds, see `checkpoints.opened`.
        said: the user's words. `encoder` names the T5, or a pipeline that has it; `vae` the autoencoder (default: that of the
            pipeline), `tokenizer` the tokenizer (default: the one beside the T5), `size` the side of the images in px.
        dtype: the number format of the weights.
        offline: never ask the network.

    Raises:
        DapError: a tensor is missing or unknown, a part is not named, or the parts do not fit each other.
    """
    import diffusers

    if not is_pixart(found):
        return None
    if said.prediction is not None:
        raise DapError(f"--prediction is not for a PixArt, which {path} is: all of them predict noise.")
    if re.search("lcm|dmd", path.name.lower()):
        raise DapError(f"{path} was distilled to few steps, by its name; take the diffusers folder of these weights.")
    state = tensors_of(path, found)
    kind = kind_of(path, state)
    config = config_of(path, state, kind, said)
    if said.encoder is None:
        raise DapError(
            f"{path.name} holds no text encoder; give --encoder a folder or hub id, such as {EXAMPLES['t5']}."
        )
    if said.vae is None and expanded(said.encoder).is_dir() and not (expanded(said.encoder) / "vae").is_dir():
        usual = "stabilityai/sd-vae-ft-ema" if kind == "Alpha" else "stabilityai/sdxl-vae"
        raise DapError(f"{path.name} holds no autoencoder; give --vae a folder or hub id, such as {usual}.")
    transformer = network(path, config, state, DTYPES[dtype])
    vae = _autoencoder(path, kind, said.vae or said.encoder, dtype, offline)
    folder = folder_of(said.encoder, ("text_encoder", "tokenizer"), offline=offline)
    words = folder if said.tokenizer is None else folder_of(said.tokenizer, ("tokenizer",), offline=offline)
    encoder = open_encoder(_inside(folder, "text_encoder"), "t5", dtype=dtype)
    if encoder.config.d_model != config["caption_channels"]:
        raise DapError(
            f"{path.name} reads a text encoder of width {config['caption_channels']}, and that of {said.encoder} has "
            f"{encoder.config.d_model}; give --encoder the one it was trained with, such as {EXAMPLES['t5']}."
        )
    scheduler: Any = diffusers.DPMSolverMultistepScheduler
    return getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=open_t5_tokenizer(_inside(words, "tokenizer")),
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )


def is_pixart(found: Mapping[Any, Any]) -> bool:
    """Whether what a file holds are the tensors of a PixArt. Sana's authors name some of their tensors the same."""
    table = unwrapped(found)
    return any(str(name).endswith(OWN) for name in table) and not any(
        str(name).endswith("attention_y_norm.weight") for name in table
    )


def kind_of(path: Path, state: Mapping[str, Tensor]) -> str:
    """ "Alpha" or "Sigma": by the number of tokens that it reads, by the sizes that only α is told, or by the file's name.

    Raises:
        DapError: none of these tells it.
    """
    empty = state.get("y_embedder.y_embedding")
    if empty is not None and empty.ndim == 2 and len(empty) in LONGEST:
        return LONGEST[len(empty)]
    if "csize_embedder.mlp.0.weight" in state:
        return "Alpha"
    if found := re.search("alpha|sigma", path.name.lower()):
        return found[0].capitalize()
    raise DapError(
        f"{path} does not say whether it is a PixArt-α or a PixArt-Σ; put the word alpha or sigma into its name."
    )


def config_of(path: Path, state: Mapping[str, Tensor], kind: str, said: Said) -> dict[str, Any]:
    """The fields of a `PixArtTransformer2DModel` with these tensors.

    Args:
        path: the file, whose name may say the size.
        state: its tensors, by the authors' names.
        kind: "Alpha" or "Sigma".
        said: the user's words, of which `size` and `heads` count.

    Raises:
        DapError: a tensor is missing or of another rank, the network is one that diffusers does not have, or neither the user nor
            the file says the size or the heads.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        return tuple(ranked(state, name, rank, path, "PixArt").shape)

    if other := next((name for name in state if re.search(r"\.attn\.(q_norm|k_norm|sr)\.", name)), None):
        raise DapError(
            f"{path} has {other}: a PixArt with normed queries or compressed keys, which diffusers' transformer does not have. "
            "Take one of the published 256, 512 and 1024 px."
        )
    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    outputs, rest = divmod(shape("final_layer.linear.weight", 2)[0], patch**2)
    depth = 1 + max((int(m[1]) for name in state if (m := re.match(r"blocks\.(\d{1,6})\.", name))), default=0)
    hidden = shape("blocks.0.mlp.fc1.weight", 2)[0]
    if rest or outputs not in (channels, 2 * channels) or depth > len(state) or hidden != 4 * width or width % 4:
        raise DapError(
            f"{path} is not a checkpoint of PixArt: of width {width} it has feed-forward networks of width {hidden}, and gives "
            f"{outputs} channels for {channels}."
        )
    heads = said.heads or HEADS.get(width)
    if heads is None or width % heads:
        raise DapError(
            f"{path} does not say how many attention heads its width {width} is split into; give --heads, a number that divides "
            "the width."
        )
    side, grid = _side(path, state, patch, said.size)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": outputs,
        "num_layers": depth,
        "cross_attention_dim": width,
        "attention_bias": True,
        "sample_size": side,
        "patch_size": patch,
        "caption_channels": shape(OWN, 2)[1],
        "interpolation_scale": _scale(state, grid, width, kind, side),
        "use_additional_conditions": "csize_embedder.mlp.0.weight" in state,
    }


def _side(path: Path, state: Mapping[str, Tensor], patch: int, size: int | None) -> tuple[int, int]:
    """The side of the latents, and how many patches that are: by the user's word, by the table of positions, or by the name.

    Raises:
        DapError: none of these says it, or patches do not divide it.
    """
    table = state.get("pos_embed")
    tokens = table.shape[1] if table is not None and table.ndim == 3 else 0
    named = re.search(r"(?<!\d)(256|512|1024)(?!\d)", path.name)
    if size is None and (root := round(tokens**0.5)) and root**2 == tokens:
        return root * patch, root
    if size is None and named is None:
        raise DapError(f"{path} does not say the size of its images; give --size, such as 512.")
    size = size or int((named or [0])[0])
    if size % (8 * patch):
        raise DapError(f"Images of {size} px have no whole patches; give a --size that {8 * patch} divides.")
    return size // 8, size // 8 // patch


def _scale(state: Mapping[str, Tensor], grid: int, width: int, kind: str, side: int) -> float:
    """How many patches one step of the table of positions is: the table in the file shows it, or it is that of published weights,
    1 up to 512 px and 2 for 1024 px, and for a PixArt-Σ of 256 px 0.5."""
    table = state.get("pos_embed")
    if table is not None and table.shape == (1, grid**2, width):
        for scale in (0.5, 1.0, 2.0, 4.0):
            if (sinusoids(grid, width, scale) - table.float()).abs().max() < TABLE:
                return scale
    return max(side / 64, 1.0 if kind == "Alpha" else 0.5)


def network(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """diffusers' `PixArtTransformer2DModel` with these weights.

    Raises:
        DapError: a tensor is missing, unknown or of another shape.
    """
    from accelerate import init_empty_weights
    from diffusers import PixArtTransformer2DModel

    check_fields(config, "PixArtTransformer2DModel", KINDS["PixArtAlphaPipeline"], path)
    with alone(), init_empty_weights(include_buffers=False):
        made: Any = PixArtTransformer2DModel(**config)
    # The empty prompt is encoded as any other in diffusers, and it computes the table of positions.
    mine = renamed({name: t for name, t in state.items() if name not in ("pos_embed", "y_embedder.y_embedding")})
    own = made.state_dict()
    for problem, names in (
        ("lacks", sorted(own.keys() - mine)),
        ("also has", sorted(mine.keys() - own)),
        ("has another shape of", sorted(name for name in own if name in mine and own[name].shape != mine[name].shape)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DapError(f"{path} is not a checkpoint of PixArt: it {problem} {', '.join(names[:3])}{more}.")
    made.load_state_dict({name: value.to(dtype, copy=True) for name, value in mine.items()}, assign=True)
    return made.eval()


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in diffusers; those that hold several layers are split."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, layer, parts in SPLIT:
            if match := re.match(pattern, name):
                ends = zip(parts, value.tensor_split(len(parts)), strict=True)
                place = f"transformer_blocks.{match[1]}.{layer}"
                found |= {f"{place}.to_{part}.{name.rpartition('.')[2]}": one.contiguous() for part, one in ends}
                break
        else:
            for pattern, there in NAMES:
                name = re.sub(pattern, there, name)
            found[name] = value
    return found


def _autoencoder(path: Path, kind: str, named: str, dtype: str, offline: bool) -> Any:
    vae = open_autoencoder(named, dtype=dtype, offline=offline, pipeline=f"PixArt{kind}Pipeline")
    other = {"Alpha": "Sigma", "Sigma": "Alpha"}[kind]
    if vae.config.scaling_factor == SCALINGS[other]:
        raise DapError(
            f"{path.name} is a PixArt-{kind}, and {named} is the autoencoder of a PixArt-{other}: it scales latents by "
            f"{SCALINGS[other]}. Give --vae the one of a PixArt-{kind}, which scales them by {SCALINGS[kind]}."
        )
    return vae


def _inside(folder: Path, part: str) -> Path:
    """The folder of a part in that of a pipeline, or the folder itself."""
    return folder / part if (folder / part).is_dir() else folder
