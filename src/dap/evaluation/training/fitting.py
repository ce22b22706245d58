"""Training one network by a protocol. An interrupted training continues from its checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dap.base.alone import alone
from dap.base.errors import DapError, first_line
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint
from dap.evaluation.training.batches import Images, slice_size
from dap.evaluation.training.in_step import Group, held_back
from dap.evaluation.training.labels import ClassifierLike, Hard, ImageLabels, Loss, hard_loss, mixed_weights, soft_loss
from dap.evaluation.training.networks import Network, build
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.transforms import run, split, unnormalised

log = logging.getLogger("dap")


TrainingBatch = tuple[Tensor, Loss]
"""Images (n, c, h, w) as the network sees them, and their loss."""

Replay = Callable[[int], Iterator[TrainingBatch]]
"""A function from an epoch, counted from 0, to its batches, which a training takes instead of its own."""

After = Callable[[int, nn.Module], None]
"""Called at the end of every epoch with its number and the network."""


class Training:
    """One network in training; `epochs` runs the training.

    Everything random is a function of the seed: initialisation, order and augmentation have their own generators.
    """

    def __init__(
        self,
        train: Images,
        protocol: Protocol,
        seed: int,
        *,
        network: str,
        channels: int,
        classes: int,
        teacher: ClassifierLike | ImageLabels | None = None,
        replay: Replay | None = None,
        weights: Tensor | None = None,
        group: Group | None = None,
    ) -> None:
        """
        Args:
            train: images after the fixed steps of the protocol's `train`.
            protocol: a settled protocol.
            seed: seed of everything random.
            network: the network to train instead of the protocol's own.
            channels: channels of the images.
            classes: number of labels.
            teacher: the classifier that gives soft labels, or the labels of the images.
            replay: for stored labels: the batches of each epoch.
            weights: (n,), by which the losses of the images are multiplied; None: by nothing. A replay has its own.
            group: the processes that train this network in step; None: this process alone.
        """
        self.train, self.protocol, self.network, self.classes = train, protocol, network, classes
        self.seed = seed
        self.device = train.labels.device
        self.teacher, self.replay, self.group = teacher, replay, group
        self.weights = None if weights is None else weights.to(self.device)
        streams = torch.Generator().manual_seed(seed)
        of_network, of_order, of_augment = (int(s) for s in torch.randint(2**62, (3,), generator=streams))
        self.order, self.augment = (torch.Generator().manual_seed(s) for s in (of_order, of_augment))
        self._global = of_network
        self.steps = split(protocol.train_steps)[1]
        with seeded(of_network, self.device):
            self.net = new_network(network, protocol, channels, classes).to(self.device)
            if all(part.ndim < 5 for part in self.net.parameters()):
                self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self._global_state = _generators(self.device)
        self._trained = self.net if group is None else group.wrapped(self.net)
        self.per_image = isinstance(self.net, Network) and self.net.per_image
        self.optimiser = self._new_optimiser(protocol.lr)
        self.epoch = protocol.first_epoch - 1
        """The number of the last epoch that is done."""

    def epochs(self, after: After | None = None) -> nn.Module:
        """Run all epochs that are still to do, and return the network.

        Raises:
            DapError: the loss is no longer finite; the message names the epoch and the seed.
        """
        decays = self.protocol.decay_epochs
        with seeded(self._global, self.device):
            _set_generators(self._global_state, self.device)
            for epoch in range(self.epoch + 1, self.protocol.epochs + 1):
                lr = self.protocol.lr_at(epoch)
                if self.protocol.decay_restarts and epoch - 1 in decays:
                    self.optimiser = self._new_optimiser(lr)
                for group in self.optimiser.param_groups:
                    group["lr"] = lr
                loss = self._epoch(epoch)
                if not math.isfinite(loss):
                    raise DapError(
                        f"The loss became {loss} in epoch {epoch} of seed {self.seed} ({self.network}, "
                        f"{self.protocol.name}); look at the images, or lower lr."
                    )
                self.epoch = epoch
                self._global_state = _generators(self.device)
                if after is not None:
                    after(epoch, self.net)
        return self.net

    def state(self) -> dict[str, Any]:
        """Everything that is needed to continue; it holds tensors, numbers and names alone."""
        return {
            "epoch": self.epoch,
            "network": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "order": self.order.get_state(),
            "augment": self.augment.get_state(),
            "global": self._global_state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` gave."""
        self.epoch = state["epoch"]
        self.net.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.order.set_state(state["order"])
        self.augment.set_state(state["augment"])
        self._global_state = state["global"]

    def _epoch(self, epoch: int) -> float:
        """One pass over the images; returns the mean loss of an image."""
        total, seen = torch.zeros((), device=self.device), 0
        dtype, wanted = torch.bfloat16, self.protocol.precision == "bfloat16"
        self.net.train()
        if self.group is not None:
            self.augment.manual_seed(seed_of(self.seed, "augment", epoch, self.group.number))
        for x, loss_of in self._batches(epoch):
            if self.protocol.extra_forward:  # here, so that batches of stored labels get it too
                with torch.no_grad():
                    self.net(x)
            self.optimiser.zero_grad()
            whole = float(len(x)) if self.group is None else self._count(len(x)) / self.group.of
            # The gradient of a batch is the sum over its slices, whose activations stay in the processor's cache.
            height, width = x.shape[-2:]
            size = slice_size(height, width, self.device) if self.per_image else len(x)
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                with held_back(self._trained, last=start + size >= len(x)):
                    with torch.autocast(self.device.type, dtype, enabled=wanted):
                        logits = self._trained(x[part].contiguous(memory_format=torch.channels_last))
                    loss = loss_of(logits.float(), part)
                    (loss / whole).backward()
                total += loss.detach()
            self.optimiser.step()
            seen += len(x)
        if self.group is not None:
            total, seen = self.group.summed(total, self.device), self._count(seen)
            self.group.same_buffers(self.net)
        return total.item() / seen

    def _count(self, mine: int) -> int:
        """The sum of a number of images over the processes of the group."""
        assert self.group is not None
        return int(self.group.summed(torch.tensor(mine), self.device).item())

    def _new_optimiser(self, lr: float) -> torch.optim.Optimizer:
        protocol = self.protocol
        decayed, free = [], []
        for name, parameter in self.net.named_parameters():
            matrix = parameter.ndim > 1 and name.endswith("weight")
            whole = protocol.weight_decay_on == "all" or matrix
            (decayed if whole else free).append(parameter)
        groups = [{"params": decayed, "weight_decay": protocol.weight_decay}]
        groups += [{"params": free, "weight_decay": 0.0}] if free else []
        if protocol.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=protocol.betas, fused=True)
        return torch.optim.SGD(groups, lr=lr, momentum=protocol.momentum, fused=True)

    def _batches(self, epoch: int) -> Iterator[TrainingBatch]:
        protocol = self.protocol
        if self.replay is not None:
            yield from self.replay(epoch - protocol.first_epoch)
            return
        parts = torch.randperm(len(self.train), generator=self.order).to(self.device).split(protocol.batch)
        if self.group is not None:
            parts = [part[self.group.part(len(part))] for part in parts]
        for chosen, taken in zip(parts, self.train.in_parts(parts), strict=True):
            x, y = run(self.steps, taken, self.augment), self.train.labels[chosen]
            partner, share = None, 1.0
            if protocol.mix is not None:
                drawn = protocol.mix.draw(len(x), *x.shape[2:], self.augment)
                x, partner, share = (
                    protocol.mix.apply(x, drawn),
                    drawn["partner"].to(self.device),
                    protocol.mix.share(drawn),
                )
            weights = mixed_weights(self.weights, chosen, partner, share)
            if isinstance(protocol.labels, Hard):
                yield x, hard_loss(y, y[partner] if partner is not None and share < 1 else None, share, weights)
                continue
            assert self.teacher is not None
            if isinstance(self.teacher, ImageLabels):
                said = self.teacher.logits(chosen, partner, share)
            else:
                said = self.teacher.logits(unnormalised(protocol.train_steps, x))
            yield x, soft_loss(said, protocol.labels.temperature, weights)


