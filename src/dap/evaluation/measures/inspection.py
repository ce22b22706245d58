"""Further findings about a set beside its test accuracy: measures, near-copies, predicted labels, and a map of features.

All of this is written into the set's folder, so that a report needs neither the real data nor a network:

    measures.json   every measure, by class too; the share of images that a reference network predicts as labelled
    images.json     for each image the nearest real images, whether it is a near-copy, and the predicted label
    neighbours/     those real images. They are private where the data are private. Results in a plain folder of class folders
                    itself have no such folder, because readers of class folders would take it for a class; results of
                    it in a folder apart have one
    map.npz         synthetic and a few real features in at most 50 dimensions, for a joint t-SNE

Labels in these files are positions among the set's own classes. Test images are used for the map, and
to count how many of them are training images, or images of the set, too. No measure compares with them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.files import write_atomically
from dap.data.real.base import Source
from dap.data.real.clips.pictures import encoded
from dap.data.real.counts import counts_of
from dap.data.real.names import select
from dap.data.real.stored.budget import Budget
from dap.data.real.stored.streams import Stored
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import leaks, whole_note
from dap.evaluation.current import same_note
from dap.evaluation.measures.embedding import Features
from dap.evaluation.measures.mapping import mapping, placed
from dap.evaluation.measures.measures import Comparison, compare, extract
from dap.evaluation.measures.nearest import searched_in
from dap.evaluation.measures.neighbours import FEATURE_RATE, PIXEL_RATE, Match, Neighbours, Search
from dap.evaluation.measures.own import Own, Subject
from dap.evaluation.measures.pictures import SEEN, Pictures, unfolded
from dap.evaluation.measures.reading import Reading
from dap.evaluation.measures.rows import Table, table_of
from dap.evaluation.training.batches import Labelled, as_float, in_blocks, rows_of
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.evaluate import MOST_CLASSES
from dap.evaluation.training.trained import trained_facts
from dap.kernels import RBF

log = logging.getLogger("dap")

MEASURING = 4
"""The version of how sets are measured. Measures of another version are made anew."""


class Inspector:
    """Inspects sets that were made from one data set. The real images are read once, when the first set is inspected.

    Args:
        train: real training images.
        test: real test images (n, 3, h, w) and labels (n,), for the map and for counting those that are training images or
            images of a set too; or a function that gives them, which is called when a set is inspected.
        features: what to call the extractor, and the extractor. A `Classifier` also predicts labels.
        limit: real images of a class that are searched for near-copies; default: as `reading.Reading` says. The
            measures do not depend on it.
        own: measures of one's own, whose numbers go into `measures.json` too; see `measures.own`.
        budget: memory and disk of the features; default: memory that is free, and a file where it is short.

    Raises:
        DapError: the features are a `Classifier` of other classes than the data.
    """

    def __init__(
        self,
        train: Source,
        test: Labelled | Callable[[], Labelled],
        features: tuple[str, Features],
        *,
        limit: int | None = None,
        own: Sequence[Own] = (),
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self.train, self._test, self.name, self.features, self.limit, self.own = train, test, *features, limit, own
        self._kept: dict[Any, Any] = {}
        """Values that `compare` computes from the real images only, kept for the next set."""
        known = features[1]
        self.classifier = known.select(train.class_names) if isinstance(known, Classifier) else None

    @property
    def marks(self) -> list[str]:
        """What else decides the results: the fingerprint of the network of the features, where somebody gave one, as the name of
        the features does not tell two networks of the same accuracy apart; and the number of real images that are searched,
        where earlier versions searched others."""
        known = self.features
        found = [known.fingerprint] if isinstance(known, Classifier) and known.fingerprint else []
        if self.limit is not None:  # the user's own number is in the key already
            return found
        return [*found, *Reading(counts_of(self.train), min(self.train.frames or 1, SEEN)).marks]

    @cached_property
    def test(self) -> Labelled:
        return self._test() if callable(self._test) else self._test

    @property
    def _reading(self) -> dict[str, Any]:
        reading = Reading(counts_of(self.train), min(self.train.frames or 1, SEEN))
        return {"limit": reading.searched, "compared": reading.compared, "budget": self.budget}

    @cached_property
    def reals(self) -> Pictures:
        """The real images that the measures compare with. They are the same ones whatever number is searched."""
        return Pictures(self.train, self.features, **self._reading, only_compared=self.limit is not None)

    @cached_property
    def search(self) -> Search:
        if self.limit is None:
            return Search(self.reals)
        return Search(Pictures(self.train, self.features, **{**self._reading, "limit": self.limit}))

    @cached_property
    def _tested(self) -> tuple[set[bytes], int]:
        """The small pictures of all test images, and how many test images are training images too, of those that are
        searched."""
        parts = map(as_float, self.test[0].split(64))  # pyright: ignore[reportCallIssue]
        test = [picture.numpy().tobytes() for part in parts for picture in self.reals.pictured(part)]
        searched = self.search.reals if "search" in self.__dict__ else self.reals
        train = {picture.numpy().tobytes() for pictures in searched.pictures for picture in pictures}
        return set(test), sum(picture in train for picture in test)

    def _real(self, judged: DistilledSet, images: Stored) -> dict[str, int]:
        """How many test images are training images too, and how many images of the set are test images."""
        test, both = self._tested
        drawn = sum(picture.numpy().tobytes() in test for picture in in_blocks(self.reals.pictured, images))
        found = {"test": len(self.test[0]), "test_in_train": both, "set": len(images), "set_in_test": drawn}
        for sentence in leaks(found):
            log.warning("%s: %s", judged.path, sentence)
        return found

    def done(self, judged: DistilledSet, key: str) -> bool:
        """Whether the files of a set were written under this key, with these features and by the same measures of the
        user."""
        measures = whole_note(judged.results, "measures.json")
        kept = measures.get("own") or {}
        return self._inspected(judged, key, measures) and all(
            kept.get(one.name, {}).get("code") == one.code for one in self.own
        )

    def _inspected(self, judged: DistilledSet, key: str, measures: Mapping[str, Any]) -> bool:
        """Whether the measures that were written, and the files beside them, are of this key and of these features."""
        written = (measures, whole_note(judged.results, "images.json"))
        same = all(same_note(one.get("judged"), key) and one.get("features") == self.name for one in written)
        return same and (judged.results / "map.npz").is_file()

    def __call__(self, judged: DistilledSet, images: Stored, labels: Tensor, key: str) -> None:
        """Write all files of a set that are not there yet.

        A value may be missing because there are too few real images, or because a measure of the user fails. Such a
        value is left out, and the reason is noted.

        Args:
            judged: the set.
            images: its images (n, 3, h, w), float in [0, 1] or uint8, in the order of its records; clips (n, 3 · frames, h, w).
            labels: the labels (n,), as the training data number the classes.
            key: a text that is stored in the files. Files with another key are written anew.

        Raises:
            DapError: the features are not (n, D) or not finite, or too many real images are broken.
        """
        if not self._inspected(judged, key, whole_note(judged.results, "measures.json")):
            self._inspect(judged, images, labels, key)
        if self.own:
            self._measure_own(judged, images, labels)

    def _measure_own(self, judged: DistilledSet, images: Stored, labels: Tensor) -> None:
        """Write the numbers of the user's own measures into `measures.json`. The numbers of other measures stay
        there."""
        measures = whole_note(judged.results, "measures.json")
        kept, notes = dict(measures.get("own") or {}), dict(measures.get("notes") or {})
        of = lambda x: extract(self.features, x.flatten(1, -3))  # noqa: E731
        for one in self.own:
            if kept.get(one.name, {}).get("code") == one.code:
                continue
            # A measure may take all images at once, and may change them: each gets its own.
            shown = unfolded(rows_of(images, torch.arange(len(images))), self.train.frames)
            subject = Subject(shown, labels.clone(), self.train.class_names, self.train, of)
            kept.pop(one.name, None)
            notes.pop(one.name, None)
            theirs = {name for other in kept.values() for name in other["values"]}
            try:
                kept[one.name] = one.measured(subject, {*measures, *theirs})
            except DapError as error:  # the trainings and all other measures stay valid
                log.warning("%s: %s", judged.path, error)
                notes[one.name] = str(error)
        judged.note("measures.json", {**measures, "notes": notes, "own": kept})

    def _inspect(self, judged: DistilledSet, images: Stored, labels: Tensor, key: str) -> None:
        names = self.train.class_names
        own = select(judged.class_names, names, "the set")[1]
        features = table_of(lambda part: extract(self.features, part), images, self.budget)
        compared, notes = self._measured(features, labels)
        probabilities = self._probabilities(images)
        of = {"size": self.train.size, "data": self.train.fingerprint(sized=False)[:16], "version": MEASURING}
        of |= (
            {"network": known.fingerprint}
            if isinstance(known := self.features, Classifier) and known.fingerprint
            else {}
        )
        measures: dict[str, Any] = {"features": self.name, "of": of, **compared.values} | trained_facts(self.classifier)
        rows = {name: dict(row) for name, row in zip(names, compared.by_class or [{}] * len(names), strict=True)}
        if probabilities is not None:
            right = (probabilities.argmax(1) == labels).double()
            measures["label_agreement"] = right.mean().item()
            for label, name in enumerate(names):
                rows[name]["label_agreement"] = right[labels == label].mean().item()
            if len(names) <= MOST_CLASSES:  # its numbers are the square of the classes
                measures["confusion"] = _confusion(labels, probabilities.argmax(1), own)
        near = self._near(images, labels, features, notes)
        keep = (judged.results / "classes.json").is_file()
        self._write_neighbours(judged, near if keep else [], own)
        self._write_map(judged, features, labels, own)
        told = self._images(judged, near, probabilities, own, key, keep)
        judged.note("images.json", {**told, "real": self._real(judged, images)})
        by_class = {judged.class_names[k]: rows[name] for k, name in sorted(zip(own, names, strict=True))}
        judged.note("measures.json", {**measures, "by_class": by_class, "notes": notes, "judged": key})

    def _measured(self, features: Table, labels: Tensor) -> tuple[Comparison, dict[str, str]]:
        pools = self.reals.features
        real = pools.table, pools.labels
        try:
            compared = compare((features, labels), real, len(pools), distances={"rbf": RBF()}, kept=self._kept)
        except DapError as error:  # for example, a class has too few images; all other results stay valid
            log.warning("No measures: %s", error)
            return Comparison({}, [], {}), {"measures": str(error)}
        return compared, dict(compared.notes)

    def _near(self, images: Stored, labels: Tensor, features: Table, notes: dict[str, str]) -> list[Neighbours]:
        try:
            return self.search(images, labels, features)
        except DapError as error:
            log.warning("No search for near-copies: %s", error)
            notes["neighbours"] = str(error)
            return []

    def _probabilities(self, images: Stored) -> Tensor | None:
        known = self.classifier
        return None if known is None else in_blocks(lambda part: known.probabilities(part).cpu(), images)

    def _images(
        self,
        judged: DistilledSet,
        near: list[Neighbours],
        probabilities: Tensor | None,
        own: list[int],
        key: str,
        keep: bool,
    ) -> dict[str, Any]:
        listed: list[dict[str, Any]] = []
        thresholds = self.search.thresholds if near else None
        for i, record in enumerate(judged.records):
            line: dict[str, Any] = {name: record[name] for name in ("label", "slot", "path")}
            line |= {"nearest": None, "closeness": None, "copy": None, "original": None}
            if near:
                found = near[i]
                spaces = ("feature", "pixel", "feature_any", "pixel_any")
                line["nearest"] = {space: self._told(getattr(found, space), own, keep) for space in spaces}
                line["closeness"] = dict(zip(("pixel", "feature"), found.closeness, strict=True))
                # Without a limit an image may be a copy and not be the same picture, and nobody can say.
                line["copy"] = True if found.original is not None else None if thresholds and thresholds.why else False
                line["original"] = None if found.original is None else self._told(found.original, own, keep)
            if isinstance(name := record.get("real"), str):
                # The method chose this real image, whatever its pixels are now.
                own_place = {"key": name, "label": record["label"], "distance": 0.0, "file": None}
                line |= {"copy": True, "original": line["original"] or own_place}
            line |= {"predicted": None, "probability": None}
            if probabilities is not None:
                chosen = int(probabilities[i].argmax())
                line |= {"predicted": own[chosen], "probability": probabilities[i, chosen].item()}
            listed.append(line)
        copies = [line for line in listed if line["copy"]]
        worst = sorted(copies, key=lambda line: (line["closeness"] or {"pixel": 0.0})["pixel"])[:10]
        known = all(line["copy"] is not None for line in listed)
        summary: dict[str, Any] = {"copies": len(copies), "share": len(copies) / len(listed)} if known else {}
        if thresholds is not None:
            summary["worst"] = [line["path"] for line in worst]
            summary["rule"] = {
                "pixel": {"at_most": thresholds.pixel, "rate": PIXEL_RATE},
                "feature": {"at_most": thresholds.feature, "rate": FEATURE_RATE},
                "calibrated_on": thresholds.calibrated_on,
                "duplicates": thresholds.duplicates,
                "reals": thresholds.reals,
                "why": thresholds.why,
            }
            reals = self.search.reals
            embedded = sum(reals.features.counts)
            summary["searched"] = {"pixel": reals.searched, "feature": embedded, "of": reals.available}
        data = searched_in(self.train, judged.recipe)
        return {"features": self.name, "judged": key, "data": data, **summary, "images": listed}

    def _told(self, match: Match, own: list[int], keep: bool) -> dict[str, Any]:
        label = own[match.label]
        told = {"key": self.search.reals.key(match.label, match.index), "label": label, "distance": match.distance}
        return {**told, "file": _file(match, label) if keep else None}

    def _write_neighbours(self, judged: DistilledSet, near: list[Neighbours], own: list[int]) -> None:
        matches = [
            match
            for one in near
            for match in (one.feature, one.pixel, one.feature_any, one.pixel_any, one.original)
            if match is not None
        ]
        wanted = {_file(match, own[match.label]): (match.label, match.index) for match in matches}
        for file in (judged.results / "neighbours").glob("*.png"):
            if f"neighbours/{file.name}" not in wanted:
                file.unlink()
        for name, where in wanted.items():
            found = unfolded(self.search.reals.images([where])[0], self.train.frames)
            write_atomically(judged.results / name, encoded(found))

    @cached_property
    def _mapped(self) -> Mapping[str, Tensor]:
        return mapping(self.train.class_names, self.reals.features, self.test, self.features)

    def _write_map(self, judged: DistilledSet, features: Table, labels: Tensor, own: list[int]) -> None:
        mapped, order = self._mapped, torch.tensor(own)
        arrays: dict[str, Any] = {
            "synthetic": placed(features, mapped).numpy(),
            "synthetic_label": order[labels].numpy(),
        }
        for half in ("train", "test"):
            arrays |= {half: mapped[half].numpy(), f"{half}_label": order[mapped[f"{half}_label"]].numpy()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, features=self.name, data=self.train.fingerprint())
        write_atomically(judged.results / "map.npz", buffer.getvalue())


def _file(match: Match, label: int) -> str:
    return f"neighbours/{label}-{match.index}.png"


def _confusion(labels: Tensor, predicted: Tensor, own: list[int]) -> list[list[int]]:
    """How many images of each label (row) are predicted as each label (column), as the set numbers its classes."""
    order = torch.tensor(own)
    counts = torch.zeros(len(own), len(own), dtype=torch.int64)
    counts.index_put_((order[labels], order[predicted]), torch.ones_like(labels), accumulate=True)
    return counts.tolist()
