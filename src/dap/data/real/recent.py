"""A store in memory for values, up to a number of bytes. The values that were used last stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the values that were used last, up to `budget` bytes. The newest value stays even if it is larger."""

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The value under the key, or None. The value then counts as the newest."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: Hashable, value: T, nbytes: int) -> None:
        """Keep a value of `nbytes` bytes under a new key. The oldest values are dropped while the budget is
        exceeded."""
        self._held[key] = (value, nbytes)
        self._used += nbytes
        while self._used > self._budget and len(self._held) > 1:
            self._used -= self._held.popitem(last=False)[1][1]
