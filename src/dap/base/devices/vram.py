"""How much memory of a GPU a process may take, and work that is cut into smaller parts where a part does not fit.

torch refuses what goes beyond the limit, whatever asks for it. So the limit holds without any estimate of ours. The contexts of
CUDA and of its libraries, some hundreds of MB, are no part of it, because torch cannot see them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dap.base.errors import DapError

log = logging.getLogger("dap")

R = TypeVar("R")

GIB = 2**30

_limits: dict[int, int] = {}
"""The limits in bytes, by the number of the GPU."""


def limit(device: torch.device, gib: float | None) -> str | None:
    """Let this process take no more than so much memory of a GPU. None takes an earlier limit away.

    Args:
        device: the device of the work.
        gib: GiB.

    Returns:
        A sentence for the user where the number has no effect, as on a CPU; else None.

    Raises:
        DapError: the number is not above 0.
    """
    if gib is not None and not 0 < gib < 2**20:
        raise DapError(f"--vram takes a number of GiB above 0, such as 8, not {gib:g}.")
    if device.type != "cuda":
        return None if gib is None else f"--vram has no effect on {device.type}: there is no memory of a GPU to limit."
    number = _number(device)
    if gib is None:
        if _limits.pop(number, None) is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, number)
        return None
    whole = torch.cuda.get_device_properties(number).total_memory
    most = min(int(gib * GIB), whole)
    torch.cuda.set_per_process_memory_fraction(most / whole, number)
    _limits[number] = most
    return None


def free(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take: what is free on it or kept by torch for later, and no more than its limit
    leaves."""
    number = _number(device)
    taken = torch.cuda.memory_allocated(number)
    found = torch.cuda.mem_get_info(number)[0] + torch.cuda.memory_reserved(number) - taken
    if number in _limits:
        found = min(found, max(0, _limits[number] - taken))
    return found


def in_parts(work: Callable[..., R], size: int, *tensors: Tensor) -> list[R]:
    """What `work` gives for consecutive parts of tensors of one length, in order.

    A part has `size` rows. If such a part does not fit into the memory of the GPU, it is cut into halves, and these again, down
    to single rows. A GPU may round the last bits of other parts in another way. On a CPU the parts have `size` rows always.

    Args:
        work: takes one part of each tensor.
        size: rows of a part, at least 1.
        tensors: tensors (n, …); they stay where they are.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    found: list[R] = []
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    for part in parts:
        found += _halved(work, part)
    return found


def _halved(work: Callable[..., R], part: Sequence[Tensor]) -> list[R]:
    rows = len(part[0])
    try:
        return [work(*part)]
    except torch.OutOfMemoryError:
        if rows < 2:
            raise
    # Outside of the clause, so that the error no longer holds the tensors of the work that failed.
    half = -(-rows // 2)
    log.info("%d rows do not fit into the memory of the GPU; they go through it in parts of %d.", rows, half)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    first, second = ([tensor[some] for tensor in part] for some in (slice(None, half), slice(half, None)))
    return _halved(work, first) + _halved(work, second)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
