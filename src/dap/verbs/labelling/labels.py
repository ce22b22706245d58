"""`dap export --layout fkd` and `--layout labels`: store a teacher's labels of every augmented image, or of every image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.real.sources import EMBEDDED, Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation import labelling
from dap.evaluation.image_labels import check_image_labels, how_made, open_image_labels, write_image_labels
from dap.evaluation.plan import Open
from dap.evaluation.suiting import suited_size, takes_values
from dap.evaluation.training.loading import load_classifier
from dap.evaluation.training.protocol import Protocol
from dap.verbs.distill import open_workshop
from dap.verbs.judges import open_protocol, source_of, suited_protocol
from dap.verbs.labelling.by_backbone import Asked, BackboneLabeller, is_backbone
from dap.verbs.options import Machine, permitted
from dap.verbs.placing import check_results, real_of
from dap.verbs.recorded import data_of, recorded_data
from dap.workshop import Workshop

log = logging.getLogger("dap")


@permitted
def store_labels(
    made: str | Path | DistilledSet,
    out: str | Path,
    *,
    teacher: str | None,
    protocol: str | Path = "fkd-soft",
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    split: Any = None,
    asked: Asked = Asked(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Path:
    """Store a teacher's labels of every augmented batch of every epoch of a protocol.

    A protocol with stored labels, such as fkd-soft, then trains on these labels (`Judging.labels`) and needs no
    teacher. Its size, mean and standard deviation are those with which `evaluate` judges the set by these data.

    Args:
        made: the set. No image may be missing.
        out: the folder of the labels. Epochs that are there already are kept, so an interrupted call goes on.
        teacher: a file of `train_teacher`, or torchvision:NAME with its ImageNet weights. Or backbone:NAME, or a folder of
            `store_image_labels`: these label the images as they are stored, and the label of an augmented image is that of
            the image, mixed as the images are.
        protocol: the protocol that gives the augmentation and the epochs: the name of a shipped protocol, or a YAML
            file.
        epochs: the number of epochs, instead of the protocol's own.
        changes: other values of the protocol's fields.
        data: the real images that the set will be tested on. backbone:NAME needs them, and a protocol that takes its mean and
            standard deviation from the data. Default: those that the set was made of.
        split: where the splits of the real images lie, as for `evaluate`.
        asked: noise levels, real images and the limit of time, for backbone:NAME.
        machine: the device, the network and the CPU threads.
        watcher: is told of every epoch.

    Returns:
        The folder of the labels.

    Raises:
        DapError: no teacher is given, the set is not whole, the teacher does not know its classes, or the real images that
            are needed cannot be opened.
    """
    opened, by = DistilledSet.from_folder(made) if not isinstance(made, DistilledSet) else made, named(teacher)
    check_results([opened], Path(out), real_of(data, split))
    workshop = open_workshop(machine, watcher=watcher)
    chosen = label_protocol(opened, protocol, epochs, changes, data, split, workshop)
    if is_backbone(by):
        labeller, real = labeller_of(by, opened, data, split, asked, workshop)
        by = labeller(opened, real, watcher)
    return labelling.store_labels(
        opened,
        chosen,
        Path(out),
        teacher=by,
        device=str(device_of(machine.device)),
        offline=machine.offline,
        progress=lambda done, total: watcher.epoch(0, done, total),
    )


@permitted
def store_image_labels(
    made: str | Path | DistilledSet,
    out: str | Path,
    *,
    teacher: str | None,
    data: str | Path | None = None,
    split: Any = None,
    asked: Asked = Asked(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> dict[str, Any]:
    """Store one soft label for each image of a set, as it is stored: that of a classifier, or of a backbone.

    A protocol with soft labels trains on them where the folder is its teacher (`Judging.teacher`).

    Args:
        made: the set. No image may be missing.
        out: the folder of the labels: new, empty, or with labels of the same images by the same teacher, which are written again.
        teacher: backbone:NAME, a file of `train_teacher`, or torchvision:NAME.
        data: the real images, whose training part chooses the temperature of backbone:NAME. Default: those that the set was
            made of.
        split: where the splits of the real images lie, as for `evaluate`.
        asked: noise levels, real images and the limit of time, for backbone:NAME.
        machine: the device, the network, the cache and the CPU threads.
        watcher: is told of the work.

    Returns:
        How the labels were made; for a backbone its temperature, accuracy, log-likelihood and time among it.

    Raises:
        DapError: no teacher is given, the set is not whole, the teacher does not know its classes, the work would take longer
            than the limit, or the folder holds other files or other labels.
    """
    opened, by = DistilledSet.from_folder(made) if not isinstance(made, DistilledSet) else made, named(teacher)
    check_results([opened], Path(out), real_of(data, split))
    hashes = labelling.image_hashes(opened)
    if is_backbone(by):
        workshop = open_workshop(machine, watcher=watcher)
        labeller, real = labeller_of(by, opened, data, split, asked, workshop)
        planned = labeller.how(opened, real)  # a folder that must not be written over is told before the work
        check_image_labels(Path(out), labeller.name(opened), opened.class_names, hashes, planned)
        folder = labeller.folder(opened, real, watcher)
        labels, how = open_image_labels(folder, hashes, opened.class_names), how_made(folder)
    else:
        device = str(device_of(machine.device))
        classifier = load_classifier(by, opened.class_names, device, offline=machine.offline)
        how = {"classifier": classifier.fingerprint}
        check_image_labels(Path(out), classifier.name, opened.class_names, hashes, how)
        labels = labelling.labels_by(classifier, opened)
    write_image_labels(Path(out), labels, hashes, how)
    return how


def named(teacher: str | None) -> str:
    if not teacher:
        raise DapError(
            "Stored labels need a teacher: --teacher FILE of dap train-teacher, torchvision:NAME, or backbone:NAME."
        )
    return teacher


def label_protocol(
    made: DistilledSet,
    protocol: str | Path,
    epochs: int | None,
    changes: Mapping[str, Any] | None,
    data: str | Path | None,
    split: Any,
    workshop: Workshop,
) -> Protocol:
    """The protocol whose batches are labelled: that by which `evaluate` with the same flags trains.

    Where it is not known what real images the set will be tested on, the protocol keeps its own values.

    Raises:
        DapError: there is no such protocol, field or value, or the real images are needed and cannot be opened.
    """
    labelling.check_images(made)
    given = {**(changes or {})}
    chosen = open_protocol(protocol, epochs, given)
    if data is None and not recorded_data(made).get("path"):
        if takes_values(chosen, given):
            log.warning(
                "%s does not say what real images it will be tested on, so the labels are for the mean and the standard "
                "deviation of %s itself; give --data for those of your data",
                made.path, chosen.name,
            )  # fmt: skip
        return chosen
    real = data_of(made, None if data is None else str(data), split=split)
    if real.path == EMBEDDED:
        return chosen
    size = suited_size(chosen, given, real.size).get("size", chosen.size)
    return suited_protocol(protocol, epochs, given, size, lambda: source_of(workshop, real, "train", size))


def labeller_of(
    teacher: str,
    made: DistilledSet,
    data: str | Path | None,
    split: Any,
    asked: Asked,
    workshop: Workshop,
) -> tuple[BackboneLabeller, Open]:
    """What labels a set by a backbone, and the function that opens the real images of the set."""
    chosen = data_of(made, None if data is None else str(data), split=split)

    def real(split: Literal["train", "validation", "test"], size: int) -> Source:
        return workshop.source(chosen.model_copy(update={"size": size}), split)

    return BackboneLabeller(teacher, workshop, asked), real
