"""Features of images and clips for the measures, from a network trained on the real data or from one with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.sources import EMBEDDED
from dap.evaluation.training.fitting import seeded
from dap.evaluation.training.loading import load_trained
from dap.evaluation.training.networks import Network, build

Features = Callable[[Tensor], Tensor]
"""An extractor of features: images (n, 3, h, w) in [0, 1] -> (n, D)."""

PIXELS = 2**16
"""How many pixels pass the ConvNet at a time, at most, as long as these are 8 images or more."""


def embedding(
    data: str, size: int, reference: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[str, Features]:
    """The extractor of features for the measures, and its name.

    Where a network trained on the real data is given, the features are its features, and the measures use its predictions
    too. The embedded data have such a network (`starter.reference`). For all other data the features come from a ConvNet
    with random weights of a fixed seed. Distribution matching (DM) shows that such features are useful, but they only
    compare sets of the same data with each other. The ConvNet has so many layers that images of 32 px or more are reduced
    to 4 to 7 pixels a side.

    Args:
        data: the name or path of the data.
        size: the side of the images, in pixels.
        reference: the file of a network, as `evaluation.training.loading.save_classifier` and `dap train-teacher`
            write.
        device: where the network runs.

    Raises:
        DapError: the file does not exist, holds no classifier, or holds a classifier without features.
    """
    shipped = reference is None and data == EMBEDDED
    if shipped:
        from dap.starter import REFERENCE

        reference = REFERENCE
    if reference is not None:
        if not Path(reference).is_file():
            raise DapError(f"There is no reference classifier {reference}; dap train-teacher writes one.")
        trained = load_trained(reference, device)
        if not trained.has_features:
            raise DapError(
                f"{reference} holds a network without a linear layer, so it has no features to measure with."
            )
        assert trained.protocol is not None and trained.accuracy is not None
        name = {"convnet3": "ConvNet-3"}.get(trained.protocol.network, trained.protocol.network)
        if shipped:  # its name says which network it is, and measures by it need no other mark
            trained = replace(trained, fingerprint="")
        return f"{name} trained on the real data ({trained.accuracy:.1%})", trained
    depth = min(8, max(3, size.bit_length() - 3))
    with seeded(0, torch.device("cpu")):
        network = build(f"convnet{depth}", classes=2, size=size).eval().requires_grad_(False).to(device)
    assert isinstance(network, Network)

    def features(images: Tensor) -> Tensor:
        # The activations of one image take 128 times its bytes. Parts have 4 images or more, and then the same bits as a whole.
        size = max(8, PIXELS // images[0, 0].numel())
        return torch.cat([network.features(part.to(device)) for part in images.tensor_split(-(-len(images) // size))])

    return f"ConvNet-{depth} with random weights", features


def over_frames(named: tuple[str, Features]) -> tuple[str, Features]:
    """An extractor of features of clips, and its name: the features of the frames, averaged over time. They do not see in which
    order the frames come.

    Args:
        named: the name and the extractor of features of images.

    Returns:
        The extractor takes clips as images of 3 · frames channels (n, 3 · frames, h, w), in [0, 1].
    """
    name, features = named

    def averaged(clips: Tensor) -> Tensor:
        frames = clips.unflatten(1, (3, -1)).transpose(1, 2)
        return features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1)

    return f"{name}, averaged over the frames", averaged
