"""Choices that a recipe and the modules that carry them out share: the solver's name, and which real features guide.

These models live apart from `data/bank.py` and `solvers.py` because a recipe must be read and checked without torch: the
command line reads recipes, and shows help about them, before anything heavy is imported.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

SolverName = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "unipc"]
"""Names of the reverse-time solvers; `dap.solvers` explains each."""

SOLVERS: tuple[str, ...] = get_args(SolverName)


class BankOptions(BaseModel):
    """Which real features guide. Defaults are the paper's where it says, else the cheapest choice that is exact."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    layer: str | None = Field(
        default=None, description="Backbone layer to tap. Default: the one on the backbone's card."
    )
    reals: int = Field(
        default=64, ge=1, description="N, real images a class (all of a smaller class). The paper does not say."
    )
    refresh: Literal["fixed", "step"] = Field(
        default="fixed", description="fixed: one draw for the whole run. step: a new draw of N at every step."
    )
    noise: Literal["fixed", "fresh", "shared", "none"] = Field(
        default="fixed",
        description="fixed: each real image keeps one noise over all t, a trajectory of its own. fresh: new at every "
        "step. shared: one noise for all reals of the class. none: clean latents at t = 0 (phi(x_t, t) ~ phi(x_0)).",
    )
    pool: Literal["none", "mean"] = Field(
        default="none",
        description="none: all tokens, flattened, as the paper's norm suggests. mean: over the tokens; small.",
    )
    normalise: Literal["none", "l2"] = Field(
        default="none", description="l2: features of unit length before the distance."
    )
    branch: Literal["cond", "null"] = Field(
        default="cond",
        description="Half of classifier-free guidance that supplies the features, real and synthetic alike.",
    )
    targets: Literal["class", "slot"] = Field(
        default="class",
        description="class: all images of a class share one target, as in the paper. slot: real images of the class are "
        "split into ipc balanced shares by k-means on their latents, and slot i is drawn to its own share.",
    )
    clustered: int = Field(
        default=256, ge=1, description="targets=slot: how many real images a class are split into shares."
    )
    seed: int | None = Field(
        default=None, description="Seed of the draw. Default: the run's, so every set draws its own reals."
    )
