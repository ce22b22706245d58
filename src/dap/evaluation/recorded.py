"""The trials that a set's folder records, and which of them still count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dap.base.files import drop_torn_line, read_lines, write_atomically
from dap.evaluation.training.trials import Trial


class RecordedTrials:
    """The file `trials.jsonl` of a set. A line is a trial and a key: hashes of the images, test data and protocol.

    Args:
        folder: of the set.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"

    def valid(self, key: Mapping[str, str], protocol: str, network: str) -> dict[int, Trial]:
        """Drop the lines that do not count any more; returns the trials of this key and network by their seeds.

        A line does not count if it is of images that are no longer in the set, or if it is of this protocol and network
        under another key, which then is the protocol or the test data as they were before a change.

        Args:
            key: as of `add`.
            protocol, network: their names.
        """
        known = list(read_lines(self.path))
        kept = [
            line
            for line in known
            if line.get("judged") == key["judged"]
            and ((line["protocol"], line["network"]) != (protocol, network) or key.items() <= line.items())
        ]
        if kept != known:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        drop_torn_line(self.path)
        mine = [line for line in kept if key.items() <= line.items() and line["network"] == network]
        return {line["seed"]: Trial.from_record(line) for line in mine}

    def add(self, trial: Trial, key: Mapping[str, str]) -> None:
        """Append a trial.

        Args:
            trial: it.
            key: "judged", "tested" and "by", hashes of the images of the set, of the test data and of the protocol.
        """
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**json.loads(trial.to_json()), **key}) + "\n")
