"""Networks of other authors: torchvision's with stems for small images, and any network of torchvision or timm.

The networks start untrained; only `pretrained` fetches weights. The stem follows the image size, so that the last map
keeps about 7 x 7 pixels. The stems of the ResNets are those of the papers on hard labels (IDC, MinimaxDiffusion). The
stems of the other networks are ours. The table says by how much each network divides the side of the image:

| size | ResNets | MobileNet-V2, EfficientNet-B0 | Swin |
|---|---|---|---|
| above 128 px | as published: divided by 32 | as published: by 32 | patch 4, as published: by 32 |
| 65 to 128 px | 3x3 stem, max-pooling: by 16 | first stride 1: by 16 | patch 2: by 16 |
| up to 64 px | 3x3 stem alone: by 8 | first two strides 1: by 8 | patch 2 and windows of 4 x 4: by 16 |

The networks `torchvision:NAME` and `timm:NAME` stay as their authors made them, at every image size.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dap.base.documents import regular
from dap.base.errors import DapError, first_line
from dap.base.files import sha256_of
from dap.base.registry import suggest
from dap.evaluation.training.networks.layers import InstanceNorm, Network, Norm, at_least, he_normal
from dap.evaluation.training.networks.libraries import check_timm, check_torchvision


def resnet(*, depth: int, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ResNet-18, -50 or -101 (He et al. 2016) with the stem for this image size.

    Raises:
        DapError: the images are smaller than 16 px, or `norm` is none.
    """
    from torchvision import models

    del width
    name = f"resnet{depth}"
    at_least(size, 16, name)
    model = models.get_model(name, weights=None, num_classes=classes)
    if size <= 128:
        model.conv1 = he_normal(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
    elif channels != 3:
        model.conv1 = he_normal(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
    if size <= 64:
        model.maxpool = nn.Identity()
    return _split(_with_norm(model, norm, name), "fc")


def inverted(*, name: str, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """MobileNet-V2 (Sandler et al. 2018) or EfficientNet-B0 (Tan & Le 2019), which are made of inverted residuals.

    Both networks drop features at random before the classifier (p 0.2). So in training mode `features` gives the
    features that remain.

    Raises:
        DapError: the images are smaller than 16 px, or `norm` is none.
    """
    from torchvision import models

    del width
    at_least(size, 16, name)
    model = models.get_model(name, weights=None, num_classes=classes)
    if channels != 3:
        he_normal(_with_channels(model, channels))
    strided = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.stride != (1, 1)]
    for conv in strided[: 2 if size <= 64 else 1 if size <= 128 else 0]:
        conv.stride = (1, 1)
    return _split(_with_norm(model, norm, name), "classifier.1")


def swin(*, version: int, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """Swin-T (Liu et al. 2021) or Swin-V2-T (Liu et al. 2022).

    A map whose side is no multiple of the window is padded, as in torchvision. Swin has layer norms, which normalise
    every position of an image on its own. So norm instance and norm batch give the same network.

    Raises:
        DapError: the images are smaller than 16 px, or `norm` is none.
    """
    from torchvision.models import swin_transformer as parts

    del width
    name = "swin_t" if version == 1 else "swin_v2_t"
    at_least(size, 16, name)
    patch, window = (4 if size > 128 else 2), (4 if size <= 64 else 7 if version == 1 else 8)
    second = {"block": parts.SwinTransformerBlockV2, "downsample_layer": parts.PatchMergingV2}
    model = parts.SwinTransformer(
        patch_size=[patch, patch],
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[window, window],
        stochastic_depth_prob=0.2,
        num_classes=classes,
        **(second if version == 2 else {}),
    )
    if channels != 3:
        _with_channels(model, channels)
    return _split(_with_norm(model, norm, name), "head")


def from_torchvision(model: str, *, channels: int, classes: int, size: int, norm: Norm, width: int) -> nn.Module:
    """Any classifier of torchvision, untrained.

    For images without 3 channels the first convolution is replaced; the new one starts with PyTorch's default weights.

    Raises:
        DapError: torchvision has no such classifier, or the classifier does not take such images.
    """
    from torchvision import models

    del width
    check_torchvision(model)
    options: dict[str, Any] = {}
    if model.startswith("vit_"):
        options["image_size"] = size
    elif model.startswith("maxvit"):
        options["input_size"] = (size, size)
    elif model in ("googlenet", "inception_v3"):  # by default they return three sets of logits in training
        options |= {"aux_logits": False, "init_weights": True}

    def make() -> nn.Module:
        network = models.get_model(model, weights=None, num_classes=classes, **options)
        if channels != 3:
            _with_channels(network, channels)
        return network

    return _fitted(make, f"torchvision:{model}", channels, classes, size, norm)


WEIGHTS = "IMAGENET1K_V1"
"""The name of the torchvision weights that are used: the first weights of every network. The published results with
soft labels use these weights."""


class NotFetched(DapError):
    """Published weights are not on this machine, and the network was not to be asked."""


def pretrained(model: str, *, offline: bool = False) -> tuple[nn.Module, Any]:
    """A classifier of torchvision with its published weights for ImageNet, and torchvision's card of these weights.

    Args:
        model: torchvision's name of the classifier.
        offline: if True, no weights are fetched from the network.

    Raises:
        NotFetched: the weights are not on this machine, and `offline` is True.
        DapError: torchvision has no such classifier or no such weights of the classifier, the weights cannot be fetched, or
            the file on this machine is another one than was published.
    """
    from torchvision import models

    name, known = f"torchvision:{model}", models.list_models(module=models)
    if model not in known:
        raise DapError(f"Unknown classifier {name}. {suggest(model, known)}")
    choices = models.get_model_weights(model)
    if WEIGHTS not in choices.__members__:
        raise DapError(f"torchvision has no {WEIGHTS} weights of {model}; take another network.")
    weights = choices[WEIGHTS]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if offline and not file.is_file():
        raise NotFetched(f"The weights of {name} are not here and --offline forbids to fetch them; put them at {file}.")
    options = {key: True for key in ("aux_logits", "transform_input") if model in ("googlenet", "inception_v3")}
    if options:  # torchvision builds these two in this way for its weights
        options["init_weights"] = False
    try:
        network = models.get_model(model, weights=None, num_classes=len(weights.meta["categories"]), **options)
        network.load_state_dict(_fetched(weights.url, file, name))
    except DapError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError) as error:  # no connection, or another network's weights
        reason = " ".join(str(error).split())[:200]
        raise DapError(
            f"The weights of {name} could not be loaded ({type(error).__name__}: {reason}). Delete {file} if it is there, "
            f"and connect to the network once, or put {weights.url} there."
        ) from error
    if options:
        network.aux_logits = False  # pyright: ignore[reportArgumentType]
    return network, weights


def _fetched(url: str, file: Path, name: str) -> dict[str, Tensor]:
    """The weights of a file in torch's cache. It is fetched if it is not there.

    The name of the file holds the first digits of its sha256, and they are compared. torch.hub compares them only when it
    fetches a file. The file is a pickle, so only tensors and plain values are read from it: a pickle may hold code, and eight
    digits do not keep out a file that was made to fit them.

    Raises:
        DapError: the file has another hash, or it holds other things than weights.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.", file.name)
    digits = named[1] if named else ""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), digits or None, progress=False)
    found = sha256_of(regular(file)) or ""
    if not found.startswith(digits):
        raise DapError(
            f"{file} is not the file that was published as the weights of {name}: its sha256 begins with {found[:8]} and not "
            f"with {digits}. Delete it and connect to the network once, or put {url} there."
        )
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DapError(
            f"{file} holds other things than weights, so it is not opened. Delete it and connect to the network once, or put "
            f"{url} there."
        ) from error
    except Exception as error:  # a damaged file raises many kinds of errors
        raise DapError(
            f"{file} cannot be read as weights: {first_line(error)}. Delete it and connect to the network once, or put {url} "
            "there."
        ) from error
    if not isinstance(weights, dict):
        raise DapError(f"{file} holds a {type(weights).__name__} and no weights by name. Put {url} there.")
    return weights


def from_timm(model: str, *, channels: int, classes: int, size: int, norm: Norm, width: int) -> nn.Module:
    """Any model of timm, untrained.

    Raises:
        DapError: timm is not installed, timm has no such model, or the model does not take such images.
    """
    del width
    check_timm(model)
    import timm

    card = timm.get_pretrained_cfg(model)
    options = {"img_size": size} if card is not None and card.fixed_input_size else {}
    make = partial(timm.create_model, model, pretrained=False, num_classes=classes, in_chans=channels, **options)
    return _fitted(make, f"timm:{model}", channels, classes, size, norm)


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (18, 50, 101)},
    **{name: partial(inverted, name=name) for name in ("mobilenet_v2", "efficientnet_b0")},
    "swin_t": partial(swin, version=1),
    "swin_v2_t": partial(swin, version=2),
}
LIBRARIES: dict[str, Callable[..., nn.Module]] = {"torchvision": from_torchvision, "timm": from_timm}


def _fitted(make: Callable[[], nn.Module], name: str, channels: int, classes: int, size: int, norm: Norm) -> nn.Module:
    """A `Network` if the model's last operation is linear, else the model itself. One black image tests the model."""
    try:
        model = _with_norm(make(), norm, name)
        logits, head = _try(model, channels, size)
    except DapError as error:
        raise error if str(error).startswith(name) else DapError(f"{name} at {size} px: {error}") from error
    except Exception as error:
        reason = shorten(str(error), 200, placeholder=" …")
        shape = f"({channels}, {size}, {size})"
        raise DapError(f"{name} does not take images {shape}: {type(error).__name__}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise DapError(f"{name} gives {given} for one image instead of logits (1, {classes}); it is no classifier.")
    return model if head is None else _split(model, head)


def _try(model: nn.Module, channels: int, size: int) -> tuple[Any, str | None]:
    """The model's output for a black image, and the name of the linear layer whose output this is, or None."""
    said: list[tuple[str, object]] = []

    def listen(part: nn.Module, name: str) -> Any:
        return part.register_forward_hook(lambda _part, _inputs, output: said.append((name, output)))

    hooks = [listen(part, name) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    image = next(model.parameters()).new_zeros(1, channels, size, size)
    model.eval()
    with torch.no_grad():
        logits = model(image)
    model.train()
    for hook in hooks:
        hook.remove()
    return logits, next((name for name, output in said if output is logits), None)


def _split(model: nn.Module, head: str) -> Network:
    classifier = model.get_submodule(head)
    assert isinstance(classifier, nn.Linear)
    model.set_submodule(head, nn.Identity())
    return Network(model, classifier)


def _with_norm(model: nn.Module, norm: Norm, name: str) -> nn.Module:
    """The model with its batch norms, or with instance norms that start with the same weights, as `norm` says."""
    if norm == "none":
        raise DapError(f"{name} has no form without normalisation; use norm instance or batch.")
    if norm == "instance":
        for path, part in list(model.named_modules()):
            if isinstance(part, _BatchNorm):
                model.set_submodule(path, _instance(part, name))
    return model


def _instance(batch: nn.Module, name: str) -> nn.Module:
    kind = type(batch).__name__
    if kind not in ("BatchNorm2d", "BatchNormAct2d") or not batch.affine:
        raise DapError(f"{name} normalises by {kind}, which has no instance form here; use norm batch.")
    norm = InstanceNorm(batch.num_features, batch.eps)  # pyright: ignore[reportArgumentType]
    norm.weight, norm.bias = batch.weight, batch.bias  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "BatchNorm2d":
        return norm
    return nn.Sequential(norm, batch.drop, batch.act)  # pyright: ignore[reportArgumentType]


def _with_channels(model: nn.Module, channels: int) -> nn.Conv2d:
    """Replace the first convolution of the model by a new one for this number of channels, and return the new one."""
    path, old = next((path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # pyright: ignore[reportArgumentType]
        old.stride,  # pyright: ignore[reportArgumentType]
        old.padding,  # pyright: ignore[reportArgumentType]
        bias=old.bias is not None,
    )
    model.set_submodule(path, new)
    return new
