"""The plan for judging sets, and the objects that are loaded once to judge all sets of one data set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from typing import Protocol as Interface

from dap.base.errors import DapError
from dap.base.parsing import check_one_of
from dap.base.watch import Watcher
from dap.data.real.base import Source
from dap.data.real.names import select
from dap.data.real.stored.budget import Budget
from dap.data.real.stored.gathering import stored
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.current import hash_of
from dap.evaluation.image_labels import open_image_labels
from dap.evaluation.labelling import image_hashes
from dap.evaluation.measures.embedding import Features
from dap.evaluation.measures.inspection import Inspector
from dap.evaluation.measures.own import own_measures
from dap.evaluation.training.batches import Labelled
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.labels import Hard, ImageLabels, Soft
from dap.evaluation.training.loading import load_classifier
from dap.evaluation.training.networks.zoo import NotFetched
from dap.evaluation.training.protocol import Protocol
from dap.protocol_names import ON_VALIDATION

Open = Callable[[Literal["train", "validation", "test"], int], Source]
"""A function from a split and a size in pixels to the real images."""


class Labeller(Interface):
    """Gives soft labels to the images of sets. Judging itself does not know how."""

    def check(
        self,
        class_names: Sequence[str],
        recipe: Mapping[str, Any] | None = None,
        where: Path | None = None,
        *,
        fetch: bool = True,
    ) -> None:
        """Raise `DapError` if images of these classes cannot be labelled, or, where the folder of a set is given, those of the
        set that its recipe made. Without `fetch` nothing is fetched, and what is not on this machine is not checked."""
        ...

    def __call__(self, judged: DistilledSet, open: Open, watcher: Watcher) -> ImageLabels:
        """The labels of the images of a set. They are kept with the set's results, and computed once."""
        ...


@dataclass(frozen=True, kw_only=True)
class JudgingPlan:
    """How sets are judged.

    Attributes:
        protocol: how the networks are trained, see `evaluation.training.protocol`.
        seeds: every network is trained once with each of these seeds.
        networks: the networks to train; () for the protocol's own.
        device: where to train.
        teacher: the classifier whose labels a protocol with soft labels trains on, instead of the protocol's own
            teacher; or a folder with labels of the images, see `evaluation.image_labels`.
        labeller: labels the images of each set, in place of a classifier.
        labels: folder of the stored labels of a set, for a protocol that trains on stored labels,
            see `evaluation.labelling.store_labels`.
        offline: the weights of a teacher come from the local cache alone.
        on: "validation" tests on held-out training images, to make choices by; the test images are then not opened.
        neighbours: how many real images of a class are searched for near-copies, see `evaluation.measures.inspection`.
        measures: names of measures of one's own, as `file.py:Name`; see `evaluation.measures.own`.
        flags: the flags of a command that gives the protocol and its fields as the user did, and other data than the sets'
            own; for messages.
        budget: how much memory and disk images may take; default: memory that is free, less a reserve, and no disk.
    """

    protocol: Protocol
    seeds: Sequence[int] = (0,)
    networks: Sequence[str] = ()
    device: str = "cpu"
    teacher: str | None = None
    labeller: Labeller | None = None
    labels: Path | None = None
    offline: bool = False
    on: Literal["test", "validation"] = "test"
    neighbours: int | None = None
    measures: Sequence[str] = ()
    flags: Sequence[str] = ()
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_one_of(self.on, ("test", "validation"), "A plan of judging takes on")

    @property
    def all_networks(self) -> Sequence[str]:
        """The networks that are trained."""
        return self.networks or (self.protocol.network,)

    def named(self, protocol: str) -> str:
        """The name of a protocol in the trials of this plan. It tells choices on held-out images from tests."""
        return f"{protocol}{ON_VALIDATION}" if self.on == "validation" else protocol


