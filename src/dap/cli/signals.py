"""What the command does when it is told to end: by Ctrl-C (SIGINT), by `kill` or a cluster (SIGTERM), by a closed terminal
(SIGHUP).

Everything that `dap` writes is whole or absent, also after `kill -9`. So there is nothing that an ending must wait for. Before
the work has begun, and while a module is imported, a signal ends the process at once: an exception there would leave a trace, or
would be lost in C code. Later a signal raises `KeyboardInterrupt`, so that half-written files are removed and workers are ended.
What has not ended by itself after `PATIENCE` seconds, or at a second signal, is ended from another thread.

A signal that the process was told to ignore stays ignored. This is how `nohup` and `&` in scripts work.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

PATIENCE = 2.0
"""Seconds between a signal and the end of the process, at the most."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
KEPT = "What was made is kept; run the same command to go on."

_given: int | None = None
"""The first signal that told this process to end."""
_working, _said = False, ""


def at_start() -> None:
    """End this process at once at a signal, in one line and without a trace. Call it before anything is imported."""
    global _said
    _said = "interrupted before any work began."
    _install()


def at_end() -> None:
    """The work is done and said. From here on a signal ends this process at once and without a word."""
    global _working, _said
    _working, _said = False, ""
    _install()


def at_work() -> None:
    """From here on a signal raises `KeyboardInterrupt`, and ends the process `PATIENCE` seconds later if that does not."""
    global _working, _said
    _working, _said = True, f"interrupted. {KEPT}"
    if _install():
        _watch()


def status() -> int:
    """The exit status of an interrupted command, as shells count: 128 and the number of the signal."""
    return 128 + (_given or signal.SIGINT)


def leave(number: int | None = None) -> NoReturn:
    """End this process now, without what Python does at its end. That can take seconds where torch is loaded."""
    os._exit(128 + number if number else status())


def _install() -> bool:
    """Take the signals that are not ignored. Says whether it could: only the main thread can."""
    try:
        for number in _numbers():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _told)
    except ValueError:
        return False
    return True


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows has no SIGHUP


def _told(number: int, frame: FrameType | None) -> None:
    global _given
    first, _given = _given is None, _given or number
    if not _working or not first or _importing(frame):
        _say()
        leave(_given)
    sys.unraisablehook = lambda _: None  # an interrupt inside a destructor would be written as a trace
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _say() -> None:
    with suppress(OSError):
        os.write(2, f"\ndap: {_said}\n".encode() if _said else b"")  # not sys.stderr: the main thread may hold it


def _watch() -> None:
    """Start the thread that ends the process where the main thread is busy for too long, such as in a call of torch.

    Python runs handlers in the main thread and between two of its own steps. The number of a signal comes through this pair
    of sockets at once.
    """
    mine, given = socket.socketpair()
    given.setblocking(False)
    numbers = {int(number) for number in _numbers() if signal.getsignal(number) is _told}

    def wait() -> None:
        first = 0
        while first not in numbers:
            first = mine.recv(1)[0]
        end = time.monotonic() + PATIENCE
        with suppress(TimeoutError):
            while (left := end - time.monotonic()) > 0:
                mine.settimeout(left)
                if mine.recv(1)[0] in numbers:  # told twice
                    break
        _say()
        leave(first)

    threading.Thread(target=wait, name="dap-signals", daemon=True).start()
    signal.set_wakeup_fd(given.fileno(), warn_on_full_buffer=False)
    _kept.append((mine, given))


_kept: list[tuple[socket.socket, socket.socket]] = []
"""The sockets, which would be closed if nobody held them."""
