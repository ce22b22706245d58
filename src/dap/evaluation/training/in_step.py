"""Several processes train one network in step: each takes a part of every batch, and torch puts their gradients together.

Each process reads, changes and passes its own images alone. The order of the images, the first weights and every step are those
of one process; without augmentation the result is too, up to the last bits. Where images are augmented or mixed, each process
draws for itself, so the number of processes is a part of the result. A batch norm takes its statistics over the part of one
process, as is usual.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dap.base.errors import DapError, first_line

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others, which may have to read all images first."""


@dataclass(frozen=True)
class Group:
    """The processes that train in step.

    Attributes:
        number: the place of this process, from 0. The first one writes the checkpoints and the result.
        of: how many processes there are.
    """

    number: int
    of: int

    def part(self, n: int) -> slice:
        """The part of n images that this process takes. If there are fewer images than processes, each takes all of them."""
        return slice(0, n) if n < self.of else slice(self.number * n // self.of, (self.number + 1) * n // self.of)

    def share(self, n: int) -> slice:
        """The part of n images that this process tests. The parts are apart, and some may be empty."""
        return slice(self.number * n // self.of, (self.number + 1) * n // self.of)

    def wrapped(self, net: nn.Module) -> DistributedDataParallel:
        """The network, whose backward pass takes the mean of the gradients of all processes."""
        return DistributedDataParallel(net)

    def summed(self, values: Tensor, device: torch.device) -> Tensor:
        """The sum of a tensor of any process, on the device where the tensor was."""
        moved = values.to(device)  # NCCL knows no CPU
        moved = moved.clone() if moved is values else moved
        dist.all_reduce(moved)
        return moved.to(values.device)

    def agreed(self, text: str | None) -> str:
        """The text of the first process. The others give None."""
        said: list[str | None] = [text]
        dist.broadcast_object_list(said, src=0)
        assert said[0] is not None
        return said[0]

    def same_buffers(self, net: nn.Module) -> None:
        """Let all processes have the buffers of the first one, such as the running statistics of a batch norm."""
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


def held_back(net: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Inside this block gradients are only added up. The last slice of a batch lets all processes put them together."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()


def _check_gpus(mine: str) -> None:
    """Check that each process has a GPU of its own, as NCCL demands. `mine` is the id of this process's GPU.

    Raises:
        DapError: two processes have the same GPU.
    """
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if (gpus := len(set(found))) < len(found):
        raise DapError(
            f"{len(found)} processes that train one network in step have {gpus} GPUs between them. Each needs its own. "
            f"Start {gpus} instead: --workers {gpus}, or as many by your launcher."
        )


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of the processes that `torchrun` has started. All of them wait here for each other.

    Raises:
        DapError: no launcher has said how the processes meet, they cannot, or two of them have the same GPU.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise DapError(
            "Processes that train one network in step must be started together, and nothing says how they meet "
            f"({', '.join(missing)} are not set). Start them by torchrun, or give --workers N on one machine."
        )
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
        # Beside NCCL there is Gloo, by which the processes can talk before NCCL looks at the GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DapError(f"The processes cannot meet: {first_line(error)}.") from error
    try:
        if device.type == "cuda":
            _check_gpus(str(torch.cuda.get_device_properties(device).uuid))
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
