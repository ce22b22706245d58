"""`dap classify`: the diffusion classifier. It takes the class under which a backbone predicts an image's noise best.

See `dap.posterior` for the paper and its equation. The classifier answers two questions. On real images it measures how well
a backbone tells the classes apart; DAP's features rest on this. On a distilled image it shows whether the backbone itself
sees the image's label in the image.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.files import check_output
from dap.base.parsing import counted
from dap.base.permission import refuse_code
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.base.watch import Watcher
from dap.data.real.sources import Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.current import hash_of, joined, key_of, same_note
from dap.evaluation.labelling import even, labels_of
from dap.posterior import Levels, errors
from dap.recipe import BackboneChoice
from dap.verbs.distill import open_workshop
from dap.verbs.options import Machine, permitted
from dap.verbs.placing import check_no_other_set, place, places, real_of
from dap.verbs.recorded import data_of, recorded_data
from dap.verbs.report import opened_sets
from dap.workshop import Workshop

NOTE = "zeroshot.json"
"""The file in a set's folder that holds the classifier's result."""


def agreement(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """The fraction, in [0, 1], of predictions that equal their labels."""
    return sum(p == q for p, q in zip(predicted, labels, strict=True)) / len(labels)


@dataclass(frozen=True)
class ZeroShot:
    """Uses a backbone as the classifier of distilled sets, and measures the backbone's own accuracy on real images.

    Args:
        backbone: the classifier.
        weights: the backbone's `weights_hash`.
        levels: the noise levels and the seed of the noises.
        reals: how many real test images of each class measure the backbone's accuracy. A smaller class gives all it
            has.
        store: keeps the result of every finished class, so that a killed run goes on.
        tell: is called with the name of the images at work, the number of pairs of image and class done, and the number
            of all pairs.
    """

    backbone: Backbone
    weights: str
    levels: Levels = field(default_factory=Levels)
    reals: int = 50
    store: Store = field(default_factory=Store)
    tell: Callable[[str, int, int], object] = lambda what, done, total: None

    def __call__(self, judged: DistilledSet, real: Source, known: Sequence[DistilledSet] = ()) -> dict[str, Any]:
        """Classify the images of a set, and write the result to `zeroshot.json` in the folder of the set's results.

        A result that the file already holds for the same inputs is not computed again. The accuracy on the same real
        images is also taken from the file of a set in `known`.

        Args:
            judged: the set. A label in the file is a position among the set's classes.
            real: test images at the backbone's size, with the set's classes in the set's order.
            known: other sets whose files may hold the accuracy on the same real images.

        Returns:
            The content of `zeroshot.json`: the accuracy on real images, the agreement of the set, and each image's
            prediction.

        Raises:
            DapError: the set is not whole or has one class, or the backbone does not know its classes.
        """
        names = judged.class_names
        _check_set(judged)
        self.backbone.condition(names)  # an unknown class raises here, before the real images are read
        how = {"weights": self.weights, "classes": names, **self.backbone.card.prompts, **asdict(self.levels)}
        of_real = {**how, "reals": self.reals, "data": real.fingerprint()}
        of_set = {**how, "images": [record["sha256"] for record in judged.records]}
        if not even(judged):  # else the order of the images and the classes say the labels
            of_set["labels"] = labels_of(judged)
        before = judged.noted(NOTE) or {}
        keys = {"judged": joined(key_of(of_set["images"]), hash_of(of_set)), "tested": hash_of(of_real)}
        mine = same_note(before.get("judged"), keys["judged"])
        if mine and before.get("tested") == keys["tested"]:
            return before
        notes = [before, *(other.noted(NOTE) or {} for other in known)]
        shared = [note["real"] for note in notes if note.get("tested") == keys["tested"]]
        tested = shared[0] if shared else self._real(real, of_real)
        if mine:
            found: dict[str, Any] = {name: before[name] for name in ("agreement", "seconds", "images")}
        else:
            found = self._set(judged, of_set)
        about = {"backbone": self.backbone.card.name, **asdict(self.levels), "real": tested}
        judged.note(NOTE, {**about, **found, **keys})
        return judged.noted(NOTE)

    def _real(self, real: Source, key: dict[str, Any]) -> dict[str, Any]:
        predicted: list[int] = []
        labels: list[int] = []
        seconds = 0.0
        for label, name in enumerate(real.class_names):
            chosen = real.good(label, self.reals, seed_of(self.levels.seed, "zero-shot", name), least=1)
            said, spent = self._told(f"real {name}", real.images(label, chosen), real.class_names, {**key, "of": name})
            predicted, labels, seconds = predicted + said, labels + [label] * len(chosen), seconds + spent
        return {"accuracy": agreement(predicted, labels), "images": len(labels), "seconds": round(seconds, 2)}

    def _set(self, judged: DistilledSet, key: dict[str, Any]) -> dict[str, Any]:
        images, labels = judged.tensors(self.backbone.card.size)
        listed: list[dict[str, Any]] = []
        seconds = 0.0
        for label, name in enumerate(judged.class_names):
            mine = [record for record in judged.records if record["label"] == label]
            if not mine:
                continue
            what = f"{judged.path.name} {name}"
            said, spent = self._told(what, images[labels == label], judged.class_names, {**key, "of": name})
            seconds += spent
            for record, predicted in zip(mine, said, strict=True):
                listed.append({part: record[part] for part in ("label", "slot", "path")} | {"predicted": predicted})
        right = agreement([line["predicted"] for line in listed], [line["label"] for line in listed])
        return {"agreement": right, "seconds": round(seconds, 2), "images": listed}

    def _told(self, what: str, images: Tensor, names: Sequence[str], key: dict[str, Any]) -> tuple[list[int], float]:
        """The predicted labels of images of one class, and the seconds that the predictions took."""

        def make() -> dict[str, Tensor]:
            began = time.monotonic()
            latents = self.backbone.encode(images.to(self.backbone.device))
            found = errors(self.backbone, latents, names, self.levels, tell=lambda *done: self.tell(what, *done))
            return {"errors": found, "seconds": torch.tensor(time.monotonic() - began)}

        kept = self.store.get("zeroshot", {"key": hash_of(key), "what": what}, make)
        return kept["errors"].argmin(1).tolist(), kept["seconds"].item()


def _check_set(judged: DistilledSet) -> None:
    """Raise `DapError` if the images of a set cannot be classified: the set is not finished, or has one class."""
    names = judged.class_names
    if len(names) == 1:
        raise DapError(
            f"{judged.path} has one class, {names[0]}, so no answer could be wrong; take a set of two or more."
        )
    if (judged.path / "classes.json").is_file() and judged.missing():
        raise DapError(f"{judged.path} still lacks {counted(len(judged.missing()), 'image')}; finish it first.")


def judges_of(
    opened: Sequence[DistilledSet],
    workshop: Workshop,
    backbone: str | Backbone | None,
    data: str | Path | Source | None,
    max_bad_fraction: float | None,
    split: Any,
) -> list[tuple[Backbone, Source]]:
    """For each set the backbone that classifies its images, and the real test images; see `classify`. All sets are checked."""
    recipes = [made.recipe or {} for made in opened]
    for made, recipe in zip(opened, recipes, strict=True):
        _check_set(made)
        if backbone is None and not recipe.get("backbone"):
            raise DapError(f"{made.path} was made without a backbone; say which one should classify: --backbone NAME.")
        if data is None and not recorded_data(made).get("path"):
            raise DapError(f"{made.path} does not say what real images belong to it; give --data.")
        refuse_code({} if backbone else recipe["backbone"], made.path / "recipe.json")
    ready: list[tuple[Backbone, Source]] = []
    for made, recipe in zip(opened, recipes, strict=True):
        if isinstance(backbone, Backbone):
            judge_by = backbone
        else:
            choice = BackboneChoice(path=backbone) if backbone else BackboneChoice(**recipe["backbone"])
            judge_by = workshop.backbone(choice)
        if isinstance(data, Source):
            real = data
        else:
            chosen = data_of(made, None if data is None else str(data), max_bad_fraction, split)
            real = workshop.source(chosen.model_copy(update={"size": judge_by.card.size}), "test")
        judge_by.condition(made.class_names)  # an unknown class raises here
        ready.append((judge_by, real))
    return ready


@permitted
def classify(
    sets: Sequence[str | Path | DistilledSet] | str | Path | DistilledSet,
    *,
    backbone: str | Backbone | None = None,
    data: str | Path | Source | None = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    out: str | Path | None = None,
    reals: int = 50,
    levels: Levels = Levels(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> dict[Path, dict[str, Any]]:
    """Let a backbone predict the class of each image of some sets, and measure how often it is right on real test images.

    Args:
        sets: distilled sets, folders that hold distilled sets, or folders of class folders.
        backbone: the name of a backbone as in a recipe, or a loaded backbone. Default: the backbone that made each set.
        data: the real images: a name, a folder, or opened test images at the backbone's size. Default: those of each set.
        classes: for folders that others made, the class folders in label order, or the name of a subset of ImageNet.
        max_bad_fraction: the largest fraction of the real images that may be broken. Default: that of each set's recipe.
        split: where the test images lie, as `data.split` of a recipe: "test=FOLDER". Default: what each set's recipe says.
        out: a folder. The results of sets that do not lie in it are kept there, in `judged`, and nothing is written beside the
            sets. Default: beside each set of this library; those of a folder that others made are kept in NAME-judged in the
            current folder.
        reals: how many real test images of each class are used. A smaller class gives all it has.
        levels: the noise levels and the seed of the noises.
        machine: the device, the network, the cache and the CPU threads.
        watcher: is told how many pairs of image and class are done.

    Returns:
        By the folder of each set's results, the content of its `zeroshot.json`. "agreement" is the fraction of the set's images
        to which the backbone gives their own label. "real" is the accuracy on real test images. "images" is the
        prediction for each image.

    Raises:
        DapError: a set does not say which backbone made it and no backbone is given, a set does not say which data it was
            made of and no data are given, or a folder cannot be written. `ZeroShot` says what else raises.
    """
    workshop = open_workshop(machine, watcher=watcher)
    opened = opened_sets(sets, classes)
    where = None if out is None else Path(out)
    check_no_other_set(opened, where)  # before a backbone is loaded
    for folder in places(opened, where):
        check_output(folder)
    ready = judges_of(opened, workshop, backbone, data, max_bad_fraction, split)
    place(opened, where, real_of(data, split))  # after what can be refused, so that a wrong turn leaves no folder
    unfinished = opened[0].results / ".zeroshot"
    store = Store(machine.cache or unfinished, cache=machine.cache)
    found: dict[Path, dict[str, Any]] = {}
    for made, (judge_by, real) in zip(opened, ready, strict=True):
        judge = ZeroShot(judge_by, str(workshop.weights_hash(judge_by)), levels, reals, store, watcher.work)
        found[made.results] = judge(made, real, opened)
    shutil.rmtree(unfinished, ignore_errors=True)
    return found
