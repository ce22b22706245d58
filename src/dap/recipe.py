"""A recipe: everything that decides the bytes of a distilled set, checked before any work starts.

A recipe is read from YAML and written as JSON beside the images. An unknown key is an error that lists the known keys. The
device, the threads, the cache and the progress are no part of a recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from dap.base.errors import DapError
from dap.base.fields import RunSeed, Slots
from dap.base.mistakes import explain
from dap.base.parsing import shown
from dap.base.permission import refuse_code
from dap.base.registry import suggest
from dap.choices import BackboneChoice, Closed, Data, GuidanceOptions, OwnGuidance, Refinement, Sampling
from dap.resolved import Resolved, ResolvedData, ResolvedGuidance, ResolvedRefinement, Run

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dap.backbones.base import Backbone

__all__ = [
    "BackboneChoice",
    "Data",
    "GuidanceOptions",
    "Recipe",
    "Resolved",
    "Sampling",
    "explain",
    "keywords",
    "overlaid",
]

AUTO = "auto"
"""The value of a layer or a scale that is chosen on real images."""

BLOCK = 10
"""How many slots of a class are sampled together where the method does not tie all of them."""


SECTIONS: dict[str, type[Closed]] = {
    "data": Data,
    "backbone": BackboneChoice,
    "sampling": Sampling,
    "guidance": GuidanceOptions,
    "own_guidance": OwnGuidance,
    "refine": Refinement,
}
"""The parts of a recipe that have fields of their own."""

KEYWORDS = {
    "data.path": "data",
    "backbone.path": "backbone",
    "guidance.seed": "reals_seed",
    "own_guidance.path": "guidance",
    **{f"own_guidance.{name}": f"guidance_{name}" for name in OwnGuidance.model_fields if name != "path"},
    **{f"refine.{name}": f"refine_{name}" for name in Refinement.model_fields},
}
"""The keywords of those fields whose keyword is not simply the field's name."""


def keywords() -> dict[str, tuple[str, FieldInfo]]:
    """Every field of a recipe by its keyword: its dotted name in the recipe, and the field.

    The keyword is what a Python user gives to `dap.distill`; the command line's flag is the same with hyphens.
    """
    top = {name: field for name, field in Recipe.model_fields.items() if name not in SECTIONS}
    inner = {f"{section}.{name}": f for section, model in SECTIONS.items() for name, f in model.model_fields.items()}
    return {KEYWORDS.get(name, name.rpartition(".")[2]): (name, field) for name, field in {**top, **inner}.items()}


def flags_given(recipe: Recipe, *sections: str) -> list[str]:
    """The flags of the fields of some sections that a recipe gives, in their order."""
    values = recipe.model_dump(include=set(sections), exclude_unset=True, exclude_none=True)
    fields = ((keyword, *dotted.split(".")) for keyword, (dotted, _) in keywords().items() if "." in dotted)
    return [
        f"--{keyword.replace('_', '-')}" for keyword, section, name in fields if name in (values.get(section) or {})
    ]


