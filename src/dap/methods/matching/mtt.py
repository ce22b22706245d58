"""MTT: a network trained on the synthetic images should move like a network trained on the real images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint
from dap.evaluation.training.augment import Operation, dsa
from dap.evaluation.training.fitting import seeded
from dap.evaluation.training.networks import build
from dap.methods.base import Task, check_compared
from dap.methods.matching.base import ALL, Matching, MatchingOptions, Run


class MttOptions(MatchingOptions, frozen=True):
    """Defaults are the paper's, where the paper has one value for all data sets.

    `start`, `ahead` and `steps` are those of the command in the authors' README, which is for CIFAR-100 and ipc 1.
    """

    iterations: int = Field(
        default=5000, ge=0, description="Steps of the optimiser on the pixels; the paper has 5,000."
    )
    lr_images: float = Field(
        default=1000.0, gt=0, description="Step size on pixels; the paper's 1,000 goes with its thousands of steps."
    )
    experts: int = Field(default=100, ge=1, description="Networks trained on the real images; the paper has 100.")
    expert_epochs: int = Field(default=50, ge=1, description="Training epochs of each expert; the paper has 50.")
    expert_images: int | None = Field(
        default=None,
        ge=1,
        description="Real images of each class that an expert is trained on, drawn for each expert anew. Default: all, "
        "as in the paper.",
    )
    expert_seed: int = Field(default=0, description="Seed of the experts; sets of all run seeds share them.")
    lr_expert: float = Field(
        default=0.01,
        gt=0,
        description="Learning rate of the experts, which are trained by SGD without momentum in batches of 256.",
    )
    start: int = Field(
        default=19,
        ge=0,
        description="Last epoch of an expert at which a match begins. The authors' --max_start_epoch is one more.",
    )
    ahead: int = Field(default=3, ge=1, description="How many epochs of the expert the student should cover.")
    steps: int = Field(default=20, ge=1, description="Training steps of the student on synthetic images in each match.")
    batch: int | None = Field(
        default=None,
        ge=1,
        description="Synthetic images in each step of the student. Memory grows with it: at 32 px some 4 MB for each "
        "image and step. "
        "Default: all.",
    )
    lr_student: float = Field(
        default=0.01, gt=0, description="Learning rate of the student at the beginning; the method learns it."
    )
    lr_lr: float = Field(
        default=1e-5, ge=0, description="Step size with which the learning rate of the student is learned."
    )
    augment: tuple[Operation, ...] = Field(
        default=ALL, description="Augmentation of experts and students; [] for none."
    )


class Mtt(Matching):
    r"""Minimises ||student_N - expert_{t+M}||^2 / ||expert_t - expert_{t+M}||^2 over pixels and student's step size.

    The student starts at the expert's weights of epoch t and takes N steps on the synthetic images. The gradient goes
    through all these steps. The experts are trained here, once for all sets that share a cache. The paper first whitens
    colour images (ZCA). Images are not whitened here, because a set holds images.
    """

    reference = "Cazenavette, Wang, Torralba, Efros & Zhu, CVPR 2022 (MTT)"
    cost = "training the experts on real data; the graph of all student steps in memory"
    bounded = None  # its first iterations train the experts
    Options = MttOptions

    def check(self, task: Task) -> None:
        check_compared(task)
        options: MttOptions = task.options
        if options.start + options.ahead > options.expert_epochs:
            raise DapError(
                f"A match that begins at epoch {options.start} and goes {options.ahead} ahead needs experts of "
                f"{options.start + options.ahead} epochs, not {options.expert_epochs}; give --option expert_epochs or start."
            )

    def form(self, task: Task) -> dict[str, str]:
        size = len(task.source.class_names) * task.recipe.ipc
        batch = task.options.batch or size
        return (
            {"batches": "the last first"} if batch < size else {}
        )  # earlier versions began with the first of a shuffle

    def step(self, run: Run, iteration: int) -> Iterator[None]:
        options: MttOptions = run.task.options
        generator = run.generator("match", iteration)
        chosen = int(torch.randint(options.experts, (), generator=generator))
        begin = int(torch.randint(options.start + 1, (), generator=generator))
        path = trajectory(run, options, chosen)
        first, target = path[begin].to(run.device), path[begin + options.ahead].to(run.device)
        network = run.network("shape")
        if "lr" not in run.also:
            start = {"lr": options.lr_student, "velocity": 0.0}
            run.also = {name: torch.tensor(value, device=run.device) for name, value in start.items()}
        pixels, lr = run.pixels.detach().requires_grad_(), run.also["lr"].detach().requires_grad_()
        loss = unrolled(network, first, target, pixels, run.labels, lr, options, run, iteration)
        by_pixels, by_lr = torch.autograd.grad(loss, (pixels, lr))
        run.descend(by_pixels)
        velocity = options.momentum * run.also["velocity"] + by_lr
        # The step size stays above zero, because a student with step size zero does not move.
        run.also = {"lr": (run.also["lr"] - options.lr_lr * velocity).clamp_min(1e-6), "velocity": velocity}
        yield


def unrolled(
    network: nn.Module,
    first: Tensor,
    target: Tensor,
    pixels: Tensor,
    labels: Tensor,
    lr: Tensor,
    options: MttOptions,
    run: Run,
    iteration: int,
) -> Tensor:
    """||student - target||^2 / ||first - target||^2 after the student's steps; differentiable in pixels and lr.

    Batches smaller than the set are cut from one shuffle until all images were seen, the last batch of the shuffle
    first, as in the authors' code. So where the batches are not equal, the smaller one comes first.

    Args:
        network: gives the shape of the student.
        first: flat parameters (P,) at which the student starts.
        target: flat parameters (P,) of the expert, `ahead` epochs later.
        pixels: all synthetic images, normalised.
        labels: their labels.
        lr: step size of the student.
        options: `steps`, `batch` and `augment`.
        run: gives the generators.
        iteration: the iteration that the random numbers are drawn for.
    """
    student, left = first.clone().requires_grad_(), []
    for step in range(options.steps):
        generator = run.generator("student", iteration, step)
        images, wanted = pixels, labels
        if options.batch is not None and options.batch < len(pixels):
            left = left or list(torch.randperm(len(pixels), generator=generator).split(options.batch))
            mine = left.pop()
            images, wanted = pixels[mine], labels[mine]
        if options.augment:
            images = dsa(images, generator, options.augment)
        images = images.contiguous(memory_format=torch.channels_last)
        logits = functional_call(network, unflat(network, student), (images,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, wanted), student, create_graph=True)
        student = student - lr * gradient
    return (student - target).square().sum() / (first - target).square().sum()


def trajectory(run: Run, options: MttOptions, k: int) -> Tensor:
    """Flat parameters (epochs + 1, P) of expert k: before the training and after every epoch. The store keeps them."""
    names = (
        "network", "width", "norm", "grey", "expert_epochs", "expert_images", "expert_seed", "lr_expert", "augment",
    )  # fmt: skip
    key = {"expert": k, **options.model_dump(mode="json", include=set(names))}
    store = run.task.store
    checkpoint = store.checkpoint(f"expert {k} half", key)
    made = store.get(f"expert {k}", key, lambda: {"path": train_expert(run, options, k, checkpoint)})
    store.discard(checkpoint)
    return made["path"]


def train_expert(run: Run, options: MttOptions, k: int, checkpoint: Checkpoint) -> Tensor:
    """Train expert k on the real images, on the run's device, and return its parameters as `trajectory` does.

    SGD without momentum has no state. So a resumed training needs only the parameters up to the last epoch.
    """
    seed = seed_of(options.expert_seed, "expert", k)
    drawn, labels = [], []
    for label, name in enumerate(run.task.source.class_names):
        rows = run.reals.rows(label)
        generator = torch.Generator().manual_seed(seed_of(seed, "images", name))
        mine = rows[torch.randperm(len(rows), generator=generator)[: options.expert_images]]
        drawn.append(mine)
        labels += [label] * len(mine)
    rows, targets = torch.cat(drawn), torch.tensor(labels)
    with seeded(seed, torch.device("cpu")):
        network = build(
            options.network,
            channels=run.reals.channels,
            classes=run.n_classes,
            size=run.task.source.size,
            norm=options.norm,
            width=options.width,
        )
    network.to(run.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.SGD(network.parameters(), lr=options.lr_expert)
    path = [flat(network).cpu()]
    if (state := checkpoint.read()) is not None:
        path = list(state["path"])
        load_flat(network, path[-1])
    for epoch in range(len(path) - 1, options.expert_epochs):
        generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
        for chosen in torch.randperm(len(rows), generator=generator).split(256):
            batch = run.reals.normalise(run.reals.taken(rows[chosen]).to(run.device).float() / 255)
            batch = dsa(batch, generator, options.augment) if options.augment else batch
            optimiser.zero_grad()
            logits = network(batch.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, targets[chosen].to(run.device)).backward()
            optimiser.step()
        path.append(flat(network).cpu())
        run.task.tell(f"expert {k}", epoch + 1, options.expert_epochs)
        if checkpoint.due:
            checkpoint.write({"path": torch.stack(path)})
    return torch.stack(path)


def flat(network: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@torch.no_grad()
def load_flat(network: nn.Module, vector: Tensor) -> None:
    """Copy one vector into a network's parameters in place, so each parameter keeps its memory and its layout."""
    parts = unflat(network, vector)
    for name, parameter in network.named_parameters():
        parameter.copy_(parts[name])


def unflat(network: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The parameters of a network by name, as parts of one vector."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    parts = zip(network.named_parameters(), vector.split(sizes), strict=True)
    return {name: part.view(parameter.shape) for (name, parameter), part in parts}
