"""Finds a classifier by its name: a file that `dap train-teacher` wrote, torchvision's weights, or a function of the user's own.

`save_classifier` writes such a file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dap import imagenet
from dap.base.describing.backbones import of_backbone
from dap.base.describing.hashes import hash_of
from dap.base.describing.values import Describer, Unknown
from dap.base.documents import check_fetched, fitted
from dap.base.errors import DapError
from dap.base.fields import FromFile, Name, Share
from dap.base.files import write_atomically
from dap.base.parsing import Damaged, parse_json, shown
from dap.base.permission import is_code, refuse_code
from dap.base.registry import hash_of_code, resolve
from dap.evaluation.training.classifier import Classifier, of_training, weights_fingerprint
from dap.evaluation.training.fitting import new_network, seeded
from dap.evaluation.training.networks import check_shapes
from dap.evaluation.training.networks.zoo import pretrained
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.steps import CenterCrop, Normalize, Resize

log = logging.getLogger("dap")


def check_classifier(name_or_path: str | Path) -> None:
    """Find out, without loading anything, whether `load_classifier` could open this.

    Raises:
        DapError: it is neither a file nor a name of the other kinds.
    """
    if not (Path(name_or_path).is_file() or ":" in str(name_or_path)):
        raise DapError(
            f"No classifier {name_or_path}: neither a file (dap train-teacher makes one), nor torchvision:NAME, nor "
            "file.py:build."
        )


def load_classifier(
    name_or_path: str | Path, class_names: Sequence[str], device: str | torch.device = "cpu", *, offline: bool = False
) -> Classifier:
    """A classifier whose logits are in the order of `class_names`, matched by name.

    Images of other sizes than the network's are scaled to it as a whole. Nothing is cut off, because soft labels must
    be about everything that the student sees.

    Args:
        name_or_path: a file of `dap train-teacher`; `torchvision:NAME`, trained on ImageNet's thousand classes; or
            `file.py:build`, called as build(class_names) for a module or function from images (n, c, h, w) in [0, 1] to
            logits (n, len(class_names)) in this order.
        class_names: the classes of the set, in label order; the classifier may know others beside them.
        device: where the network runs.
        offline: do not fetch weights.

    Raises:
        DapError: nothing is found under this name, the file is damaged, a class is not known, or the weights cannot be
            fetched.
    """
    check_classifier(name_or_path)
    name, wanted, device = str(name_or_path), tuple(class_names), torch.device(device)
    if name.startswith("torchvision:"):
        return _torchvision(name, wanted, device, offline)
    if not Path(name).is_file():
        return _own(name, wanted, device)
    found = load_trained(name, device)
    if not found.class_names:
        raise DapError(f"{name} does not say which classes it knows; train it again with dap train-teacher.")
    assert found.protocol is not None
    whole = tuple(step for step in found.steps if not isinstance(step, (Resize, CenterCrop)))
    return replace(found.select(wanted), size=found.protocol.size, steps=whole)


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The classifier of a file that `save_classifier` wrote, with all its classes.

    It sees images as it saw its own test images: after the `test` steps of its protocol, which may scale and crop them.

    Raises:
        FileNotFoundError: there is no such file.
        DapError: the file holds something else or is damaged, or the code of a user's own network is not there or may not
            run.
    """
    from safetensors import SafetensorError, safe_open

    path, device = Path(path), torch.device(device)
    if not path.exists():
        raise FileNotFoundError(f"No classifier {path}.")
    try:
        with safe_open(str(check_fetched(path)), framework="pt") as file:
            written = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            protocol, facts = _said(written, path)
            refuse_code(protocol.network, path)
            if not is_code(protocol.network):  # a user's own network may be one that cannot be made without memory
                check_shapes(lambda: new_network(protocol.network, protocol, facts.channels, facts.classes), shapes)
            weights = {name: file.get_tensor(name) for name in shapes}
        with seeded(0, torch.device("cpu")):
            network = new_network(protocol.network, protocol, facts.channels, facts.classes)
        network.load_state_dict(weights)
    except (Damaged, SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, DapError) and not isinstance(error, Damaged):
            raise
        kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
        raise DapError(f"{path} is not a classifier of dap train-teacher, or is damaged: {kind}{error}") from error
    if bad := [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise DapError(f"{path} is damaged: its weights {bad[0]} are not finite numbers. Train it again.")
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    rest = (facts.channels, facts.classes, facts.accuracy, facts.class_names, device)
    known = {"tested": facts.tested or "", "processes": facts.processes}
    return replace(of_training(path.name, network, protocol, *rest), **known)


class _Facts(FromFile, frozen=True):
    """What a classifier's file says beside its protocol. The older files say no names of classes."""

    channels: Annotated[int, Field(ge=1, le=1000)]
    classes: Annotated[int, Field(ge=1, le=10**6)]
    accuracy: Share | None
    class_names: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    tested: Name | None = None
    processes: Annotated[int, Field(ge=1, le=10**6)] | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"there are {len(self.class_names)} names of {self.classes} classes")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("two classes have the same name")
        return self


