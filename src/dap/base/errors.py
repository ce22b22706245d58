"""`DapError`, the one exception that the command line prints as a sentence, and parts of such sentences."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 3500
"""How many characters a message may have. Of a longer one the middle is left out: the end says what to do."""


class DapError(ValueError):
    """A mistake in what the user gave: the message names the thing and says what to do next.

    The message may hold names from files of strangers. It is always one line that every terminal can show.
    """

    def __str__(self) -> str:
        said = re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", _escaped, super().__str__())
        return said if len(said) <= LONGEST else f"{said[: LONGEST - 600]} … {said[-500:]}"


class NotFinite(DapError):
    """Images of one piece of work hold values that are no numbers. Other pieces may be as they should be.

    Args:
        reason: a clause that begins a sentence: what is not finite, and where.
        advice: a clause that ends it: what to do.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}.")
        self.reason, self.advice = reason, advice

    def __reduce__(self) -> tuple[type[NotFinite], tuple[str, str]]:
        return type(self), (self.reason, self.advice)


def _escaped(found: re.Match[str]) -> str:
    """A control character, or half of a character, in the letters of an escape. Bytes that are no text become \\xNN."""
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def first_line(error: BaseException) -> str:
    """The first line of the message of an error of a library, or the error's kind where it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, the closest first."""
    names = [str(k) for k in known]
    close = [] if name.isdigit() else difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = close + [n for n in names if n not in close]
    shown = ", ".join(ordered[:12]) + (f", … ({len(ordered)} in all)" if len(ordered) > 12 else "")
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {shown}."
