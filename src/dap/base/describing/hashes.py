"""Hashes of descriptions, which are JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def hash_of_long(value: Any) -> dict[str, Any]:
    """What a record has in place of a long text, list or mapping."""
    return {"sha256": hash_of(value), "length": len(value)}


def hash_of(description: Any) -> str:
    """The sha256 of a description. It is the same for 1 and 1.0, as for values that are compared themselves."""
    text = json.dumps(_evened(description), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _evened(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _evened(one) for key, one in value.items()}
    return [_evened(one) for one in value] if isinstance(value, list) else value
