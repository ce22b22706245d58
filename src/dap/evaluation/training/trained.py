"""Training a classifier on all real images; `classifier.save_classifier` writes the result to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dap.base.errors import DapError
from dap.data.real.sources import Source
from dap.data.real.stored.budget import Budget
from dap.data.real.stored.gathering import stored
from dap.evaluation.training.batches import Labelled
from dap.evaluation.training.classifier import Classifier, of_training
from dap.evaluation.training.evaluate import train_and_test
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.trials import Trial


def train_classifier(
    train: Source, test: Source, protocol: Protocol, *, seed: int = 0, **plan: Any
) -> tuple[Classifier, Trial]:
    """Train the protocol's network on all real images and test it.

    Args:
        train: real training images.
        test: real test images of the same classes.
        protocol: how to train.
        seed: seed of the training.
        plan: the keywords of `evaluate`: network, device, progress, checkpoints, budget, … The budget decides whether the
            images lie in memory or in a file, or are decoded anew in each epoch. The result is the same to the last bit.

    Raises:
        DapError: the test images have other classes, or an error of `evaluate`.
    """
    if train.class_names != test.class_names:
        raise DapError("The test data has other classes than the training data.")
    names = train.class_names
    budget = plan.setdefault("budget", Budget())
    shown, tested = (stored(source, budget, exact=True)[:2] for source in (train, test))
    found, trial = train_on_tensors(shown, tested, protocol, len(names), class_names=names, seed=seed, **plan)
    return replace(found, tested=test.fingerprint(sized=False)[:16]), trial


def train_on_tensors(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    classes: int,
    *,
    class_names: Sequence[str] = (),
    seed: int = 0,
    **plan: Any,
) -> tuple[Classifier, Trial]:
    """Do the same as `train_classifier`, with images and labels that are read already.

    Args:
        train, test: images (n, c, h, w) and labels (n,).
        protocol: how to train.
        classes: number of labels.
        class_names: the names of the classes in label order; () for a classifier without names.
        seed: seed of the training.
        plan: the keywords of `evaluate`.

    Raises:
        DapError: the number of names is not the number of classes, or an error of `evaluate`.
    """
    if class_names and len(class_names) != classes:
        raise DapError(f"There are {len(class_names)} class names for {classes} classes.")
    network, trial = train_and_test(train, test, protocol, seed, classes=classes, **plan)
    settled = protocol.settled(ipc=int(train[1].bincount().max()), classes=classes, network=plan.get("network"))
    device = next(network.parameters()).device
    facts = (train[0].shape[1], classes, trial.last, tuple(class_names), device)
    group = plan.get("group")
    made = of_training(settled.network, network, settled, *facts)
    return (made if group is None else replace(made, processes=group.of)), trial


def trained_facts(classifier: Classifier | None) -> dict[str, Any]:
    """`trained`: the accuracy of a network that was trained on all real images, and how it was trained, for `measures.json`. A
    report shows it as the row of all real images. {} for a network that was not trained here or knows other classes too."""
    if classifier is None or classifier.protocol is None or classifier.accuracy is None:
        return {}
    if len(classifier.columns) != classifier.known:
        return {}
    protocol = classifier.protocol
    facts: dict[str, Any] = {"network": protocol.network, "protocol": protocol.name, "epochs": protocol.epochs}
    facts |= {"tested": classifier.tested} if classifier.tested else {}
    return {"trained": {**facts, "accuracy": classifier.accuracy}}
