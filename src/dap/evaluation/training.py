"""Train networks on a small set and test them: `evaluate` yields one `Trial` a seed."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dap.errors import DapError
from dap.evaluation.augment import dsa
from dap.evaluation.networks import Network, build
from dap.evaluation.protocol import Protocol

Labelled = tuple[Tensor, Tensor]
"""Images (n, c, h, w), float in [0, 1], and labels (n,), int64."""

Progress = Callable[[int, int, int], object]
"""Called after every epoch with the seed, the epochs finished and the epochs to run."""


@dataclass(frozen=True)
class Trial:
    """One network trained on one set. Accuracies are fractions."""

    protocol: str
    network: str
    seed: int
    epochs: int
    n_train: int
    n_test: int
    last: float
    """On the test set after the last epoch."""
    best: float
    """The highest of all looks, hence chosen on the test set itself."""
    headline: str
    """"last" or "best": which of the two the protocol reports."""
    curve: tuple[tuple[int, float], ...]
    """(epoch, accuracy) at every look."""
    train_last: float
    """On the training images, not augmented, after the last epoch."""
    seconds: float
    device: str
    torch: str

    @property
    def accuracy(self) -> float:
        """The headline accuracy."""
        return self.best if self.headline == "best" else self.last

    def to_json(self) -> str:
        """One line of trials.jsonl."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """The inverse of `to_json`.

        Raises:
            DapError: not JSON, or a field is missing or unknown; the message names it.
        """
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DapError(f"Not a trial, since not JSON: {line[:60]!r}.") from error
        known = {field.name for field in dataclasses.fields(cls)}
        odd = known ^ set(fields) if isinstance(fields, dict) else known
        if odd:
            raise DapError(f"Not a trial: missing or unknown fields {', '.join(sorted(odd))} in {line[:60]!r}.")
        return cls(**{**fields, "curve": tuple((epoch, value) for epoch, value in fields["curve"])})


def evaluate(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    seeds: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    network: str | None = None,
    classes: int,
) -> Iterator[Trial]:
    """Train a network on `train` for every seed and test it on `test`. Everything is checked before the first epoch.

    A trial is a function of its seed: initialisation, order and augmentation have their own generators, and torch's
    global ones are left as they were. On a CPU with the same number of threads it repeats bit for bit.

    Args:
        train: the distilled set, of any size, which is resized to the protocol's.
        test: real images, likewise.
        protocol: the recipe.
        seeds: one trial each.
        device: where to train.
        progress: told of every epoch.
        network: instead of the protocol's own.
        classes: number of labels.

    Raises:
        DapError: a set is empty, images and labels disagree, a label is outside [0, classes), there are fewer than two
            classes, images are not in [0, 1], the network is unknown; or, while it runs, the loss is no longer finite.
    """
    name = network or protocol.network
    ready = _ready(train, test, protocol, name, classes, torch.device(device))
    return (_trial(*ready, protocol, seed, name, classes, progress)[1] for seed in seeds)


def train_and_test(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    classes: int,
) -> tuple[nn.Module, Trial]:
    """One trial of `evaluate`, and its network in evaluation mode."""
    ready = _ready(train, test, protocol, protocol.network, classes, torch.device(device))
    return _trial(*ready, protocol, seed, protocol.network, classes, progress)


def fit(
    train: Labelled,
    protocol: Protocol,
    seed: int,
    *,
    network: str,
    classes: int,
    after: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A network trained by the protocol on prepared images (see `prepare`), on the device they lie on.

    `after` is called at the end of every epoch with its number and the network.

    Raises:
        DapError: the loss is no longer finite; the message names the epoch and the seed.
    """
    images, labels = train
    streams = torch.Generator().manual_seed(seed)
    of_network, of_order, of_augment = (int(s) for s in torch.randint(2**62, (3,), generator=streams))
    order, augment = torch.Generator().manual_seed(of_order), torch.Generator().manual_seed(of_augment)
    with seeded(of_network, images.device):
        net = new_network(network, protocol, images.shape[1], classes).to(images.device)
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        lr, decays = protocol.lr, protocol.decay_epochs
        optimiser = _sgd(net, protocol, lr)
        for epoch in range(protocol.first_epoch, protocol.epochs + 1):
            loss = _train_epoch(net, optimiser, images, labels, protocol, order, augment)
            if not math.isfinite(loss):
                raise DapError(
                    f"The loss became {loss} in epoch {epoch} of seed {seed} ({network}, {protocol.name}); "
                    "look at the images, or lower lr."
                )
            if epoch in decays:
                lr *= protocol.decay_factor ** decays.count(epoch)
                if protocol.decay_restarts:
                    optimiser = _sgd(net, protocol, lr)
                for group in optimiser.param_groups:
                    group["lr"] = lr
            if after is not None:
                after(epoch, net)
    return net


