"""Several processes of one machine, which share their work by `claims`: how they are started, watched and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dap.base.errors import DapError

AGAIN = 3
"""How often a worker that was killed is started again. What kills a process from outside is rare: too little memory, a
pre-emption, an operator. What kills four processes in a row will kill the fifth one too."""

STALLED = 60.0
"""Seconds without a sign of life after which a worker is ended and started again. A worker gives a sign every few seconds from a
thread of its own, also while it computes for hours. So it gives none only if the process is stopped or frozen."""

INTERRUPTED = {128 + int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""The exit statuses of a `dap` that a signal has asked to end."""

BEAT = "DAP_BEAT"
"""The variable with the file that a worker touches as a sign of life."""

WORKER = "DAP_WORKER"
"""The variable that says which worker of how many a process is, such as 2/4."""


def visible_gpus(count: int) -> list[str]:
    """The names that CUDA_VISIBLE_DEVICES has for the GPUs of this process.

    The process may see only some of the machine's GPUs. If the variable is not set, the names are "0", "1", ….

    Args:
        count: the number of GPUs that this process sees.
    """
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (given or [str(k) for k in range(count)])[:count]


def threads_of(workers: int) -> int:
    """How many CPU threads each of several workers gets, unless OMP_NUM_THREADS is set."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, (os.cpu_count() or 1) // workers)


def end_with_parent() -> None:
    """Let a worker of `run_workers` end when its parent process ends, even if the parent is killed, and give signs of life.

    The worker gets SIGTERM when the other end of its standard input is closed.
    """

    def watch() -> None:
        with suppress(OSError):
            os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    def beat(file: Path) -> None:
        while True:
            with suppress(OSError):
                file.touch()
            time.sleep(min(5.0, STALLED / 6))

    threading.Thread(target=watch, daemon=True).start()
    if file := os.environ.get(BEAT):
        threading.Thread(target=beat, args=(Path(file),), daemon=True).start()


def run_workers(
    arguments: Sequence[str],
    workers: int,
    spread: bool = True,
    meanwhile: Callable[[], object] = lambda: None,
    tell: Callable[[str], object] | None = None,
) -> None:
    """Run the command line `dap` with these arguments in several processes, and wait for all of them.

    Each process gets an equal share of the CPU threads, unless OMP_NUM_THREADS is set. If there are several GPUs, the
    processes get one GPU each, in turn. A process that is killed, or that gives no sign of life for `STALLED` seconds, is
    started again, at most `AGAIN` times. It is not started again if another process has ended well meanwhile, because a
    process ends well only when all pieces are done.

    Args:
        arguments: the arguments of a command that shares its work by `claims.Claims`.
        workers: how many processes are run.
        spread: whether the processes are spread over the GPUs. It should be False if the user has named one GPU.
        meanwhile: is called about twice a second while the processes run.
        tell: is called with every line that the processes write to standard error, and with what happens to them. The calls
            come from several threads. A caller who draws bars on standard error can so write the lines above the bars.
            Default: the lines go to the standard error of this process.

    Raises:
        DapError: a process failed by a mistake, or all of them were killed too often. The work that was done is kept.
    """
    import tempfile

    import torch

    gpus = visible_gpus(torch.cuda.device_count()) if spread and torch.cuda.is_available() else []
    with ExitStack() as stack:
        beats = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dap-workers-")))
        running = []
        for k in range(workers):
            given = {"OMP_NUM_THREADS": str(threads_of(workers)), WORKER: f"{k + 1}/{workers}"}
            if len(gpus) > 1:
                given["CUDA_VISIBLE_DEVICES"] = gpus[k % len(gpus)]
            running.append(_Worker(k, arguments, given, beats / str(k), tell))
            stack.callback(running[k].close)
        stack.callback(lambda: [worker.ask_to_end() for worker in running])  # all at once, before one is waited for
        while any(worker.runs() for worker in running):
            meanwhile()
            time.sleep(0.5)
            for worker in running:
                if worker.fell() and not any(other.status == 0 for other in running):
                    worker.start_again()
    _check(running, tell)


def _check(running: Sequence[_Worker], tell: Callable[[str], object] | None) -> None:
    """Raise `DapError` if a worker failed by a mistake, or if all were killed too often."""
    mistaken = [worker for worker in running if not worker.killed() and worker.status]
    done = any(worker.status == 0 for worker in running)
    wrong = mistaken or ([] if done else list(running))
    if not wrong:
        return
    said = dict.fromkeys(worker.last.removeprefix("dap: error: ") for worker in wrong if worker.last)
    told = (
        f" The last that was said there: {' '.join(said)}"
        if said
        else " Its message stands above."
        if tell is None and mistaken
        else ""
    )
    often = "" if mistaken else f" Each was killed {AGAIN + 1} times, as by a system that has too little memory."
    raise DapError(
        f"Worker {', '.join(str(worker.number) for worker in wrong)} of {len(running)} stopped early.{often}{told} What was "
        "made is kept: run the same again to go on."
    )


@dataclass
class _Worker:
    """One of the processes of `run_workers`, which may be started several times.

    Attributes:
        number: counts the workers from 0.
        arguments: see `run_workers`.
        given: variables of its environment.
        beat: the file that it touches as a sign of life.
        tell: see `run_workers`.
        status: the exit status of its last process; None while it runs. A negative number is the signal that ended it.
        last: the last line that it wrote to standard error.
    """

    number: int
    arguments: Sequence[str]
    given: Mapping[str, str]
    beat: Path
    tell: Callable[[str], object] | None
    status: int | None = None
    last: str = ""
    _starts: int = 0
    _seen: tuple[float, float] = (0.0, 0.0)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # -P: a file of the current folder, such as queue.py, must not stand in for a module of the standard library.
        command = [sys.executable, "-P", "-m", "dap", *self.arguments]
        self.beat.unlink(missing_ok=True)
        self._starts, self.status, self._seen = self._starts + 1, None, (0.0, time.monotonic())
        # Nothing is ever written to stdin. It closes when this process ends, even if this process is killed.
        self._process = self._stack.enter_context(
            subprocess.Popen(
                command,
                env={**os.environ, **self.given, BEAT: str(self.beat)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None if self.tell is None else subprocess.PIPE,
            )
        )
        if self.tell is not None:
            reader = threading.Thread(target=self._pass_on, args=(self._process, self.tell), daemon=True)
            reader.start()
            self._stack.callback(reader.join, 5)

    def _pass_on(self, process: subprocess.Popen[bytes], tell: Callable[[str], object]) -> None:
        """Pass on every line that the process writes to its standard error, until it ends."""
        assert process.stderr is not None
        with suppress(
            ValueError
        ):  # the pipe is closed while a process that the worker started still holds its other end
            for line in process.stderr:
                self.last = line.decode("utf-8", "replace").rstrip("\n")
                tell(self.last)

    def runs(self) -> bool:
        """Whether the process runs. One that gives no sign of life is ended."""
        if self.status is None:
            self.status = self._process.poll()
        if self.status is None and self._silent():
            self._say(f"gave no sign of life for {STALLED:.0f} s and is ended")
            self._process.kill()
            self.status = self._process.wait()
        return self.status is None

    def _silent(self) -> bool:
        """Whether the file of the signs of life has not changed for too long. The first sign may come late, because a process
        gives it after the imports."""
        with suppress(OSError):
            at = self.beat.stat().st_mtime
            if at != self._seen[0]:
                self._seen = at, time.monotonic()
        return bool(self._seen[0]) and time.monotonic() - self._seen[1] > STALLED

    def killed(self) -> bool:
        """Whether a signal has ended the process."""
        return self.status is not None and (self.status < 0 or self.status in INTERRUPTED)

    def fell(self) -> bool:
        """Whether the process was killed and may be started again."""
        return not self.runs() and self.killed() and self._starts <= AGAIN

    def start_again(self) -> None:
        """Start the process again."""
        signal_said = f" (signal {-self.status})" if self.status and self.status < 0 else ""
        self._say(f"was killed{signal_said}; it is started again ({self._starts} of at most {AGAIN})")
        self._stack.close()
        self._start()

    def _say(self, what: str) -> None:
        said = f"Worker {self.number} {what}."
        if self.tell is None:
            sys.stderr.write(f"{said}\n")
        else:
            self.tell(said)

    def ask_to_end(self) -> None:
        """Ask the process to end, without waiting for it."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """End the process if it still runs because this process is stopping."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            if self._process.poll() is None:
                self._process.kill()
        self._stack.close()
