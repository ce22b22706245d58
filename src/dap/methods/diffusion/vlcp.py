"""VLCP: image-to-image from prototypes of the class in latent space. Each prototype has the caption of its cluster."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dap import imagenet, sampling
from dap.backbones.base import Backbone
from dap.backbones.finetune import Tuning, TuningBatch, check_predicts_noise, fine_tune, load_tuned, tuned
from dap.backbones.kinds.unet import UNet
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint
from dap.methods import base
from dap.methods.base import Made, Task, Unit
from dap.methods.diffusion.latents import class_latents, duplicates_told
from dap.methods.diffusion.vanilla import Vanilla

CLIP = 1.0
"""The largest norm of a gradient in the fine-tuning, as in the authors' code."""


class VlcpOptions(base.Options, frozen=True):
    """Defaults are the authors' for ImageNet, except for the guidance scale and the negative prompt."""

    strength: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Which part of the run is done. The prototype is noised to the level where this part begins. With 1 "
        "the whole run "
        "is done without the prototype.",
    )
    text: Literal["prototype", "class"] = Field(
        default="prototype",
        description="prototype: each slot's own caption is the prompt. class: the class's prompt, as everywhere else; with "
        "strength 1 and epochs 0 the images are vanilla's.",
    )
    reals: int = Field(
        default=1300,
        ge=1,
        description="Captioned images of each class that are clustered and tuned on; all images of a smaller class.",
    )
    neighbours: int = Field(default=10, ge=1, description="Neighbours that the local outlier factor looks at.")
    outliers: float = Field(
        default=0.1, ge=0, le=0.5, description="Part of the images left out as outliers; the authors have 0 on CIFAR."
    )
    common: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Words that occur in this part of the captions of the class, or more, are not counted, because they "
        "do not tell "
        "clusters apart. The authors' script for CIFAR has 0.3.",
    )
    words: int = Field(default=30, ge=1, description="Most frequent words of a cluster that captions are scored by.")
    epochs: int = Field(
        default=8, ge=0, description="Passes over the captioned images that fine-tune the U-Net. 0 takes it as it is."
    )
    lr: float = Field(
        default=1e-5, gt=0, description="Of AdamW; the authors have weight decay 0.01 with it, here there is none."
    )
    batch: int = Field(default=32, ge=1, description="Images a step; in the authors' README 8, added up 4 times.")
    ema: float = Field(default=0.9999, ge=0, lt=1, description="Decay of the averaged weights, which are sampled from.")
    flip: bool = Field(
        default=True, description="Mirror half of the images tuned on; switch it off for digits and letters."
    )
    tune_seed: int = Field(
        default=0, description="Seed of the fine-tuning; sets of all run seeds share one fine-tuned backbone."
    )