def prepare(images: Tensor, protocol: Protocol, device: str | torch.device = "cpu") -> Tensor:
    """Images (n, c, h, w) in [0, 1], resized to (n, c, size, size) if they are not, normalised, channels-last."""
    channels = images.shape[1]
    if len(protocol.mean) not in (1, channels):
        raise DapError(
            f"The protocol {protocol.name} has {len(protocol.mean)} means, but the images have {channels} channels."
        )
    if images.shape[2:] != (protocol.size, protocol.size):
        shape = (protocol.size, protocol.size)
        parts = [F.interpolate(part, shape, mode="bilinear", antialias=True) for part in images.float().split(500)]
        images = torch.cat(parts)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (protocol.mean, protocol.std))
    return ((images.to(device, torch.float32) - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def in_slices(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function` of prepared images (n, c, h, w), a slice at a time, without gradients."""
    parts = images.split(_slice_size(images))
    return torch.cat([function(part.contiguous(memory_format=torch.channels_last)) for part in parts])


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of prepared images (n, c, h, w) whose label (n,) is predicted; leaves the network in evaluation mode."""
    net.eval()
    predicted = in_slices(lambda part: net(part).argmax(1), images)
    return (predicted == labels).sum().item() / len(labels)


def check_labelled(what: str, labelled: Labelled, classes: int) -> None:
    """Raises DapError unless images (n, c, h, w) are float in [0, 1] and labels (n,) are int64 in [0, classes)."""
    images, labels = labelled
    if classes < 2:
        raise DapError(f"A classifier needs at least 2 classes, not {classes}.")
    if images.ndim != 4 or not images.is_floating_point():
        shape = tuple(images.shape)
        raise DapError(f"The images of the {what} should be float (n, c, h, w), but are {images.dtype} {shape}.")
    if not len(images):
        raise DapError(f"The {what} is empty.")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        shape = tuple(labels.shape)
        raise DapError(f"The {what} has {len(images)} images, but labels {labels.dtype} {shape} instead of int64 (n,).")
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise DapError(f"The {what} has labels {low} to {high}, but {classes} classes allow 0 to {classes - 1}.")
    darkest, brightest = (float(v) for v in images.aminmax())
    if not (darkest >= -1e-3 and brightest <= 1 + 1e-3):  # so phrased that NaN is caught too
        raise DapError(f"The images of the {what} should be in [0, 1], but go from {darkest:.3g} to {brightest:.3g}.")


def new_network(name: str, protocol: Protocol, channels: int, classes: int) -> nn.Module:
    """A fresh network as the protocol wants it (image size, norm, width), of any name."""
    size, norm, width = protocol.size, protocol.norm, protocol.width
    return build(name, channels=channels, classes=classes, size=size, norm=norm, width=width)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside, and put them back afterwards."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _ready(
    train: Labelled, test: Labelled, protocol: Protocol, name: str, classes: int, device: torch.device
) -> tuple[Labelled, Labelled]:
    check_labelled("training set", train, classes)
    check_labelled("test set", test, classes)
    channels = train[0].shape[1]
    if test[0].shape[1] != channels:
        raise DapError(f"The training images have {channels} channels and the test images {test[0].shape[1]}.")
    with seeded(0, device):  # an unknown or unfit network shows here, not after an hour
        new_network(name, protocol, channels, classes)
    (images, labels), (test_images, test_labels) = train, test
    ready = prepare(images, protocol, device), labels.to(device)
    return ready, (prepare(test_images, protocol, device), test_labels.to(device))


def _trial(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    seed: int,
    name: str,
    classes: int,
    progress: Progress | None,
) -> tuple[nn.Module, Trial]:
    began = time.perf_counter()
    first = protocol.first_epoch
    curve: list[tuple[int, float]] = []

    def after(epoch: int, net: nn.Module) -> None:
        if epoch in protocol.look_epochs:
            curve.append((epoch, accuracy(net, *test)))
        if progress is not None:
            progress(seed, epoch - first + 1, protocol.epochs - first + 1)

    net = fit(train, protocol, seed, network=name, classes=classes, after=after)
    trial = Trial(
        protocol=protocol.name,
        network=name,
        seed=seed,
        epochs=protocol.epochs,
        n_train=len(train[0]),
        n_test=len(test[0]),
        last=curve[-1][1],
        best=max(value for _, value in curve),
        headline=protocol.score,
        curve=tuple(curve),
        train_last=accuracy(net, *train),
        seconds=round(time.perf_counter() - began, 3),
        device=str(train[0].device),
        torch=str(torch.__version__),
    )
    return net, trial


def _train_epoch(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    order: torch.Generator,
    augment: torch.Generator,
) -> float:
    """One pass in a random order; returns the mean loss of an image."""
    net.train()
    total = torch.zeros((), device=images.device)
    for chosen in torch.randperm(len(images), generator=order).to(images.device).split(protocol.batch):
        x, y = images[chosen], labels[chosen]
        if protocol.augment == "dsa":
            x = dsa(x, augment, protocol.operations)
        optimiser.zero_grad()
        # The gradient of a batch is the sum over its slices, whose activations stay in the processor's cache.
        size = _slice_size(x) if isinstance(net, Network) and net.per_image else len(x)
        for part, target in zip(x.split(size), y.split(size), strict=True):
            logits = net(part.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, target, reduction="sum")
            (loss / len(x)).backward()
            total += loss.detach()
        optimiser.step()
    return total.item() / len(images)


def _sgd(net: nn.Module, protocol: Protocol, lr: float) -> torch.optim.SGD:
    momentum, weight_decay = protocol.momentum, protocol.weight_decay
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def _slice_size(images: Tensor) -> int:
    """How many images to pass at once: on a CPU 16 of 32 px, since 128 channels of more overflow its cache."""
    pixels = 2**14 if images.device.type == "cpu" else 2**22
    return max(1, pixels // (images.shape[2] * images.shape[3]))
