"""The trials that are recorded in the folder of a set. This module decides which trials still count."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dap.base.claims import Claims
from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.files import append, ended, inside, write_atomically
from dap.data.sets.notes import as_read
from dap.evaluation.current import of_images
from dap.evaluation.renamed import key_of_protocol
from dap.evaluation.training.trials import DATA, KEYS, Trial, TrialLine, agree, one_each
from dap.protocol_names import ordered

log = logging.getLogger("dap")

BEFORE = "trials-before.jsonl"
"""The file beside `trials.jsonl` that keeps the trials which no longer count. A trial of it counts again where images, test data
and protocol are again what they were."""


class RecordedTrials:
    """The file `trials.jsonl` of a set. A line has a trial and its key: hashes of the images, test data and protocol.

    A line that cannot be read as a trial is left out, and a warning names it. Several processes may record trials of one set.

    Args:
        folder: the folder of the set.

    Raises:
        DapError: `trials.jsonl` or `BEFORE` is no regular file of this folder, so that nothing may be written to it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"
        for name in (self.path.name, BEFORE):
            if os.path.lexists(folder / name):
                inside(folder, name)
        self._claims = Claims(folder)

    def alone(self) -> AbstractContextManager[None]:
        """Inside this block no other process writes the files on the trials of the set."""
        return self._claims.wait(".trials")

    def valid(self, key: Mapping[str, str], facts: Mapping[str, Any], network: str) -> dict[int, Trial]:
        """Put the lines that no longer count into `BEFORE`, and return the trials of this key and network by their seeds.

        A line does not count if the images of the set have changed since. A line of this protocol and network does not
        count either if its key differs, because then the protocol or the test data has changed since.

        Args:
            key: the key, see `add`.
            facts: what the key "by" is the hash of, the name of the protocol among them.
            network: the name of the network.
        """
        with self.alone():
            return self._valid(key, facts, network)

    def _valid(self, key: Mapping[str, str], facts: Mapping[str, Any], network: str) -> dict[int, Trial]:
        lines = list(read_lines(self.path, as_read(TrialLine)))
        known: list[dict[str, Any]] = [line.value for line in lines if line.value is not None]
        kept, gone = list[dict[str, Any]](), list[dict[str, Any]]()
        for line in known:
            (kept if _counts(line, key, facts, network) else gone).append(line)
        for problem in [line.problem for line in lines if line.problem is not None][:3]:
            log.warning("left out a trial: %s", problem)
        if gone:
            self._put_aside(gone)
            log.warning(
                "%s: trials of other images, test data or labels, or by another protocol, no longer count; %d are kept in %s",
                self.path, len(gone), BEFORE,
            )  # fmt: skip
        if len(kept) < len(lines) or (lines and not ended(self.path)):  # the next line must start on its own
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        mine = [line for line in kept if _has(line, key, facts) and line["network"] == network]
        seeds = {line["seed"] for line in mine}
        before = [line for line in _read(self.path.with_name(BEFORE)) if _has(line, key, facts)]
        before = [line for line in before if line["network"] == network and line.get("seed") not in seeds]
        counted = [line for line in before if _counts(line, key, facts, network)]
        if again := one_each(counted):  # the test data or the protocol are what they were once before
            append(self.path, "".join(json.dumps(line) + "\n" for line in again))
        return {line["seed"]: Trial.from_record(line) for line in (*mine, *again)}

    def take(self, theirs: Sequence[Mapping[str, Any]], images: Collection[str]) -> None:
        """Take up the trials of the same set that another folder records, such as that of the set itself.

        A line that was never here is newer than all that are, since lines are taken up before each command that writes here. So
        where its key differs it takes the place of the lines of its protocol and network, which go into `BEFORE`. A line that
        has gone there comes back only where no other of its protocol and network is of the images.

        Args:
            theirs: lines of the other file.
            images: the keys "judged" of the images that the set holds now; empty where they are not known.
        """
        with self.alone():
            mine, gone = _read(self.path), _read(self.path.with_name(BEFORE))
            new, old = list[Mapping[str, Any]](), list[Mapping[str, Any]]()
            for name in dict.fromkeys(map(_names, theirs)):
                here = [line for line in mine if _names(line) == name]
                lost = gone if any(of_images(line, images) for line in here) else []
                fresh = [
                    one for one in theirs if _names(one) == name and of_images(one, images) and one not in here + lost
                ]
                count = len(one_each(here, images=True))
                fresh = [one for one in fresh if len(one_each([*here, one], images=True)) > count]
                new += fresh
                old += [line for line in here if not all(agree(line, one) for one in fresh)]
            if old:
                self._put_aside(old)
                kept = [line for line in mine if line not in old]
                write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            if new:
                start = "" if not self.path.exists() or ended(self.path) else "\n"
                append(self.path, start + "".join(json.dumps(line) + "\n" for line in new))

    def _put_aside(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append those of these lines to `BEFORE` that it does not hold yet."""
        before = self.path.with_name(BEFORE)
        known = _read(before)
        append(before, "".join(json.dumps(line) + "\n" for line in lines if line not in known))

    def add(self, trial: Trial, key: Mapping[str, str], facts: Mapping[str, Any], data: str = "") -> None:
        """Append a trial, unless another process has recorded it meanwhile.

        Args:
            trial: the trial to append.
            key: the hashes "judged" of the images of the set, "tested" of the test data, and "by" of the protocol.
            facts: as for `valid`.
            data: the name of the test data, for a report.
        """
        with self.alone():
            if trial.seed in self._valid(key, facts, trial.network):
                return
            named = {DATA: data} if data else {}
            append(self.path, json.dumps({**json.loads(trial.to_json()), **key, **named}) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that can be read."""
    return [line.value for line in read_lines(path, as_read(TrialLine)) if line.value is not None]


def _names(line: Mapping[str, Any]) -> tuple[object, object]:
    return ordered(line["protocol"]), line["network"]


def _has(line: Mapping[str, Any], key: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
    """Whether a line has this key, or the one that versions before this one gave the same protocol."""
    known = key.items() <= line.items()
    return known or {**key, "by": key_of_protocol(facts, line["protocol"])}.items() <= line.items()


def _counts(line: Mapping[str, Any], key: Mapping[str, str], facts: Mapping[str, Any], network: str) -> bool:
    """Whether a line still counts, see `RecordedTrials.valid`."""
    if line.get("judged") != key["judged"]:
        return False
    try:
        Trial.from_record(line)
    except DapError as error:  # it lacks a field
        log.warning("left out a trial: %s", error)
        return False
    other = (ordered(line["protocol"]), line["network"]) != (ordered(facts["name"]), network)
    return all(line.get(name) for name in KEYS) if other else _has(line, key, facts)