class Loaded:
    """The real images and the classifiers that judging needs, loaded once for all sets of one data set.

    Args:
        plan: how to judge.
        open: opens the real images. Networks are tested on those of `plan.on`, for reporting alone; the measures
            compare with the training images.
        features: the name of the features that the measures use, and a function images -> (n, D). None leaves the
            measures out, for real images without a training part.

    Attributes:
        plan, open, features: as given.
        test: the images that networks are tested on, at the protocol's size.
        channels: the channels of the images; clips have 3 a frame.
        changed: a sentence where the set was made of other real images than these; else "". Its report repeats the sentence.
    """

    changed: str = ""

    def __init__(self, plan: JudgingPlan, open: Open, features: tuple[str, Features] | None) -> None:
        self.plan, self.open, self.features = plan, open, features
        self.test = open(plan.on, plan.protocol.size)
        self.channels = 3 * (self.test.frames or 1)
        if self.test.frames is not None and not isinstance(plan.protocol.labels, Hard):
            raise DapError(
                f"{plan.protocol.name} trains on a teacher's labels, and there is no teacher of clips; take a protocol with hard "
                "labels, such as clips-quick."
            )
        self._tensors: dict[tuple[int, bool], Labelled] = {}
        self._teachers: dict[tuple[str, ...], Classifier] = {}
        self._inspector: Inspector | None = None

    @property
    def tested(self) -> str:
        """The key "tested" of the test images. Their fingerprint says nothing of how they become square. Data that are given by
        name do so in one way, and an opened source in its own, which belongs to the key."""
        found = self.test.fingerprint(sized=False)[:16]
        return found if self.test.fit == "crop-bilinear" else hash_of([found, self.test.fit])

    def narrowed(self, network: str, seed: int) -> Loaded:
        """The same for one training alone. Both share what they load."""
        self.inspector()
        other = copy.copy(self)
        other.plan = replace(self.plan, networks=(network,), seeds=(seed,))
        return other

    def saying(self, changed: str) -> Loaded:
        """The same for a set that was made of other real images, as this sentence says. Both share what they load."""
        if not changed:
            return self
        self.inspector()
        other = copy.copy(self)
        other.changed = changed
        return other

    def tensors(self, side: int, class_names: Sequence[str]) -> Labelled:
        """The images to test on, (n, 3, side, side) uint8, and their labels (n,) in the order of these class names."""
        images, labels = self._read(side)
        return images, labels.new_tensor(select(class_names, self.test.class_names, "the set")[1])[labels]

    def _read(self, side: int, exact: bool = False) -> Labelled:
        """The images to test on and their labels, read once. With `exact`, images of more than 8 bits are float32."""
        if (side, exact) not in self._tensors:
            images, labels, whole = stored(self.open(self.plan.on, side), self.plan.budget, exact=exact)
            self._tensors[side, exact] = images, labels
            if whole:
                self._tensors[side, not exact] = images, labels
        return self._tensors[side, exact]

    def teacher(self, class_names: Sequence[str], *, fetch: bool = True) -> Classifier | None:
        """The teacher, whose logits are in the order of these names. None for a protocol that needs no teacher, or where
        `image_labels` take the teacher's place.

        Args:
            class_names: the classes.
            fetch: whether weights may be fetched. If not, a teacher whose weights are not on this machine is None.

        Raises:
            DapError: a teacher is needed and not given, or given and not needed, or does not know these classes.
        """
        plan, labels = self.plan, self.plan.protocol.labels
        if not isinstance(labels, Soft):
            if plan.teacher:
                raise DapError(f"{plan.protocol.name} trains on the set's own labels; it has no use for a teacher.")
            return None
        name, key = plan.teacher or labels.teacher, tuple(class_names)
        if name is None:
            raise DapError(f"{plan.protocol.name} trains on a teacher's labels; give one (--teacher).")
        if plan.labeller is not None:
            plan.labeller.check(class_names, fetch=fetch)
            return None
        if Path(name).is_dir():
            return None
        if key not in self._teachers:
            offline = plan.offline or not fetch
            try:
                self._teachers[key] = load_classifier(name, class_names, plan.device, offline=offline)
            except NotFetched:
                if plan.offline:
                    raise
                return None
        return self._teachers[key]

    def check_labels(self, judged: DistilledSet, *, fetch: bool = True) -> None:
        """Check that a set has the labels that the protocol trains on, or can be given them. No image is labelled.

        Args:
            judged: the set.
            fetch: whether weights may be fetched. Without them, what is not on this machine is not checked.

        Raises:
            DapError: there are no such labels, or they are of other images or classes.
        """
        soft = isinstance(self.plan.protocol.labels, Soft)
        if soft and self.plan.labeller is not None:
            self.plan.labeller.check(judged.class_names, judged.recipe or {}, judged.path, fetch=fetch)
        elif self.teacher(judged.class_names, fetch=fetch) is None and soft:
            self.image_labels(judged, Watcher())  # those of a folder, which are read

    def image_labels(self, judged: DistilledSet, watcher: Watcher) -> ImageLabels | None:
        """The labels of the images of a set; None where a classifier labels what the networks see, or the labels are hard.

        Raises:
            DapError: they cannot be made, or are of other images.
        """
        plan, labels = self.plan, self.plan.protocol.labels
        if not isinstance(labels, Soft):
            return None
        if plan.labeller is not None:
            return plan.labeller(judged, self.open, watcher)
        folder = plan.teacher or labels.teacher
        if folder is None or not Path(folder).is_dir():
            return None
        return open_image_labels(folder, image_hashes(judged), judged.class_names)

    def inspector(self) -> Inspector | None:
        """The object that measures the images of sets, or None if there are no features."""
        if self._inspector is None and self.features is not None:
            side = self.plan.protocol.size
            limit, own = self.plan.neighbours, own_measures(self.plan.measures)
            tested = functools.partial(self._read, side, exact=True)  # a set that is judged already needs none of them
            how = {"limit": limit, "own": own, "budget": self.plan.budget}
            self._inspector = Inspector(self.open("train", side), tested, self.features, **how)
        return self._inspector
