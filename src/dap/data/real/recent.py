"""Values in memory up to a number of bytes: what was used last stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values used last, up to a number of bytes; the newest stays whatever its size."""

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The value, now the newest, or None."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: Hashable, value: T, nbytes: int) -> None:
        """Keep a value under a new key, and let the oldest ones go."""
        self._held[key] = (value, nbytes)
        self._used += nbytes
        while self._used > self._budget and len(self._held) > 1:
            self._used -= self._held.popitem(last=False)[1][1]
