"""Several processes share pieces of work. They meet only on the file system: a locked file says who works on which piece."""

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
"""The name of the folder of locks. A process that works on a piece holds the lock of the piece."""


def share(pieces: Sequence[tuple[str, Callable[[], object]]], out: Path, wait: float = 1.0) -> None:
    """Do every piece that no other process holds, until all pieces are done.

    This process does a piece that another process holds after the other process lets the piece go. So this process
    finishes what a killed process left half-done. A finished piece is done again in this way, and so it must be cheap
    then.

    Args:
        pieces: for each piece its name, and the function that does it.
        out: the folder that the processes share.
        wait: the seconds between two looks at the pieces that other processes hold.

    Raises:
        DapError: a piece failed. The other pieces are done first, and the message names every failure.
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
    """The names that CUDA_VISIBLE_DEVICES has for the GPUs of this process.

    The process may see only some of the machine's GPUs. If the variable is not set, the names are "0", "1", ….

    Args:
        count: the number of GPUs that this process sees.
    """
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (given or [str(k) for k in range(count)])[:count]


def end_with_parent() -> None:
    """Let a worker of `run_workers` end when its parent process ends, even if the parent is killed.

    The worker gets SIGTERM when the other end of its standard input is closed.
    """

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
    """Run the command line `dap` with these arguments in several processes, and wait for all of them.

    Each process gets an equal share of the CPU threads, unless OMP_NUM_THREADS is set. If there are several GPUs, the
    processes get one GPU each, in turn.

    Args:
        arguments: the arguments of a command that shares its work by `share`.
        workers: how many processes are run.
        spread: whether the processes are spread over the GPUs. It should be False if the user has named one GPU.
        meanwhile: is called about twice a second while the processes run.
        tell: is called with every line that the processes write to standard error. The calls come from several threads.
            A caller who draws bars on standard error can so write the lines above the bars. Default: the lines go to
            the standard error of this process.

    Raises:
        DapError: a process failed. The work that was done is kept.
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
            # Nothing is ever written to stdin. It closes when this process ends, even if this process is killed.
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
        stack.callback(lambda: [process.terminate() for process in running])  # all at once, before one is waited for
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
    """Pass on every line that a worker writes to its standard error, until it ends. Keep the last line by the process id."""
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
