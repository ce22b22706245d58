"""Objects that a Python user gives in place of names, and the record of them in a distilled set.

A name in a recipe can be looked up again, but an object cannot. So a set that was made with objects keeps three things
for each object: the name of its class, a hash of what the class runs, and the values the object was made with and holds,
whatever they are nested in. With this record a set refuses to go on with other objects, and a reader can see which
objects were used. What cannot be described is named in the record, and then no unfinished set goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dap.backbones.base import Backbone
from dap.base.describing.values import name_of
from dap.base.errors import DapError
from dap.choices import Data
from dap.data.real.decode import Fit
from dap.data.real.held import OfClasses
from dap.data.real.memory import UNPLACED, MemorySource, by_class
from dap.data.real.sources import Source
from dap.described import OBJECTS, changed, describe
from dap.guidance.base import Energy, Guidance
from dap.methods.base import Method


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects that were given in place of names. A part is None if the recipe names it.

    Attributes:
        method: the method that makes the images.
        backbone: the diffusion model.
        guidance: a guidance or an energy that is added to the method's own guidance.
        source: the real images: a `Source`, or images in memory as `data.real.memory.by_class` takes them.

    Raises:
        DapError: the method, the backbone or the guidance is not an object of its base class.
    """

    method: Method | None = None
    backbone: Backbone | None = None
    guidance: Guidance | Energy | None = None
    source: Any = None
    _seen: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        kinds = {"method": (Method,), "backbone": (Backbone,), "guidance": (Guidance, Energy)}
        for name, of in kinds.items():
            thing = getattr(self, name)
            if thing is not None and not isinstance(thing, of):
                wanted = " or ".join(f"dap.{kind.__module__.removeprefix('dap.')}.{kind.__name__}" for kind in of)
                raise DapError(
                    f"{name} should be a name or an object of a subclass of {wanted}, not a {type(thing).__name__}."
                )

    @property
    def sections(self) -> tuple[str, ...]:
        """The fields of a recipe in whose place objects were given."""
        given = {"method": self.method, "backbone": self.backbone, "own_guidance": self.guidance}
        return tuple(name for name, thing in given.items() if thing is not None)

    def check(self, keywords: Mapping[str, Any]) -> None:
        """Check the keywords that stand beside the objects. A recipe may name what the objects take the place of.

        Raises:
            DapError: a keyword says something of the backbone or of the real images that the object itself decides.
        """
        card = None if self.backbone is None else self.backbone.card
        decided: dict[str, Any] = {}
        if card is not None:
            decided |= {
                "template": card.template,
                "negative_prompt": card.negative_prompt,
                "revision": None,
                "dtype": None,
            }
        if self.source is not None:
            decided |= {"data": None, "split": None}
            decided |= {"frames": self.source.frames if isinstance(self.source, Source) else None}
        if isinstance(self.source, Source):
            decided["max_bad_fraction"] = self.source.max_bad_fraction
        for keyword, value in decided.items():
            if keywords.get(keyword) not in (None, value):
                what = "backbone" if keyword in ("template", "negative_prompt", "revision", "dtype") else "source"
                raise DapError(
                    f"{keyword}={keywords[keyword]!r} has no use beside a {what} that is given as an object, which decides this "
                    f"itself: leave out {keyword}, or give a name in place of the object."
                )

    def named(self, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values that a recipe holds in place of the objects, by keyword.

        Args:
            data: what the recipe says of the real images. Its classes and its size choose among the images of an object.

        The name of a source is no place: another folder may have it. So the recipe holds the absolute path that was opened, or
        else words that no judging takes for a path.
        """
        said = {key for key, value in (data or {}).items() if value is not None}
        found: dict[str, Any] = {}
        if self.method is not None:
            found["method"] = name_of(self.method)
        if self.backbone is not None:
            card = self.backbone.card
            found |= {"backbone": card.name, "template": card.template, "negative_prompt": card.negative_prompt}
        if self.guidance is not None:
            found["guidance"] = name_of(self.guidance)
        if isinstance(self.source, Source):
            unplaced = UNPLACED if self.source.name == UNPLACED else f"{UNPLACED}: {self.source.name}"
            split, opened = self.source.opened or ("", {})
            found |= {"data": unplaced, **(opened if split == "train" else {})}
            found |= {"classes": self.source.class_names, "size": self.source.size}
            if "split" in said:  # the recipe says where other data have their splits
                found.setdefault("split", None)
        elif self.source is not None:
            found |= {"data": UNPLACED, "classes": tuple(by_class(self.source))}
        return {key: value for key, value in found.items() if key not in ("classes", "size") or key not in said}

    def images(self, data: Data, size: int, fit: Fit) -> Source:
        """The real images of the source, of the classes that a recipe names.

        Args:
            data: what the recipe says of the real images.
            size, fit: for images in memory; a `Source` has its own.

        Raises:
            DapError: the images have none of the forms of `by_class`, or there is no class of a name.
        """
        given = self.source
        if not isinstance(given, Source):
            given = MemorySource(
                by_class(given, data.classes), size=size, fit=fit, max_bad_fraction=data.max_bad_fraction
            )
        if data.classes is None or tuple(data.classes) == given.class_names:
            return given
        return OfClasses(given, data.classes)

    def described(self) -> dict[str, Any]:
        """The record of the objects in a set, by their role: method, backbone, guidance, source. {} if there is no object.

        Images in memory are not in the record.
        """
        return self._seen or {role: describe(thing) for role, thing in self._things().items()}

    @contextmanager
    def used(self) -> Iterator[None]:
        """A block in which runs use the objects. Until its end they are described as they are now, and what they hold at its end
        is no change: a guidance that has filled a cache is still the guidance that its set was begun with."""
        if self._seen:  # an outer block looks after them
            yield
            return
        self._seen.update(self.described())
        try:
            yield
        finally:
            before = dict(self._seen)
            self._seen.clear()
            for role, thing in self._things().items():
                if isinstance(thing, OBJECTS):
                    changed(thing, before[role])

    def _things(self) -> dict[str, Any]:
        things = {"method": self.method, "backbone": self.backbone, "guidance": self.guidance}
        things |= {"source": self.source} if isinstance(self.source, Source) else {}
        return {role: thing for role, thing in things.items() if thing is not None}
