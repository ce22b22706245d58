"""A reader under test, and what counts as a clear answer of it."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dap.base.errors import DapError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Kind = Literal["json", "lines", "yaml", "binary", "text", "tree"]
SECONDS = 2.0
"""How long a reader may compute for one input."""


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        name: the name in the table.
        kind: how inputs are changed.
        folder: the folder in which the file lies.
        file: the file that each input replaces; "" where the reader takes the text itself or a whole folder.
        seeds: valid inputs, made by this package.
        read: reads. It gets the path of the file, the text, or the folder of a tree.
        allowed: exceptions beside `DapError` that the reader documents. Their messages must be clear too.
        make: for a tree, makes the folder that an input describes.
        seconds: how long it may compute for one input.
        forms: for a binary format, files that hypothesis builds: whole ones whose contents are unusual, and nearly whole ones.
    """

    name: str
    kind: Kind
    folder: Path
    file: str
    seeds: tuple[bytes, ...]
    read: Callable[[Any], Any]
    allowed: tuple[type[Exception], ...] = ()
    make: Callable[[Path, bytes], None] | None = None
    seconds: float = SECONDS
    forms: SearchStrategy[bytes] | None = None


@dataclass
class Count:
    """What came of the inputs of a reader."""

    inputs: int = 0
    values: int = 0
    sentences: int = 0
    unclear: int = 0
    seconds: float = 0.0
    places: dict[str, int] = field(default_factory=dict)

    def add(self, other: Count) -> None:
        """Add the counts of another process or driver."""
        for key in ("inputs", "values", "sentences", "unclear", "seconds"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        for place, number in other.places.items():
            self.places[place] = self.places.get(place, 0) + number


class TooLong(BaseException):
    """An input took longer than it may. No reader may catch this."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TooLong` when the block computes longer, or waits five times as long: other processes may be busy."""

    def stop(number: int, frame: Any) -> None:
        raise TooLong

    alarms = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 5 * seconds)}
    for number, (timer, after) in alarms.items():
        signal.signal(number, stop)
        signal.setitimer(timer, after, 1.0)  # again and again: where the first comes into a callback, it is passed over
    try:
        yield
    finally:
        for timer, _ in alarms.values():
            signal.setitimer(timer, 0)


def put(target: Target, data: bytes) -> Any:
    """Write an input where the reader looks for it. Returns what the reader is given."""
    if target.make is not None:
        clear(target.folder)
        target.make(target.folder, data)
        return target.folder
    if not target.file:
        return data.decode("utf-8", "surrogateescape")
    path = target.folder / target.file
    path.write_bytes(data)
    return path


def judge(target: Target, given: Any, count: Count) -> str | None:
    """Give the reader one input, and count the answer. Returns the trace of an unclear answer, or None.

    An answer is clear if it is a value, or a `DapError` whose message is one line that names the file.
    """
    count.inputs += 1
    try:
        with limited(target.seconds):
            target.read(given)
        count.values += 1
        return None
    except (DapError, *target.allowed) as error:
        if said := muddled(target, str(error)):
            trace, place = f"{said}: {error!s}"[:2000], f"{said}"
        else:
            count.sentences += 1
            return None
    except TooLong as error:
        place = f"longer than {target.seconds:g} s at {place_of(error)}"
        trace = "".join(traceback.format_exception(error))
    except Exception as error:
        place = f"{type(error).__name__} at {place_of(error)}"
        trace = "".join(traceback.format_exception(error))
    count.unclear += 1
    count.places[place] = count.places.get(place, 0) + 1
    return f"{place}\n{trace}"


def muddled(target: Target, message: str) -> str | None:
    """Why a message is not clear, or None."""
    if not message.strip():
        return "an empty message"
    if "\n" in message or "\0" in message:
        return "a message of several lines"
    if len(message) > 4000:
        return "a message of more than 4,000 characters"
    try:
        message.encode()
    except UnicodeEncodeError:
        return "a message that no terminal can show"
    if target.file and Path(target.file).name not in message and target.folder.name not in message:
        return "a message without the name of the file"
    return None


def place_of(error: BaseException) -> str:
    """The innermost line of this package that an exception came through, and the innermost line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/dap/" in frame.filename and "/fuzz/" not in frame.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} ({last.name})"


def clear(folder: Path) -> None:
    """Remove what lies in a folder of a random tree, special files too."""
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            (Path(root) / name).unlink()
        for name in folders:
            path = Path(root) / name
            if stat.S_ISLNK(path.lstat().st_mode):
                path.unlink()
            else:
                path.rmdir()
