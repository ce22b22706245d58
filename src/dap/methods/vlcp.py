"""VLCP: image-to-image from prototypes of the class, each with the caption that describes its cluster best."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from dap import sampling
from dap.backbones.base import Backbone
from dap.backbones.finetune import Batch, Tuning, fine_tune, load_tuned, tuned
from dap.backbones.unet import UNet
from dap.errors import DapError
from dap.imagenet import spoken
from dap.methods import base
from dap.methods.base import Made, Task, Unit
from dap.methods.latents import class_latents
from dap.methods.vanilla import Vanilla
from dap.seeding import seed_of

NEIGHBOURS = 10
"""Of the local outlier factor."""
FREQUENT = 30
"""Words of a cluster that its caption is chosen by."""
COMMON = 0.7
"""A word in so large a part of the class's captions tells its clusters not apart."""


class VlcpOptions(base.Options):
    """Defaults are the paper's, its guidance scale and negative prompt aside: --cfg 10 and --negative-prompt."""

    strength: float = Field(
        default=0.7, gt=0, le=1, description="Part of the run that is done, from the noised prototype."
    )
    reals: int = Field(default=1300, ge=1, description="Captioned real images a class that are clustered.")
    outliers: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Part of them that is left out as outliers; the paper: 0 on small images.",
    )
    epochs: int = Field(
        default=8, ge=0, description="Of fine-tuning the U-Net on the captioned images; 0 leaves it alone."
    )
    max_steps: int | None = Field(default=None, ge=0, description="End the fine-tuning after so many steps.")
    batch: int = Field(default=32, ge=1, description="Captioned images a step.")
    lr: float = Field(default=1e-5, gt=0, description="Of AdamW.")
    ema: float = Field(default=0.9999, ge=0, lt=1, description="Decay of the averaged weights that are sampled from.")
    tune_seed: int = Field(default=0, description="Of the fine-tuning, which sets of all run seeds share.")


