"""The files in the folder of a distilled set, read as plain records.

This module reads only JSON and file names, so that a report needs neither torch nor the code that made the set. Each file is
read through a closed model with bounds (`data.sets.notes`, `evaluation.training.trials`), because a stranger may have written
it. A line of `trials.jsonl` or `manifest.jsonl` that cannot be used is skipped and counted: a run that was killed may leave
half a line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dap.base.documents import read_json, read_text
from dap.base.errors import DapError
from dap.base.fields import Inside, Name
from dap.base.parsing import shown
from dap.data.sets.differences import flatten
from dap.data.sets.notes import Count, Open, read_note
from dap.evaluation import current
from dap.evaluation.comparable import marks
from dap.evaluation.listed import images_in, lines_of, listed, on_a_page, pictures
from dap.evaluation.origins import origins
from dap.evaluation.renamed import as_written, once, renamed
from dap.evaluation.report.renderings.names import method_title
from dap.evaluation.taken import is_number, measures_in, measures_of
from dap.evaluation.training.trials import APART, TrialLine, one_each

Json = Mapping[str, Any]

MEASURES = ("representativeness", "diversity", "coverage")
"""The measures shown beside the accuracies, in this order."""
PROBLEMS = 3
"""How many problems of the files of a set are told."""
VANILLA = frozenset({"vanilla", "dit", "sd"})
"""Methods that take the backbone's own samples, without guidance."""


@dataclass(frozen=True)
class SetRecord:
    """One distilled set on disk. `recipe` is empty for images that another project made."""

    path: Path
    recipe: Json
    class_names: tuple[str, ...]
    images: tuple[Json, ...]
    """Manifest lines in (label, slot) order, each with at least path, label and slot."""
    trials: tuple[Json, ...]
    cost: Json
    measures: Json
    env: Json
    command: str
    unreadable: int
    """How many lines of `trials.jsonl` and `manifest.jsonl` were skipped."""
    problems: tuple[str, ...] = ()
    """Why the first of these lines, and other parts of the folder, cannot be used."""
    inspected: Json = field(default_factory=dict)
    """`images.json`: for each image the nearest real images, the predicted label, and whether it is a near-copy."""
    protocols: Json = field(default_factory=dict)
    """`protocols.json`: the fields of each protocol that trials name in `by`."""
    ranking: Json = field(default_factory=dict)
    """`ranking.json`: DD-Ranking's scores and the accuracies behind them."""
    zeroshot: Json = field(default_factory=dict)
    """`zeroshot.json`: the labels that a backbone predicts for the images, and how often it is right on real images."""
    chosen: Json = field(default_factory=dict)
    """`chosen.json`: what the recipe left to `auto`, and the scores by which it was chosen."""
    inputs: Json = field(default_factory=dict)
    """`inputs.json`: hashes of the data, weights and code that the set was made of; empty for sets of others."""
    origin: Json = field(default_factory=dict)
    """The fields of the recipe that are to be read otherwise, because of what the sets of a report were made of; see
    `evaluation.origins`."""
    left_out: frozenset[str] = frozenset()
    """Files that are left out, because they are of other images; what was written together with them is left out too."""
    outdated: tuple[str, ...] = ()
    """Sentences on what a reader of the results has to know first: results that are left out, because they are of other images
    than those that the set holds now; files that are missing; and other real images than the set was made of."""

    @property
    def fields(self) -> dict[str, Any]:
        """The recipe as reports compare it: dotted fields that have a value, one name for each content, and the content too
        where one name has several."""
        found = {**flatten(self.recipe), **self.origin} if self.recipe else {}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def method(self) -> str:
        """The method of the recipe, or the name of the folder where there is no recipe."""
        return str(self.recipe.get("method") or self.path.name)

    @property
    def title(self) -> str:
        """The method as papers write it, with the name of a guidance of the user's own, as in "Vanilla + Inward"; or the name of
        the folder where there is no recipe."""
        own = self._section("own_guidance")
        added = f" + {str(own['path']).rpartition(':')[2]}" if own.get("path") and own.get("scale") != 0 else ""
        return method_title(self.method) + added if self.recipe.get("method") else self.method

    @property
    def seed(self) -> object:
        """The recipe's run seed; None where there is none."""
        return self.recipe.get("seed")

    @property
    def ipc(self) -> int:
        """Images per class, as the recipe says; without a recipe, the images of the largest class."""
        if isinstance(self.recipe.get("ipc"), int):
            return self.recipe["ipc"]
        return max(Counter(image["label"] for image in self.images).values(), default=0)

    @property
    def noun(self) -> str:
        """What the set is made of: "image" or "clip"."""
        return "clip" if is_number(self.value("data.frames")) else "image"

    def class_name(self, label: object) -> str:
        """The class name of a label of this set, or "label 12" for a label without a name."""
        if isinstance(label, int) and 0 <= label < len(self.class_names):
            return self.class_names[label]
        return f"label {label}"

    def guidance(self, field: str) -> object:
        """A field of the recipe's guidance, with "4" as the number 4; None for a method without guidance."""
        value = None if self.recipe.get("method") in VANILLA else self._section("guidance").get(field)
        value = str(value) if isinstance(value, (dict, list)) else value
        # Layers are names, and for most backbones these names are numbers. Only as numbers they sort and make an axis.
        return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value

    def value(self, field: str) -> object:
        """A field of the recipe by its dotted name ("guidance.scale", "sampling.steps", "ipc"); None if it is absent."""
        section, _, leaf = field.rpartition(".")
        if section == "guidance":
            return self.guidance(leaf)
        if field == "ipc":
            return self.ipc
        value = (self._section(section) if section else self.recipe).get(leaf)
        return str(value) if isinstance(value, (dict, list)) else value

    @property
    def unguided(self) -> bool:
        """Whether this is the backbone's own sample: vanilla, or DAP at scale 0, with no guidance of the user's own and no
        refinement. The name of a folder says nothing on that."""
        own, refine = (self._section(name) for name in ("own_guidance", "refine"))
        moved = bool(own and own.get("scale") != 0) or bool(refine and refine.get("steps") != 0)
        return not moved and (self.recipe.get("method") in VANILLA or self.guidance("scale") == 0)

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.recipe.get(name)
        return section if isinstance(section, Mapping) else {}

    @property
    def random(self) -> bool:
        """Whether these are random real images, as the recipe says."""
        return self.recipe.get("method") == "random"


