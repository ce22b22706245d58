"""Files that are parts of one table, as `train-00000-of-00003.parquet` says in its name: none of them may lack."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import counted, shown

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,9})-of-(?P<total>\d{1,9})(?!\d)")


def check_shards(files: Iterable[Path], instead: str = "") -> None:
    """Check that all parts are there of which the names of files say that they are one of so many.

    Parts are counted from 0, or from 1 where the last number is there and 0 is not. What follows the numbers may differ from
    part to part, as the hub's hashes do.

    Args:
        files: the files of one split.
        instead: how to do without the absent parts, for the message. Default: by other names of the files.

    Raises:
        DapError: parts are absent; the message names the first of them.
    """
    found: dict[tuple[Path, str, str], set[int]] = {}
    for file in files:
        if said := _NUMBERED.match(file.name):
            found.setdefault((file.parent, said["stem"], said["total"]), set()).add(int(said["number"]))
    for (folder, stem, written), numbers in found.items():
        total, first = int(written), 1 if int(written) in numbers and 0 not in numbers else 0
        known = range(first, first + total)  # a name may promise a thousand million parts, so these are never listed
        absent = total - sum(number in known for number in numbers)
        if absent <= 0:
            continue
        names = [f"{stem}-{k:0{len(written)}d}-of-{written}" for k in islice((k for k in known if k not in numbers), 3)]
        more = f" and {absent - len(names):,} more" if absent > len(names) else ""
        raise DapError(
            f"{shown(folder)} lacks {absent:,} of the {counted(total, 'file')} of {shown(stem)}: "
            f"{', '.join(map(shown, names))}{more}. "
            f"Fetch them; or, if you mean to do without them, {instead or f'take -of-{written} out of the names of the files'}"
        )
