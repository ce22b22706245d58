"""The names of protocols, such as `quick-hard+width=4+epochs=1`: a protocol, and the fields that have other values.

The order in which somebody gave these fields changes no training, so a name has them in one order. Names that versions before
this one wrote have them in the order in which they were given; `ordered` is the name that such a protocol has now.
"""

from __future__ import annotations

import re

FIELDS = [
    "network", "size", "norm", "width", "mean", "std", "train", "test", "mix", "epochs", "extra_epoch", "batch",
    "optimiser", "lr", "momentum", "betas", "weight_decay", "weight_decay_on", "schedule", "decay_at",
    "decay_factor", "decay_restarts", "cosine_length", "extra_forward", "labels", "weights", "precision", "score",
    "looks", "look_from", "cases",
]  # fmt: skip
"""The fields of `evaluation.training.protocol.Protocol` in their order, without its name and source. A report must know them, and
it needs no torch."""
ON_VALIDATION = " on validation"
"""The end of the name where the tests are on held-out training images, and so are no tests."""
WRITTEN = "written"
"""The field of a trial that says how a file names its protocol, and the key "by", where readers call it by its one name. No
file has it."""

_PART = re.compile(r"\+(?=[a-z_]+=)")


def ordered(name: str) -> str:
    """The name of a protocol with its fields in their one order. Fields that this version does not know come last."""
    plain = name.removesuffix(ON_VALIDATION)
    start, *parts = _PART.split(plain)
    return "+".join([start, *sorted(parts, key=_place)]) + name[len(plain) :]


def _place(part: str) -> tuple[int, str]:
    field = part.partition("=")[0]
    return (FIELDS.index(field), "") if field in FIELDS else (len(FIELDS), field)
