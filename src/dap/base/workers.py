"""Pieces of work shared by processes that meet on the file system alone, and the processes themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from dap.base.errors import DapError

CLAIMS = ".claims"
"""Folder of the locks that say which process works on which piece."""


def share(pieces: Sequence[tuple[str, Callable[[], object]]], out: Path, wait: float = 1.0) -> None:
    """Do every piece that no other process holds, until all are done.

    A piece must be cheap when it is done already. One that another process holds is looked at again when it lets go, so
    that what a killed process left half-done is finished here.

    Args:
        pieces: names, and what to do.
        out: the folder the processes share.
        wait: seconds between two looks at what others hold.

    Raises:
        DapError: a piece failed; the others are done first, and every failure is named.
    """
    from filelock import FileLock, Timeout

    (out / CLAIMS).mkdir(parents=True, exist_ok=True)
    todo, failed = dict(pieces), {}
    while todo:
        before = len(todo)
        for name in list(todo):
            try:
                with FileLock(out / CLAIMS / f"{name.replace('/', '~')}.lock", timeout=0):
                    todo.pop(name)()
            except Timeout:
                continue
            except DapError as error:
                failed[name] = error
        if len(todo) == before:
            time.sleep(wait)
    if len(failed) == 1 and len(pieces) == 1:
        raise next(iter(failed.values()))
    if failed:
        told = " ".join(f"{name}: {error}" for name, error in failed.items())
        raise DapError(f"{len(failed)} of {len(pieces)} failed, the others are done. {told}")


def visible_gpus(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each of the GPUs that this process sees, which may be some of the machine's alone."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (given or [str(k) for k in range(count)])[:count]


def end_with_parent() -> None:
    """Let this process, one of `run_workers`, be interrupted when the one that started it has ended, killed or not."""

    def watch() -> None:
        with suppress(OSError):
            os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def run_workers(
    arguments: Sequence[str],
    workers: int,
    spread: bool = True,
    meanwhile: Callable[[], object] = lambda: None,
    tell: Callable[[str], object] | None = None,
) -> None:
    """Run the command line `dap` with these arguments in several processes and wait for all.

    Each gets its share of the CPU threads, and where there are several GPUs its own in turn.

    Args:
        arguments: of a command that shares its work by `share`.
        workers: how many processes.
        spread: over the GPUs there are; not where one is named.
        meanwhile: called about twice a second while they run.
        tell: called with every line that they write to standard error, from several threads. By default the lines go to
            the standard error of this process; a caller who draws bars there writes them above the bars.

    Raises:
        DapError: one of them failed; what was done is kept.
    """
    import torch

    gpus = visible_gpus(torch.cuda.device_count()) if spread and torch.cuda.is_available() else []
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    last: dict[int, str] = {}
    with ExitStack() as stack:
        running = []
        for k in range(workers):
            environment = {"OMP_NUM_THREADS": threads, **os.environ}
            if len(gpus) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[k % len(gpus)]
            # -P: a file of the current folder, such as queue.py, must not stand in for a module of the standard library.
            command = [sys.executable, "-P", "-m", "dap", *arguments]
            # Nothing is ever written to stdin; it closes when this process ends, however that happens.
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None if tell is None else subprocess.PIPE,
            )
            running.append(stack.enter_context(process))
            if tell is not None:
                reader = threading.Thread(target=_pass_on, args=(process, tell, last), daemon=True)
                reader.start()
                stack.callback(reader.join, 5)
            stack.callback(_stop, process)
        while any(process.poll() is None for process in running):
            meanwhile()
            time.sleep(0.5)
        found = [process.wait() for process in running]
    wrong = [k for k, status in enumerate(found) if status]
    if wrong:
        said = dict.fromkeys(last[running[k].pid].removeprefix("dap: error: ") for k in wrong if running[k].pid in last)
        told = (
            f" The last that was said there: {' '.join(said)}"
            if said
            else " Its message stands above."
            if tell is None
            else ""
        )
        raise DapError(
            f"Worker {', '.join(map(str, wrong))} of {workers} stopped early.{told} What was made is kept: run the same again "
            "to go on."
        )


def _pass_on(process: subprocess.Popen[bytes], tell: Callable[[str], object], last: dict[int, str]) -> None:
    """Tell every line that a worker writes to its standard error, until it ends; keep the last line by the process id."""
    assert process.stderr is not None
    with suppress(ValueError):  # the pipe is closed while a process that the worker started still holds its other end
        for line in process.stderr:
            last[process.pid] = line.decode("utf-8", "replace").rstrip("\n")
            tell(last[process.pid])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a worker that still runs because this process is stopping."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
