"""Minimax: a diffusion transformer is lightly fine-tuned so that its samples are representative and diverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dap.backbones.base import Backbone
from dap.backbones.finetune import (
    Tuning,
    TuningBatch,
    check_predicts_noise,
    drawn_latents,
    fine_tune,
    light,
    load_tuned,
    tuned,
)
from dap.backbones.kinds.dit import DiT
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint
from dap.methods import base
from dap.methods.base import Made, Task, Unit
from dap.methods.diffusion.vanilla import Vanilla


class MinimaxOptions(base.Options, frozen=True):
    """Defaults are the paper's."""

    epochs: int = Field(
        default=8, ge=0, description="Passes over the real images in fine-tuning. With 0 the images are vanilla's."
    )
    max_steps: int | None = Field(
        default=None,
        ge=0,
        description="End the fine-tuning after so many steps; the paper samples from its checkpoint at 12,000.",
    )
    batch: int = Field(default=8, ge=1, description="Real images in each step of the fine-tuning.")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate of AdamW, which is used without weight decay.")
    ema: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, which are sampled from. After n steps the decay is (1 + n) / (10 + "
        "n) as long as "
        "that is smaller. The authors use 0.9999 from the beginning; then the averaged weights after 12,000 steps are still "
        "0.3 of the untuned ones.",
    )
    representative: float = Field(
        default=0.002, ge=0, description="Weight lambda_r of 1 - the smallest cosine to the remembered real images."
    )
    diverse: float = Field(
        default=0.008, ge=0, description="Weight lambda_d of the largest cosine to the remembered predictions."
    )
    memory: int = Field(
        default=64, ge=1, description="How many real images and how many predictions are remembered for each class."
    )
    reals: int = Field(
        default=1300,
        ge=1,
        description="Real images of each class that are tuned on, drawn by tune_seed where there are more.",
    )
    flip: bool = Field(
        default=True,
        description="Mirror half of the images, drawn anew in each epoch; switch it off for digits and letters.",
    )
    scaled: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Part of the blocks, counted from the first one, that get the factors of DiffFit.",
    )
    together: int = Field(
        default=20,
        ge=1,
        description="How many classes are tuned together, in one phase. The authors saw more than 20 classes collapse on "
        "ImageNet.",
    )
    tune_seed: int = Field(
        default=0, description="Seed of the fine-tuning; sets of all run seeds share one fine-tuned backbone."
    )


