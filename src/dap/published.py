"""Finds the published accuracies for a set: the expected values of the shipped recipe that made the set."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dap import shipped
from dap.backbones.known import known_cards
from dap.data.sets.differences import flatten
from dap.recipe import GuidanceOptions, Recipe
from dap.shipped import Expected

FREE = frozenset({"seed", "block", "data.path", "backbone.revision", "backbone.dtype"})
"""Fields in which a set may differ from the shipped recipe whose published values it is compared with."""

KINDS = {
    "facebook/DiT-XL-2-256": "dit",
    "facebook/DiT-XL-2-512": "dit",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "unet",
    "stabilityai/stable-diffusion-2-1-base": "unet",
}
"""For known weights, the kind of backbone. It says which defaults of `backbones/cards.yaml` hold, so no weights are loaded."""

FROM_CARD = {
    "data.size": "size",
    "backbone.template": "template",
    "backbone.negative_prompt": "negative_prompt",
    "sampling.cfg": "cfg",
    "sampling.cfg_channels": "cfg_channels",
    "guidance.layer": "layer",
    "guidance.scale": "scale",
    "guidance.unit": "unit",
}
"""Recipe fields that the backbone's card decides if a recipe of DAP leaves them open, and the card's name for each field."""

MAY_BE_EMPTY = frozenset({"template", "negative_prompt"})
"""Fields of a card that are empty for weights without prompts."""


def published(recipe: Mapping[str, Any]) -> Expected | None:
    """The published values of the shipped recipe that made a set. None if no shipped recipe made the set.

    A shipped recipe made a set if every field of the set's resolved recipe equals the field of the shipped recipe. The
    fields in `FREE` may differ. If the shipped recipe leaves a field open, such as the layer, the card of its backbone
    gives the value. If the weights would have to be loaded to know a value, the recipe is left out.

    Args:
        recipe: the set's own recipe, with every open choice made, as `recipe.json` holds it.
    """
    made = flatten(recipe)
    return next((expected for wanted, expected in _claims() if _same(wanted, made)), None)


@functools.cache
def _claims() -> list[tuple[dict[str, Any], Expected]]:
    """The resolved fields and the expected values of every shipped recipe that has such values and can be resolved here."""
    found = []
    for name in shipped.names():
        if name.startswith("smoke/"):
            continue
        values = shipped.read(name)
        expected = shipped.expected_of(values, name)
        values.pop("expected", None)
        if expected and expected.values and (wanted := _resolved(values)) is not None:
            found.append((wanted, expected))
    return found


def _resolved(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a shipped recipe with every open choice made. None if a choice cannot be known here.

    Only recipes of the method `dap` can be resolved. Other methods have their own defaults, and this module does not
    know methods.
    """
    recipe = Recipe.parse(values)
    card = _card(recipe.backbone.path if recipe.backbone else "")
    if recipe.method != "dap" or recipe.sampling is None or recipe.sampling.solver is None or card is None:
        return None
    guidance = recipe.guidance or GuidanceOptions()
    fields = flatten({**recipe.model_dump(mode="json"), "guidance": guidance.model_dump(mode="json")})
    for field, name in FROM_CARD.items():
        if fields.get(field) is None:
            fields[field] = card.get(name)
            if fields[field] is None and name not in MAY_BE_EMPTY:
                return None
    if recipe.sampling.solver == "ddim":
        fields["sampling.eta"] = recipe.sampling.eta or 0.0
    return fields


def _card(weights: str) -> dict[str, Any] | None:
    """The values of the card of weights, by the name of the weights. None for weights that are not in `KINDS`."""
    cards = known_cards()
    return {**cards[KINDS[weights]], **cards.get(weights, {})} if weights in KINDS else None


def _same(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a set's fields equal the wanted fields. A field that the set does not state has its default."""
    free = FREE - ({"data.path"} if wanted.get("data.classes") is None else set())
    defaults = _defaults()
    for field in {*wanted, *made} - free:
        want, have = wanted.get(field), made.get(field, defaults.get(field))
        # Weights that were copied into a folder of the same name are the same backbone.
        copied = field == "backbone.path" and PurePath(str(want)).name == PurePath(str(have)).name
        if want != have and not copied:
            return False
    return bool(made)


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten({**Recipe().model_dump(mode="json"), "guidance": GuidanceOptions().model_dump(mode="json")})