class Vlcp(Vanilla):
    """Of each class k-means centres of its latents without outliers; each is noised and denoised with its cluster's caption.

    The caption is the one of the cluster that has most of the words that are frequent in it and do not belong to the class
    as a whole. The paper first fine-tunes Stable Diffusion on the captioned images, as is done here.
    """

    needs = frozenset({"backbone", "captions", "training"})
    reference = "Zou et al., ICCV 2025 (VLCP), as described in secondary sources; its code was not to be had"
    cost = "captions of the real images; fine-tuning once; encoding and clustering; 0.7 of a vanilla sample"
    Options = VlcpOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        backbone, options, captions = task.backbone, task.options, task.captions
        assert backbone is not None and captions is not None
        backbone.prompt(["a caption"])  # a backbone that takes labels says so here
        if options.epochs and not (isinstance(backbone, UNet) and backbone.prediction_type == "epsilon"):
            raise DapError(
                f"VLCP fine-tunes a Stable Diffusion that predicts noise; {backbone.card.name} is another. Give --option "
                "epochs=0 to sample from it as it is."
            )
        for label, name in enumerate(task.source.class_names):
            among = min(len(self._captioned(task, label)), options.reals)
            left = among - int(among * options.outliers)
            if left < task.recipe.ipc:
                raise DapError(
                    f"{task.recipe.ipc} prototypes of class {name!r} cannot be made of {left} captioned images (outliers aside)."
                )
        return super().prepare(task)

    def batch(self, task: Task, label: int, slots: tuple[int, ...]) -> sampling.Batch:
        name = task.source.class_names[label]
        texts = self._found(task, name)["captions"]
        chosen = [bytes(texts[slot].tolist()).decode().rstrip("\0") for slot in slots]
        return replace(super().batch(task, label, slots), prompts=tuple(chosen))

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start]:
        assert task.recipe.sampling is not None
        steps = task.recipe.sampling.steps

        def begin(batch: sampling.Batch) -> sampling.Start:
            (name,) = {batch.class_names[label] for label in batch.labels}
            return sampling.Start.at(self._found(task, name)["x"][list(batch.slots)], task.options.strength, steps)

        return begin

    def tune(self, task: Task) -> Callable[[], Backbone] | None:
        options, original, captions = task.options, task.backbone, task.captions
        assert captions is not None
        chosen = [(label, i) for label in range(len(task.source.class_names)) for i in self._captioned(task, label)]
        steps = options.epochs * (len(chosen) // options.batch)
        steps = steps if options.max_steps is None else min(steps, options.max_steps)
        if steps == 0:
            return None
        assert isinstance(original, UNet)
        key = {"steps": steps, **options.model_dump(mode="json", include={"batch", "lr", "ema", "tune_seed"})}

        def train() -> dict[str, Tensor]:
            latents, texts = [], []
            for label in range(len(task.source.class_names)):
                indices = self._captioned(task, label)
                name = task.source.class_names[label]
                kept, found = class_latents(task, name, len(indices), seed=options.tune_seed, among=indices)
                latents.append(found)
                texts += [captions[caption] for caption in task.source.keys(label, kept)]
            everything = torch.cat(latents)
            per_epoch = max(1, len(everything) // options.batch)

            def batch(step: int) -> Batch:
                epoch, place = divmod(step, per_epoch)
                order = torch.Generator().manual_seed(seed_of(options.tune_seed, "vlcp", epoch))
                rows = torch.randperm(len(everything), generator=order)[place * options.batch :][: options.batch]
                given = original.prompt([texts[row] for row in rows.tolist()])
                return Batch(everything[rows].to(original.device), given, ())

            twin = tuned(original)
            names = [name for name, _ in twin.denoiser.named_parameters()]
            checkpoint = task.store.checkpoint("vlcp", key)
            made = fine_tune(
                twin,
                names,
                batch,
                Tuning(steps, options.lr, options.tune_seed, options.ema),
                checkpoint=checkpoint,
                tell=lambda done, total: task.tell("vlcp: fine-tuning", done, total),
            )
            task.store.discard(checkpoint)
            return made

        return lambda: load_tuned(tuned(original), task.store.get("vlcp", key, train))

    def _captioned(self, task: Task, label: int) -> list[int]:
        assert task.captions is not None
        keys = task.source.keys(label, range(task.source.count(label)))
        return [index for index, key in enumerate(keys) if key in task.captions]

    def _found(self, task: Task, name: str) -> dict[str, Tensor]:
        """Prototypes "x" (ipc, C, *spatial) of a class, and their "captions" as bytes."""
        options = task.options
        wanted = options.model_dump(mode="json", include={"reals", "outliers"})
        key = {"class": name, "ipc": task.recipe.ipc, "seed": task.recipe.seed, **wanted}
        return task.store.get(f"prototypes of {name}", key, lambda: self._cluster(task, name))

    def _cluster(self, task: Task, name: str) -> dict[str, Tensor]:
        from sklearn.cluster import KMeans
        from sklearn.neighbors import LocalOutlierFactor

        options, label, captions = task.options, task.source.class_names.index(name), task.captions
        assert captions is not None
        indices, latents = class_latents(task, name, options.reals, among=self._captioned(task, label))
        texts = [captions[key] for key in task.source.keys(label, indices)]
        points = latents.flatten(1).numpy()
        if options.outliers:
            found = LocalOutlierFactor(min(NEIGHBOURS, len(points) - 1), contamination=options.outliers)
            inside = found.fit_predict(points) == 1
            points, texts = points[inside], [text for text, keep in zip(texts, inside, strict=True) if keep]
        ipc, seed = task.recipe.ipc, seed_of(task.recipe.seed, name, "k-means") % 2**32
        means = KMeans(ipc, n_init=10, random_state=seed).fit(points)  # pyright: ignore[reportArgumentType]
        chosen = []
        for k in range(ipc):
            rows = (means.labels_ == k).nonzero()[0]
            chosen.append(text_prototype([texts[row] for row in rows], texts, name).encode())
        longest = max(map(len, chosen))
        codes = torch.tensor([list(text.ljust(longest, b"\0")) for text in chosen], dtype=torch.uint8)
        prototypes = torch.from_numpy(means.cluster_centers_).float().view(ipc, *latents.shape[1:])
        return {"x": prototypes, "captions": codes}


def text_prototype(cluster: Sequence[str], everything: Sequence[str], class_name: str) -> str:
    """The caption of a cluster that has most of its most frequent words; of equal ones the first.

    Args:
        cluster: its captions, at least one.
        everything: the captions of the whole class.
        class_name: whose own words do not count, nor those in at least 70 % of the class's captions.
    """
    own, sets = words(spoken(class_name)) | words(class_name), [words(text) for text in everything]
    times = Counter(word for found in sets for word in found)
    common = {word for word, n in times.items() if n >= COMMON * len(sets)}
    inside = [words(text) - own - common for text in cluster]
    counts = Counter(word for found in inside for word in found)
    frequent = {word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:FREQUENT]}
    best = max(range(len(cluster)), key=lambda i: len(inside[i] & frequent))
    return cluster[best]


def words(text: str) -> set[str]:
    """The words of a text in small letters."""
    return set(re.findall(r"[^\W_]+", text.lower()))
