"""The networks that are trained to judge a distilled set, by name.

    convnet1 ... convnet8, resnetap10               made for dataset distillation
    resnet18, resnet50, resnet101, mobilenet_v2,
    efficientnet_b0, swin_t, swin_v2_t              torchvision's, with stems for small images
    convnet3d, small_convnet3d, r3d18               for clips
    torchvision:NAME, timm:NAME                     any classifier of torchvision or timm, untrained and unchanged
    file.py:callable, package.module:callable       your own network

The named networks have the shapes and the initialisation of the papers on hard labels (DC, IDC, MinimaxDiffusion) and
of torchvision. There "instance" normalisation means GroupNorm with one channel a group and an affine map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args

import torch
from torch import nn

from dap.base.alone import alone
from dap.base.errors import DapError
from dap.base.parsing import Damaged, shown
from dap.base.registry import resolve
from dap.evaluation.training.networks.clips import convnet3d, r3d18, small_convnet3d
from dap.evaluation.training.networks.convnets import convnet, resnetap10
from dap.evaluation.training.networks.layers import InstanceNorm, Network, Norm, n_parameters
from dap.evaluation.training.networks.libraries import CHECKS
from dap.evaluation.training.networks.zoo import FAMILIES, LIBRARIES

__all__ = [
    "KNOWN",
    "InstanceNorm",
    "Network",
    "Norm",
    "build",
    "check_name",
    "check_shapes",
    "check_width",
    "convnet",
    "n_parameters",
    "resnetap10",
]

KNOWN: dict[str, Callable[..., nn.Module]] = {
    **{f"convnet{depth}": partial(convnet, depth=depth) for depth in range(1, 9)},
    "resnetap10": resnetap10,
    **FAMILIES,
    "convnet3d": convnet3d,
    "small_convnet3d": small_convnet3d,
    "r3d18": r3d18,
}

WIDE = frozenset({*(f"convnet{depth}" for depth in range(1, 9)), "convnet3d", "small_convnet3d"})
"""The networks of `KNOWN` whose width can be chosen."""


def build(
    name: str, *, channels: int = 3, classes: int, size: int, norm: Norm = "instance", width: int = 128
) -> nn.Module:
    """Build a newly initialised classifier. The weights are drawn from torch's global generator.

    Args:
        name: one of `KNOWN`, `torchvision:NAME`, `timm:NAME`, or `file.py:callable` / `package.module:callable`, which
            is called with the keywords below and returns a module from images to logits.
        channels: channels of the images; clips of F frames have 3 F, see `networks.clips`.
        classes: number of labels.
        size: height and width of the images in pixels; decides the stems of the named networks, the head of a ConvNet
            and the positions of a transformer.
        norm: "instance", "batch" or "none" (ConvNets and ResNetAP-10 only). The choice concerns batch norms alone. A
            network without batch norms, such as Swin with its layer norms, is the same for instance and batch.
        width: channels of a network of `WIDE`; the others of `KNOWN` and of the libraries ignore it, see `check_width`.

    Raises:
        DapError: the name or the norm is unknown, a package is missing, or the images are too small for the network.
    """
    if norm not in get_args(Norm):
        raise DapError(f"Unknown norm {norm!r}. Known: {', '.join(get_args(Norm))}.")
    library, _, model = name.partition(":")
    make = partial(LIBRARIES[library], model) if library in LIBRARIES and model else resolve(name, KNOWN, "network")
    with alone():
        network = make(channels=channels, classes=classes, size=size, norm=norm, width=width)
    if not isinstance(network, nn.Module):
        raise DapError(f"The network {name!r} should be a torch.nn.Module, but is a {type(network).__name__}.")
    return network


def check_name(name: str) -> None:
    """Check, before anything is read, that there is a network of this name. It is not built.

    Raises:
        DapError: there is none, or it lies in a package or file that is not there or that is not allowed to run.
    """
    library, _, model = name.partition(":")
    if library in CHECKS and model:
        CHECKS[library](model)
    else:
        resolve(name, KNOWN, "network")


def check_width(names: Sequence[str]) -> None:
    """Check that a width that somebody gives does something in one of these networks.

    Raises:
        DapError: none of them has a width that can be chosen.
    """
    if all(name in KNOWN.keys() - WIDE or name.partition(":")[0] in LIBRARIES for name in names):
        raise DapError(
            f"A width does nothing in {', '.join(names)}. Leave it out, or take a network that has one: "
            f"{', '.join(sorted(WIDE))}, or one of your own."
        )


def check_shapes(make: Callable[[], nn.Module], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the tensors of a file against a network, before memory is taken for either.

    Args:
        make: makes the network.
        shapes: the shape of each tensor in the file, by its name in the network's state.

    Raises:
        Damaged: a tensor is missing, has another shape, or belongs to no layer.
    """
    with alone(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        state = make().state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    for name in {**wanted, **shapes}:
        if shapes.get(name) != wanted.get(name):
            has, needs = shapes.get(name, "nothing"), wanted.get(name, "nothing")
            raise Damaged(f"at {shown(name)} the file has {has} and the network needs {needs}.")
