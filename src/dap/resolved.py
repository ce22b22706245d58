"""A resolved recipe: what a recipe becomes once every open choice is made.

A `Recipe` says what a user asked for and may leave choices open, such as the guidance scale that suits the backbone. A method
must not meet an open choice. So `Recipe.resolved` makes all of them and returns a `Resolved`, in whose fields a value is
always there.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from dap.base.errors import DapError
from dap.base.fields import Name, Pixels, RunSeed, Slots, Strength
from dap.choices import BackboneChoice, Closed, Data, GuidanceOptions, OwnGuidance, Refinement, Sampling, SolverName

T = TypeVar("T")

LATER: dict[str, tuple[type[Closed], tuple[str, ...]]] = {
    "guidance": (GuidanceOptions, ("schedule",)),
    "refine": (Refinement, ("repel", "patience")),
}
"""Choices that were added to a section after sets had been made. A set does not say them as long as they are at their defaults,
so that a set of an earlier version is still the same set. No method has a default of its own for them."""

# A resolved recipe leaves nothing to a default, so the models below take away the defaults of a recipe's sections. The type
# checker objects to a field without a default after fields with one. pydantic takes fields by name, so their order is free.


class ResolvedData(Data, frozen=True):
    """The real images, with their size."""

    size: Pixels  # pyright: ignore[reportGeneralTypeIssues]


class ResolvedSampling(Sampling, frozen=True):
    """The reverse process in full. `eta` is a number for the solver ddim and None for the others, which have none."""

    solver: SolverName  # pyright: ignore[reportGeneralTypeIssues]
    cfg: Strength  # pyright: ignore[reportGeneralTypeIssues]
    cfg_channels: Slots | Literal["all"]  # pyright: ignore[reportGeneralTypeIssues]


class ResolvedGuidance(GuidanceOptions, frozen=True):
    """The guidance of DAP in full."""

    layer: str  # pyright: ignore[reportGeneralTypeIssues]
    scale: Strength  # pyright: ignore[reportGeneralTypeIssues]
    unit: Literal["paper", "step"]  # pyright: ignore[reportGeneralTypeIssues]


class ResolvedRefinement(Refinement, frozen=True):
    """The refinement in full."""

    layers: tuple[Name, ...]  # pyright: ignore[reportGeneralTypeIssues]


class Run(Closed, frozen=True):
    """How a backbone is sampled: the part of a resolved recipe that only methods with a backbone have.

    Attributes:
        backbone: the weights and their prompts.
        sampling: the reverse process.
        guidance: the guidance of DAP. None for a method without it.
        refine: the refinement. None for a method without it.
    """

    backbone: BackboneChoice
    sampling: ResolvedSampling
    guidance: ResolvedGuidance | None
    refine: ResolvedRefinement | None = None


class Resolved(Closed, frozen=True):
    """A distilled set in full, with nothing open.

    Attributes:
        method: the name of the method, or file.py:Name.
        ipc: the number of images per class.
        seed: the run seed.
        block: the number of slots of a class that are sampled together.
        options: all of the method's own options.
        classifier: the name of the classifier; None for a method that needs none.
        captions: the file of captions; None for a method that needs none.
        data: the real images.
        run: how the backbone is sampled; None for a method that needs no backbone.
        own: the user's own guidance; None where there is none.
    """

    method: str
    ipc: Slots
    seed: RunSeed
    block: Slots
    options: dict[str, Any]
    classifier: str | None
    captions: str | None
    data: ResolvedData
    run: Run | None
    own: OwnGuidance | None = None

    @property
    def backbone(self) -> BackboneChoice:
        """The choice of weights. Raises `DapError` where the method does not name "backbone" in its `needs`."""
        return promised(self.run, self.method, "recipe.backbone", 'its `needs` must name "backbone"').backbone

    @property
    def sampling(self) -> ResolvedSampling:
        """The reverse process. Raises `DapError` where the method does not name "backbone" in its `needs`."""
        return promised(self.run, self.method, "recipe.sampling", 'its `needs` must name "backbone"').sampling

    @property
    def guidance(self) -> ResolvedGuidance:
        """DAP's guidance. Raises `DapError` where the method has no `guidance` defaults, not even an empty mapping."""
        found = self.run.guidance if self.run else None
        return promised(found, self.method, "recipe.guidance", "its `guidance` must be a mapping, such as {}")

    @property
    def refine(self) -> ResolvedRefinement:
        """The refinement. Raises `DapError` where the method has no `refinement` defaults, not even an empty mapping."""
        found = self.run.refine if self.run else None
        return promised(found, self.method, "recipe.refine", "its `refinement` must be a mapping, such as {}")

    def checked(self) -> Resolved:
        """This recipe. Raises `DapError` where a guidance with a scale above 0 would act in no step of the run."""
        for whose, window in (("DAP's guidance", self.run and self.run.guidance), ("Your own guidance", self.own)):
            if self.run is None or window is None or window.scale == 0:
                continue
            steps = self.run.sampling.steps
            guided = steps if getattr(window, "last_step", True) else steps - 1
            if not any(window.start <= index / steps < window.stop for index in range(guided)):
                raise DapError(
                    f"{whose} would act in none of the {steps} steps, for it starts at {window.start} of the run and stops at "
                    f"{window.stop}. Give it a longer part of the run, or a scale of 0, which switches it off."
                )
        return self

    def values(self) -> dict[str, Any]:
        """The recipe as its set keeps it in recipe.json: without the sections that the method has no use for.

        The values are a recipe again. This recipe resolves to the same values.
        """
        said = self.model_dump(mode="json", exclude={"run", "own"})
        run = self.run.model_dump(mode="json") if self.run else dict.fromkeys(Run.model_fields)
        if run["refine"] is None:  # as sets of methods without a refinement have always had it
            del run["refine"]
        for name, (model, later) in LATER.items():  # as sets of earlier versions have it
            if (values := run.get(name)) is not None:
                usual = {choice: model.model_fields[choice].default for choice in later}
                run[name] = {k: v for k, v in values.items() if k not in usual or v != usual[k]}
        unused = [name for name in ("options", "classifier", "captions") if not said[name]]
        for name in ("split", "frames"):
            if said["data"][name] is None:  # as sets of earlier versions have it
                del said["data"][name]
        own = {"own_guidance": self.own.model_dump(mode="json")} if self.own else {}
        return {**{name: value for name, value in said.items() if name not in unused}, **run, **own}


def promised(value: T | None, method: str, what: str, how: str) -> T:
    """The value itself. A method is promised to find a value that it has asked for.

    Args:
        value: the value, or None if the method has not asked for it.
        method: the name of the method, for the message.
        what: the name of the value, for the message.
        how: how a method asks for it, for the message.

    Raises:
        DapError: the value is None, so the method uses something that it has not asked for.
    """
    if value is None:
        raise DapError(f"Method {method!r} uses {what}, so {how}.")
    return value
