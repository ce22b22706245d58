"""Waiting for a device, so that a clock sees its work."""

from __future__ import annotations

import torch


def wait_for(device: torch.device | str) -> None:
    """Return when a device has done what it was told to do. A GPU works on while Python goes on."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