class Vlcp(Vanilla):
    """Samples that start from the k-means centres of a class's latents, with the caption that fits each cluster best.

    The words of a cluster's captions are counted. Stop words (`STOP`), the words of the class's name, and words that
    most captions of the class have are not counted. The score of a caption is the sum of the counts of the cluster's
    most frequent words that the caption has. The caption with the highest score is the prompt of the slot; of captions
    with equal scores, the caption of the image nearest to the centre. Whole words are compared; the authors' code finds
    "art" in "cart". Only captioned images take part. The manifest has the prompt of each slot.

    First the U-Net is fine-tuned on the captioned images, and a tenth of the captions is dropped (the authors drop
    none). A text encoder reads a caption only up to its limit, 77 tokens in Stable Diffusion; the authors encode
    longer captions in pieces. The authors have --cfg 10 and --negative-prompt "cartoon, anime, painting"; here the
    defaults are the backbone card's. The embedded starter-unet knows only the names of its classes. It spells other
    words letter by letter, with 14 tokens in all, and without fine-tuning these words are noise to it. So on
    starter-unet the method only shows that it runs.
    """

    needs = frozenset({"backbone", "captions", "training"})
    reference = "Zou, Li, Su, Wang, Yu & Zhang, ICCV 2025 (VLCP)"
    cost = "a caption for every image; fine-tuning once; encoding and clustering; 0.7 of a vanilla sample"
    Options = VlcpOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        options: VlcpOptions = task.options
        task.backbone.prompt(["a photo"])  # raises if the backbone understands labels alone
        for label, name in enumerate(task.source.class_names):
            captioned = min(len(self.captioned(task, label)), options.reals)
            if captioned - math.ceil(options.outliers * captioned) < task.recipe.ipc:
                raise DapError(
                    f"{task.recipe.ipc} clusters of class {name!r} need as many captioned images; {captioned} take part, and "
                    f"outliers {options.outliers} of them are left out. Caption more, raise reals, or lower ipc."
                )
        make = super().prepare(task)

        def told(unit: Unit) -> Made:
            made, prompts = make(unit), self.batch(task, unit.label, unit.slots).prompts
            if prompts is None:
                return made
            return replace(made, records=[{**r, "prompt": p} for r, p in zip(made.records, prompts, strict=True)])

        return told

    def captioned(self, task: Task, label: int) -> list[int]:
        """Indices of the class's images that have a caption."""
        keys = task.source.keys(label, range(task.source.count(label)))
        return [index for index, key in enumerate(keys) if key in task.captions]

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start] | None:
        options: VlcpOptions = task.options
        if options.strength == 1:
            return None
        steps = task.recipe.sampling.steps

        def begin(batch: sampling.Batch) -> sampling.Start:
            (label,) = set(batch.labels)
            return sampling.Start.at(self.prototypes(task, label)["x"][list(batch.slots)], options.strength, steps)

        return begin

    def batch(self, task: Task, label: int, slots: tuple[int, ...]) -> sampling.Batch:
        batch = super().batch(task, label, slots)
        if task.options.text == "class":
            return batch
        indices = self.prototypes(task, label)["caption"][list(slots)].tolist()
        return replace(batch, prompts=tuple(task.captions[key] for key in task.source.keys(label, indices)))

    def prototypes(self, task: Task, label: int) -> dict[str, Tensor]:
        """The prototypes of a class, one for each slot.

        Returns:
            "x" (ipc, C, *spatial), the centres of the clusters, and "caption" (ipc,), the indices of the images whose
            captions are the prompts.
        """
        options: VlcpOptions = task.options
        name = task.source.class_names[label]
        used = options.model_dump(include={"reals", "neighbours", "outliers", "common", "words"})
        key = {"class": name, "ipc": task.recipe.ipc, "seed": task.recipe.seed, **used}
        key["stop words"] = "NLTK's"  # earlier versions took a longer list, and "men's" was no word
        return task.store.get(f"prototypes of {name}", key, lambda: self._prototypes(task, label))

    def _prototypes(self, task: Task, label: int) -> dict[str, Tensor]:
        from sklearn.cluster import KMeans

        options: VlcpOptions = task.options
        name, ipc = task.source.class_names[label], task.recipe.ipc
        indices, latents = class_latents(task, name, options.reals, among=self.captioned(task, label))
        rows = inliers(latents.flatten(1), options.neighbours, options.outliers)
        if len(rows) < ipc:
            raise DapError(
                f"{ipc} clusters of class {name!r} need as many images, and {len(rows)} are left without the broken ones and "
                "the outliers. Repair or caption more, or lower ipc or outliers."
            )
        points = latents[rows].flatten(1)
        seed = seed_of(task.recipe.seed, name, "k-means") % 2**32
        with duplicates_told(points, ipc, name):
            found = KMeans(ipc, random_state=seed, n_init=10).fit(points.numpy())  # pyright: ignore[reportArgumentType]
        centres = torch.from_numpy(found.cluster_centers_).float()
        said = [task.captions[key] for key in task.source.keys(label, [indices[row] for row in rows])]
        members = [by_distance(points, centres[k], found.labels_ == k) for k in range(ipc)]
        captions = [[said[i] for i in mine] for mine in members]
        best = text_prototypes(captions, imagenet.name_of(name), options.words, options.common)
        chosen = [indices[rows[mine[place]]] for mine, place in zip(members, best, strict=True)]
        return {"x": centres.view(-1, *latents.shape[1:]), "caption": torch.tensor(chosen)}

    def tune(self, task: Task) -> Callable[[], Backbone] | None:
        options: VlcpOptions = task.options
        original = task.backbone
        if options.epochs == 0:
            return None
        if not isinstance(original, UNet) or original.denoiser.dtype != torch.float32:
            raise DapError(
                "VLCP fine-tunes Stable Diffusion's U-Net in --dtype float32; with another backbone or dtype give --option "
                "epochs=0."
            )
        check_predicts_noise(original, "VLCP", ", or give --option epochs=0")
        unet = original
        key: dict[str, Any] = {
            "classes": list(task.source.class_names),
            **options.model_dump(include={"epochs", "lr", "batch", "ema", "flip", "tune_seed", "reals"}),
        }

        def load() -> Backbone:
            checkpoint = task.store.checkpoint("vlcp", key)
            found = task.store.get("vlcp", key, lambda: self._train(task, unet, checkpoint))
            task.store.discard(checkpoint)
            return load_tuned(tuned(unet), found)

        return load

    def _train(self, task: Task, original: UNet, checkpoint: Checkpoint) -> dict[str, Tensor]:
        options: VlcpOptions = task.options
        twin = tuned(original)
        batch, a_pass = self.passes(task, twin)
        return fine_tune(
            twin,
            [name for name, _ in twin.denoiser.named_parameters()],
            batch,
            Tuning(options.epochs * a_pass, options.lr, options.tune_seed, options.ema, CLIP),
            checkpoint=checkpoint,
            tell=lambda done, total: task.tell("vlcp: fine-tuning", done, total),
        )

    def passes(self, task: Task, twin: Backbone) -> tuple[Callable[[int], TuningBatch], int]:
        """A function from a step to its batch, and how many steps one pass over the images takes.

        A batch has the latents and the captions of random images of all classes.
        """
        options: VlcpOptions = task.options
        source, captions = task.source, task.captions
        pairs: list[tuple[int, int]] = []
        for label, name in enumerate(source.class_names):
            pool = self.captioned(task, label)
            order = torch.Generator().manual_seed(seed_of(options.tune_seed, name, "reals"))
            pairs += [(label, pool[i]) for i in torch.randperm(len(pool), generator=order)[: options.reals].tolist()]
        a_pass = max(1, len(pairs) // options.batch)

        def batch(step: int) -> TuningBatch:
            epoch, place = divmod(step, a_pass)
            order = torch.Generator().manual_seed(seed_of(options.tune_seed, "vlcp", epoch))
            chosen = torch.randperm(len(pairs), generator=order)[place * options.batch : (place + 1) * options.batch]
            images, texts, labels = [], [], []
            for label, index in (pairs[i] for i in chosen.tolist()):
                kept, image = source.readable(label, [index])
                if kept:
                    images.append(image)
                    texts += [captions[key] for key in source.keys(label, kept)]
                    labels.append(label)
            if not images:  # all are broken; `readable` ends a run with too many broken images
                return batch(step + 1)
            pixels = torch.cat(images)
            if options.flip:
                sides = torch.Generator().manual_seed(seed_of(options.tune_seed, "flip", step))
                mirrored = torch.rand(len(pixels), 1, 1, 1, generator=sides) < 0.5
                pixels = torch.where(mirrored, pixels.flip(3), pixels)
            told = twin.prompt([*texts, ""]) if twin.card.negative_prompt else twin.prompt(texts)
            null = told[-1:].expand(len(texts)) if twin.card.negative_prompt else None
            return TuningBatch(twin.encode(pixels.to(twin.device)), told[: len(texts)], labels, null)

        return batch, a_pass


def inliers(points: Float[Tensor, "n d"], neighbours: int, outliers: float) -> list[int]:
    """The rows, ascending, that are no outliers by the local outlier factor (LOF, Breunig et al. 2000).

    Args:
        points: the points.
        neighbours: how many neighbours of a point the factor looks at.
        outliers: the part of the points that are outliers.
    """
    from sklearn.neighbors import LocalOutlierFactor

    if not outliers or len(points) < 3:
        return list(range(len(points)))
    count = min(neighbours, len(points) - 1)
    found = LocalOutlierFactor(n_neighbors=count, contamination=outliers)  # pyright: ignore[reportArgumentType]
    return (found.fit_predict(points.numpy()) == 1).nonzero()[0].tolist()


def by_distance(points: Float[Tensor, "n d"], centre: Float[Tensor, " d"], mine: Any) -> list[int]:
    """The rows of a cluster, the row nearest to the centre first. For an empty cluster, the nearest row of all points.

    Args:
        points: all points.
        centre: centre of the cluster.
        mine: for each row, whether the row belongs to the cluster.
    """
    order = (points - centre).norm(dim=1).argsort(stable=True).tolist()
    return [row for row in order if mine[row]] or order[:1]


_FUNCTION = """
a about above after again against all am an and any are as at be because been before being below between both but
by can did do does doing down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other
our ours ourselves out over own same she should so some such than that the their theirs them themselves then there
these they this those through to too under until up very was we were what when where which while who whom why will
with you your yours yourself yourselves
"""
STOP = frozenset(_FUNCTION.split())
"""English words that are not counted: the whole words of the list in NLTK, which the authors' code takes. Numbers and
words of place, such as "two" or "behind", are not among them."""


def words_of(text: str) -> list[str]:
    """The words of a text in small letters. A token with a digit or a hyphen inside is not a word.

    Of "men's" the word is "men", and of "don't" it is "do", as NLTK parts them.
    """
    tokens = re.findall(r"\w+(?:['-]\w+)*", text.lower().replace("’", "'"))
    whole = [re.sub(r"(?:n't|'(?:d|ll|m|re|s|ve))$", "", token) for token in tokens]
    return [token for token in whole if token.isalpha()]


def text_prototypes(clusters: Sequence[Sequence[str]], class_name: str, words: int, common: float) -> list[int]:
    """For each cluster, the position of the caption with the highest score.

    The score of a caption is the sum of the counts of the cluster's most frequent words that the caption has. Of
    captions with equal scores the first is taken.

    Args:
        clusters: the captions of each cluster, at least one.
        class_name: the words of this name are not counted.
        words: how many of a cluster's most frequent words count.
        common: words that this part of all captions has, or a larger part, are not counted.
    """
    everything = [set(words_of(caption)) for cluster in clusters for caption in cluster]
    having = Counter(word for caption in everything for word in caption)
    dropped = {word for word, count in having.items() if count >= common * len(everything)}
    dropped |= STOP | set(words_of(class_name.replace("_", " ")))
    best = []
    for cluster in clusters:
        counted = Counter(word for caption in cluster for word in words_of(caption) if word not in dropped)
        weights = dict(counted.most_common(words))
        scores = [sum(weights.get(word, 0) for word in set(words_of(caption))) for caption in cluster]
        best.append(scores.index(max(scores)))
    return best
