"""The sections of a recipe: what a user can choose about the data, the backbone, the sampling and the guidance.

These models are apart from the modules that act on them because a recipe must be read and checked without torch: the command
line reads recipes, and shows help about them, before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Closed(BaseModel, frozen=True, extra="forbid", coerce_numbers_to_str=True):
    """A model of a recipe: it refuses unknown keys, so that a misspelt choice is an error and not a default."""

    # The checks are built when a value is first checked: help about recipes reads the fields alone, and must be quick.
    model_config = ConfigDict(allow_inf_nan=False, defer_build=True)


SolverName = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "unipc"]
"""Names of the reverse-time solvers; `dap.solvers` explains each."""

SOLVERS: tuple[str, ...] = get_args(SolverName)


class Data(Closed, frozen=True):
    """The real images."""

    path: str = Field(
        default="fashion-mnist", description="'fashion-mnist' (embedded), an image, parquet or IDX folder."
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="Classes to use, in label order, or a subset of ImageNet: imagenette, imagewoof, imageidc, "
        "imagenet100, imagenet1k. Default: all.",
    )
    size: int | None = Field(default=None, ge=1, description="Side in px. Default: the backbone's.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Stop when more of the images cannot be decoded."
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of each class's training images that distillation never sees, to make choices on: dap sweep "
        "--on validation.",
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _by_id(cls, value: Any) -> Any:
        """A subset's name becomes its WordNet ids, so that the recipe says what its classes are."""
        from dap import imagenet

        return imagenet.expand(value) if isinstance(value, (str, list, tuple)) else value


class BackboneChoice(Closed, frozen=True):
    """The pre-trained diffusion model."""

    path: str = Field(
        default="starter",
        description="'starter', 'starter-unet' (embedded), a diffusers folder, a hub id, or file.py:Name.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Weights and activations.")
    template: str | None = Field(
        default=None,
        description="Prompt of a text-conditioned backbone, {} for the class name. Default: the backbone card's.",
    )
    negative_prompt: str | None = Field(
        default=None, description="What its unconditional half is given. Default: the backbone card's, mostly empty."
    )


class Sampling(Closed, frozen=True):
    """The reverse process."""

    steps: int = Field(default=50, ge=2, description="Reverse steps, each one pass of the backbone.")
    solver: SolverName | None = Field(
        default=None,
        description="ddpm: respaced ancestral steps, the paper's and the default. The others need fewer; on a flow ddim.",
    )
    eta: float | None = Field(
        default=None, ge=0, le=1, description="Of ddim: 0 deterministic, 1 as stochastic as ancestral. Default: 0."
    )
    cfg: float | None = Field(
        default=None, ge=0, description="Classifier-free guidance scale. Default: the backbone card's."
    )
    cfg_channels: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        default=None, description="Latent channels it mixes (the DiT lineage: 3 of 4). Default: the backbone card's."
    )


class BankOptions(Closed, frozen=True):
    """Which real features guide. Defaults are the paper's where it says, else the cheapest choice that is exact."""

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


class GuidanceOptions(BankOptions, frozen=True):
    """The guidance of DAP: the energy, its scale and its window, beside the real features it needs."""

    scale: float | None = Field(
        default=None, ge=0, description="gamma. 0 is the unguided sample. Default: the backbone card's."
    )
    unit: Literal["paper", "step"] | None = Field(
        default=None,
        description="paper: gamma as in Eq. 8. step: relative to the sampler's own step, so that one value means the "
        "same on every backbone. Default: the backbone card's.",
    )
    kernel: str = Field(
        default="linear", description="A name or an expression: 'rbf', 'linear + 0.5 * rbf(bandwidth=3)'."
    )
    squared: bool = Field(default=False, description="Use the squared distance; the paper does not.")
    repulsion: float = Field(
        default=0.0, ge=0, description="lambda: pushes the slots of a class apart. The paper has none."
    )
    start: float = Field(
        default=0.0, ge=0, le=1, description="Guide from this fraction of the run on. The paper: always."
    )
    stop: float = Field(default=1.0, ge=0, le=1, description="Guide until this fraction of the run.")
    last_step: bool = Field(default=True, description="Also push at the very last step, after which nothing denoises.")


class OwnGuidance(Closed, frozen=True):
    """A guidance or an energy of the user's own, added to the guidance that the method has."""

    path: str | None = Field(
        default=None,
        description="A guidance or an energy of your own as file.py:Name, added to the method's own guidance. The method "
        "vanilla has none, so there it guides alone.",
    )
    scale: float = Field(
        default=1.0,
        ge=0,
        description="Factor on the push of your own guidance; for an energy, the length of the step that lowers it. 0 "
        "switches it off.",
    )
    unit: Literal["paper", "step", "noise"] = Field(
        default="step",
        description="Unit of that length, for an energy. step: relative to the sampler's own step. noise: relative to the "
        "noise in the sample. paper: the bare gradient times the scale.",
    )
    start: float = Field(
        default=0.0, ge=0, le=1, description="Your own guidance acts from this fraction of the run on."
    )
    stop: float = Field(default=1.0, ge=0, le=1, description="Your own guidance acts until this fraction of the run.")
