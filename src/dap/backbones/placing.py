"""Where the parts of a pipeline lie: on the device, or in the memory of the machine until they are called."""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

import torch
from torch import nn

from dap.backbones.base import Backbone
from dap.backbones.modules import ModuleBackbone
from dap.backbones.prompts import PromptedBackbone
from dap.base.errors import DapError

log = logging.getLogger(__name__)

Offload = Literal["none", "model", "sequential"]
"""Which parts leave the device while others work: none, each network as a whole, or each layer."""


def offload_on(how: str, device: torch.device, dtype: str) -> Offload:
    """The offloading that is possible on a device. On the CPU there is nothing to leave, which is said.

    Raises:
        DapError: there is no such way, or float16 was asked for.
    """
    if how not in get_args(Offload):
        raise DapError(f"There is no way to offload {how[:40]!r}; use none, model or sequential.")
    if how != "none" and dtype == "float16":
        raise DapError(
            "--offload does not go with --dtype float16, because what overflows is computed again in float32. Use bfloat16."
        )
    if how != "none" and device.type == "cpu":
        log.warning("--offload %s has no effect on the CPU, where all weights lie in memory already.", how)
        return "none"
    return how  # pyright: ignore[reportReturnType]


def place(pipe: Any, device: torch.device) -> Any:
    """Move the networks of a pipeline to a device, except its text encoders, which go there only while they encode."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and not name.startswith("text_encoder"):
            part.to(device)
    return pipe


def settle(backbone: Backbone, pipe: Any, device: torch.device, how: Offload) -> None:
    """Let the parts of a backbone that `load` has opened lie where they should while they do not work.

    Without offloading the text encoders wait in the memory of the machine. With it, diffusers' own hooks bring each network
    ("model") or each layer ("sequential") to the device when it is called.

    Args:
        backbone: the backbone. Its pipeline belongs to nobody else.
        pipe: the pipeline, in memory where it is offloaded.
        device: the device that computes.
        how: what is offloaded.
    """
    assert isinstance(backbone, ModuleBackbone)  # all that are made of pipelines are
    if isinstance(backbone, PromptedBackbone) and how == "none":
        backbone.encoders_wait = True
    if how == "none":
        return
    backbone.keep_hash()  # a layer that waits has no values where it lies
    if how == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    backbone.device, backbone.offloaded = device, how
    if isinstance(backbone, PromptedBackbone) and how == "model":
        backbone.make_room = pipe.maybe_free_model_hooks
