"""Which of several processes this one is, as its launcher says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dap.base.errors import DapError
from dap.base.workers import WORKER


@dataclass(frozen=True)
class Rank:
    """The place of a process among those that share the work.

    The place only says where in the list of units the process begins. A process goes on with units that no other process holds
    until all units are done, so all of them are done also if some of the processes never start.

    Attributes:
        number: counts the processes from 0.
        of: how many processes there are.
        local: the place on its machine, which decides the GPU; None where the launcher does not say it.
    """

    number: int
    of: int
    local: int | None = None

    def first(self, units: int) -> int:
        """Where in a list of units this process begins."""
        return self.number * units // self.of


def rank_of(shard: str | None = None, environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank of this process.

    Args:
        shard: "I/N" with I from 1 to N; None: what the launcher says. `torchrun` and `accelerate launch` set RANK and WORLD_SIZE.
            SLURM sets SLURM_ARRAY_TASK_ID and its like for an array, and SLURM_PROCID for `srun`; both may hold at once.
        environment: the environment variables.

    Raises:
        DapError: the text is no such pair, or no launcher says anything.
    """
    local = _number(environment, "LOCAL_RANK", "SLURM_LOCALID")
    given = shard or environment.get(WORKER)
    if given:
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", given)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise DapError(f"--shard takes I/N with I from 1 to N, such as 2/8 for the second of eight; not {given!r}.")
        return Rank(int(found[1]) - 1, int(found[2]), local)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and size:
        return Rank(rank % size, size, local)
    task, tasks = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "SLURM_ARRAY_TASK_COUNT") or 1
    process, processes = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS") or 1
    if task is None and process is None:
        raise DapError(
            "--engine shard does not know which of the processes this is. Start it by torchrun, accelerate launch, srun or a "
            "SLURM array, or give each process its --shard I/N, such as 1/3, 2/3 and 3/3."
        )
    first, step = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0, _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    of_array = 0 if task is None else max(0, task - first) // step % tasks
    return Rank(of_array * processes + (process or 0) % processes, tasks * processes, local)


def device_for(device: str, rank: Rank, gpus: int) -> str:
    """The device of a process: where its machine has several GPUs and the user named none of them, the GPU of its local rank.

    Args:
        device: what the user gave: "auto", "cuda", "cpu", "cuda:1", ….
        rank: the rank of the process.
        gpus: how many GPUs the process sees.
    """
    if device not in ("auto", "cuda") or gpus < 2 or rank.local is None:
        return device
    return f"cuda:{rank.local % gpus}"


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The whole number in the first of these variables that holds one."""
    for name in names:
        if re.fullmatch(r"[0-9]{1,9}", environment.get(name, "")):
            return int(environment[name])
    return None