def load(paths: Iterable[Path | str]) -> list[SetRecord]:
    """Read several sets in the given order. A folder that is named twice is read once, and so is a set in two folders.

    A trial has a field "apart" where the names of its protocol and network do not say how it differs from others: see
    `comparable`. A set has an `origin` where the names in its recipe do not say what it was made of.

    Raises:
        FileNotFoundError: a path is not the folder of a set.
        DapError: no path is given, or a JSON file cannot be read.
    """
    unique = {Path(path).resolve(): Path(path) for path in paths}
    if not unique:
        raise DapError("no distilled set to report on: name at least one folder")
    merged = _merged([load_set(path) for path in unique.values()])
    sets = [_ranked(record, merged) for record in merged]
    return [
        replace(
            record, origin=origin, trials=tuple({**trial, APART: said} if said else trial for trial, said in marked)
        )
        for record, words, origin in zip(sets, marks(sets), origins(sets), strict=True)
        for marked in [list(zip(record.trials, words, strict=True))]
    ]


def _ranked(record: SetRecord, sets: Sequence[SetRecord]) -> SetRecord:
    """The set without scores that come from other trials than it has, or than the random sets beside it have, and without trials
    that were made twice."""
    written, record = as_written(record.trials), replace(record, trials=tuple(once(record.trials, record.protocols)))
    kind = record.ipc, record.recipe.get("data")
    random = [one for one in sets if one.random and (one.ipc, one.recipe.get("data")) == kind]
    forms = (
        (record.trials, [once(one.trials, one.protocols) for one in random]),
        (written, [as_written(one.trials) for one in random]),
    )
    if not record.ranking or any(current.ranking_counts(record.ranking, *form) for form in forms):
        return record
    told = f"{shown(record.path)}: left out ranking.json. Its scores are not of these trials; run dap rank again."
    return replace(record, ranking={}, outdated=(*record.outdated, told))


def _merged(sets: Sequence[SetRecord]) -> list[SetRecord]:
    """The sets, each once. The results of a set may lie in two folders: beside the set, and apart from it. They are put together.

    Two folders hold the same set if their recipes, with the seed, and their images are equal.
    """
    found = dict[object, SetRecord]()
    for record in sets:
        hashes = [image.get("sha256") for image in record.images]
        known = bool(record.recipe) and all(isinstance(one, str) for one in hashes)
        key = (json.dumps(record.recipe, sort_keys=True, default=str), *hashes) if known else record.path
        first = found.setdefault(key, record)
        if first is not record:
            if record.inspected and not first.inspected:  # the map and the real neighbours lie beside the measures
                first, record = record, first
            notes = ("inspected", "zeroshot", "chosen", "cost", "env", "command", "inputs")
            more: dict[str, Any] = {name: getattr(first, name) or getattr(record, name) for name in notes}
            trials = one_each([*first.trials, *record.trials])
            found[key] = replace(
                first,
                trials=tuple(trials),
                measures=measures_of(first.measures, record.measures),
                ranking=current.ranking_of((first.ranking, record.ranking), trials),
                protocols={**record.protocols, **first.protocols},
                outdated=(*first.outdated, *record.outdated),
                unreadable=first.unreadable + record.unreadable,
                problems=(*first.problems, *record.problems)[:PROBLEMS],
                **more,
            )
    return list(found.values())


