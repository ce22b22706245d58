"""The accuracy that a row was expected to reach: given by the caller, or published for the recipe that made the sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dap.data.sets.differences import classes_apart
from dap.evaluation.comparable import TESTED
from dap.evaluation.report.records import Json, is_number
from dap.evaluation.report.summary import Row, Setting, collect
from dap.protocol_names import ON_VALIDATION
from dap.shipped import Expected

Published = Callable[[Json], Expected | None]
"""A function: resolved recipe of a set -> the values published for this recipe; None where none are published."""


@dataclass(frozen=True)
class Claim:
    """An accuracy that a measured one is compared with. `source` is empty for a figure that the caller gave."""

    text: str
    mean: float | None = None
    """The accuracy in per cent; None for a figure that the caller gave."""
    std: float | None = None
    """The standard deviation in points, where it is published."""
    source: str = ""


@dataclass(frozen=True)
class Ceiling:
    """The accuracy of a network that was trained on all real images.

    Attributes:
        accuracy: the accuracy on the real test images, a fraction.
        how: words on the training.
        network: the network; empty where it is not known, so that the figure stands beside every network.
        tested: the hash of the test images; empty where it is not known.
        classes: the classes of these images; () where they are not known.
        source: the file that says all this; empty where it is no file.
    """

    accuracy: float
    how: str
    network: str = ""
    tested: str = ""
    classes: tuple[str, ...] = ()
    source: str = ""

    def elsewhere(self, tested: Collection[object], class_names: Sequence[str]) -> bool:
        """Whether the accuracy is known to be one on other test images than those of the trials of a set.

        Args:
            tested: the hashes of the test images of the trials; None among them for a trial that does not say it.
            class_names: the classes of the set.
        """
        said = set(tested) - {None}
        if self.tested and said:
            return self.tested not in said
        return bool(self.classes) and classes_apart(self.classes, class_names, "", "") is not None


class Claims:
    """Finds the claim for a row, and the accuracies of all real images for a setting.

    Args:
        given: earlier figures by group label or by method. They are preferred to published values.
        published: a function that finds the published values, see `Published`.
        full: accuracies of all real images, beside those that the sets know.
    """

    def __init__(
        self,
        given: Mapping[str, str] | None = None,
        published: Published | None = None,
        full: Sequence[Ceiling] = (),
    ) -> None:
        self.given, self.full = dict(given or {}), tuple(full)
        self._published = published

    def of(self, row: Row) -> Claim | None:
        """The claim for a row; None where there is none for its network, kind of labels and protocol.

        A published value belongs to one protocol as it is. The name of a protocol with other values for some fields, or of a
        choice on validation images, is another. It is not shown either where a report tells trials of the protocol apart, by
        other words than that they were tested on the set's own data.
        """
        given = self.given.get(row.group.label, self.given.get(row.method))
        if given is not None:
            return Claim(given)
        if self._published is None or row.setting is None:
            return None
        own = PurePath(str(row.group.first.value("data.path"))).name
        if row.setting.apart not in ("", f"{TESTED}{own}"):
            return None
        found = self._published(row.group.first.recipe)
        wanted = (plain_network(row.setting.network), _labels(row), row.setting.protocol)
        for value in found.values if found else ():
            if (plain_network(value.network), value.labels, value.protocol) == wanted:
                spread = "" if value.std is None else f" ± {value.std:.1f}"
                return Claim(f"{value.mean:.1f}{spread}", value.mean, value.std, value.source)
        return None

    def ceilings(self, setting: Setting | None, rows: Sequence[Row]) -> list[Ceiling]:
        """What is known of all real images for the rows of one setting: those given, and those that were recorded when the
        sets were measured by a network of the same kind. Nothing is known for a setting on validation images, and none is
        shown that is of other test images, or may be where a report has several."""
        if setting is None or setting.protocol.endswith(ON_VALIDATION):
            return []
        recorded = [record.measures.get("trained") for row in rows for record in row.group.sets]
        tests = {t.get("tested") for row in rows for _, found in collect(row.group, setting) for t in found}
        classes = {record.class_names for row in rows for record in row.group.sets}
        known = [*self.full, *(trained_on_all(one) for one in recorded if isinstance(one, Mapping))]
        same = (
            one
            for one in known
            if one and plain_network(one.network or setting.network) == plain_network(setting.network)
            if (one.tested in tests if one.tested and tests - {None} else not setting.apart.startswith(TESTED))
            if any(not one.elsewhere(tests, names) for names in classes)
        )
        return list(dict.fromkeys(same))

    def unshown(self, rows: Sequence[Row]) -> list[str]:
        """A sentence on each given accuracy of all real images that stands beside no row, with the reason."""
        settings = {row.setting: [other for other in rows if other.setting == row.setting] for row in rows}
        shown = {one for setting, here in settings.items() for one in self.ceilings(setting, here)}
        tests = [one for one in settings if one is not None and not one.protocol.endswith(ON_VALIDATION)]
        networks = sorted({one.network for one in tests})
        told = []
        for one in self.full:
            if one in shown or (not one.tested and any(setting.apart.startswith(TESTED) for setting in tests)):
                continue  # that a report has several test images is told where they are
            if not tests:
                why = "there is no trial on test images"
            elif one.network and plain_network(one.network) not in map(plain_network, networks):
                why = f"it is a {one.network}, and the trials are of {', '.join(networks)}"
            else:
                why = "it is of other test images or of other classes than the trials"
            told.append(f"The accuracy of all real images {one.source or one.how} is not shown: {why}.")
        return told


def trained_on_all(facts: Mapping[str, Any]) -> Ceiling | None:
    """The accuracy that `measures.json` or the file of a classifier states; None where it states none."""
    if not (is_number(accuracy := facts.get("accuracy")) and 0 <= accuracy <= 1):
        return None
    epochs = f", {facts['epochs']} epochs" if facts.get("epochs") else ""
    network, tested = (str(facts.get(name) or "") for name in ("network", "tested"))
    return Ceiling(accuracy, f"protocol {facts.get('protocol')}{epochs}", network, tested)


def plain_network(network: str) -> str:
    """The name of a network as others may have spelt it: in small letters, without hyphens and underscores."""
    return network.lower().replace("-", "").replace("_", "")


def _labels(row: Row) -> str:
    """ "hard" or "soft", as the recorded protocol of the row's trials says; without a record, as the protocol's name says."""
    assert row.setting is not None
    trials = [t for _, of_set in collect(row.group, row.setting) for t in of_set]
    recorded = {key: fields for record in row.group.sets for key, fields in record.protocols.items()}
    for trial in trials:
        if isinstance(fields := recorded.get(str(trial.get("by"))), Mapping) and "labels" in fields:
            labels = fields["labels"]  # versions long before this one wrote the kind alone
            kind = labels.get("kind", "soft") if isinstance(labels, Mapping) else labels
            return "hard" if kind in ("hard", None) else "soft"
    return "soft" if "soft" in row.setting.protocol else "hard"
