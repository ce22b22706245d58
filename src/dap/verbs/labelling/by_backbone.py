"""Soft labels by a backbone: what its diffusion classifier believes of each image of a set; see `dap.posterior`.

The labels are those of the images as they are stored. A label of each augmented image would take a pass of the backbone for
every class, noise level, image and epoch. So they are computed once for each set, and kept in `labels` among its results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.hub import to_download
from dap.backbones.schedules import steps_of
from dap.base.errors import DapError
from dap.base.files import same_place
from dap.base.permission import refuse_code
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.base.watch import Watcher
from dap.data.real.base import Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.image_labels import (
    holds_image_labels,
    image_labels,
    open_image_labels,
    write_image_labels,
)
from dap.evaluation.labelling import image_hashes
from dap.evaluation.plan import Open
from dap.evaluation.training.labels import ImageLabels
from dap.posterior import BATCH, Levels, fitted_temperature, gaps, log_likelihood, usual_levels
from dap.recipe import BackboneChoice
from dap.workshop import Workshop

log = logging.getLogger("dap")

PREFIX = "backbone:"
"""What the name of a teacher begins with that is a backbone."""

LONG = 600
"""Seconds from which on the expected time is said before the work."""


@dataclass(frozen=True)
class Asked:
    """How images are labelled.

    Attributes:
        levels: the noise levels; None for `usual_levels`.
        reals: how many real training images the temperature is chosen and tested on, of all classes together.
        hours: the longest time that a set may take. What would take longer is refused before the work.

    Raises:
        DapError: there are fewer than two real images.
    """

    levels: Levels | None = None
    reals: int = 200
    hours: float = 24.0

    def __post_init__(self) -> None:
        if self.reals < 2:
            raise DapError(
                f"The temperature of labels needs at least 2 real images, not {self.reals}; give more --reals."
            )


def is_backbone(teacher: str | None) -> bool:
    """Whether the name of a teacher is that of a backbone."""
    return teacher is not None and teacher.startswith(PREFIX)


@dataclass(frozen=True)
class BackboneLabeller:
    """Labels the images of sets by a backbone. It is a `dap.evaluation.plan.Labeller`.

    Args:
        teacher: "backbone:NAME", with a name as in a recipe; "backbone:" is the backbone that made each set.
        workshop: loads the backbone.
        asked: how images are labelled.
        known: keeps what was found of real images, for further sets of the same data.
    """

    teacher: str
    workshop: Workshop
    asked: Asked = Asked()
    known: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def check(
        self,
        class_names: Sequence[str],
        recipe: Mapping[str, Any] | None = None,
        where: Path | None = None,
        *,
        fetch: bool = True,
    ) -> None:
        """Load the backbone, and raise `DapError` if there is none or it does not know these classes. See `Labeller.check`."""
        name = self.teacher.removeprefix(PREFIX)
        if where is None and not name:
            return  # each set will have its own
        choice = BackboneChoice(path=name) if where is None else self._choice(recipe or {}, where)
        remote = not fetch and not self.workshop.offline
        if remote and to_download(choice.path, choice.revision, offline=True) is not None:
            return
        self.workshop.backbone(choice).condition(class_names)

    def __call__(self, judged: DistilledSet, open: Open, watcher: Watcher = Watcher()) -> ImageLabels:
        """The labels of the images of a set; arguments and errors as of `folder`. The watcher is told of new ones."""
        folder = self.folder(judged, open, watcher, watcher.note)
        return open_image_labels(folder, image_hashes(judged), judged.class_names)

    def folder(
        self,
        judged: DistilledSet,
        open: Open,
        watcher: Watcher = Watcher(),
        told: Callable[[str], object] = lambda text: None,
    ) -> Path:
        """The folder with the labels of a set, among its results. They are made where they are not there already.

        Args:
            judged: the set.
            open: opens the real images; those of "train" choose the temperature.
            watcher: is told how many pairs of image and class are done.
            told: is called with the `summary` of labels that were made just now.

        Raises:
            DapError: the set is not whole, the backbone does not know its classes, or the work would take too long.
        """
        backbone, levels, real = self._ready(judged, open)
        how, folder = self.place(judged, backbone, levels, real)
        if not holds_image_labels(folder):
            unfinished = judged.results / ".labels"
            store = Store(self.workshop.cache or unfinished, how, cache=self.workshop.cache)
            work = _Work(backbone, levels, watcher, store, self.known)
            found, facts = work.labels(judged, real, self.asked)
            labels = image_labels(self.name(judged), judged.class_names, found, facts["accuracy"])
            write_image_labels(folder, labels, image_hashes(judged), {**how, **facts})
            told(summary({**how, **facts}))
            for left in unfinished.glob("*") if unfinished.is_dir() else ():
                left.unlink()
            if unfinished.is_dir():
                unfinished.rmdir()
        return folder

    def name(self, judged: DistilledSet) -> str:
        """The name of the backbone that labels a set, as its labels say it."""
        return f"{PREFIX}{self.choice(judged).path}"

    def how(self, judged: DistilledSet, open: Open) -> dict[str, Any]:
        """What the labels of a set depend on, before any image is labelled; arguments and errors as of `folder`."""
        return self.place(judged, *self._ready(judged, open))[0]

    def _ready(self, judged: DistilledSet, open: Open) -> tuple[Backbone, Levels, Source]:
        """The backbone, the noise levels and the real images for the labels of a set, which are checked."""
        judged.check_whole(decode=False)
        backbone = self.workshop.backbone(self.choice(judged))
        backbone.condition(judged.class_names)
        levels = self.asked.levels or usual_levels(len(judged.class_names))
        return backbone, levels, open("train", backbone.card.size)

    def place(
        self, judged: DistilledSet, backbone: Backbone, levels: Levels, real: Source
    ) -> tuple[dict[str, Any], Path]:
        """What the labels of a set depend on, and the folder among its results that such labels have."""
        choice = self.choice(judged)
        how: dict[str, Any] = {
            "backbone": choice.path,
            "weights": self.workshop.weights_hash(backbone),
            **backbone.card.prompts,
            **asdict(levels),
            "reals": self.asked.reals,
            "data": self.workshop.fingerprint(real),
            "classes": list(judged.class_names),
        }
        hashes = image_hashes(judged)
        mark = hashlib.sha256(json.dumps([how, hashes], sort_keys=True).encode()).hexdigest()[:8]
        folder = judged.results / "labels" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', Path(choice.path).name)[:40]}-{mark}"
        return how, folder

    def choice(self, judged: DistilledSet) -> BackboneChoice:
        """The backbone that labels a set. Where it made the set too, it is loaded as it was then.

        Raises:
            DapError: no backbone is named, and none made the set.
        """
        return self._choice(judged.recipe or {}, judged.path)

    def _choice(self, recipe: Mapping[str, Any], where: Path) -> BackboneChoice:
        """The backbone for the set in a folder, by the values of the recipe that made it."""
        name, recorded = self.teacher.removeprefix(PREFIX), recipe.get("backbone") or {}
        if name and not same_place(str(recorded.get("path")), name):
            return BackboneChoice(path=name)
        if not recorded:
            raise DapError(
                f"{where} was made without a backbone; name the one that labels it: --teacher backbone:NAME."
            )
        if not name:
            refuse_code(recorded, where / "recipe.json")
        return BackboneChoice(**{**recorded, **({"path": name} if name else {})})


@dataclass(frozen=True)
class _Work:
    """The work on one set."""

    backbone: Backbone
    levels: Levels
    watcher: Watcher
    store: Store
    known: dict[str, Tensor]

    def labels(self, judged: DistilledSet, real: Source, asked: Asked) -> tuple[Tensor, dict[str, Any]]:
        """The logits (n, classes) of the images of a set, and how they were found."""
        began, names = time.monotonic(), judged.class_names
        used = [
            {str(line.get("real")) for line in judged.records if line["label"] == label} for label in range(len(names))
        ]
        drawn = draw(real, names, asked.reals, used)
        images = len(judged.records) + len(drawn)
        passes = images * self.levels.passes(len(names))
        self._check_time(passes, asked.hours)
        known = torch.tensor([label for label, _ in drawn])
        pictures = torch.cat([image for _, image in drawn])
        mark = json.dumps([_sha256(pictures), self.store.inputs], sort_keys=True)
        if mark not in self.known:
            self.known[mark] = self._gaps("real", pictures, names)
        of_reals = self.known[mark]
        fit, test = slice(0, None, 2), slice(1, None, 2)  # halves of every class, because `draw` goes class by class
        temperature = fitted_temperature(of_reals[fit], known[fit])
        unit = 1 / torch.Size(self.backbone.latent_shape).numel()  # of Li et al., the squared norm
        told = {
            "temperature": temperature,
            "accuracy": (of_reals.argmin(1) == known).double().mean().item(),
            "fitted_on": len(known[fit]),
            "tested_on": len(known[test]),
            "log_likelihood": log_likelihood(of_reals[test], known[test], temperature),
            "log_likelihood_at_unit_weights": log_likelihood(of_reals[test], known[test], unit),
        }
        pictures, labels = judged.tensors(self.backbone.card.size)
        found = torch.empty(len(labels), len(names), dtype=torch.float64)
        for label in labels.unique().tolist():
            mine = labels == label
            found[mine] = self._gaps(f"{judged.path.name} {names[label]}", pictures[mine], names)
        told["agreement"] = (found.argmin(1) == labels).double().mean().item()
        told |= {"passes": passes, "seconds": round(time.monotonic() - began, 2)}
        return (-found / temperature).float(), told

    def _gaps(self, what: str, images: Tensor, names: Sequence[str]) -> Tensor:
        def make() -> dict[str, Tensor]:
            backbone = self.backbone
            latents = torch.cat([backbone.encode(part.to(backbone.device)) for part in images.split(BATCH)])
            return {"x": gaps(backbone, latents, names, self.levels, tell=lambda *done: self.watcher.work(what, *done))}

        return self.store.get("posterior", {"what": what, "images": _sha256(images)}, make)["x"]

    @torch.no_grad()
    def _check_time(self, passes: int, hours: float) -> None:
        """Say how long the work will take, by the time of one batch.

        Raises:
            DapError: it takes longer than these hours.
        """
        backbone, n = self.backbone, min(BATCH, passes)
        x, condition = torch.zeros(n, *backbone.latent_shape, device=backbone.device), backbone.null(n)
        seconds = 0.0
        for _ in range(2):  # the first pass is slower
            began = time.monotonic()
            backbone.predict(x, steps_of(backbone.schedule) // 2, condition).eps.sum().item()
            seconds = (time.monotonic() - began) / n * passes
        said = f"{passes:,} passes of {backbone.card.name}, about {seconds / 3600:.1f} hours on {backbone.device}"
        if seconds > hours * 3600:
            raise DapError(
                f"Labels of these images take {said}, and the limit is {hours:g} hours. Make them by dap export SET --layout "
                "labels with fewer --times, with --keep 100,10 or with a larger --most-hours."
            )
        if seconds > LONG:
            log.warning("labels by the backbone take %s", said)


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def summary(how: Mapping[str, Any]) -> str:
    """In a sentence how labels were made and what they are worth, from the `how` of their folder."""
    return (
        f"Labels by {how['backbone']}: its diffusion classifier is right on {how['accuracy']:.1%} of "
        f"{how['fitted_on'] + how['tested_on']} real training images. At the temperature {how['temperature']:.3g} the mean "
        f"log-likelihood of {how['tested_on']} others than those that chose it is {how['log_likelihood']:.3f}; at "
        f"1 / D, the squared norm, it is {how['log_likelihood_at_unit_weights']:.3f}. "
        f"The images of the set are what they are labelled in {how['agreement']:.1%}. "
        f"{how['passes']:,} passes took {how['seconds']:.0f} s."
    )


def draw(real: Source, names: Sequence[str], n: int, used: Sequence[set[str]]) -> list[tuple[int, Tensor]]:
    """Real images and their labels: n in all, as evenly over the classes as they go, none of which is in the set.

    Args:
        real: the real training images.
        names: the classes of the set; a label is a position among them.
        n: how many images, fewer where the classes are small.
        used: for each label the keys of the real images that are in the set.

    Returns:
        Pairs of a label and an image (1, 3, size, size), class by class.

    Raises:
        DapError: no image is left.
    """
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed_of(0, "posterior"))).tolist()
    found: list[tuple[int, Tensor]] = []
    for place, label in enumerate(order):
        wanted = n // len(names) + (place < n % len(names))
        own = real.class_names.index(names[label])
        seed = seed_of(0, names[label], "posterior")
        indices = real.good(own, wanted + len(used[label]), seed, least=0) if wanted else []
        kept = [i for i, key in zip(indices, real.keys(own, indices), strict=True) if key not in used[label]][:wanted]
        found += [(label, image[None]) for image in real.images(own, kept)]
    if len(found) < 2:
        raise DapError(f"{real.name} has too few images that are not in the set, so the labels' temperature is open.")
    return sorted(found, key=lambda one: one[0])
