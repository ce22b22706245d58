"""Checkpoint files of the original DiT code and of its descendants: the state dict, as that code itself names the tensors, and
what a file says of itself."""

from __future__ import annotations

import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.persistent import is_plain, read_persistent
from dap.backbones.strange import refuse_ending
from dap.base.documents import check_fetched
from dap.base.errors import DapError, first_line
from dap.base.parsing import shown

WRAPPERS = ("ema", "ema_state_dict", "model_ema", "model", "state_dict", "model_state_dict", "module")
"""Keys under which trainers keep the weights, the moving average first."""

PREFIX = re.compile(
    r"^(?:module|_orig_mod|_fsdp_wrapped_module|model|ema|ema_model|net|network|denoiser|transformer|dit)\."
)
"""What DDP, torch.compile, FSDP and Lightning put before the name of every tensor."""

PATCHES = "x_embedder.proj.weight"
"""The first layer of a DiT and of its descendants."""

DIT = ("x_embedder.", "t_embedder.", "y_embedder.", "final_layer.")
"""How names of tensors begin in the code of DiT and of its descendants, besides those of the blocks."""

WORDS: Mapping[str, str] = {"sit": "sit", "repa": "repa", "lightningdit": "lightningdit"}
"""Words in the name of a file or in a trainer's argument `model`, and the family that each stands for."""

FLOW_WORDS = (*WORDS, "flow", "velocity", "rectified", "interpolant", "meanflow")
"""Words that say that a checkpoint predicts a flow's velocity and not noise, whichever family it is of."""

FLOW_ARGUMENTS = ("path_type", "prediction", "loss_weight", "sample_eps", "train_eps")
"""Arguments of SiT's and REPA's trainers, which DiT's trainer does not have."""


def unwrapped(found: Mapping[Any, Any], keys: Sequence[str] = WRAPPERS) -> Mapping[Any, Any]:
    """The innermost table in what a checkpoint holds: that under the first of the keys which names a table, and so on.

    A trainer's file may lie inside that of another, but not often, and a file may hold a table that holds itself.
    """
    for _ in range(4):
        key = next((key for key in keys if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        found = found[key]
    return found


def tensors_of(path: Path, found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors in what a checkpoint file holds, without wrappers and prefixes.

    Args:
        path: the file, for messages.
        found: what it holds, see `opened`.

    Raises:
        DapError: there are no tensors by name, or one is no plain tensor on the CPU.
    """
    found = unwrapped(found)
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DapError(f"{path} holds no table of tensors by name, so it is no checkpoint of a model.")
    for name, value in tensors.items():
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise DapError(f"{path}: {shown(name)} is no plain tensor; save the weights with plain tensors on the CPU.")
    tensors = bare(tensors)
    if PATCHES not in tensors:  # Lightning keeps other modules beside the network
        for prefix in sorted({match[0] for match in map(PREFIX.match, tensors) if match}):
            inner = bare({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})
            if PATCHES in inner:
                tensors = inner
                break
    return tensors


class _Noted:
    """Stands for a class that a trainer's file names beside the weights. Nothing of it is used."""


HARMLESS: list[Any] = [
    Namespace,
    (_Noted, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]
"""What a checkpoint may name besides tensors: the original trainers' parsed arguments, which are a plain record, and the class by
which Lightning files its notes on checkpoints, in whose place an empty class is put."""


def opened(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, opened without running code from it. Tensors stay on the disk until they are used.

    Raises:
        DapError: the file is no checkpoint, or needs code to be opened.
    """
    refuse_ending(path)
    check_fetched(path)
    if path.suffix == ".pkl" and is_plain(path):
        return read_persistent(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DapError(f"{path} is no whole .safetensors file: {first_line(error)}. Fetch it anew.") from error
    try:
        with torch.serialization.safe_globals(HARMLESS):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # on a file of another kind the readers raise almost any error
        said = str(error)
        if "weights_only" in said or "Unsupported global" in said:
            needed = re.search(r"GLOBAL (\S+)", said)
            raise DapError(
                f"{path} is not a checkpoint that can be opened without running code from it"
                f"{f': it needs {needed[1]}' if needed else ''}. dap never runs code from a pickle; save the state dict alone, "
                "with torch.save(model.state_dict(), FILE), where the file comes from."
            ) from error
        raise DapError(
            f"{path} is not a checkpoint that can be opened without running code from it: {first_line(error)}"
        ) from error
    if not isinstance(found, Mapping):
        raise DapError(f"{path} holds a {type(found).__name__}, not a checkpoint's table of tensors by name.")
    return found


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that all their names have."""
    tensors = dict(tensors)
    while tensors and all(PREFIX.match(name) for name in tensors):
        tensors = {PREFIX.sub("", name, count=1): value for name, value in tensors.items()}
    return tensors


@dataclass(frozen=True)
class Told:
    """What the name of a file and the trainer's arguments in it say of a flow.

    Attributes:
        why: why it is a flow, in words for a message. None: nothing says so.
        families: the families that a word names.
        arguments: the trainer's arguments.
    """

    why: str | None
    families: frozenset[str]
    arguments: Mapping[str, Any]


def told(path: Path, found: Mapping[Any, Any]) -> Told:
    """What a checkpoint says of itself besides its tensors.

    Args:
        path: the file.
        found: what it holds, see `opened`.
    """
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    why = [f"its name says {word!r}" for word in FLOW_WORDS if word in words]
    arguments: dict[str, Any] = {}
    for key in ("args", "config", "hparams", "hyper_parameters"):
        kept = found.get(key)
        arguments |= vars(kept) if isinstance(kept, Namespace) else kept if isinstance(kept, Mapping) else {}
    for name, value in arguments.items():
        plain = str(value).lower()
        named = set(re.split(r"[^a-z]+", plain)) if name in ("model", "arch", "model_name") else set[str]()
        words |= named
        if (name in FLOW_ARGUMENTS and value is not None and plain not in ("epsilon", "eps", "noise")) or (
            named & set(FLOW_WORDS)
        ):
            why.append(f"its arguments say {name}={value}")
    return Told(why[0] if why else None, frozenset(WORDS[word] for word in words if word in WORDS), arguments)


def folded(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict without the factors of MinimaxDiffusion's fine-tuning (Gu et al., CVPR 2024; its models.py).

    There a block computes gamma1 · gate · (attn.gamma2 · proj(attention of attn.gamma1 · qkv)) and gamma2 · gate · mlp. Each
    factor multiplies the output of a linear layer, number by number, so it multiplies the rows of its weight and its bias.

    Raises:
        DapError: a factor does not fit its layer.
    """
    found = dict(state)
    layers = {"attn.gamma1": "attn.qkv", "attn.gamma2": "attn.proj", "gamma1": "attn.proj", "gamma2": "mlp.fc2"}
    for name in [name for name in state if re.fullmatch(r"blocks\.\d+\.(attn\.)?gamma[12]", name)]:
        block, _, factor = name.partition(".")[2].partition(".")
        layer, gamma = f"blocks.{block}.{layers[factor]}", found.pop(name)
        for kind in ("weight", "bias"):
            value = found.get(f"{layer}.{kind}")
            if value is None:
                continue  # what is missing is named later
            if gamma.ndim > 1 or (gamma.numel() not in (1, len(value))):
                raise DapError(
                    f"{path}: the factor {name} has {gamma.numel()} numbers, {layer} has {len(value)} outputs."
                )
            rows = gamma.double().reshape(-1, *[1] * (value.ndim - 1))
            found[f"{layer}.{kind}"] = (rows * value.double()).to(value.dtype)
    return found
