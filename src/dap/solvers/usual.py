"""How a backbone is sampled where nobody says how: by its card, by the method, and by the schedule's usual solver."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dap.backbones.cards import Card
from dap.backbones.schedules import Schedule
from dap.choices import Sampling
from dap.resolved import ResolvedSampling
from dap.solvers import default_for


def sampling_of(
    card: Card, schedule: Schedule, chosen: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> ResolvedSampling:
    """The reverse process in full: what a user chose over a method's defaults over the backbone's card.

    Weights that were distilled to few steps are sampled as their card says by every method.

    Args:
        card: the card of the backbone.
        schedule: the schedule of the backbone, which has its own usual solver.
        chosen: the user's choices by their fields of `Sampling`; none of them is None.
        defaults: the method's own defaults, likewise.
    """
    few = {name: said for name in ("steps", "solver", "eta") if (said := getattr(card, name)) is not None}
    if chosen.get("solver", few.get("solver")) != few.get("solver"):
        few.pop("eta", None)  # it belongs to the card's solver
    sampled = Sampling.model_validate({**defaults, **few, **chosen})
    solver = sampled.solver or default_for(schedule)
    return ResolvedSampling(
        steps=sampled.steps,
        solver=solver,
        eta=(sampled.eta or 0.0) if solver == "ddim" else sampled.eta,
        cfg=card.cfg if sampled.cfg is None else sampled.cfg,
        cfg_channels=card.cfg_channels if sampled.cfg_channels is None else sampled.cfg_channels,
    )