def overlaid(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of a recipe, in which some fields get new values.

    Args:
        values: the nested values of the recipe. They are not changed.
        fields: the new values, by the keywords of their fields.

    Raises:
        DapError: a keyword belongs to no field, or a whole section was given in place of one of its fields.
    """
    known = keywords()
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for keyword, value in fields.items():
        if keyword not in known:
            raise DapError(f"A recipe has no field {keyword!r}. {suggest(keyword, known)}")
        section, _, field = known[keyword][0].rpartition(".")
        if section and isinstance(value, Mapping) and set(value) <= set(SECTIONS[section].model_fields):
            beside = ", ".join(f"{KEYWORDS.get(f'{section}.{name}', name)}={one!r}" for name, one in value.items())
            raise DapError(
                f"The keyword {keyword} takes {section}.{field} alone, not a whole section of a recipe. Give the fields as "
                f"keywords: {beside}."
            )
        if section:
            found[section] = {**(found.get(section) or {}), field: value}
        else:
            found[field] = value
    return found


class Recipe(Closed, frozen=True):
    """A distilled set as a user asks for it. `resolved` makes the choices that are left open.

    `parse` makes one of nested values. Its errors are sentences, and those of the class are pydantic's.
    """

    method: str = Field(
        default="auto", description="A name that dap methods lists, or a method of your own as file.py:Name."
    )
    ipc: Slots = Field(default=10, description="How many images each class gets.")
    seed: RunSeed = Field(
        default=0,
        description="The run seed. The seed of an image is a hash of the run seed, the class name and the slot.",
    )
    block: Slots | None = Field(
        default=None,
        description="How many slots of a class are sampled together. The batch decides the last bits of an image, so the "
        "number is part of the recipe. Default: 10; all slots under repulsion and for methods that make a class as a whole. A "
        "refinement goes block after block, and each block sees the finished ones.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="The options of the method; dap methods NAME lists them. The command line takes them as --option.",
    )
    classifier: str | None = Field(
        default=None,
        description="A classifier trained on the real data, for methods that need one: a file of dap train-teacher, "
        "torchvision:NAME or file.py:build. Default for fashion-mnist: the classifier that ships with dap.",
    )
    captions: str | None = Field(
        default=None,
        description="A file of JSON lines with path and caption, for methods that need captions. dap caption writes it.",
    )
    data: Data = Data()
    backbone: BackboneChoice | None = BackboneChoice()
    sampling: Sampling | None = Sampling()
    guidance: GuidanceOptions | None = None
    own_guidance: OwnGuidance | None = None
    refine: Refinement | None = None

    @staticmethod
    def parse(values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """A checked recipe from nested dictionaries.

        Raises:
            DapError: a field is wrong or a key is unknown. The message names each wrong field and, for an unknown key,
                the known keys.
        """
        try:
            return Recipe.model_validate(dict(values))
        except ValidationError as error:
            name = "What was asked for" if where == "the recipe" else shown(where)
            raise DapError(f"{name} cannot be used. {explain(error, Recipe)}") from error

    @staticmethod
    def load(path: str | Path, replaced: Collection[str] = ()) -> dict[str, Any]:
        """The raw values of a YAML file or of a shipped recipe, to be overlaid and parsed.

        Args:
            path: the file, or a shipped recipe's name such as "imagenette-dit-ipc10" or "smoke/imagenette-dit-ipc10".
            replaced: dotted names of fields that the caller overlays. Code that the file names there does not count.

        Raises:
            DapError: there is no such file or name, the file is not a YAML mapping, its section `expected` is wrong, a
                key is unknown, a value is wrong, or the file names code that may not run. The message names the line.
        """
        from dap import shipped

        values, text = shipped.read_with_text(path)
        shipped.expected_of(values, path, text)
        values.pop("expected", None)  # the expected values decide no byte of a set
        refuse_code(_without(values, replaced), path)
        # An empty section, and the null of a resolved recipe without one, mean that nothing is chosen there.
        values = {key: value for key, value in values.items() if value is not None}
        try:  # here, where the line of a wrong value is known; flags that come later do not mend a file
            Recipe.model_validate(values)
        except ValidationError as error:
            raise DapError(f"{shown(path)} cannot be used. {explain(error, Recipe, text)}") from error
        return values

    def resolved(
        self,
        backbone: Backbone | None,
        guidance: Mapping[str, Any] | None,
        size: int,
        sampling: Mapping[str, Any] | None = None,
        together: bool = False,
        *,
        options: Mapping[str, Any] | None = None,
        classifier: str | None = None,
        refinement: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """This recipe with every open choice made.

        Args:
            backbone: the backbone whose card makes the choices that are left open. None for a method that needs no
                backbone.
            guidance: the method's own defaults for the guidance. The user's choices override them. None for a method
                without guidance.
            size: the side in px of the images, if the recipe does not say it.
            sampling: the method's own defaults for the sampling. The user's choices override them.
            together: whether the method makes all slots of a class as one unit, unless `block` says otherwise.
            options: all of the method's own options. Default: the options of the recipe.
            classifier: the name of the classifier that the method is given. Default: the classifier of the recipe.
            refinement: the method's own defaults for the refinement. The user's choices override them. None for a method
                without a refinement.

        Raises:
            DapError: guidance options for a method that has no guidance or that act in no step, an unknown layer, or another
                size than the backbone makes.
        """
        if guidance is None and self.guidance is not None and self.guidance.model_fields_set:
            given = ", ".join(sorted(self.guidance.model_fields_set))
            raise DapError(
                f"Method {self.method!r} has no guidance, so these options mean nothing to it: {given}. Take a method that has, "
                "such as dap, or leave them out."
            )
        if refinement is None and self.refine is not None and self.refine.model_fields_set:
            raise DapError(
                f"Method {self.method!r} refines nothing, so refine means nothing to it; take the method "
                f"{self.method}+refine, or leave out {', '.join(sorted(self.refine.model_fields_set))} of refine."
            )
        side = self.data.size or size
        if backbone is not None and side != backbone.card.size:
            card = backbone.card
            raise DapError(f"{card.name} makes images of {card.size} px, not {side}; leave the size to it.")
        if backbone is not None:
            from dap.backbones.cards import check_frames

            check_frames(backbone.card, self.data.frames)
        own = self._own(backbone)
        run = None if backbone is None else self._run(backbone, guidance, sampling or {}, refinement)
        repels = run is not None and run.guidance is not None and run.guidance.repulsion > 0
        return Resolved(
            method=self.method,
            ipc=self.ipc,
            seed=self.seed,
            block=self.block or (self.ipc if together or repels else BLOCK),
            options=dict(self.options if options is None else options),
            classifier=classifier or self.classifier,
            captions=self.captions,
            data=ResolvedData.model_validate({**self.data.model_dump(), "size": side}),
            run=run,
            own=own,
        ).checked()

    def _own(self, backbone: Backbone | None) -> OwnGuidance | None:
        """The user's own guidance, checked to have a path and something to guide."""
        own = self.own_guidance
        if own is None or not own.model_fields_set:
            return None
        if own.path is None:
            given = ", ".join(f"own_guidance.{name}" for name in sorted(own.model_fields_set))
            raise DapError(
                f"A guidance of your own is missing, and these options are for one: {given}. Give --guidance."
            )
        if backbone is None:
            raise DapError(f"Method {self.method!r} samples no backbone, so it has no use for the guidance {own.path}.")
        return own

    def _run(
        self,
        backbone: Backbone,
        guidance: Mapping[str, Any] | None,
        sampling: Mapping[str, Any],
        refinement: Mapping[str, Any] | None,
    ) -> Run:
        """How the backbone is sampled: the user's choices over the method's defaults over the backbone's card."""
        from dap.solvers.usual import sampling_of

        card = backbone.card
        chosen = (self.sampling or Sampling()).model_dump(exclude_unset=True, exclude_none=True)
        choice = self.backbone or BackboneChoice()
        return Run(
            backbone=choice.model_copy(update={"template": card.template, "negative_prompt": card.negative_prompt}),
            sampling=sampling_of(card, backbone.schedule, chosen, sampling),
            guidance=None if guidance is None else self._guidance(backbone, guidance),
            refine=None if refinement is None else self._refinement(backbone, refinement),
        )

    def _refinement(self, backbone: Backbone, refinement: Mapping[str, Any]) -> ResolvedRefinement:
        mine = (self.refine or Refinement()).model_dump(exclude_unset=True)
        usual = {name: value(self.ipc) if callable(value) else value for name, value in refinement.items()}
        chosen = {"layers": (backbone.card.layer,), **usual, **{k: v for k, v in mine.items() if v is not None}}
        self._check_closed("refine.layers", tuple(chosen["layers"]) == (AUTO,))
        options = ResolvedRefinement.model_validate(chosen)
        if options.energy == "mean" and mine.get("kernel") is not None:
            raise DapError("The energy mean has no kernel; leave out --refine-kernel, or take another --refine-energy.")
        for layer in options.layers:
            backbone.check_layer(layer)
        return options

    def _guidance(self, backbone: Backbone, guidance: Mapping[str, Any]) -> ResolvedGuidance:
        card = backbone.card
        mine = (self.guidance or GuidanceOptions()).model_dump(exclude_unset=True)
        defaults = {"layer": card.layer, "scale": card.scale, "unit": card.unit, **guidance}
        merged = {**defaults, **{k: v for k, v in mine.items() if v is not None}}
        self._check_closed("guidance.layer", merged["layer"] == AUTO)
        self._check_closed("guidance.scale", merged["scale"] == AUTO)
        if merged["unit"] != defaults["unit"] and mine.get("scale") is None:
            raise DapError(
                f"The default scale {defaults['scale']} is in unit {defaults['unit']!r}; "
                f"with unit {merged['unit']!r} give a scale."
            )
        options = ResolvedGuidance.model_validate(merged)
        backbone.check_layer(options.layer)
        return options

    def _check_closed(self, field: str, is_open: bool) -> None:
        """Refuse a choice that only real images can make. `dap.verbs.settling` makes it before a recipe is resolved."""
        if is_open:
            raise DapError(f"{field} is auto, which dap distill settles on real images; give a value of its own here.")


def _without(values: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Nested values without the fields of these dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = {field.partition(".")[2] for field in fields if field.partition(".")[0] == key}
            found[key] = {name: one for name, one in value.items() if name not in inner}
        elif key not in fields:
            found[key] = value
    return found
