"""`dap rank`: DD-Ranking's scores of evaluated sets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dap.base.errors import DapError
from dap.base.registry import is_code
from dap.evaluation.report.expected import plain_network
from dap.evaluation.report.ranking import Ranking, rank_sets
from dap.evaluation.report.records import load
from dap.evaluation.training.networks import check_name
from dap.verbs.placing import placed
from dap.verbs.report import Results, Where, ceilings_of, found_sets


def rank(
    sets: Sequence[Where] | Where | Results,
    *,
    network: str = "convnet3",
    hard: str | None = None,
    own: str | None = None,
    augmented: str | None = None,
    plain: str | None = None,
    full: float | str | Path | None = None,
    out: str | Path | None = None,
) -> dict[Path, Ranking]:
    """Score how much of each set's accuracy comes from the images, and how much from soft labels or from augmentation.

    The scores of a set are also written to its `ranking.json`, or to that of its results where `out` is given. Sets of the
    method "random" must be among the sets, because every score compares a set with them.

    Args:
        sets: evaluated sets, their folders, folders that hold evaluated sets, or the results of another verb.
        network: only trainings of this network count.
        hard: the name of a protocol with hard labels.
        own: the name of the methods' own protocol, such as one with soft labels.
        augmented, plain: the names of a protocol with augmentation and of one without.
        full: the accuracy of training on all real images with hard labels: a fraction in [0, 1], or a file of `train_teacher`.
        out: a folder. The scores of sets that do not lie in it are kept there, in `judged`, with all that a report asks of these
            sets, and nothing is written beside the sets. The same `out` as for `evaluate` finds the trials that are kept there.
            Default: scores are kept beside each set.

    Returns:
        By folder of its results, the scores of every set that is not of the method "random". `lacks` of each says what the
        missing scores need.

    Raises:
        DapError: there is no set, no network of this name, no random set or no other one, `full` is a file of another network, of
            other classes or of other test images, no trial was made by one of the protocols, the trials of a set are on several
            test images, or a folder cannot be written.
    """
    known = next(iter(ceilings_of(full)), None)
    if known is not None and known.network and plain_network(known.network) != plain_network(network):
        raise DapError(
            f"{full} is a {known.network}, and the scores are of {network}. Give --network {known.network}, or a file of dap "
            f"train-teacher --network {network}."
        )
    protocols = {"hard": hard, "own": own, "augmented": augmented, "plain": plain}
    found = found_sets(sets)
    _check_network(network, found)
    results = placed(found, None if out is None else Path(out))
    evaluate = (
        "dap evaluate" if out is None else f"dap evaluate --out {shlex.quote(str(out))}"
    )  # else it writes beside the sets
    scores = dict(rank_sets(results, network=network, full=known, evaluate=evaluate, **protocols))
    if not scores:
        raise DapError(
            "All of these sets are random real images, with which DD-Ranking compares others; name evaluated sets of other "
            "methods too."
        )
    return scores


def _check_network(network: str, sets: Sequence[Path]) -> None:
    """Raise `DapError` if there is no network of this name, and no trial of one, which others may have called otherwise. No
    network is run, so one of the user's own need not be there."""
    if is_code(network):
        return
    try:
        check_name(network)
    except DapError:
        if all(line["network"] != network for one in load(sets) for line in one.trials):
            raise