def with_repeat(first: SetRecord, record: SetRecord) -> SetRecord:
    """A set with the trials of another one that holds the same images, and with its measures where the first has none."""
    trials, measures = (*first.trials, *record.trials), measures_of(first.measures, record.measures)
    return replace(first, trials=trials, measures=measures)


def load_set(path: Path | str) -> SetRecord:
    """Read one set from its JSON files, its `manifest.jsonl`, its `trials.jsonl` and its `command.txt`.

    Any of these files may be absent. Without `classes.json` the classes are the folders of images, in string order.

    Raises:
        FileNotFoundError: `path` holds neither `classes.json` nor folders of images.
        DapError: a JSON file that cannot be read; the message names it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{shown(path)} is not a folder; name the folder of a distilled set")
    classes = read_json(path / "classes.json", _Classes) if os.path.lexists(path / "classes.json") else _Classes()
    root = path / "images" if (path / "images").is_dir() else path
    folders = classes.folders or [
        folder.name for folder in sorted(root.iterdir()) if folder.name[0] != "." and pictures(folder)
    ]
    if not folders:
        raise FileNotFoundError(
            f"{shown(path)} is not a distilled set: it has no classes.json and no folders of images"
        )
    manifest, bad_images = images_in(path)
    recorded, bad_trials = lines_of(path / "trials.jsonl", TrialLine)
    images = sorted(manifest or listed(path, root, folders), key=lambda image: (image["label"], image["slot"]))
    names, problems = tuple(classes.names or map(shown, folders)), bad_trials + bad_images
    recipe = _object(path, "recipe.json")
    lost = bool(recipe) and not os.path.lexists(path / "manifest.jsonl") and bool(images)
    keys = frozenset({""}) if lost else current.keys_now(images, names)
    counted = [line for line in recorded if current.of_images(line, keys)]
    gone = len(recorded) - len(counted)
    counted, protocols = renamed(counted, _object(path, "protocols.json"))
    notes = {name: _object(path, name) for name in current.NOTES}
    left_out = [name for name, note in notes.items() if note and not current.of_these_images(note, images, keys)]
    notes |= {name: {} for name in left_out}
    told = [*([f"{gone} training{'' if gone == 1 else 's'}"] if gone else []), *left_out]
    why = "Its manifest.jsonl is missing; copy the file again" if lost else current.AGAIN
    said = [f"left out {', '.join(told)}. {why}."] if told else []
    if absent := sum(on_a_page(line) and not os.path.lexists(path / line["path"]) for line in manifest):
        said.append(
            f"{absent} of the images that a page shows are missing; dap verify {shown(path)} names all of them."
        )
    if changed := (notes["measures.json"].get("notes") or {}).get(current.CHANGED):
        said.append(str(changed))
    return SetRecord(
        path=path,
        recipe=recipe or _drawn(_object(path, "import.json")),
        class_names=names,
        images=tuple(images),
        trials=tuple(one_each(counted, images=not keys)),
        cost=_object(path, "cost.json"),
        measures=measures_in(notes["measures.json"], notes["zeroshot.json"]),
        env=_object(path, "env.json"),
        command=_command(path / "command.txt"),
        unreadable=len(problems),
        problems=tuple(problems[:PROBLEMS]),
        inspected=notes["images.json"],
        protocols=protocols,
        ranking=notes["ranking.json"],
        zeroshot=notes["zeroshot.json"],
        chosen=_object(path, "chosen.json"),
        inputs=_object(path, "inputs.json"),
        left_out=frozenset(left_out),
        outdated=tuple(f"{shown(path)}: {one}" for one in said),
    )


class _Classes(Open, frozen=True):
    """`classes.json`."""

    names: Annotated[list[Name], Field(max_length=10**6)] = []
    folders: Annotated[list[Inside], Field(max_length=10**6)] = []
    ipc: Count | None = None


def _command(path: Path) -> str:
    return read_text(path, 100_000).replace("\0", " ").strip() if os.path.lexists(path) else ""


def _object(path: Path, name: str) -> Json:
    return read_note(path, name) or {}


def _drawn(imported: Json) -> Json:
    """The recipe of the set that this one was drawn from, with this set's own ipc; `drawn_from` is the ipc of the larger set. The
    recipe is {} for images that another project made."""
    recipe = imported.get("recipe")
    if not isinstance(recipe, Mapping):
        return {}
    return {**recipe, "ipc": imported.get("ipc"), "drawn_from": recipe.get("ipc")}
