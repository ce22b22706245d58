"""Classifiers: networks that know the classes. They give soft labels, the features of the measures, and predicted labels.

A classifier is a file that `dap train-teacher` wrote, a network of torchvision with its published weights, or a
network or function of the user's own. The flags `--teacher`, `--reference` and `--classifier` name what it is used for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dap.base.devices.precision import precise
from dap.base.errors import DapError
from dap.base.registry import hash_of_code
from dap.data.real.names import select
from dap.evaluation.training.batches import as_float, in_slices
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.steps import Step
from dap.evaluation.training.transforms import run, scaled


@dataclass(frozen=True)
class Classifier:
    """A trained network and the classes that it knows. Images are (n, c, h, w) in [0, 1] of any size.

    All results are on the classifier's device and carry no gradient. They are ordinary tensors, so that a loss of
    another network can be computed from them. Called on images, a classifier gives their `features`, so that it serves as an
    extractor of the measures.
    """

    name: str
    """The file's name, `torchvision:resnet18`, or `file.py:build`."""
    class_names: tuple[str, ...]
    """The names of the columns of the logits; () if the file does not say them."""
    network: Callable[[Tensor], Tensor]
    """A module, or a function of the user's own: images after `steps` -> logits (n, known)."""
    fingerprint: str
    """Digits that change with the weights; of the user's own code, with its file and with what it runs and holds."""
    device: torch.device
    known: int
    """How many classes the network knows."""
    columns: tuple[int, ...]
    """Which of those classes, in which order, are the columns of the logits."""
    accuracy: float | None = None
    """A fraction, on the real test images of all known classes; None if nobody measured it."""
    tested: str = ""  # the hash of these test images, as trials have it; empty in files of earlier versions
    size: int | None = None
    """Images are first scaled, as a whole, to this many pixels a side; None: they are left as they are."""
    steps: tuple[Step, ...] = ()
    """What is done with images before the network sees them, after they are scaled."""
    protocol: Protocol | None = None
    """How it was trained, settled for its data; None for a network that was not trained here."""
    channels: int = 3
    processes: int | None = None  # that trained it in step; None for one alone, or where it is not known

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes), float32, in the order of `class_names`.

        Raises:
            DapError: the network gives another shape than one logit for each class and image.
        """
        found = in_slices(self._pass, as_float(images.to(self.device)))
        if found.shape != (len(images), self.known):
            raise DapError(
                f"The classifier {self.name} gives {tuple(found.shape)} logits for {len(images)} images of {self.known} "
                "classes."
            )
        return found.float()[:, list(self.columns)]

    def predict(self, images: Tensor) -> Tensor:
        """Labels (n,), int64: the columns of the highest logits."""
        return self.logits(images).argmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax (n, classes), float64, of the logits of the classes asked for."""
        return precise(self.logits(images)).softmax(1)

    def features(self, images: Tensor) -> Tensor:
        """Features (n, D), float32: the input of the last linear layer.

        Raises:
            DapError: the network has no linear layer.
        """
        layer = self._last_linear()
        if layer is None:
            raise DapError(
                f"{self.name} has no linear layer whose input could serve as features; take another network."
            )
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(1).float()))
        try:
            in_slices(self._pass, as_float(images.to(self.device)))
        finally:
            handle.remove()
        return torch.cat(seen)

    __call__ = features

    @property
    def has_features(self) -> bool:
        """Whether `features` can be computed."""
        return self._last_linear() is not None

    def select(self, class_names: Sequence[str]) -> Classifier:
        """The same classifier with the logits of these classes, in this order.

        Classes are matched by name. A classifier that does not say its class names keeps its own order.

        Raises:
            DapError: a class is not known, or, without names, the number of classes is another.
        """
        wanted = tuple(class_names)
        if self.class_names:
            chosen = select(self.class_names, list(wanted), f"the classifier {self.name}")[1]
            return replace(self, class_names=wanted, columns=tuple(self.columns[k] for k in chosen))
        if len(wanted) != len(self.columns):
            raise DapError(
                f"The classifier {self.name} knows {len(self.columns)} classes and the data have {len(wanted)}; "
                "give --reference one that was trained on these data."
            )
        return self

    def _pass(self, images: Tensor) -> Tensor:
        return self.network(run(self.steps, images if self.size is None else scaled(images, self.size)))

    def _last_linear(self) -> nn.Linear | None:
        parts = self.network.modules() if isinstance(self.network, nn.Module) else ()
        return next((part for part in reversed(list(parts)) if isinstance(part, nn.Linear)), None)


def of_training(
    name: str,
    network: nn.Module,
    protocol: Protocol,
    channels: int,
    classes: int,
    accuracy: float | None,
    class_names: tuple[str, ...],
    device: torch.device,
) -> Classifier:
    """A classifier around a network that was trained here by a settled protocol."""
    return Classifier(
        name,
        class_names,
        network,
        hash_of_code(protocol.network)[:16] + weights_fingerprint(network),
        device,
        classes,
        tuple(range(classes)),
        accuracy,
        steps=protocol.test_steps,
        protocol=protocol,
        channels=channels,
    )


def weights_fingerprint(network: nn.Module) -> str:
    """Sixteen digits of the sha256 of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
