"""DD-Ranking's scores: how much of an accuracy comes from the images, and how much from soft labels or augmentation.

The formulas are those of DD-Ranking (Li et al. 2025), on accuracies as fractions. The released code puts percentages into them,
which takes its scores out of [0, 1]. The accuracies are kept beside the scores, so that anybody can compute the scores anew.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dap.base.errors import DapError
from dap.base.files import dump, write_atomically
from dap.base.parsing import brief, shown
from dap.data.sets.differences import classes_apart
from dap.evaluation.current import images_of_ranking, key_of_ranking
from dap.evaluation.origins import alike
from dap.evaluation.report.expected import Ceiling
from dap.evaluation.report.records import Json, SetRecord, load
from dap.evaluation.report.summary import Setting, setting_of, trials_of
from dap.evaluation.report.text import setting_name
from dap.evaluation.training.trials import Trial
from dap.protocol_names import ordered


@dataclass(frozen=True)
class Accuracies:
    """The accuracies that the scores are computed from. Each is a fraction in [0, 1], or None where it was not measured.

    Attributes:
        full_hard: all real images, hard labels.
        hard: the synthetic set, hard labels.
        own, random_own: the synthetic set, and as many random real images, by the method's own protocol (with the soft
            labels or the augmentation that the method uses).
        augmented, random_augmented: the synthetic set, and the random images, by a protocol with augmentation.
        plain, random_plain: the synthetic set, and the random images, by a protocol without augmentation.

    Raises:
        DapError: a value is outside [0, 1].
    """

    full_hard: float | None = None
    hard: float | None = None
    own: float | None = None
    random_own: float | None = None
    augmented: float | None = None
    random_augmented: float | None = None
    plain: float | None = None
    random_plain: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise DapError(f"Accuracies are fractions between 0 and 1, but {field.name} is {value}.")


@dataclass(frozen=True)
class Ranking:
    """DD-Ranking's scores; None where an accuracy is missing.

    Attributes:
        hlr: hard label recovery, acc(full, hard) - acc(synthetic, hard); lower is better.
        ior: improvement over random, acc(synthetic, own protocol) - acc(random, own protocol); higher is better.
        lrs: label robust score in [0, 1], of alpha = w · ior - (1 - w) · hlr; higher is better.
        ars: augmentation robust score in [0, 1], of beta = gamma · (synthetic - random with augmentation)
            + (1 - gamma) · (synthetic - random without); higher is better.
        accuracies: the accuracies that the scores were computed from.
        lacks: sentences that say what the missing scores need.
    """

    hlr: float | None
    ior: float | None
    lrs: float | None
    ars: float | None
    accuracies: Accuracies
    lacks: tuple[str, ...] = ()

    @property
    def shown(self) -> dict[str, float]:
        """The known scores by name."""
        scores = {name: getattr(self, name) for name in ("hlr", "ior", "lrs", "ars")}
        return {name: value for name, value in scores.items() if value is not None}


def rank(accuracies: Accuracies, *, w: float = 0.5, gamma: float = 0.5) -> Ranking:
    """DD-Ranking's scores of these accuracies.

    Args:
        accuracies: the accuracies as fractions.
        w: weight of the improvement over random in the label robust score, in [0, 1].
        gamma: weight of the accuracies with augmentation in the augmentation robust score, in [0, 1].

    Raises:
        DapError: a weight is outside [0, 1].
    """
    for name, weight in (("w", w), ("gamma", gamma)):
        if not 0 <= weight <= 1:
            raise DapError(f"The weight {name} lies between 0 and 1, and is not {weight}.")
    hlr = _less(accuracies.full_hard, accuracies.hard)
    ior = _less(accuracies.own, accuracies.random_own)
    augmented = _less(accuracies.augmented, accuracies.random_augmented)
    plain = _less(accuracies.plain, accuracies.random_plain)
    lrs = None if ior is None or hlr is None else normalised(w * ior - (1 - w) * hlr)
    ars = None if augmented is None or plain is None else normalised(gamma * augmented + (1 - gamma) * plain)
    return Ranking(hlr, ior, lrs, ars, accuracies)


def normalised(x: float) -> float:
    """(e^x - e^-1) / (e - e^-1), which maps [-1, 1] to [0, 1]."""
    return (math.exp(x) - math.exp(-1)) / (math.e - math.exp(-1))


def rank_trials(
    synthetic: Iterable[Trial | _Scored],
    random: Iterable[Trial | _Scored],
    *,
    network: str,
    full_hard: float | None = None,
    hard: str | None = None,
    own: str | None = None,
    augmented: str | None = None,
    plain: str | None = None,
    w: float = 0.5,
    gamma: float = 0.5,
) -> Ranking:
    """The scores that recorded trials allow. Each accuracy is the mean of the scores that the protocol reports, over its trials.

    Args:
        synthetic: trials of one set, or of several sets of one method.
        random: trials of sets with as many random real images.
        network: the network. Trials of other networks do not count.
        full_hard: accuracy of training on all real images with hard labels, a fraction.
        hard: name of the protocol with hard labels.
        own: name of the method's own protocol.
        augmented, plain: names of the protocols with and without augmentation.
        w, gamma: see `rank`.

    Raises:
        DapError: an accuracy or a weight is outside [0, 1].
    """
    synthetic, random = list(synthetic), list(random)

    def mean(trials: Sequence[Trial | _Scored], protocol: str | None) -> float | None:
        name = protocol and ordered(protocol)
        found = [t.accuracy for t in trials if ordered(t.protocol) == name and t.network == network]
        return math.fsum(found) / len(found) if found else None

    accuracies = Accuracies(
        full_hard=full_hard,
        hard=mean(synthetic, hard),
        own=mean(synthetic, own),
        random_own=mean(random, own),
        augmented=mean(synthetic, augmented),
        random_augmented=mean(random, augmented),
        plain=mean(synthetic, plain),
        random_plain=mean(random, plain),
    )
    return rank(accuracies, w=w, gamma=gamma)


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def rank_sets(
    paths: Iterable[Path],
    *,
    network: str,
    full: Ceiling | None = None,
    evaluate: str = "dap evaluate",
    **protocols: Any,
) -> Iterator[tuple[Path, Ranking]]:
    """The scores of evaluated sets on disk. Each set is compared with the random sets of the same data and ipc. The scores
    are written into the file `ranking.json` of the set.

    Args:
        paths: folders of sets. Sets of the method "random" must be among them.
        network: see `rank_trials`.
        full: the accuracy of training on all real images with hard labels.
        evaluate: the command that makes the trials that a score lacks.
        protocols: hard, own, augmented, plain: names of protocols, see `rank_trials`.

    Raises:
        DapError: there is no random set, no trial of the network used one of the protocols, `full` is of other test images than
            the trials of a set, or for a reason of `rank_trials`. Nothing is written then.
    """
    sets, protocols = load(paths), {role: name and ordered(name) for role, name in protocols.items()}
    random = [one for one in sets if one.random]
    if not random:
        raise DapError("DD-Ranking compares with random real images; name evaluated sets of --method random too.")
    recorded = {line["protocol"] for one in sets for line in one.trials if line["network"] == network}
    if unknown := sorted({name for name in protocols.values() if name} - recorded):
        raise DapError(
            f"No trial of {network} by {unknown[0]!r}; recorded are {', '.join(sorted(recorded)) or 'none'}."
        )
    named = {role: name for role, name in protocols.items() if name}
    ranked = [
        (one, [t for t in one.trials if t["network"] == network and t["protocol"] in named.values()])
        for one in sets
        if one not in random
    ]
    if full is not None:
        for one, used in ranked:
            _check_full(full, one, used)
    for one, used in ranked:
        settings = list(dict.fromkeys(setting_of(line, one.noun) for line in used))
        repeated = [name for name, times in Counter(each.protocol for each in settings).items() if times > 1]
        if repeated or len({line.get("tested") for line in used}) > 1:
            told = "; ".join(setting_name(each) for each in settings if not repeated or each.protocol == repeated[0])
            raise DapError(
                f"{shown(one.path)} has trials of one protocol on several test images, with several teachers, or with other "
                f"values ({told}), so they give no scores together. Run {evaluate} on the set again, by each protocol."
            )
        fitting = [other for other in random if other.ipc == one.ipc and _same_data(one, other)]
        mine = [_Scored.of(one, each) for each in settings]
        baseline = [_Scored.of(other, each) for other in fitting for each in settings if trials_of(other, each)]
        full_hard = None if full is None else full.accuracy
        scores = rank_trials(mine, baseline, network=network, full_hard=full_hard, **protocols)
        raw = {name: value for name, value in vars(scores.accuracies).items() if value is not None}
        keys = [_key(each, network, named) for each in (one, *fitting)]
        of = {"network": network, "protocols": named, "judged": keys[0], "random": keys[1:]}
        write_atomically(one.path / "ranking.json", dump({**scores.shown, **raw, **of}))
        lacks = tuple(_lacking(one, scores.accuracies, network, protocols, random, fitting, evaluate))
        yield one.path, replace(scores, lacks=lacks)


def _check_full(full: Ceiling, one: SetRecord, used: Sequence[Json]) -> None:
    """Raise `DapError` if the accuracy of all real images is known to be one on other test images than the trials of a set."""
    if not full.elsewhere({line.get("tested") for line in used}, one.class_names):
        return
    path = shown(one.path)
    source = f"The file {full.source}" if full.source else "The accuracy of all real images"
    apart = classes_apart(full.classes, one.class_names, source, f"the set {path}") if full.classes else None
    same = f"{source} was tested on other images than {path}, or on its classes in another order"
    raise DapError(
        f"{apart or same}, so it is not the accuracy of all real images for this set. Give a file of dap train-teacher on the "
        "data of the set and with its classes, or the accuracy itself as --full FRACTION."
    )


def _key(one: SetRecord, network: str, protocols: Mapping[str, str]) -> str:
    """The key of the trials of a set that scores come from."""
    return key_of_ranking(one.trials, images_of_ranking(one.trials, network, protocols), network, protocols)


class _Scored(NamedTuple):
    """What scores ask of the trials of a set."""

    protocol: str
    network: str
    accuracy: float

    @classmethod
    def of(cls, record: SetRecord, setting: Setting) -> _Scored:
        """The mean of the trials of a set under a setting. As in a report, a set counts once however many trials it has."""
        found = [line["best" if setting.headline == "best" else "last"] for line in trials_of(record, setting)]
        return cls(setting.protocol, setting.network, fmean(found))


def _same_data(one: SetRecord, random: SetRecord) -> bool:
    """Whether a random set is of the same data as a set, and was tested on the same images."""
    tested, theirs = ({line.get("tested") for line in each.trials} - {None} for each in (one, random))
    return alike(one, random, "data") and (not (tested and theirs) or bool(tested & theirs))


def _others(one: SetRecord, random: Iterable[SetRecord]) -> str:
    """In what the random sets that are no baseline of a set differ from it, as the rest of a sentence."""
    mine, said = _data(one), list[str]()
    for other in random:
        theirs = _data(other)
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)] if mine and theirs else []
        found = [f"{name} {brief(theirs.get(name), 40)} and not {brief(mine.get(name), 40)}" for name in names]
        found = found if other.ipc == one.ipc else [f"ipc {other.ipc}", *found]
        said.append(f"{shown(other.path)} has {', '.join(found) or 'other test images or images of other content'}")
    return f" ({'; '.join(said[:3])})" if said else ""


def _command(one: SetRecord) -> str:
    """A command that makes a random set which is a baseline of a set."""
    words = ["dap", "distill", "--method", "random", "--ipc", str(one.ipc)]
    for name, value in _data(one).items():
        if flag := FLAGS.get(name):
            words += (
                [flag, *map(str, value if isinstance(value, list) else [value])] if value not in (None, 0.0) else []
            )
    if len(words) > MOST_WORDS:
        return "dap distill --method random, with all flags that say the data of the set,"
    return shlex.join(words)


def _data(one: SetRecord) -> Json:
    data = one.recipe.get("data")
    return data if isinstance(data, Mapping) else {}


FLAGS = {"path": "--data", "classes": "--classes", "size": "--size", "held_out": "--held-out", "frames": "--frames"}
"""The flags of `dap distill` that say the data of a recipe."""

MOST_WORDS = 60
"""A command of more words than this is not printed."""

ROLES = {"hard": "HLR and LRS", "own": "IOR and LRS", "augmented": "ARS", "plain": "ARS"}
"""The scores that each kind of protocol is for."""


def _lacking(
    one: SetRecord,
    known: Accuracies,
    network: str,
    protocols: Mapping[str, str | None],
    random: Sequence[SetRecord],
    fitting: Sequence[SetRecord],
    evaluate: str,
) -> Iterator[str]:
    """What the scores of a set lack: protocols that were not named, trials by those that were, and random sets.

    Args:
        random: all random sets.
        fitting: the random sets that it is compared with.
        evaluate: as for `rank_sets`.
    """
    if known.full_hard is None:
        yield "HLR and LRS need the accuracy of all real images: give --full FRACTION, or a file of dap train-teacher."
    for role, scores in ROLES.items():
        protocol = protocols.get(role)
        if protocol is None:
            yield f"{scores} need a protocol for --{role}."
            continue
        if getattr(known, role) is None:
            yield f"{scores}: {shown(one.path)} has no trial of {network} by {protocol}; {evaluate} makes one."
        if role != "hard" and getattr(known, f"random_{role}") is None:
            which = f"no random set of {one.ipc} images per class"
            if not fitting:
                yield f"{scores}: {which} and of the same data is named{_others(one, random)}; {_command(one)} makes one."
                continue
            theirs = [(line["network"], line["protocol"]) for other in fitting for line in other.trials]
            if (network, protocol) not in theirs:
                yield f"{scores}: {which} has a trial of {network} by {protocol}; {evaluate} makes one."
            elif getattr(known, role) is not None:
                yield (
                    f"{scores}: the trials of {network} by {protocol} of random sets are on other test images, with other "
                    f"labels, or with other values of the protocol; run {evaluate} on them with the flags of the set."
                )
