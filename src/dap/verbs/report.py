"""`dap report`: one page on judged sets. Every verb that judges returns a `Results`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dap.base.errors import DapError
from dap.base.files import check_writable
from dap.base.parsing import path_of, shown
from dap.data.real.finding.made import sets_below
from dap.data.real.finding.walking import class_folders
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.listed import pictures

if TYPE_CHECKING:
    from dap.evaluation.report.expected import Ceiling
    from dap.evaluation.report.records import SetRecord
    from dap.evaluation.report.tables import Table


@dataclass(frozen=True)
class Results:
    """Judged sets: where they are, their accuracies as a table, and the page that reports on them.

    Attributes:
        sets: the folders of the sets, in the order of the table's groups.
        page: the HTML page, or None if no page was written.
        full: accuracies of all real images that the table shows too.
        held: keeps the folders of sets that were given as images in memory. The folders are deleted with these results.
    """

    sets: tuple[Path, ...]
    page: Path | None = None
    held: object = field(default=None, repr=False, compare=False)
    full: tuple[Ceiling, ...] = ()

    @cached_property
    def records(self) -> list[SetRecord]:
        """What the folders of the sets hold, as the report reads it. It is read at the first use."""
        from dap.evaluation.report.records import load

        return load(self.sets)

    @cached_property
    def table(self) -> Table:
        """The accuracies as the report shows them."""
        from dap.evaluation.report.expected import Claims
        from dap.evaluation.report.summary import summarise
        from dap.evaluation.report.tables import accuracy_table
        from dap.published import published

        return accuracy_table(summarise(self.records), Claims(published=published, full=self.full))

    @cached_property
    def trials(self) -> dict[Path, list[Any]]:
        """By the folder of each set, its trials: every `evaluation.training.trials.Trial` that the folder records.

        Lines of others that lack a field of it stand in `records` alone.
        """
        from dap.evaluation.training.trials import whole_trials

        return {one.path: whole_trials(one.trials) for one in self.records}

    @property
    def outdated(self) -> list[str]:
        """Sentences on what has to be known before the results are read, see `SetRecord.outdated`."""
        return [told for one in self.records for told in one.outdated]

    @property
    def unshown(self) -> list[str]:
        """Sentences on accuracies of all real images, in `full`, that stand beside no row of the table."""
        from dap.evaluation.report.expected import Claims
        from dap.evaluation.report.summary import summarise

        return Claims(full=self.full).unshown(summarise(self.records)) if self.full else []

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        return self.table._repr_html_()


class Unfinished(DapError):
    """Some trainings failed, or some cells of a grid could not be made or judged. All else is done, and `results` has it.

    Attributes:
        results: the results of the sets that are there, or None if there is no set.
    """

    def __init__(self, message: str, results: Results | None = None) -> None:
        super().__init__(message)
        self.results = results


Where = str | Path | DistilledSet
"""The folder of a set, a folder that holds several sets, or an opened set."""


def report(
    sets: Sequence[Where] | Where | Results,
    out: str | Path,
    *,
    title: str = "Distilled sets compared",
    full: float | str | Path | None = None,
) -> Path:
    """Write one HTML page on sets. Beside the page, write its tables as Markdown, LaTeX and CSV.

    Args:
        sets: distilled sets, their folders, folders that hold sets at any depth, or the results of another verb.
        out: the file of the page, with a name that ends in .html, or a folder for `report.html`.
        title: the heading of the page.
        full: the accuracy of training on all real images, for a row of its own: a fraction in [0, 1], or a file of
            `train_teacher`, whose accuracy stands beside the sets that its kind of network was trained on and that were tested
            on its test images. Where there are none, the page says so.

    Returns:
        The path of the page.

    Raises:
        DapError: there is no set in a folder, a file of a set cannot be read, or the page cannot be written.
    """
    return write_page(found_sets(sets), Path(out), title, ceilings_of(full))


def ceilings_of(full: float | str | Path | None) -> tuple[Ceiling, ...]:
    """The accuracy of training on all real images: a fraction in [0, 1], or that of a file of `train_teacher`.

    Raises:
        DapError: it is neither, the file cannot be read, or it does not say its accuracy.
    """
    from dap.evaluation.report.expected import Ceiling, trained_on_all
    from dap.evaluation.training.loading import load_trained
    from dap.evaluation.training.trained import trained_facts

    if full is None:
        return ()
    try:
        fraction = float(full)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        if not Path(str(full)).is_file():
            raise DapError(f"{full} is neither a fraction nor a file; give a file of dap train-teacher.") from None
        known = load_trained(str(full))
        facts = trained_facts(known)
        if (found := trained_on_all(facts.get("trained", {}))) is None:
            raise DapError(
                f"{full} does not say its accuracy; give a file of dap train-teacher, or a fraction."
            ) from None
        return (replace(found, classes=known.class_names, source=shown(str(full))),)
    if not 0 <= fraction <= 1:
        raise DapError(f"The accuracy of all real images is a fraction between 0 and 1, and not {full}.")
    return (Ceiling(fraction, "as given with --full"),)


def write_page(sets: Sequence[Path], out: Path, title: str, full: tuple[Ceiling, ...] = ()) -> Path:
    """Write the page of `report` on these folders. Each folder is one set; others may have made the images of a folder."""
    from dap.evaluation.report.page import page_of, write_report
    from dap.published import published
    from dap.verbs.placing import check_page

    check_page(sets, page_of(out))
    check_writable(page_of(out).parent, "Give another folder with --out.")
    return write_report(sets, out, title=shown(title), published=published, full=full).resolve()


def found_sets(sets: Sequence[Where] | Where | Results) -> list[Path]:
    """The folders of all these sets, and of all sets in the given folders at any depth.

    Raises:
        DapError: there is no set, or none in one of these places. The message says of each such place what helps.
    """
    if isinstance(sets, Results):
        return list(sets.sets)
    given = _given(sets)
    found = [[one.path] if isinstance(one, DistilledSet) else sets_below(one) for one in given]
    if empty := [str(one) for one, below in zip(given, found, strict=True) if not below]:
        raise DapError(" ".join(map(_without_sets, dict.fromkeys(empty))))
    return [path for below in found for path in below]


def _without_sets(place: str) -> str:
    """Why a place holds no set of a report, and what to do."""
    from dap.verbs.placing import beside_here

    path, named = Path(place), shown(place)
    if not os.path.lexists(path):
        return f"No distilled set in {named} (there is no such folder)."
    kept = beside_here(path)
    if sets_below(kept):
        return f"No distilled set in {named}; dap evaluate keeps the results of such a folder in {shown(kept)}, so give that."
    if path.is_dir() and any(pictures(path / name) for name in class_folders(path)):
        do = f"dap evaluate {shlex.quote(named)} --data FOLDER"
        return f"No distilled set in {named}, which holds class folders; first run {do}, then give {shown(kept)}."
    return f"No distilled set in {named}; give the folder of a set, or a folder that holds sets."


def opened_sets(
    sets: Sequence[str | Path | DistilledSet] | str | Path | DistilledSet, classes: Sequence[str] | None
) -> list[DistilledSet]:
    """The sets at these places. A folder that holds several sets stands for all of them."""
    opened: list[DistilledSet] = []
    for one in _given(sets):
        if isinstance(one, DistilledSet):
            opened.append(one)
            continue
        opened += [DistilledSet.from_folder(folder, classes) for folder in sets_below(one) or [one]]
    return opened


def _given(sets: Any) -> list[DistilledSet | Path]:
    """The sets and the places that somebody gave, one or several."""
    several = [sets] if isinstance(sets, str | os.PathLike | DistilledSet) else sets
    several = several if isinstance(several, Iterable) else [several]
    given = [one if isinstance(one, DistilledSet) else path_of(one, "A distilled set") for one in several]
    if not given:
        raise DapError("No set is given; give the folder of a set, or a folder that holds sets.")
    return given


def check_tracking(to: str | None) -> None:
    """Check, before long work, that trials can be logged for TensorBoard or wandb.

    Args:
        to: "tensorboard", "wandb", or None for no logging.

    Raises:
        DapError: the package is not installed.
    """
    if to is not None:
        from dap.evaluation.report.tracking import require

        require(to)


def log_for(to: str, results: Results) -> Path:
    """Log the trials, measures and images of these sets for TensorBoard or wandb.

    Args:
        to: "tensorboard" or "wandb".
        results: the sets. The log is written beside their page or, if there is no page, in the folder of the first set.

    Returns:
        The folder of the log.
    """
    from dap.evaluation.report.records import load
    from dap.evaluation.report.tracking import track

    where = results.page.parent if results.page is not None else results.sets[0]
    return track(load(results.sets), to, where).resolve()
