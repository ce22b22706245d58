"""The trials that are recorded in the folder of a set. This module decides which trials still count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dap.base.files import drop_torn_line, read_lines, write_atomically
from dap.evaluation.training.trials import Trial


class RecordedTrials:
    """The file `trials.jsonl` of a set. A line has a trial and its key: hashes of the images, test data and protocol.

    Args:
        folder: the folder of the set.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"

    def valid(self, key: Mapping[str, str], protocol: str, network: str) -> dict[int, Trial]:
        """Remove the lines that no longer count, and return the trials of this key and network by their seeds.

        A line does not count if the images of the set have changed since. A line of this protocol and network does not
        count either if its key differs, because then the protocol or the test data has changed since.

        Args:
            key: the key, see `add`.
            protocol, network: names of the protocol and of the network.
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
            trial: the trial to append.
            key: the hashes "judged" of the images of the set, "tested" of the test data, and "by" of the protocol.
        """
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**json.loads(trial.to_json()), **key}) + "\n")
