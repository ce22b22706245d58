"""The embedded starter: Fashion-MNIST and small backbones trained on it, so that everything runs at once on any
machine."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The ten classes of Fashion-MNIST in label order (Xiao, Rasul & Vollgraf 2017)."""

PIPELINE = Path(str(files(__name__))) / "pipeline"
"""The folder of the first backbone, a small DiT: an ordinary diffusers `DiTPipeline` folder."""

UNET_PIPELINE = Path(str(files(__name__))) / "unet-pipeline"
"""The folder of the second backbone: an ordinary diffusers `StableDiffusionPipeline` folder with the same
autoencoder."""

REFERENCE = Path(str(files(__name__))) / "reference" / "convnet3.safetensors"
"""The file of a ConvNet-3 that was trained on all of Fashion-MNIST. The measures use the features of this network."""

DATA = Path(str(files(__name__))) / "data"
"""The folder with the four IDX files of Fashion-MNIST."""

SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def verify_data() -> None:
    """Check the four data files against their sha256.

    Raises:
        ValueError: a file is missing or differs; the message names it.
    """
    for name, expected in SHA256.items():
        path = DATA / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path} is missing or damaged; reinstall the package")
