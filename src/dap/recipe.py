"""A recipe: everything that decides the bytes of a distilled set, checked before any work starts.

YAML in, JSON beside the images out. An unknown key is an error that lists the known ones. What does not decide the bytes
(device, cache, progress) is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dap import imagenet, shipped
from dap.base.errors import DapError
from dap.base.registry import suggest
from dap.choices import BankOptions, SolverName

if TYPE_CHECKING:
    from dap.backbones.base import Backbone

_CLOSED = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


BLOCK = 10
"""Slots of a class that are sampled together where nothing ties all of them."""


class Data(BaseModel):
    """The real images."""

    model_config = _CLOSED

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
        return imagenet.expand(value) if isinstance(value, (str, list, tuple)) else value


class BackboneChoice(BaseModel):
    """The pre-trained diffusion model."""

    model_config = _CLOSED

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


class Sampling(BaseModel):
    """The reverse process."""

    model_config = _CLOSED

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


class GuidanceOptions(BankOptions):
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


class Recipe(BaseModel):
    """A distilled set in full. `resolved` fills what depends on the backbone's card and the method."""

    model_config = _CLOSED

    method: str = Field(default="dap", description="random, vanilla, dap, dap-slots, or file.py:Name.")
    ipc: int = Field(default=10, ge=1, description="Images per class.")
    seed: int = Field(
        default=0, ge=0, description="Run seed; an image's own is a hash of it, the class name and the slot."
    )
    block: int | None = Field(
        default=None,
        ge=1,
        description="Slots of a class sampled together; part of the recipe, since batches decide the last bits. Default: "
        "10, or all of them under repulsion and for methods that make a class as a whole.",
    )
    options: dict[str, Any] = Field(
        default={}, description="The method's own options; dap methods NAME lists them. On the command line --option."
    )
    classifier: str | None = Field(
        default=None,
        description="Network trained on the real data, for methods that need one: a file of dap train-teacher, "
        "torchvision:NAME or file.py:build. Default for the embedded data: the network that ships with it.",
    )
    captions: str | None = Field(
        default=None,
        description="JSON lines of path and caption, for methods that need captions; dap caption writes them.",
    )
    data: Data = Data()
    backbone: BackboneChoice | None = BackboneChoice()
    sampling: Sampling | None = Sampling()
    guidance: GuidanceOptions | None = None

    @staticmethod
    def parse(values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """A checked recipe from nested dictionaries.

        Raises:
            DapError: naming each wrong field, and for an unknown key the known ones.
        """
        try:
            return Recipe.model_validate(dict(values))
        except ValidationError as error:
            raise DapError(f"{where[0].upper()}{where[1:]} cannot be used. {explain(error, Recipe)}") from error

    @staticmethod
    def load(path: str | Path) -> dict[str, Any]:
        """The raw values of a YAML file or of a shipped recipe, to be overlaid and parsed.

        Args:
            path: the file, or a shipped recipe's name such as "imagenette-dit-ipc10" or "smoke/imagenette-dit-ipc10".

        Raises:
            DapError: no such file or name, not a YAML mapping, or an `expected` section that is wrong.
        """
        values = shipped.read(path)
        shipped.expected_of(values, path)
        values.pop("expected", None)  # what the numbers should be decides no byte
        # An empty section, and the null of a resolved recipe without one, mean that nothing is chosen there.
        return {key: value for key, value in values.items() if value is not None}

    def resolved(
        self,
        backbone: Backbone | None,
        guidance: Mapping[str, Any] | None,
        size: int,
        sampling: Mapping[str, Any] | None = None,
        together: bool = False,
    ) -> Recipe:
        """This recipe with every open choice made.

        Args:
            backbone: whose card supplies what was left open; None for a method that needs none.
            size: side in px of the images where the recipe does not say.
            guidance: the method's own defaults under the user's choices; None for a method without guidance.
            sampling: likewise.
            together: whether the method makes all slots of a class as one unit unless `block` says otherwise.

        Raises:
            DapError: guidance options for a method that has no guidance, an unknown layer, or another size than the
                backbone makes.
        """
        if guidance is None and self.guidance is not None and self.guidance.model_fields_set:
            given = ", ".join(sorted(self.guidance.model_fields_set))
            raise DapError(f"Method {self.method!r} has no guidance, so these options mean nothing to it: {given}.")
        data = self.data.model_copy(update={"size": self.data.size or size})
        if backbone is None:
            block = self.block or (self.ipc if together else BLOCK)
            return self.model_copy(
                update={"data": data, "block": block, "backbone": None, "sampling": None, "guidance": None}
            )
        from dap.solvers import default_for

        card = backbone.card
        if data.size != card.size:
            raise DapError(f"{card.name} makes images of {card.size} px, not {data.size}; leave the size to it.")
        chosen = (self.sampling or Sampling()).model_dump(exclude_unset=True)
        chosen = {**(sampling or {}), **{name: value for name, value in chosen.items() if value is not None}}
        sampled = Sampling.model_validate(chosen)
        solver = sampled.solver or default_for(backbone.schedule)
        choice = self.backbone or BackboneChoice()
        update: dict[str, Any] = {
            "data": data,
            "block": self.block or (self.ipc if together else BLOCK),
            "backbone": choice.model_copy(update={"template": card.template, "negative_prompt": card.negative_prompt}),
            "sampling": Sampling(
                steps=sampled.steps,
                solver=solver,
                eta=(sampled.eta or 0.0) if solver == "ddim" else sampled.eta,
                cfg=card.cfg if sampled.cfg is None else sampled.cfg,
                cfg_channels=card.cfg_channels if sampled.cfg_channels is None else sampled.cfg_channels,
            ),
            "guidance": None,
        }
        if guidance is not None:
            mine = (self.guidance or GuidanceOptions()).model_dump(exclude_unset=True)
            card_values = {"layer": card.layer, "scale": card.scale, "unit": card.unit}
            defaults = {**card_values, **guidance}
            merged = {**defaults, **{k: v for k, v in mine.items() if v is not None}}
            if merged["unit"] != defaults["unit"] and mine.get("scale") is None:
                raise DapError(
                    f"The default scale {defaults['scale']} is in unit {defaults['unit']!r}; "
                    f"with unit {merged['unit']!r} give a scale."
                )
            options = GuidanceOptions.model_validate(merged)
            backbone.check_layer(str(options.layer))
            update["guidance"] = options
            if self.block is None and options.repulsion:
                update["block"] = self.ipc
        return self.model_copy(update=update)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with the values of a model, in a sentence for each; an unknown key with the known ones."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            inside: Any = model
            for part in problem["loc"][:-1]:
                sections = {"data": Data, "backbone": BackboneChoice, "sampling": Sampling, "guidance": GuidanceOptions}
                inside = sections[str(part)]
            lines.append(f"Unknown key {where!r}. {suggest(str(problem['loc'][-1]), inside.model_fields)}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {said} (given: {problem['input']!r}).")
    return " ".join(lines)


def said(recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe as its set keeps it: without what the method has no use for."""
    values = recipe.model_dump(mode="json")
    unused = [name for name in ("options", "classifier", "captions") if not values[name]]
    return {name: value for name, value in values.items() if name not in unused}
