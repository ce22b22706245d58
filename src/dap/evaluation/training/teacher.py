"""Teachers: what soft labels come from. A trained file of ours, torchvision's published weights, or your own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dap import imagenet
from dap.base.errors import DapError
from dap.base.files import sha256_of
from dap.base.registry import resolve, suggest
from dap.data.real.base import select
from dap.data.real.sources import Source
from dap.evaluation.training.batches import in_slices
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.reference import Reference, load_reference, train_reference
from dap.evaluation.training.steps import CenterCrop, Normalize, Resize
from dap.evaluation.training.transforms import run
from dap.evaluation.training.trials import Trial

WEIGHTS = "IMAGENET1K_V1"
"""Which of torchvision's weights: the original ones of every network, which the published soft-label figures use."""

Logits = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1], on the device -> (n, classes known)."""


@dataclass(frozen=True)
class Teacher:
    """Gives logits of images, in the label order asked for."""

    name: str
    """`torchvision:resnet18`, the file's name, or `file.py:build`."""
    class_names: tuple[str, ...]
    """What the columns of its logits stand for."""
    accuracy: float | None
    """A fraction, on the real test set of all the classes it knows; None if that is not known."""
    fingerprint: str
    """Of its weights, or of the code of your own that has none."""
    device: torch.device
    said: Logits
    known: int
    """How many classes `said` knows."""
    columns: tuple[int, ...]
    """Where the classes asked for are among those."""
    network: nn.Module | None = None
    """What `said` runs; None for a function of somebody's own."""

    def features(self, images: Tensor) -> Tensor:
        """(n, D), float32, on the teacher's device, without a gradient: what its last linear layer is given.

        Args:
            images: as of `logits`.

        Raises:
            DapError: it is no module with a linear layer.
        """
        layers = [] if self.network is None else [m for m in self.network.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise DapError(
                f"{self.name} has no linear layer whose input could serve as features; take another network."
            )
        seen: list[Tensor] = []
        handle = layers[-1].register_forward_pre_hook(
            lambda _, given: seen.append(given[0].detach().flatten(1).float())
        )
        try:
            in_slices(self.said, images.to(self.device, torch.float32))
        finally:
            handle.remove()
        return torch.cat(seen)

    def logits(self, images: Tensor) -> Tensor:
        """(n, classes), float32, on the teacher's device, without a gradient.

        Args:
            images: (n, c, h, w) in [0, 1]. Other sizes than the network's are scaled to it as a whole: nothing is cut
                off, because what is labelled is what the student sees.

        Raises:
            DapError: it gives another shape than one logit for each class.
        """
        found = in_slices(self.said, images.to(self.device, torch.float32))
        if found.shape != (len(images), self.known):
            shape = tuple(found.shape)
            raise DapError(
                f"The teacher {self.name} gives {shape} logits for {len(images)} images of {self.known} classes."
            )
        return found.float()[:, list(self.columns)]


def check_teacher(name_or_path: str | Path) -> None:
    """Whether a name can be a teacher's, found out without loading one; as of `load_teacher`.

    Raises:
        DapError: it is no file, and no name of one of the other kinds.
    """
    if not (Path(name_or_path).is_file() or ":" in str(name_or_path)):
        raise DapError(
            f"No teacher {name_or_path}: neither a file (dap train-teacher makes one), nor torchvision:NAME, nor "
            "file.py:build."
        )


def load_teacher(
    name_or_path: str | Path, class_names: Sequence[str], device: str | torch.device = "cpu", *, offline: bool = False
) -> Teacher:
    """A teacher whose logits are in the order of `class_names`, matched by name.

    Args:
        name_or_path: a file of `dap train-teacher`; `torchvision:NAME`, trained on ImageNet's thousand classes; or
            `file.py:build`, called as build(class_names) for a module or function from images (n, c, h, w) in [0, 1] to
            logits (n, len(class_names)) in this order.
        class_names: the set's, in label order; some of the teacher's.
        device: where it runs.
        offline: do not fetch weights.

    Raises:
        DapError: it is unknown, its file is damaged, it does not know a class, or its weights cannot be fetched.
    """
    check_teacher(name_or_path)
    name, wanted, device = str(name_or_path), tuple(class_names), torch.device(device)
    if name.startswith("torchvision:"):
        return _torchvision(name, wanted, device, offline)
    if Path(name).is_file():
        return _trained(Path(name), wanted, device)
    return _own(name, wanted, device)


def train_teacher(
    train: Source, test: Source, protocol: Protocol, *, seed: int = 0, **plan: Any
) -> tuple[Reference, Trial]:
    """Train the protocol's network on all real images and test it; `save_reference` writes what `load_teacher` reads.

    Args:
        train: real training images.
        test: real test images of the same classes.
        protocol: the recipe.
        seed: of the training.
        plan: as of `evaluate`: device, progress, checkpoints, …

    Raises:
        DapError: as `evaluate`, or the classes differ.
    """
    if train.class_names != test.class_names:
        raise DapError("The test data has other classes than the training data.")
    names = train.class_names
    labelled = (train.tensors(), test.tensors())
    return train_reference(*labelled, protocol, len(names), class_names=names, seed=seed, **plan)


def _trained(path: Path, wanted: tuple[str, ...], device: torch.device) -> Teacher:
    reference = load_reference(path, device)
    if not reference.class_names:
        raise DapError(f"{path} does not say which classes it knows; train it again with dap train-teacher.")
    _, columns = select(reference.class_names, wanted, f"the teacher {path}")
    kept = [step for step in reference.protocol.test_steps if not isinstance(step, (Resize, CenterCrop))]
    size = reference.protocol.size

    def said(images: Tensor) -> Tensor:
        return reference.network(run(kept, _scaled(images, size)))

    mark = _fingerprint(reference.network)
    return Teacher(
        path.name, wanted, reference.accuracy, mark, device, said, reference.classes, tuple(columns), reference.network
    )


def _torchvision(name: str, wanted: tuple[str, ...], device: torch.device, offline: bool) -> Teacher:
    from torchvision import models

    columns = _imagenet_columns(wanted, name)
    kind = name.partition(":")[2]
    known = models.list_models(module=models)
    if kind not in known:
        raise DapError(f"Unknown teacher {name}. {suggest(kind, known)}")
    choices = models.get_model_weights(kind)
    if WEIGHTS not in choices.__members__:
        raise DapError(f"torchvision has no {WEIGHTS} weights of {kind}; take another network as the teacher.")
    weights = choices[WEIGHTS]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if offline and not file.is_file():
        raise DapError(f"The weights of {name} are not here and --offline forbids to fetch them; put them at {file}.")
    try:
        network = models.get_model(kind, weights=weights, progress=False)
    except (OSError, RuntimeError, EOFError) as error:  # a connection, a torn file, or another network's weights
        reason = " ".join(str(error).split())[:200]
        raise DapError(
            f"The weights of {name} could not be loaded ({type(error).__name__}: {reason}). Delete {file} if it is there, "
            f"and connect to the network once, or put {weights.url} there."
        ) from error
    network.eval().requires_grad_(False).to(device)
    shown = weights.transforms()
    size, normalize = shown.crop_size[0], Normalize(mean=tuple(shown.mean), std=tuple(shown.std))

    def said(images: Tensor) -> Tensor:
        return network(normalize.apply(_scaled(images, size), {}))

    known = len(imagenet.names())
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
    return Teacher(name, wanted, accuracy, _fingerprint(network), device, said, known, columns, network)


def _own(spec: str, wanted: tuple[str, ...], device: torch.device) -> Teacher:
    build = resolve(spec, {}, "teacher")
    try:
        made: Any = build(wanted)
    except DapError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DapError(f"{spec} could not be called with the class names: {type(error).__name__}: {reason}.") from error
    if not callable(made):
        raise DapError(f"{spec} should give a module or a function from images to logits, not a {type(made).__name__}.")
    file = Path(spec.rpartition(":")[0])
    code = (sha256_of(file) or "")[:16]
    if isinstance(made, nn.Module):
        made.eval().requires_grad_(False).to(device)
        code += _fingerprint(made)
    said: Logits = made  # pyright: ignore[reportAssignmentType]
    network = made if isinstance(made, nn.Module) else None
    return Teacher(spec, wanted, None, code, device, said, len(wanted), tuple(range(len(wanted))), network)


def _imagenet_columns(wanted: tuple[str, ...], teacher: str) -> tuple[int, ...]:
    labels = imagenet.lookup(list(imagenet.names().values()))
    columns = []
    for name in wanted:
        found = imagenet.find(name, labels)
        if not found:
            raise DapError(
                f"{teacher} knows ImageNet's thousand classes, and {name!r} is none of them; "
                "dap train-teacher makes one that knows yours."
            )
        if len(found) > 1 or found[0] in columns:
            raise DapError(f"{name!r} does not name one class of ImageNet alone; name the classes by WordNet id.")
        columns += found
    return tuple(columns)


def _scaled(images: Tensor, size: int) -> Tensor:
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _fingerprint(network: nn.Module) -> str:
    """Sixteen digits of the sha256 of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