class Minimax(Vanilla):
    r"""L = L_diffusion + lambda_r (1 - min_j cos(x0_hat, real_j)) + lambda_d max_j cos(x0_hat, predicted_j), per class.

    Only biases, norms, class embeddings and the factors of DiffFit are trained. Where the blocks of the DiT have
    equal label tables and time embedders, as in weights of the original code, the blocks share one of each. Each
    class has two memories, of real images and of earlier predictions. At every step the predicted x_0 is compared
    with both memories of its class; then the batch is added to the memories. The two terms are averaged over the
    classes in a batch, as in the authors' code. The first term takes the smallest cosine of all pairs, the second
    term the largest. The images are sampled from the averaged weights, without guidance.
    """

    needs = frozenset({"backbone", "training"})
    reference = "Gu, Vahidian, Kungurtsev, Wang, Jiang, You & Chen, CVPR 2024 (Minimax)"
    cost = "fine-tuning once a phase of classes; then vanilla's"
    Options = MinimaxOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        if self.transformer(task).denoiser.dtype != torch.float32 and task.options.epochs:
            raise DapError("Minimax fine-tunes in --dtype float32: in others its small steps are rounded away.")
        if len(task.source.class_names) > task.options.together:
            return self._by_phase(task)
        return super().prepare(task)

    @staticmethod
    def transformer(task: Task) -> DiT:
        """The backbone that is fine-tuned. Raises `DapError` where it is not a diffusion transformer that predicts noise."""
        if not isinstance(task.backbone, DiT):
            raise DapError("Minimax fine-tunes a diffusion transformer; give --backbone starter or another DiT.")
        if task.options.epochs:
            check_predicts_noise(task.backbone, "Minimax", ", or give --option epochs=0")
        return task.backbone

    def _by_phase(self, task: Task) -> Callable[[Unit], Made]:
        """A function that makes units. Each phase of classes is prepared when its first unit is made."""
        makers: dict[int, Callable[[Unit], Made]] = {}
        super().prepare(task)

        def make(unit: Unit) -> Made:
            phase = unit.label // task.options.together
            if phase not in makers:
                makers.clear()
                makers[phase] = _Phase(phase).prepare_phase(task)
            return makers[phase](unit)

        return make

    def labels(self, task: Task) -> list[int]:
        """The classes that are tuned together."""
        return list(range(len(task.source.class_names)))

    def tune(self, task: Task) -> Callable[[], Backbone] | None:
        options: MinimaxOptions = task.options
        original = self.transformer(task)
        labels = self.labels(task)
        count = sum(min(task.source.count(label), options.reals) for label in labels)
        steps = options.epochs * max(1, count // options.batch)
        steps = steps if options.max_steps is None else min(steps, options.max_steps)
        if steps == 0:
            return None
        names = [task.source.class_names[label] for label in labels]
        # The form counts changes of the fine-tuning, so that a shared cache never gives what an older version made.
        key = {
            "form": 2,
            "classes": names,
            "steps": steps,
            **options.model_dump(mode="json", exclude={"epochs", "max_steps"}),
        }
        scales = round(options.scaled * len(original.layers))

        def load() -> Backbone:
            checkpoint = task.store.checkpoint("minimax", key)
            found = task.store.get("minimax", key, lambda: train(task, original, labels, steps, scales, checkpoint))
            task.store.discard(checkpoint)
            return load_tuned(tuned(original, scales), found)

        return load


class _Phase(Minimax):
    """Minimax for the classes of one phase."""

    def __init__(self, phase: int) -> None:
        self.phase = phase

    def labels(self, task: Task) -> list[int]:
        size = task.options.together
        return super().labels(task)[self.phase * size : (self.phase + 1) * size]

    def prepare_phase(self, task: Task) -> Callable[[Unit], Made]:
        return Vanilla.prepare(self, task)


def train(
    task: Task, original: DiT, labels: list[int], steps: int, scales: int, checkpoint: Checkpoint
) -> dict[str, Tensor]:
    """Fine-tune the denoiser on the latents of these classes, and return the tuned parameters by name.

    In every epoch the images are mirrored and encoded anew: each latent is drawn from the autoencoder's distribution.

    Args:
        task: the task, with the options and the real images.
        original: the backbone, which stays as it is; a copy is tuned.
        labels: the classes.
        steps: how many steps of fine-tuning.
        scales: how many blocks, from the first one on, get the factors of DiffFit.
        checkpoint: keeps an unfinished fine-tuning.
    """
    options: MinimaxOptions = task.options
    chosen = [
        (label, index)
        for label in labels
        for index in task.source.good(
            label, options.reals, seed_of(options.tune_seed, task.source.class_names[label], "reals"), least=1
        )
    ]
    conditions = original.condition(task.source.class_names)
    per_epoch = max(1, len(chosen) // options.batch)

    def batch(step: int) -> TuningBatch:
        epoch, place = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(seed_of(options.tune_seed, "minimax", epoch))
        drawn = torch.randperm(len(chosen), generator=order)[place * options.batch : (place + 1) * options.batch]
        mine = [chosen[i] for i in drawn.tolist()]
        images = torch.cat([task.source.images(label, [index]) for label, index in mine])
        # Mirrored and encoded anew each time, as in the authors' code.
        generator = torch.Generator().manual_seed(seed_of(options.tune_seed, "minimax", "latents", step))
        if options.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        owners = [label for label, _ in mine]
        return TuningBatch(drawn_latents(original, images, generator).to(original.device), conditions[owners], owners)

    twin = tuned(original, scales)
    how = Tuning(steps, options.lr, options.tune_seed, options.ema)
    return fine_tune(
        twin,
        light(twin),
        batch,
        how,
        extra=lambda memory: Criteria(options, memory),
        checkpoint=checkpoint,
        tell=lambda done, total: task.tell("minimax: fine-tuning", done, total),
    )


class Criteria:
    """The two criteria, representative and diverse, and their memories.

    Args:
        options: weights of the criteria, and the size of the memories.
        memory: the dictionary that keeps the memories, so that a checkpoint has them. "real" and "made" hold vectors
            (n, D) of each label.
    """

    def __init__(self, options: MinimaxOptions, memory: dict[str, Any]) -> None:
        self.options = options
        self.real: dict[int, Tensor] = memory.setdefault("real", {})
        self.made: dict[int, Tensor] = memory.setdefault("made", {})

    def __call__(self, x0: Tensor, batch: TuningBatch) -> Tensor:
        total, labels = x0.new_zeros(()), torch.tensor(batch.labels)
        present = sorted(set(batch.labels))
        for label in present:
            rows = (labels == label).nonzero()[:, 0].to(x0.device)
            mine, real = x0[rows].flatten(1), batch.latents[rows].flatten(1)
            if label in self.made:
                to_real = F.cosine_similarity(mine[:, None], self.real[label].to(mine)[None], dim=2)
                to_made = F.cosine_similarity(mine[:, None], self.made[label].to(mine)[None], dim=2)
                total = total + self.options.representative * (1 - to_real.min()) / len(present)
                total = total + self.options.diverse * to_made.max() / len(present)
            for memory, new in ((self.real, real), (self.made, mine.detach())):
                kept = torch.cat([memory[label].to(new), new]) if label in memory else new
                memory[label] = kept[-self.options.memory :]
        return total