def _said(written: Mapping[str, str], path: Path) -> tuple[Protocol, _Facts]:
    """The protocol and the facts in a file's metadata."""
    for name in ("protocol", "facts"):
        if name not in written:
            raise Damaged(f"its metadata have no {name!r}.")
    where = f"{shown(path)}, metadata"
    protocol = fitted(parse_json(written["protocol"], where), Protocol, f"{where}, protocol")
    return protocol, fitted(parse_json(written["facts"], where), _Facts, f"{where}, facts")


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier that was trained here to one safetensors file, whole or not at all.

    `load_classifier` and `load_trained` need nothing beside the file, unless the network is the user's own code.

    Raises:
        DapError: the classifier was not trained here, or gives the logits of some of its classes alone.
    """
    from safetensors.torch import save

    if classifier.protocol is None or not isinstance(classifier.network, nn.Module):
        raise DapError(f"{classifier.name} was not trained here, so there is no file to write of it.")
    if classifier.columns != tuple(range(classifier.known)):
        raise DapError(f"{classifier.name} gives the logits of some of its classes alone; save the whole classifier.")
    state = classifier.network.state_dict()
    weights = {name: value.cpu().contiguous().clone() for name, value in state.items()}  # tied weights are two here
    facts = {"channels": classifier.channels, "classes": classifier.known, "accuracy": classifier.accuracy}
    more = {"tested": classifier.tested, "processes": classifier.processes}
    facts |= {"class_names": classifier.class_names, **{name: value for name, value in more.items() if value}}
    said = {"protocol": classifier.protocol.model_dump_json(), "facts": json.dumps(facts)}
    write_atomically(Path(path), save(weights, said))


def _torchvision(name: str, wanted: tuple[str, ...], device: torch.device, offline: bool) -> Classifier:
    columns = imagenet.columns(wanted, name)
    network, weights = pretrained(name.partition(":")[2], offline=offline)
    network.eval().requires_grad_(False).to(device)
    shown = weights.transforms()
    size, normalize = shown.crop_size[0], Normalize(mean=tuple(shown.mean), std=tuple(shown.std))
    known, accuracy = len(imagenet.names()), weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
    of = (weights_fingerprint(network), device, known, columns, accuracy)
    return Classifier(name, wanted, network, *of, size=size, steps=(normalize,))


def _own(spec: str, wanted: tuple[str, ...], device: torch.device) -> Classifier:
    build = resolve(spec, {}, "classifier")
    try:
        made: Any = build(wanted)
    except DapError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DapError(f"{spec} could not be called with the class names: {said}.") from error
    if not callable(made):
        raise DapError(f"{spec} should give a module or a function from images to logits, not a {type(made).__name__}.")
    if isinstance(made, nn.Module):
        made.eval().requires_grad_(False).to(device)
    network: Callable[[Tensor], Tensor] = made  # pyright: ignore[reportAssignmentType]
    code = hash_of_code(spec)[:16] + _of_made(made, spec)
    return Classifier(spec, wanted, network, code, device, len(wanted), tuple(range(len(wanted))))


def _of_made(made: Any, spec: str) -> str:
    """Sixteen digits of what a module or a function runs and holds, such as its weights. Of a module that nobody can describe
    they are of its weights alone; of such a function the text is empty."""
    try:
        return hash_of(Describer(of_backbone).described(made))[:16]
    except Unknown as why:
        module = isinstance(made, nn.Module)
        what, same = ("network", "its weights and its file are") if module else ("function", "the code in its file is")
        log.warning(
            "dap cannot describe the %s of %s, because it holds something such as an open file or a session of a program%s. So "
            "dap takes it for the same %s as long as %s the same. When anything else in it changes, change its file too.",
            what,
            spec,
            f" ({why})" if str(why) else "",
            what,
            same,
        )
        return weights_fingerprint(made) if module else ""
