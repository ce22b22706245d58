"""What sets were made of, as a report compares it: by content where `inputs.json` tells it, and else by name.

A recipe names its data, its weights and its code. The same name may stand for other bytes a day later, and the same bytes may
have two names. `origins` gives each set the fields in which its recipe is then to be read otherwise: one name for one content,
and six digits of the content where one name stands for several. Sets of earlier versions tell no content. They count as made of
what the sets of the same name were made of, where that is one content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dap.base.files import same_place
from dap.data.sets.differences import CODE, as_told, flatten, tells_less
from dap.evaluation.current import hash_of


@dataclass(frozen=True)
class Kind:
    """Something that a recipe names and whose content `inputs.json` tells.

    Attributes:
        hash: the key of the content in inputs.json.
        names: the fields of a recipe that name it, with all fields below them.
        beside: fields that decide the hash too, so that only sets that agree in them are compared.
    """

    hash: str
    names: tuple[str, ...]
    beside: tuple[str, ...] = ()

    def named(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {f: v for f, v in fields.items() if any(f == name or f.startswith(f"{name}.") for name in self.names)}


DATA = Kind("data", ("data.path", "data.split"), ("data.classes", "data.size", "data.held_out", "data.frames"))
WEIGHTS = Kind("weights", ("backbone.path", "backbone.revision"), ("backbone.dtype",))
KINDS = (DATA, WEIGHTS, Kind("classifier", ("classifier",)), Kind("captions", ("captions",)))
PARTS = {"data": DATA, "backbone": WEIGHTS}
"""The sections of a recipe that name something of a kind."""
UNKNOWN = "not recorded"


class Made(Protocol):
    """A set as a report reads it; see `report.records.SetRecord`."""

    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...


def origins(sets: Sequence[Made]) -> list[dict[str, Any]]:
    """For each set the fields of its flat recipe that are to be read otherwise; None stands for a field that is left out.

    A field that no recipe has, such as "data content", has a blank in its name.
    """
    found: list[dict[str, Any]] = [{} for _ in sets]
    for kind in KINDS:
        things = _named(kind, sets)
        _fill(things)
        for i, said in _one_name(things).items():
            found[i] |= said
        _tell(f"{kind.hash} content", things, found)
    for name, things in _own(sets).items():
        _fill(things)
        _tell(name, things, found)
    return found


def alike(one: Made, other: Made, part: str) -> bool:
    """Whether two sets were made of the same thing that a section of their recipes names, such as "data".

    Their bytes count where both sets tell them, and else their names. A path may be spelt in several ways. A set that does not
    have the section may be made of the same thing.
    """
    a, b = one.recipe.get(part), other.recipe.get(part)
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return a == b or a is None or b is None
    kind = PARTS[part]
    contents = [made.inputs.get(kind.hash) for made in (one, other)]
    if all(isinstance(content, str) for content in contents):
        names = {name.partition(".")[2] for name in kind.names}
        return contents[0] == contents[1] and all(a.get(key) == b.get(key) for key in {*a, *b} - names)
    return {**a, "path": ""} == {**b, "path": ""} and same_place(str(a.get("path")), str(b.get("path")))


def digits(content: str, others: Iterable[str]) -> str:
    """The first six digits of a hash, or more where these are the first ones of another hash too."""
    apart = {*others, content}
    return content[: next(n for n in (6, 12, 10**4) if len({one[:n] for one in apart}) == len(apart))]


@dataclass
class _Thing:
    """What one set says of one kind. Things that are compared have equal `within`. The content is empty where it is not known."""

    content: str
    beside: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)

    @property
    def within(self) -> str:
        return json.dumps([self.beside, self.names], sort_keys=True, default=str)


def _named(kind: Kind, sets: Sequence[Made]) -> dict[int, _Thing]:
    """What each set says that has a name of this kind."""
    found: dict[int, _Thing] = {}
    for i, one in enumerate(sets):
        fields, content = flatten(one.recipe), one.inputs.get(kind.hash)
        if names := kind.named(fields):
            beside = json.dumps([fields.get(name) for name in kind.beside], default=str)
            found[i] = _Thing(content if isinstance(content, str) else "", beside, names)
    return found


def _own(sets: Sequence[Made]) -> dict[str, dict[int, _Thing]]:
    """The code of users and the objects that sets were made with, by the names that a report gives them."""
    found: dict[str, dict[int, _Thing]] = {}
    for i, one in enumerate(sets):
        objects = one.inputs.get("objects")
        for role, said in objects.items() if isinstance(objects, Mapping) else ():
            kind = said.get("class") if isinstance(said, Mapping) else None
            found.setdefault(f"{role} object", {})[i] = _Thing(
                "" if _told_less(said, role, sets, one) else hash_of(said), str(kind)
            )
        for name, digest in one.inputs.items():
            if name.startswith(CODE) and isinstance(digest, str):
                found.setdefault(name, {})[i] = _Thing(digest)
    for name in (name for name in found if name.startswith(CODE)):
        for i, one in enumerate(sets):
            if not one.inputs and name.removeprefix(CODE) in json.dumps(one.recipe, ensure_ascii=False, default=str):
                found[name][i] = _Thing("")
    return found


def _told_less(said: Any, role: str, sets: Sequence[Made], mine: Made) -> bool:
    """Whether the record of an object is of an earlier version and another set's record says the same and more, so that nobody
    knows whether the objects are the same."""
    if not tells_less(mine.inputs):
        return False
    others = (
        one.inputs["objects"].get(role)
        for one in sets
        if not tells_less(one.inputs) and isinstance(one.inputs.get("objects"), Mapping)
    )
    return any(other is not None and as_told(other, said) == said for other in others)


def _contents(things: Mapping[int, _Thing]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for thing in things.values():
        found.setdefault(thing.within, set()).add(thing.content)
    return found


def _fill(things: Mapping[int, _Thing]) -> None:
    """Let a content that is not known be that of the others of its name, where they have one."""
    contents = _contents(things)
    for thing in things.values():
        known = contents[thing.within] - {""}
        if len(known) == 1:
            (thing.content,) = known


def _one_name(things: Mapping[int, _Thing]) -> dict[int, dict[str, Any]]:
    """Give each content the name that the first set has for it. Returns the fields that change, by the place of the set."""
    first: dict[str, Mapping[str, Any]] = {}
    changed: dict[int, dict[str, Any]] = {}
    for i, thing in things.items():
        names = first.setdefault(thing.content, thing.names) if thing.content else thing.names
        if names != thing.names:
            changed[i] = {**dict.fromkeys(thing.names), **names}
            thing.names = names
    return changed


def _tell(name: str, things: Mapping[int, _Thing], found: Sequence[dict[str, Any]]) -> None:
    """Put the digits of the content into the fields of each set, where sets that are compared have several contents."""
    contents = _contents(things)
    for i, thing in things.items():
        others = contents[thing.within]
        if len(others) > 1:
            found[i][name] = digits(thing.content, others) or UNKNOWN
