"""The sections of a recipe: what a user can choose about the data, the backbone, the sampling and the guidance.

These models are apart from the modules that act on them, because a recipe must be read and checked without torch. The
command line reads recipes, and shows help about them, before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator

from dap.base.fields import Chosen, Frames, Images, Name, Pixels, Share, Slots, Strength


class Closed(Chosen, frozen=True, extra="forbid", coerce_numbers_to_str=True):
    """A model of a recipe: it refuses unknown keys, so that a misspelt choice is an error and not a default."""

    # pydantic builds the checks when a value is first checked. Help about recipes reads only the fields, and must be quick.
    model_config = ConfigDict(defer_build=True)


SolverName = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "unipc", "heun", "sde", "lcm"]
"""Names of the reverse-time solvers; `dap.solvers` explains each."""

SOLVERS: tuple[str, ...] = get_args(SolverName)

ScheduleName = Literal["constant", "sigma", "snr", "cosine", "trust"]
"""Names of how gamma changes over a run; `dap.guidance.strength` has the formulas."""

Pool = Literal["none", "mean", "2x2", "4x4", "8x8"]
"""How the tokens of features are pooled."""

Normalise = Literal["none", "l2", "channel"]
"""How features are normalised before they are compared."""


class Places(Closed, frozen=True):
    """Where the splits of the real images lie, by the user's own word: a folder, a table of labels or a parquet file, relative
    to the data folder or absolute; or the name of another split, such as val. None: the split is looked for."""

    train: str | None = None
    test: str | None = None

    def given(self) -> dict[str, str]:
        """The splits whose place is said."""
        return {split: place for split, place in (("train", self.train), ("test", self.test)) if place is not None}


class Data(Closed, frozen=True):
    """The real images."""

    path: str = Field(
        default="fashion-mnist",
        description="'fashion-mnist', which ships with dap, or a folder of images, of parquet files or of IDX files.",
    )
    classes: tuple[Name, ...] | None = Field(
        default=None,
        max_length=100_000,
        description="The classes to use, in label order, or the name of a subset of ImageNet: imagenette, imagewoof, "
        "imageidc, imagenet100, imagenet1k. Default: all classes.",
    )
    size: Pixels | None = Field(
        default=None, description="Side of the images in pixels. Default: the size that the backbone makes."
    )
    max_bad_fraction: Share = Field(
        default=0.01, description="The run stops when a larger fraction of the images cannot be decoded."
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The fraction of the training images of each class that distillation never sees. Choices are made on "
        "these images: dap sweep --on validation.",
    )
    frames: Frames | None = Field(
        default=None,
        description="Read the data as clips of so many frames: films (MP4, MOV, MKV, WebM, AVI), or GIF, PNG and WebP that move. "
        "Default: the data are images.",
    )
    split: Places | None = Field(
        default=None,
        description="Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER, relative to the data folder. "
        "test=val tests on the validation images.",
    )

    @field_validator("split", mode="before")
    @classmethod
    def _places(cls, value: Any) -> Any:
        """`train=a,test=b` becomes the mapping that it says."""
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",")]
        if wrong := [name for name, _, place in pairs if name.strip() not in ("train", "test") or not place.strip()]:
            raise ValueError(f"train=FOLDER,test=FOLDER is needed, or one of them; not {wrong[0]!r}")
        if len({name.strip() for name, _, _ in pairs}) < len(pairs):
            raise ValueError("a split is said twice; say each once, as in train=FOLDER,test=FOLDER")
        return {name.strip(): place.strip() for name, _, place in pairs}

    @field_validator("classes", mode="before")
    @classmethod
    def _by_id(cls, value: Any) -> Any:
        """A subset's name becomes its WordNet ids, so that the recipe says what its classes are."""
        from dap import imagenet

        if isinstance(value, (list, tuple)) and (odd := [one for one in value if not isinstance(one, (str, int))]):
            said = "an empty word" if odd[0] is None else f"{str(odd[0])[:40]} as a {type(odd[0]).__name__}"
            raise ValueError(f'YAML reads one of the names as {said}; put the names in quotes, as ["yes", "001"]')
        return imagenet.expand(value) if isinstance(value, (str, list, tuple)) else value


