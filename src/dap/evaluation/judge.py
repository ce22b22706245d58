"""How a set is judged: networks are trained on the set and tested on real images, and the set's images are measured.

All results are kept beside the images: the trials, the protocols of the trials, and the measures. A recorded trial
counts only for the same images, test data and protocol. So a changed set is judged anew.

`JudgingPlan` says how to judge, `Loaded` holds what is loaded once for many sets, and `judge` judges one set.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import torch

from dap.base.errors import DapError
from dap.base.parsing import counted, shown
from dap.base.store import checkpoint_seconds
from dap.base.watch import Watcher
from dap.data.real.names import select
from dap.data.sets.differences import classes_apart
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there, whole_note
from dap.evaluation.current import CHANGED, hash_of, joined, key_of
from dap.evaluation.failures import Failures
from dap.evaluation.labelling import even, first_side, image_hashes, images_of, labelling, labels_of, largest
from dap.evaluation.measures.inspection import MEASURING
from dap.evaluation.measures.own import own_measures
from dap.evaluation.plan import JudgingPlan, Loaded
from dap.evaluation.recorded import RecordedTrials
from dap.evaluation.renamed import key_of_protocol
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.fitting import check_last_batch, new_network, seeded
from dap.evaluation.training.labels import Soft, Stored, whose
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.stored_labels import StoredLabels, open_labels
from dap.evaluation.training.trials import Trial


def check(loaded: Loaded, *, fetch: bool = True) -> None:
    """Check, before the first set is made, that sets made from these real images can be judged.

    Args:
        loaded: how to judge, and the real images.
        fetch: whether weights of a teacher may be fetched. If not, a teacher that is not on this machine is not checked.

    Raises:
        DapError: a network is unknown or unfit, there is no teacher or it does not know the classes, the test images
            have other classes, the features are of other classes, or the protocol trains on the labels of one finished
            set.
    """
    plan, protocol = loaded.plan, loaded.plan.protocol
    if isinstance(protocol.labels, Stored):
        raise DapError(
            f"{protocol.name} trains on stored labels, which are made of one finished set: dap distill it, dap export "
            "SET --layout fkd --teacher NAME --out DIR, then dap evaluate SET --labels DIR."
        )
    if plan.labels is not None:
        raise DapError(f"{protocol.name} has no use for stored labels (--labels); fkd-soft has.")
    own_measures(plan.measures)  # a file that cannot be loaded is told now
    if isinstance(protocol.labels, Soft) and plan.teacher and Path(plan.teacher).is_dir():
        raise DapError(
            f"{plan.teacher} holds labels of one finished set. For sets that are still to be made give a classifier or "
            "backbone:NAME as --teacher."
        )
    names = loaded.open("train", protocol.size).class_names
    _check_networks(plan, len(names), loaded.channels)
    loaded.teacher(names, fetch=fetch)
    _check_classes(loaded, names, "The training data")
    if loaded.features is not None and isinstance(loaded.features[1], Classifier):
        loaded.features[1].select(names)


def judge(
    judged: DistilledSet,
    loaded: Loaded,
    watcher: Watcher = Watcher(),
    name: str | None = None,
    only: Literal["trials", "measures"] | None = None,
) -> list[Trial]:
    """Train and test all networks of the plan on a set and measure its images. Results that are there already are kept.

    Results are appended to the set's `trials.jsonl`. Recorded trials of other images are dropped. Recorded trials of
    the same protocol and network are dropped too if the test data or the protocol has changed since. A training that
    was interrupted continues from its checkpoint. A training that fails stops no other one.

    Args:
        judged: the set, which `check_ready` has let pass. Its class names are matched with those of the test data by name.
        loaded: how to judge, and the real images.
        watcher: told of every epoch and of every new trial.
        name: what the set is called to the watcher; by default the name of its folder.
        only: one part of the work, where several processes share it. Default: both parts.

    Raises:
        TrainingsFailed: trainings failed. All else is done.
        DapError: results would be written through a link.
    """
    check_links(judged.results)
    key = {"judged": images_key(judged, loaded), "tested": loaded.tested}
    told = functools.partial(watcher.trial, name or judged.path.name)
    trials, failures = list[Trial](), Failures()
    for network in loaded.plan.all_networks if only != "measures" else ():
        with failures.noted(f"{network} cannot be trained on the set {judged.path}."):
            trials += _trials_of(judged, loaded, network, key, watcher, told, failures)
    if only != "trials":
        _measure(judged, loaded, key["judged"], [MEASURING, key, loaded.plan.protocol.size, loaded.plan.neighbours])
    failures.check()
    return trials


def check_ready(judged: DistilledSet, loaded: Loaded, *, fetch: bool = True) -> None:
    """Check that a set can be judged, and that all is there that its judging needs. Whoever judges several sets checks all of
    them before the first training.

    Args:
        judged: the set.
        loaded: how to judge, and the real images.
        fetch: whether weights of a teacher may be fetched. If not, a teacher that is not on this machine is not checked.

    Raises:
        DapError: the set is not finished or not whole, its classes are not those of the test data, of the teacher or of the
            features, a network is unfit, labels or weights that the protocol trains on are missing or of other images, or the
            last batch of an epoch is one that a network cannot be trained on.
    """
    if (judged.path / "classes.json").is_file() and judged.missing():
        again = "run the dap distill that made it again" if judged.recipe else "make it again from where it came from"
        raise DapError(f"{judged.path} still lacks {counted(len(judged.missing()), 'image')}; {again}.")
    judged.check_whole(decode=False)  # the images themselves were hashed when the set was opened
    _check_classes(loaded, judged.class_names, f"The set {judged.path}")
    plan, classes = loaded.plan, len(judged.class_names)
    _check_networks(plan, classes, loaded.channels)
    for network in plan.all_networks:
        _stored_labels(judged, plan, _settled(judged, plan, network))
    check_weights(judged, plan)
    loaded.check_labels(judged, fetch=fetch)
    loaded.inspector()  # raises for features of other classes
    check_batches(plan, len(judged), max(1, largest(judged)), classes, loaded.channels)


def check_weights(judged: DistilledSet, plan: JudgingPlan) -> None:
    """Raise `DapError` if a network of the plan is trained by weights of images that the set does not have."""
    for network in plan.all_networks:
        _weights(judged, _settled(judged, plan, network))


def check_links(results: Path) -> None:
    """Raise `DapError` if the results of a set would be written through a symbolic link in their folder."""
    for place in (results / name for name in ("checkpoints", "neighbours", "labels", ".labels")):
        if place.is_symlink():
            raise DapError(f"{place} is a symbolic link; remove it, as results are not written through it.")


def images_key(judged: DistilledSet, loaded: Loaded) -> str:
    """What tells the images of a set and their labels from those of another set.

    The hashes of the images say no labels and no class names. Where all classes have as many images, and the test data, which
    are hashed too, have the same names in the same order, the hashes are enough. So most trials of earlier versions stay
    valid. They do not for folders of others and sets in memory that are tested on an object: a trial of an earlier version
    may there be of other class names, because each call gives the names, and the object does not follow them.
    """
    own = any(there(judged.path, name) for name in ("recipe.json", "import.json"))
    by_name = loaded.features is not None  # test data that are objects have no training part, and so no features
    if (own or by_name) and even(judged) and judged.class_names == loaded.test.class_names:
        return key_of(image_hashes(judged))
    return key_of(image_hashes(judged), judged.class_names, labels_of(judged))


def _trials_of(
    judged: DistilledSet,
    loaded: Loaded,
    network: str,
    of_data: dict[str, str],
    watcher: Watcher,
    told: Callable[[Trial], object],
    failures: Failures,
) -> list[Trial]:
    """The trials of one network, in the order of their seeds. Missing trials are made, and those that fail are noted."""
    plan, recorded = loaded.plan, RecordedTrials(judged.results)
    protocol = _settled(judged, plan, network)
    teacher = loaded.teacher(judged.class_names) or loaded.image_labels(judged, watcher)
    stored, weights = _stored_labels(judged, plan, protocol), _weights(judged, protocol)
    facts = protocol.facts()
    if stored is not None:
        facts["labels"] |= {"teacher": stored.teacher, "fingerprint": stored.fingerprint}
    if teacher is not None:
        facts["labels"] |= {"teacher": teacher.name, "fingerprint": teacher.fingerprint}
    if weights is not None:
        facts["weights"] = f"manifest {hash_of(weights.tolist())}"
    key = {**of_data, "by": key_of_protocol(facts)}
    given = stored.index.get("whose") or {} if stored is not None else whose(teacher) if teacher is not None else {}
    written = {**facts, "labels": {**facts["labels"], **given}, "unsettled": unsettled(plan.protocol)}
    known = recorded.valid(key, facts, network)
    found = {seed: known[seed] for seed in plan.seeds if seed in known}
    todo = [seed for seed in plan.seeds if seed not in found]
    unfinished = _unfinished(judged.results, key)
    options = {"teacher": teacher, "stored": stored, "progress": watcher.epoch, "checkpoints": unfinished}
    options["weights"] = weights
    training = _training(judged, loaded, protocol, todo, options) if todo else iter(())
    if whole_note(judged.results, "protocols.json").get(key["by"]) != written:
        with recorded.alone():
            judged.note("protocols.json", {**whole_note(judged.results, "protocols.json"), key["by"]: written})
    for seed in todo:
        with failures.noted(f"A training of {network} on the set {judged.path} failed."):
            trial = next(training)
            recorded.add(trial, key, facts, shown(PurePath(loaded.test.name).name)[:200])
            for left in unfinished.glob(f"*-{seed}.pt"):
                left.unlink(missing_ok=True)
            found[seed] = trial
            told(trial)
    for folder in (unfinished, unfinished.parent) if todo else ():
        with contextlib.suppress(OSError):  # it is not there, or holds the checkpoint of another training
            folder.rmdir()
    return [found[seed] for seed in sorted(found)]


def unsettled(protocol: Protocol) -> str:
    """The hash of a protocol before it is settled for a set, without what may differ between trainings that are compared.

    Trainings of sets of several sizes have other values of its cases. This hash says that they are of one protocol."""
    facts = protocol.facts(exclude={"name", "source", "network"})
    left = {"code", *(("looks", "look_from") if protocol.score == "last" else ())}  # looks change no training
    labels = {name: value for name, value in facts["labels"].items() if name != "teacher"}
    return hash_of({**{name: value for name, value in facts.items() if name not in left}, "labels": labels})


def _unfinished(results: Path, key: Mapping[str, str]) -> Path:
    """The folder with the checkpoints of a protocol. The looks at the test images so far are in a checkpoint, so it is of these
    images alone. Versions before this one did not say so in its name, and had one folder for each order of `--set`."""
    notes = whole_note(results, "protocols.json")
    same = [by for by, facts in notes.items() if isinstance(facts, Mapping) and key_of_protocol(facts) == key["by"]]
    places = [results / "checkpoints" / f"{by}{end}" for by in [key["by"], *same] for end in ("", f"-{key['tested']}")]
    return next((place for place in places if place.is_dir()), places[1])


def _settled(judged: DistilledSet, plan: JudgingPlan, network: str) -> Protocol:
    """The protocol of a plan for one set and network. Its name says where the tests are no tests."""
    protocol = plan.protocol.settled(ipc=largest(judged), classes=len(judged.class_names), network=network)
    return protocol.model_copy(update={"name": plan.named(protocol.name)})


def _training(
    judged: DistilledSet, loaded: Loaded, protocol: Protocol, seeds: Sequence[int], options: dict[str, Any]
) -> Iterator[Trial]:
    """Trials of these seeds, one after the other, as `evaluate` gives them. Everything is checked before the first one begins."""
    side = first_side(protocol.test_steps) or loaded.plan.protocol.size
    return evaluate(
        images_of(judged, first_side(protocol.train_steps), loaded.plan.budget, mixed=protocol.size),
        loaded.tensors(side, judged.class_names),
        protocol,
        seeds,
        classes=len(judged.class_names),
        device=loaded.plan.device,
        every=checkpoint_seconds(),
        tested_on=loaded.plan.on,
        budget=loaded.plan.budget,
        **options,
    )


def _measure(judged: DistilledSet, loaded: Loaded, images: str, known: Sequence[object]) -> None:
    """Write the measures of a set, unless they are there already: those of the same images, real images and settings.

    Args:
        judged: the set.
        loaded: how to judge, and the real images.
        images: the key of the images of the set.
        known: what decides the measures beside the real training images.
    """
    inspector = loaded.inspector()
    if inspector is None:
        return
    key = joined(images, hash_of([*known, inspector.train.fingerprint(sized=False)[:16], *inspector.marks]))
    if not inspector.done(judged, key):
        pixels, labels = images_of(judged, loaded.plan.protocol.size, loaded.plan.budget, exact=True)
        own = labels.new_tensor(select(loaded.test.class_names, judged.class_names, "the test data")[1])
        try:
            inspector(judged, pixels, own[labels], key)
        except DapError as error:  # of the features or of broken real images; the accuracies stand all the same
            logging.getLogger("dap").warning("no measures for %s: %s", judged.path, error)
            return
    measures = whole_note(judged.results, "measures.json")
    notes = dict(measures.get("notes") or {})
    if notes.pop(CHANGED, "") != loaded.changed:
        told = {CHANGED: loaded.changed} if loaded.changed else {}
        judged.note("measures.json", {**measures, "notes": {**notes, **told}})


def _check_networks(plan: JudgingPlan, classes: int, channels: int) -> None:
    for network in plan.all_networks:
        with seeded(0, torch.device("cpu")):
            new_network(network, plan.protocol.settled(ipc=1, classes=classes, network=network), channels, classes)


def check_batches(plan: JudgingPlan, images: int, ipc: int, classes: int, channels: int = 3) -> None:
    """Check that no network of the plan would meet a last batch of one image that it cannot be trained on.

    Args:
        plan: how sets are judged.
        images: how many images the set has.
        ipc: images per class, of the largest class.
        classes: number of classes.
        channels: channels of the images; clips have 3 a frame.

    Raises:
        DapError: a network would. The message gives a batch that works.
    """
    for network in plan.all_networks:
        settled = plan.protocol.settled(ipc=ipc, classes=classes, network=network)
        check_last_batch(network, settled, channels, classes, images)


def _check_classes(loaded: Loaded, class_names: Sequence[str], whose: str) -> None:
    if apart := classes_apart(class_names, loaded.test.class_names, whose, "the test data"):
        raise DapError(
            f"{apart}. Give test images of the same classes with --data or --split test=FOLDER, rename the folders, or leave "
            "classes out with --classes where the set is made."
        )


def _stored_labels(judged: DistilledSet, plan: JudgingPlan, protocol: Protocol) -> StoredLabels | None:
    if not isinstance(protocol.labels, Stored):
        if plan.labels is not None:
            raise DapError(f"{protocol.name} has no use for stored labels (--labels); fkd-soft has.")
        return None
    words = ["dap", "export", str(judged.path), "--layout", "fkd", *plan.flags, "--teacher", plan.teacher or "NAME"]
    command = f"{shlex.join(words)} --out DIR"
    if plan.labels is None:
        raise DapError(f"{protocol.name} trains on stored labels; make them with {command}, and give --labels DIR.")
    return open_labels(plan.labels, image_hashes(judged), judged.class_names, labelling(protocol), command)


def _weights(judged: DistilledSet, protocol: Protocol) -> torch.Tensor | None:
    """The weights (n,) of the images of a set, for a protocol that uses them."""
    if protocol.weights == "none":
        return None
    found = [record.get("weight") for record in judged.records]
    if lacking := found.count(None):
        raise DapError(
            f"{protocol.name} weighs images, and {lacking} of {counted(len(found), 'image')} of {judged.path} have no weight in "
            "manifest.jsonl. The method auto writes weights; for other sets leave out weights: manifest."
        )
    return torch.tensor(found, dtype=torch.float32)
