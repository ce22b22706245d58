"""The interface of a method, and the plan of its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import ConfigDict, ValidationError, model_validator
from torch import Tensor

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.fields import Chosen
from dap.base.parsing import counted
from dap.base.registry import Recorded
from dap.base.store import Store
from dap.data.real.sources import Source
from dap.data.real.stored.budget import Budget, budget_of
from dap.evaluation.training.labels import ClassifierLike
from dap.guidance.base import Guidance
from dap.recipe import explain
from dap.resolved import Resolved, promised

Need = Literal["backbone", "classifier", "training", "captions"]


@dataclass(frozen=True)
class Unit:
    """Some slots of one class. A unit is the smallest piece of work: the whole unit is done, or nothing of it."""

    label: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """The images of a unit.

    Attributes:
        images: (slots, 3, h, w), in [0, 1]; clips are (slots, 3, frames, h, w).
        records: for each image the further fields of its manifest line.
        latents: what the images were decoded from, (slots, C, *spatial). None where there are no latents.
    """

    images: Float[Tensor, "b 3 *size"]
    records: list[dict[str, Any]]
    latents: Float[Tensor, "b c *spatial"] | None = None


LARGEST = 10**9
"""The largest size of a number among a method's options."""


class Options(Chosen, frozen=True):
    """A method's own options. An unknown name is an error. Each field says which value its paper has."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    def settled(self, ipc: int) -> Self:
        """These options, in which a choice that the user left open and that depends on the number of images per class is made.
        The recipe of the set keeps it."""
        del ipc
        return self

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and abs(value) > LARGEST:
                raise ValueError(f"{name} is {value}; an option is at most {LARGEST:,}")
        return self


@dataclass(frozen=True, kw_only=True)
class Given:
    """The objects that a method has asked for by its `needs`. All others are None.

    Attributes:
        backbone: the diffusion model, for a method whose `needs` name "backbone".
        classifier: the network trained on real data, for a method whose `needs` name "classifier".
        captions: captions of real images by `Source.keys`, for a method whose `needs` name "captions".
        guidance: the user's own guidance, to be added to the method's.
    """

    backbone: Backbone | None = None
    classifier: ClassifierLike | None = None
    captions: Mapping[str, str] | None = None
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Task:
    """Everything that a method gets: a resolved recipe, and the objects that the recipe names.

    Attributes:
        recipe: the recipe, with every open choice made.
        source: the real training images.
        given: the objects that the method has asked for; the properties of the same names read them.
        cache: folder for real features that several runs share, or None.
        options: the method's own options, an instance of its `Options`; None for a method without options.
        store: keeps the results that the method computes once, and the checkpoints of long work.
        tell: called during long work before the first image, with the name of the work, the amount done and the total.
        device: the device on which a method trains.
        budget: memory and disk that real images and their features may take. None: what is free, less a reserve.
    """

    recipe: Resolved
    source: Source
    given: Given = Given()
    cache: Path | None = None
    options: Any = None
    store: Store = field(default_factory=Store)
    tell: Callable[[str, int, int], object] = lambda what, done, total: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    budget: Budget | None = None

    @property
    def allowed(self) -> Budget:
        """The budget; where the task has none, what is free."""
        if self.budget is not None:
            return self.budget
        return Budget() if self.store.folder is None else budget_of(self.store.folder)

    @property
    def backbone(self) -> Backbone:
        """The diffusion model. Raises `DapError` if the method's `needs` do not name "backbone"."""
        return promised(self.given.backbone, self.recipe.method, "task.backbone", 'its `needs` must name "backbone"')

    @property
    def classifier(self) -> ClassifierLike:
        """The network trained on real data. Raises `DapError` if the method's `needs` do not name "classifier"."""
        how = 'its `needs` must name "classifier"'
        return promised(self.given.classifier, self.recipe.method, "task.classifier", how)

    @property
    def captions(self) -> Mapping[str, str]:
        """Captions of real images by `Source.keys`. Raises `DapError` if the method's `needs` do not name "captions"."""
        return promised(self.given.captions, self.recipe.method, "task.captions", 'its `needs` must name "captions"')


