"""A disk that takes no more, said in one sentence, whichever library was writing.

Python's own files raise `OSError`, often without a path. safetensors raises an error of its own, torch's writer a `RuntimeError`
about a position, and pyarrow something of both. `writing` makes one `OSError` with a path of all of these.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dap.base.errors import DapError

REFUSED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.EFBIG: "the file is larger than this disk, or this shell's ulimit -f, allows",
    errno.EROFS: "the disk can be read and not written",
    errno.EIO: "the disk did not take all of it; it is full or damaged",
}
"""What it means, in words, that a disk refuses to take something, by the number of the error."""

_NUMBER = re.compile(r"\bos error (\d+)\b|\[Errno (\d+)\]")
"""How Rust and Python write the number of an error into a message."""

_OF_TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|file write failed|iostream error")
"""What torch's writer says where a file did not take everything. It does not say why."""


def refusal(error: BaseException) -> OSError | None:
    """The refusal of a disk that is behind an error: the error itself, its cause, or the number in the message of a library.

    Returns:
        An `OSError` with one of the numbers of `REFUSED`; None where the error is of something else.
    """
    chain, of_torch = list[BaseException](), False
    todo: list[BaseException | None] = [error]
    while todo:
        if (one := todo.pop()) is None or one in chain:
            continue
        chain.append(one)
        todo += [one.__context__, one.__cause__]
    for one in chain:
        if isinstance(one, OSError) and one.errno in REFUSED:
            return one
        found = _NUMBER.search(str(one)) if not isinstance(one, (OSError, DapError)) else None
        number = int(found[1] or found[2]) if found else None
        if number in REFUSED:
            return OSError(number, os.strerror(number))
        of_torch = of_torch or (isinstance(one, RuntimeError) and _OF_TORCH.search(str(one)) is not None)
    return OSError(errno.EIO, os.strerror(errno.EIO)) if of_torch else None


@contextmanager
def writing(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Let a refusal of the disk while the block runs become an `OSError` that holds the path.

    Args:
        path: the file or folder that the user knows.
        aside: where the block really writes, if that is a place beside `path`. No message names it.

    Raises:
        OSError: the disk did not take what the block wrote.
    """
    try:
        yield
    except DapError:
        raise
    except Exception as error:
        known = isinstance(error, OSError) and error.errno is not None
        found = error if known else refusal(error)
        if not isinstance(found, OSError):
            raise
        named = [
            Path(os.fsdecode(name)) for name in (found.filename2, found.filename) if isinstance(name, (str, bytes))
        ]
        within = [name.relative_to(aside) for name in named if aside is not None and name.is_relative_to(aside)]
        if within:
            path = path / within[0]
        elif named or (found.errno not in REFUSED):
            raise
        raise type(found)(found.errno, found.strerror, str(path)) from error


def told(error: OSError) -> str:
    """An error of the system as a sentence that names the path, and what to do."""
    name = error.filename2 or error.filename  # of two paths, the second one is the one that is written
    where = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    if error.errno in REFUSED:
        what = f"{where} cannot be written" if where else "A file cannot be written"
        do = "Free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else "Mend this"
        return f"{what}: {REFUSED[error.errno]}. What was made is kept. {do}, and run the same again."
    said = error.strerror or str(error) or type(error).__name__
    return f"{where + ': ' if where else ''}{said}. What was made is kept; mend this and run the same again."
