"""Checkpoint files of the original DiT code and of its descendants: the state dict, as that code itself names the tensors."""

from __future__ import annotations

import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.persistent import is_plain, read_persistent
from dap.base.documents import check_fetched
from dap.base.errors import DapError, first_line
from dap.base.parsing import shown

WRAPPERS = ("ema", "ema_state_dict", "model_ema", "model", "state_dict", "model_state_dict", "module")
"""Keys under which trainers keep the weights, the moving average first."""

PREFIX = re.compile(
    r"^(?:module|_orig_mod|_fsdp_wrapped_module|model|ema|ema_model|net|network|denoiser|transformer|dit)\."
)
"""What DDP, torch.compile, FSDP and Lightning put before the name of every tensor."""

FLOW_WORDS = ("sit", "flow", "velocity", "rectified", "interpolant", "meanflow", "repa")
"""Words in names and arguments that say that a checkpoint predicts a flow's velocity and not noise."""

FLOW_ARGUMENTS = ("path_type", "prediction", "loss_weight", "sample_eps", "train_eps")
"""Arguments of SiT's trainer, which DiT's trainer does not have."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, as the original DiT code names it.

    Wrappers and prefixes are taken off, and the factors of MinimaxDiffusion's fine-tuning are folded into the weights.

    Args:
        path: a .safetensors file, or a pickle of torch, which is opened by the weights-only path.

    Raises:
        DapError: the file is no checkpoint, needs code to be opened, or says that it is a SiT.
    """
    found = opened(path)
    _refuse_flows(path, found)
    for _ in range(4):  # a trainer's file inside that of another
        key = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        found = found[key]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DapError(f"{path} holds no table of tensors by name, so it is no checkpoint of the original DiT code.")
    for name, value in tensors.items():
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise DapError(f"{path}: {shown(name)} is no plain tensor; save the weights with plain tensors on the CPU.")
    tensors = _bare(tensors)
    if "x_embedder.proj.weight" not in tensors:  # Lightning keeps other modules beside the network
        for prefix in sorted({match[0] for match in map(PREFIX.match, tensors) if match}):
            inner = _bare({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})
            if "x_embedder.proj.weight" in inner:
                tensors = inner
                break
    return folded(tensors, path)


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
    check_fetched(path)
    if path.suffix == ".pkl" and is_plain(path):
        return read_persistent(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DapError(
                f"{path} is not a checkpoint that can be opened without running code: {first_line(error)}. Fetch it anew."
            ) from error
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


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that all their names have."""
    tensors = dict(tensors)
    while tensors and all(PREFIX.match(name) for name in tensors):
        tensors = {PREFIX.sub("", name, count=1): value for name, value in tensors.items()}
    return tensors


def _refuse_flows(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that says that it is a SiT. Its tensors have the names and shapes of a DiT's.

    Raises:
        DapError: the file's name, or an argument that the trainer kept, says so.
    """
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in FLOW_WORDS]
    told = [f"its name says {words[0]!r}"] if words else []
    for key in ("args", "config", "hparams", "hyper_parameters"):
        kept = found.get(key)
        arguments = vars(kept) if isinstance(kept, Namespace) else kept if isinstance(kept, Mapping) else {}
        for name, value in arguments.items():
            plain = str(value).lower()
            if (name in FLOW_ARGUMENTS and value is not None and plain not in ("epsilon", "eps", "noise")) or (
                name in ("model", "arch", "model_name") and set(re.split(r"[^a-z]+", plain)) & set(FLOW_WORDS)
            ):
                told.append(f"its arguments say {name}={value}")
    if told:
        raise DapError(
            f"{path} is a SiT or another flow and not a DiT: {told[0]}. It has the same tensors but predicts a velocity, which "
            "dap convert cannot write. Give a checkpoint of DiT; if the file is one, give it a name that says so."
        )


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