def fit(
    train: Images,
    protocol: Protocol,
    seed: int,
    *,
    network: str,
    channels: int,
    classes: int,
    **options: Any,
) -> nn.Module:
    """A network trained by a settled protocol in one sitting; arguments as of `Training`."""
    training = Training(train, protocol, seed, network=network, channels=channels, classes=classes, **options)
    return training.epochs()


def run_with_checkpoint(
    training: Training, checkpoint: Checkpoint | None, after: After, notes: dict[str, Any]
) -> nn.Module:
    """Run `training.epochs` from the checkpoint on, if there is one, and write the checkpoint from time to time.

    Args:
        training: a fresh training.
        checkpoint: where the unfinished training is kept; None keeps nothing.
        after: as in `epochs`; called before a checkpoint is written.
        notes: JSON values and tensors that are kept in the checkpoint with the training, and updated from it at the
            start.
    """
    if checkpoint is not None and (found := checkpoint.read()) is not None:
        try:
            training.restore(found["training"])
            notes.update(found["notes"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DapError(
                f"{checkpoint.path} does not hold this training ({first_line(error)}). Delete it, and the training starts anew."
            ) from error
    began, before, written = time.perf_counter(), notes.get("seconds", 0.0), time.perf_counter()

    def kept(epoch: int, net: nn.Module) -> None:
        nonlocal written
        after(epoch, net)
        notes["seconds"] = before + time.perf_counter() - began
        writes = training.group is None or training.group.number == 0
        if checkpoint is not None and writes and time.perf_counter() - written >= checkpoint.every:
            checkpoint.write({"training": training.state(), "notes": notes})
            written = time.perf_counter()

    return training.epochs(kept)


def new_network(name: str, protocol: Protocol, channels: int, classes: int) -> nn.Module:
    """A fresh network of any name, with the image size, norm and width of the protocol."""
    size, norm, width = protocol.size, protocol.norm, protocol.width
    return build(name, channels=channels, classes=classes, size=size, norm=norm, width=width)


def check_last_batch(name: str, protocol: Protocol, channels: int, classes: int, images: int) -> None:
    """Find out, before any training, whether a last batch of one image would stop the training of a network.

    A batch norm takes its statistics over the batch and the map. From one image with a map of 1 x 1 pixel it has none.

    Args:
        name: the network.
        protocol: a settled protocol.
        channels: channels of the images.
        classes: number of labels.
        images: how many images are trained on.

    Raises:
        DapError: the last batch is one image and the network cannot be trained on one. The message gives a batch that works.
    """
    if images % protocol.batch != 1 and protocol.batch != 1:
        return
    with seeded(0, torch.device("cpu")):
        network = new_network(name, protocol, channels, classes).train()
        if not any(isinstance(part, _BatchNorm) for part in network.modules()):
            return
        try:
            with torch.no_grad():
                network(torch.zeros(1, channels, protocol.size, protocol.size))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                return  # another fault, which the training itself tells
        else:
            return
    other = next((b for b in range(protocol.batch + 1, protocol.batch + images + 2) if images % b != 1), 0)
    advice = f"Give another batch, such as --set batch={other}" if images > 1 else "Give more images"
    raise DapError(
        f"{name} normalises over the batch, and with {images} images in batches of {protocol.batch} the last batch is one image, "
        f"which has no statistics at {protocol.size} px. {advice}."
    )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside, and put them back afterwards. Other threads that seed or build networks wait."""
    cuda = device.type == "cuda"
    with alone(), torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _generators(device: torch.device) -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
