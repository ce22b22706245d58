"""The parent of processes of this machine that train one teacher in step. `torchrun` starts them, and starts all of them again
if one is killed; they then go on from their checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Text
from dap.base.files import write_atomically
from dap.base.watch import Watcher
from dap.base.workers import AGAIN, threads_of
from dap.data.sets.notes import as_read
from dap.evaluation.training.trials import Trial
from dap.verbs.jobs import read_teacher, written_teacher
from dap.verbs.options import Engine

RESULT, FAILED, EPOCH = "trial.json", "failed.json", "epoch.json"
"""Files beside the job: the trial, the message of a mistake, and how many epochs are done."""

ENDING = 20.0
"""Seconds that the processes have to end when they are told to."""


class Said(FromFile, frozen=True):
    """What a process writes beside its job."""

    message: Text = ""
    done: Count = 0
    total: Count = 0


def run_in_step(arguments: Mapping[str, Any], folder: Path, workers: int, watcher: Watcher) -> Trial:
    """Train a teacher by several processes of this machine.

    Args:
        arguments: those of `teacher.train_teacher`; all paths are absolute.
        folder: the folder in which a folder for what the processes say is made.
        workers: how many processes. If the machine has several GPUs, each process takes one.
        watcher: is told of every epoch.

    Raises:
        DapError: the training failed, or its processes were killed too often. The checkpoint stays.
    """
    with written_teacher(arguments, folder) as (job, command):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        launcher += ["--max-restarts", str(AGAIN), "--monitor-interval", "1", "-m", "dap", *command]
        environment = {"OMP_NUM_THREADS": str(threads_of(workers)), **os.environ}
        lines = list[str]()
        with subprocess.Popen(
            [sys.executable, "-P", "-m", *launcher],
            env=environment,
            stdin=subprocess.PIPE,  # nothing is written to it; it closes when this process ends, even if it is killed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            reader = threading.Thread(target=_collect, args=(process.stderr, lines), daemon=True)
            reader.start()
            try:
                told = 0
                while process.poll() is None:
                    time.sleep(0.3)
                    told = _tell(job.parent / EPOCH, told, watcher)
                _tell(job.parent / EPOCH, told, watcher)
            finally:
                _end(process)
                reader.join(5)
        if (job.parent / FAILED).exists():
            raise DapError(_said(job.parent / FAILED).message)
        if process.returncode or not (job.parent / RESULT).exists():
            last = next((line for line in reversed(lines) if line.strip()), "nothing")
            raise DapError(
                f"The processes that trained together stopped early, {AGAIN + 1} times; the last that was said there: "
                f"{last.strip()} What was made is kept: run the same again to go on."
            )
        return Trial.from_json((job.parent / RESULT).read_text())


def take_part(job: Path, train: Callable[..., Trial]) -> None:
    """Take part in the training that a parent process wrote into the file `job`. The parent is told of epochs by a file.

    Args:
        job: the file.
        train: `teacher.train_teacher`.

    Raises:
        DapError: the training failed by a mistake; the parent is told by a file.
    """
    failed = job.parent / FAILED
    if failed.exists():  # torchrun starts the processes again, and a mistake stays a mistake
        raise DapError(_said(failed).message)
    first = os.environ.get("RANK") == "0"
    found: dict[str, Any] = {**read_teacher(job), "engine": Engine(engine="shard")}
    if first:
        found["watcher"] = _Epochs(job.parent)
    try:
        trial = train(found.pop("data"), found.pop("out"), **found)
    except DapError as error:
        write_atomically(failed, json.dumps({"message": str(error)}).encode())
        raise
    if first:
        write_atomically(job.parent / RESULT, trial.to_json().encode())


class _Epochs(Watcher):
    """Writes beside the job how many epochs are done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def epoch(self, seed: int, done: int, total: int) -> None:
        write_atomically(self._folder / EPOCH, json.dumps({"done": done, "total": total}).encode())


def _said(file: Path) -> Said:
    return Said(**read_json(file, as_read(Said)))


def _collect(stream: IO[bytes], lines: list[str]) -> None:
    with suppress(ValueError):
        for line in stream:
            lines.append(line.decode("utf-8", "replace"))
            del lines[:-50]


def _tell(file: Path, told: int, watcher: Watcher) -> int:
    """Tell the watcher of epochs that are done since; returns how many are."""
    if not file.exists():
        return told
    said = _said(file)
    if said.done > told:
        watcher.epoch(0, said.done, said.total)
    return max(said.done, told)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the processes if they still run because this process is stopping."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDING)
    if process.poll() is None:
        process.kill()