class BackboneChoice(Closed, frozen=True):
    """The pre-trained diffusion model."""

    path: str = Field(
        default="starter",
        description="'starter' and 'starter-unet' ship with dap. Or a folder of a diffusers pipeline, a hub id, or "
        "file.py:Name.",
    )
    revision: str | None = Field(default=None, description="The branch, tag or commit of a hub id.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="The number format of weights and activations."
    )
    template: str | None = Field(
        default=None,
        description="The prompt of a backbone that reads text; {} stands for the class name. Default: the template of "
        "the backbone's card.",
    )
    negative_prompt: str | None = Field(
        default=None,
        description="The text that the unconditional half of classifier-free guidance reads. Default: the text of the "
        "backbone's card, which is mostly empty.",
    )


class Sampling(Closed, frozen=True):
    """The reverse process."""

    steps: int = Field(
        default=50,
        ge=2,
        le=100_000,
        description="How many reverse steps are taken; each step is one pass of the backbone. Weights that were distilled to "
        "few steps have their own default.",
    )
    solver: SolverName | None = Field(
        default=None,
        description="ddpm takes respaced ancestral steps; the paper uses it, and so does the default. The other solvers "
        "need fewer steps. lcm is for consistency models. Default for a flow: ddim; heun and sde are for flows too.",
    )
    eta: Share | None = Field(
        default=None,
        description="Noise of the solver ddim: 0 makes it deterministic, 1 as noisy as ancestral steps. Default: 0.",
    )
    cfg: Strength | None = Field(
        default=None,
        description="The scale of classifier-free guidance. Default: the scale of the backbone's card.",
    )
    cfg_channels: Slots | Literal["all"] | None = Field(
        default=None,
        description="How many latent channels classifier-free guidance mixes; the code of DiT mixes 3 of 4. Default: the "
        "number of the backbone's card.",
    )


class BankOptions(Closed, frozen=True):
    """Choices about the features of real images that guide. If the paper is silent, a default is the cheapest exact choice."""

    layer: str | None = Field(
        default=None,
        description="The backbone layer whose features are compared. auto: chosen on real training images before sampling. "
        "Default: the layer of the backbone's card, and auto where the card names none.",
    )
    reals: Images = Field(
        default=64,
        description="N, the number of real images of each class; a smaller class gives all it has. The paper states no "
        "number.",
    )
    refresh: Literal["fixed", "step"] = Field(
        default="fixed",
        description="fixed draws the real images once for the whole run. step draws N new ones at every step.",
    )
    noise: Literal["fixed", "fresh", "shared", "none", "own", "common"] = Field(
        default="fixed",
        description="fixed gives each real image one noise for all steps. fresh gives it a new noise at every step. "
        "shared gives one noise to all real images of a class. none compares with clean latents at t = 0, since phi(x_t, t) "
        "~ phi(x_0). own and common compare content alone: own gives the real images the noise that is predicted in each "
        "sample, which costs a pass for each pair; common gives samples and real images one noise for each class and step.",
    )
    pool: Pool = Field(
        default="none",
        description="none flattens all tokens, as the norm in the paper suggests. mean averages over the tokens, and 2x2, "
        "4x4 or 8x8 over the cells of such a grid, which needs less memory.",
    )
    normalise: Normalise = Field(
        default="none",
        description="l2 brings features to unit length before their distance is taken. channel divides each channel by its "
        "spread over the real images, so that a few large channels do not decide alone.",
    )
    branch: Literal["cond", "null"] = Field(
        default="cond",
        description="The half of classifier-free guidance whose features are compared, for real and synthetic images.",
    )
    targets: Literal["class", "slot"] = Field(
        default="class",
        description="class: all images of a class share one target, as in the paper. slot: k-means on latents splits the "
        "real images of a class into ipc shares of equal size, and slot i is drawn to share i.",
    )
    clustered: Images = Field(
        default=256, description="How many real images of a class are split into shares under --targets slot."
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        default=None,
        description="The seed that draws the real images. Default: the run seed, so that every set draws its own.",
    )