class Method(Recorded, ABC):
    """Makes the images of a set, unit by unit.

    Attributes:
        needs: some of "backbone", "classifier", "training" and "captions". A need that cannot be met raises an error
            before any work starts. "training" only says that the method trains something.
        reference: the paper.
        cost: the cost of the method beside the units themselves, in a few words.
        guidance: the method's own defaults over `GuidanceOptions`, or None for a method without DAP's guidance.
        sampling: the method's own defaults over `Sampling`.
        refinement: the method's own defaults over `Refinement`, or None for a method that refines nothing. A default may be a
            function of ipc.
        steered: whether the method adds `Task.given.guidance`, the user's own, to what it samples.
        bounded: what a budget of time settles: the dotted name of a field of the recipe, and its least value that makes
            sense. The time must be a line in it. None: nothing, or no time test tells the time.
        from_reals: whether the images are real images, or begin at real images and stay near them. The search for near-copies may
            miss such images where real images resemble each other.
        together: whether all slots of a class are one unit unless the recipe's `block` says otherwise.
        clips: whether the method makes clips (3, frames, h, w) where the data are clips. Others are refused then. A subclass must
            say so for itself.
        Options: the method's own options, or None. They are the recipe's `options`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    reference: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    guidance: ClassVar[Mapping[str, Any] | None] = None
    sampling: ClassVar[Mapping[str, Any]] = {}
    refinement: ClassVar[Mapping[str, Any] | None] = None
    steered: ClassVar[bool] = False
    bounded: ClassVar[tuple[str, int] | None] = None
    from_reals: ClassVar[bool] = False
    together: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    Options: ClassVar[type[Options] | None] = None

    @abstractmethod
    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        """Check the task and return the function that makes a unit.

        `prepare` is called even when every image is there already, and `dap compare` calls `prepare` for every cell
        before the first cell runs. So `prepare` only checks, and the first unit does the long work.
        """

    def grows(self, task: Task) -> bool:
        """Whether the first images of a class stay the same if the set is to have more images per class.

        A set of such a method can grow in its folder. Here False. A method that says True must not let an image depend on
        `task.recipe.ipc`, nor on other slots; `tests/methods/test_growing.py` tries every method that does.
        """
        del task
        return False

    def parse(self, options: Mapping[str, Any], name: str) -> Options | None:
        """The method's own options from a recipe's.

        Args:
            options: values by name.
            name: of the method, for the message.

        Raises:
            DapError: an unknown or wrong option, or any for a method without.
        """
        if self.Options is None:
            if options:
                raise DapError(
                    f"Method {name!r} has no options of its own, so these mean nothing to it: {', '.join(options)}."
                )
            return None
        try:
            return self.Options.model_validate(dict(options))
        except ValidationError as error:
            raise DapError(f"The options of {name!r} cannot be used. {explain(error, self.Options)}") from error


def check_clips(method: Method, name: str, frames: int | None, source: Any = None) -> None:
    """Check that a method can make what the data hold, images or clips.

    Args:
        method: the method.
        name: its name, for the message.
        frames: how many frames a clip has, as the recipe says; None for images.
        source: real images that were given as an object.

    Raises:
        DapError: the data are clips and the method makes images alone, or the object holds other clips than the recipe says.
    """
    held = source.frames if isinstance(source, Source) else None
    if source is not None and held != frames:
        told = "images" if held is None else f"clips of {counted(held, 'frame')}"
        raise DapError(f"The data hold {told}; give frames={held}, not {frames}.")
    if frames is not None and not vars(type(method)).get("clips", False):
        raise DapError(
            f"Method {name!r} makes images and no clips. With --frames take random or, with a video backbone, vanilla, dap, "
            "dap-slots or mgd3."
        )


def check_compared(task: Task) -> None:
    """Check that there are classes to tell apart. A network of one class gives one logit, whose probability is always 1, so
    its loss is 0, its gradients are 0, and whatever follows them does nothing.

    Raises:
        DapError: there are fewer than 2 classes.
    """
    names, chosen = task.source.class_names, task.recipe.data.classes
    if len(names) < 2:
        there = ", ".join(map(repr, names)) or "none"
        more = (
            "--classes names only this one; name more classes" if chosen else "the data have only this one; give more"
        )
        raise DapError(
            f"Method {task.recipe.method!r} compares classes and needs at least 2, not {there} alone ({more}). Other methods "
            "look at each class by itself: random, herding, dm, vanilla, dap or auto."
        )


def plan(classes: int, ipc: int, block: int, cuts: Sequence[int] = ()) -> list[Unit]:
    """The units of a set: blocks of slots, class by class. The plan depends on the recipe and on the cuts alone.

    Args:
        classes: the number of classes.
        ipc: images per class.
        block: the most slots of a unit.
        cuts: numbers of images per class that the set had before it grew, in order. No unit reaches across them. Where they
            are multiples of the block, the units are those of a set that was large from the beginning.
    """
    ends = [*(cut for cut in cuts if cut < ipc), ipc]
    blocks = [
        tuple(range(start, min(start + block, end)))
        for first, end in zip([0, *ends], ends, strict=False)
        for start in range(first, end, block)
    ]
    return [Unit(label, slots) for label in range(classes) for slots in blocks]
