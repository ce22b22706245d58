"""A network trained on all real images: the measures' feature extractor, and the accuracy beside distilled sets."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dap.errors import DapError
from dap.evaluation.networks import Network
from dap.evaluation.protocol import Protocol
from dap.evaluation.batches import Labelled, in_slices, prepare
from dap.evaluation.fitting import new_network, seeded
from dap.evaluation.training import Progress, train_and_test
from dap.evaluation.trials import Trial


@dataclass(frozen=True)
class Reference:
    """A trained network; called on images (n, c, h, w) in [0, 1] of any size, it gives their features (n, D)."""

    network: Network
    protocol: Protocol
    channels: int
    classes: int
    accuracy: float
    """On the real test set, a fraction."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, D), on the network's device."""
        return in_slices(self.network.features, self._prepare(images))

    def predict(self, images: Tensor) -> Tensor:
        """Labels (n,), on the network's device."""
        return in_slices(lambda part: self.network(part).argmax(1), self._prepare(images))

    def _prepare(self, images: Tensor) -> Tensor:
        return prepare(images, self.protocol.test_steps, next(self.network.parameters()).device)


def train_reference(
    train: Labelled,
    test: Labelled,
    protocol: Protocol,
    classes: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> tuple[Reference, Trial]:
    """Train the protocol's network on real images and test it; the arguments are those of `evaluate`.

    Raises:
        DapError: as `evaluate`, or the protocol's network is not one of this package's.
    """
    network, trial = train_and_test(train, test, protocol, seed, classes=classes, device=device, progress=progress)
    if not isinstance(network, Network):
        raise DapError(f"A reference needs one of this package's networks, not {protocol.network!r}.")
    return Reference(network, protocol, train[0].shape[1], classes, trial.last), trial


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write one safetensors file that `load_reference` needs nothing beside."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in reference.network.state_dict().items()}
    facts = {"channels": reference.channels, "classes": reference.classes, "accuracy": reference.accuracy}
    aside = path.with_name(path.name + ".tmp")
    save_file(weights, aside, {"protocol": reference.protocol.model_dump_json(), "facts": json.dumps(facts)})
    os.replace(aside, path)


def load_reference(path: str | Path, device: str | torch.device = "cpu") -> Reference:
    """What `save_reference` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        DapError: another file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"No reference network {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            written = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        protocol, facts = Protocol.model_validate_json(written["protocol"]), json.loads(written["facts"])
        with seeded(0, torch.device("cpu")):
            network = new_network(protocol.network, protocol, facts["channels"], facts["classes"])
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DapError(f"{path} is not a reference network, or is damaged: {type(error).__name__}: {error}") from error
    assert isinstance(network, Network)  # what `train_reference` lets through
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Reference(network, protocol, **facts)
