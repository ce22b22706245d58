"""What decides the predictions of a backbone beside its settings and its weights."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dap.base.describing.code import knows_itself, of_dap, of_user, version_of
from dap.base.describing.networks import RESERVED, is_network, networks_in
from dap.base.describing.values import Describer, Unknown, name_of
from dap.base.registry import GIVEN

log = logging.getLogger("dap")

KNOWN = f"{RESERVED}known"
"""The attribute in which a backbone keeps what its code and its networks were like at first."""


def code_and_networks(backbone: Any) -> list[str]:
    """The descriptions of a backbone's class and of its networks, as they are when they are asked for first: many networks keep
    in attributes what they have seen, and are still the same. [] for a backbone of this package with networks of libraries, of
    which the weights and the settings say all."""
    kept = vars(backbone).get(KNOWN)
    if kept is not None and kept[0] == id(backbone):  # a copy is changed apart
        return kept[1]
    describer, found, unknown = Describer(of_backbone), set[str](), list[str]()
    held = {name: value for name, value in vars(backbone).items() if name != GIVEN}  # an argument may be used no more
    describing = [functools.partial(describer.code_of_kind, type(backbone))]
    for network in networks_in(held):
        kinds = {kind for part in network.modules() for kind in type(part).__mro__}
        if not of_dap(type(backbone)) or any(of_user(kind) or version_of(kind) for kind in kinds):
            describing.append(functools.partial(describer.network, network))
    for describe in describing:
        try:
            if said := describe():
                found.add(json.dumps(said, sort_keys=True))
        except Unknown as why:
            unknown += [str(why) or "a value"]
    if unknown:
        log.warning(
            "dap cannot describe a part of %s: %s. So features of it in a cache are known by the rest alone. Let settings() tell "
            "this part, or give another --cache when it has changed.",
            name_of(backbone),
            "; ".join(dict.fromkeys(unknown)),
        )
    vars(backbone)[KNOWN] = (id(backbone), sorted(found))
    return sorted(found)


def arguments(backbone: Any) -> dict[str, Any]:
    """What the class of a user's backbone was made with, as the attributes have it by now. Networks, what cannot be described,
    and the device, which decides no prediction, are left out."""
    given: Mapping[str, Any] = vars(backbone).get(GIVEN, {})
    found: dict[str, Any] = {}
    for name, argument in given.items():
        value = vars(backbone).get(name, argument)
        if name == "device" or is_network(value) or any(networks_in(value)):
            continue
        with suppress(Unknown):
            found[name] = Describer(of_backbone).described(value)
    return found


def of_backbone(value: Any, describer: Describer, depth: int) -> dict[str, Any] | None:
    """The description of a backbone inside another object, as an `Own`. None for other objects."""
    del describer, depth
    hashed = knows_itself(type(value), "weights_hash")
    return {"class": name_of(value), "weights": value.weights_hash()} if hashed else None
