"""A network trained on all real images: features for the measures, a teacher, the accuracy beside distilled sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dap.base.errors import DapError
from dap.base.files import write_atomically
from dap.data.real.base import select
from dap.evaluation.training.batches import Labelled, in_slices, prepare
from dap.evaluation.training.evaluate import train_and_test
from dap.evaluation.training.fitting import new_network, seeded
from dap.evaluation.training.networks import Network
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.trials import Trial


@dataclass(frozen=True)
class Reference:
    """A trained network; called on images (n, c, h, w) in [0, 1] of any size, it gives their features (n, D)."""

    network: nn.Module
    protocol: Protocol
    """Settled for the data it was trained on."""
    channels: int
    classes: int
    accuracy: float
    """On the real test set, a fraction."""
    class_names: tuple[str, ...] = ()
    """In label order; () if they were not given."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, D), on the network's device.

        Raises:
            DapError: it is somebody's own network, of which nothing but the logits is known.
        """
        if not isinstance(self.network, Network):
            raise DapError(f"Features need one of this package's networks, not {self.protocol.network!r}.")
        return in_slices(self.network.features, self._prepare(images))

    def predict(self, images: Tensor) -> Tensor:
        """Labels (n,), on the network's device."""
        return in_slices(lambda part: self.network(part).argmax(1), self._prepare(images))

    def columns(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """Where classes are among the logits: by name if the names are known, else by their order.

        Raises:
            DapError: a class is not known, or, without names, there are not as many.
        """
        if self.class_names:
            return tuple(select(self.class_names, list(class_names), "the reference network")[1])
        if len(class_names) != self.classes:
            raise DapError(
                f"The reference network knows {self.classes} classes and the data have {len(class_names)}; "
                "give --reference one that was trained on these data."
            )
        return tuple(range(self.classes))

    def probabilities(self, images: Tensor, columns: Sequence[int]) -> Tensor:
        """Softmax over these columns of the logits (n, len(columns)), on the network's device."""
        logits = in_slices(self.network, self._prepare(images))[:, list(columns)]
        return logits.double().softmax(1)

    def _prepare(self, images: Tensor) -> Tensor:
        return prepare(images, self.protocol.test_steps, next(self.network.parameters()).device)


def train_reference(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    classes: int,
    *,
    class_names: Sequence[str] = (),
    seed: int = 0,
    **plan: Any,
) -> tuple[Reference, Trial]:
    """Train the protocol's network, of any name, on real images and test it; the arguments are those of `evaluate`.

    Raises:
        DapError: as `evaluate`, or there are not as many names as classes.
    """
    if class_names and len(class_names) != classes:
        raise DapError(f"There are {len(class_names)} class names for {classes} classes.")
    network, trial = train_and_test(train, test, protocol, seed, classes=classes, **plan)
    settled = protocol.settled(ipc=int(train[1].bincount().max()), classes=classes, network=plan.get("network"))
    return Reference(network, settled, train[0].shape[1], classes, trial.last, tuple(class_names)), trial


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write one safetensors file, whole or not at all, that `load_reference` needs nothing beside."""
    from safetensors.torch import save

    state = reference.network.state_dict()
    weights = {name: value.cpu().contiguous().clone() for name, value in state.items()}  # tied weights are two here
    facts = {"channels": reference.channels, "classes": reference.classes, "accuracy": reference.accuracy}
    facts |= {"class_names": reference.class_names}
    metadata = {"protocol": reference.protocol.model_dump_json(), "facts": json.dumps(facts)}
    write_atomically(Path(path), save(weights, metadata))


def load_reference(path: str | Path, device: str | torch.device = "cpu") -> Reference:
    """What `save_reference` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        DapError: another file, or a damaged one, or the file of somebody's own network is not there.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"No reference network {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            written = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        protocol, facts = Protocol.model_validate_json(written["protocol"]), json.loads(written["facts"])
        channels, classes, accuracy = (facts[name] for name in ("channels", "classes", "accuracy"))
        with seeded(0, torch.device("cpu")):
            network = new_network(protocol.network, protocol, channels, classes)
        network.load_state_dict(weights)
    except DapError:
        raise
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DapError(f"{path} is not a reference network, or is damaged: {type(error).__name__}: {error}") from error
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = tuple(facts.get("class_names", ()))
    return Reference(network, protocol, channels, classes, accuracy, names)