class GuidanceOptions(BankOptions, frozen=True):
    """The guidance of DAP: the energy, its scale and its window, and the choices about the real features."""

    scale: Strength | Literal["auto"] | None = Field(
        default=None,
        description="gamma, the strength of the guidance; 0 gives the unguided sample. auto: the largest one, in the unit "
        "step, that leaves the denoiser's error on trial samples about as it was. Default: the scale of the backbone's card.",
    )
    unit: Literal["paper", "step"] | None = Field(
        default=None,
        description="paper takes gamma as Eq. 8 does. step measures gamma by the sampler's own step, so that one value "
        "means the same on every backbone. Default: the unit of the backbone's card.",
    )
    kernel: str = Field(
        default="linear",
        description="The kernel that compares features: a name such as 'rbf', or an expression such as 'linear + 0.5 * "
        "rbf(bandwidth=3)'.",
    )
    squared: bool = Field(default=False, description="true uses the squared distance; the paper does not square it.")
    repulsion: Strength = Field(
        default=0.0,
        description="lambda, the strength with which the images of a class are pushed apart. The paper has no such term.",
    )
    schedule: ScheduleName = Field(
        default="constant",
        description="How gamma changes over the run. constant: not at all, as in the paper. sigma: times the share of noise, "
        "sigma_t. snr: times the share of signal in the variance, alpha_t^2 / (alpha_t^2 + sigma_t^2). cosine: from gamma to 0 "
        "over the run. trust: a push is shortened where the predicted noise would change by more than 5 %; this costs one more "
        "prediction a step.",
    )
    start: Share = Field(
        default=0.0,
        description="The guidance acts from this fraction of the run on. In the paper it acts always.",
    )
    stop: Share = Field(default=1.0, description="The guidance acts until this fraction of the run.")
    last_step: bool = Field(
        default=True, description="true lets the guidance act at the last step too, after which nothing removes noise."
    )


class OwnGuidance(Closed, frozen=True):
    """A guidance or an energy of the user's own, added to the guidance that the method has."""

    path: str | None = Field(
        default=None,
        description="A guidance or an energy of your own as file.py:Name, added to the method's own guidance. The method "
        "vanilla has none, so there it guides alone.",
    )
    scale: Strength = Field(
        default=1.0,
        description="Factor on the push of your own guidance; for an energy, the length of the step that lowers it. 0 "
        "switches it off.",
    )
    unit: Literal["paper", "step", "noise"] = Field(
        default="step",
        description="Unit of that length, for an energy. step: relative to the sampler's own step. noise: relative to the "
        "noise in the sample. paper: the bare gradient times the scale.",
    )
    start: Share = Field(default=0.0, description="Your own guidance acts from this fraction of the run on.")
    stop: Share = Field(default=1.0, description="Your own guidance acts until this fraction of the run.")


class Refinement(Closed, frozen=True):
    """The refinement: the finished images of a class move together until the set is like the real images, see `dap.refining`."""

    steps: int = Field(
        default=100,
        ge=0,
        le=100_000,
        description="How many steps the refinement takes. 0 leaves the images as they were sampled.",
    )
    energy: Literal["distance", "mmd", "mean", "sinkhorn"] = Field(
        default="distance",
        description="How the set is compared with real images. distance: the energy distance under the kernel's distance. mmd: "
        "the squared maximum mean discrepancy of the kernel. mean: the squared distance of the mean features. sinkhorn: the "
        "Sinkhorn divergence, which needs the package geomloss.",
    )
    kernel: str = Field(
        default="linear", description="The kernel that compares features, as --kernel; the energy mean has none."
    )
    rate: Strength = Field(
        default=0.06, description="How far a step moves a latent, at first; the rate falls to 0 until the last step."
    )
    layers: tuple[Name, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="The backbone layers in whose features the set is compared with real images. auto: one, chosen on real "
        "training images. Default: the layer of the backbone's card, and auto where the card names none.",
    )
    times: tuple[Share, ...] = Field(
        default=(0.05, 0.15, 0.3),
        min_length=1,
        max_length=64,
        description="The noise levels at which features are compared, as fractions of the schedule. Each step takes one.",
    )
    reals: Images = Field(
        default=250, description="The number of real images of each class that the set is compared with."
    )
    typical: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Which part of up to 500 real images of each class may be looked at: those that the backbone's own features "
        "place most surely in their class. 1: all images. auto's own default for fewer than 10 images per class is 0.75.",
    )
    pool: Pool = Field(default="4x4", description="How tokens are pooled before features are compared, as --pool.")
    normalise: Normalise = Field(
        default="channel", description="How features are normalised before they are compared, as --normalise."
    )
    prior: Strength = Field(
        default=0.0,
        description="How strongly images that the backbone finds less likely than real ones are drawn back. 0: not at all. "
        "Where the prior was tried, it gained nothing.",
    )
    repel: Strength = Field(
        default=0.0,
        description="How strongly images of a class are kept apart by the log-determinant of their kernel matrix: the length of "
        "this push at the first step, measured by that of the energy. 0: not at all.",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="The refinement of a class stops when its energy against real images that pull no image has not fallen for "
        "this many steps, and keeps the images with the lowest. 0: all steps are taken.",
    )

    @field_validator("layers", "times", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """`2,4` becomes the list that it says."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
