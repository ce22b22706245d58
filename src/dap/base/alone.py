"""One thread at a time where a library changes the state of the whole process.

diffusers, accelerate and transformers put other functions into `torch.nn.Module` while they load a model. Two loads at one time
leave these functions there for good, and every network that is built later has no weights. torch's global generator, which draws
the first weights of a network, belongs to the whole process too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is inside such a block. A thread that is inside may enter again."""
    with _LOCK:
        yield
