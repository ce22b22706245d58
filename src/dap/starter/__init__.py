"""The starters: Fashion-MNIST and small backbones trained on it, so that everything runs at once on any machine.

Their files are in a package of their own, `dap_starters` (the folder `starters` of the repository), for they are 62 MB, and who
brings data and a backbone does without them. Each name of `PLACES` is a path of that package:

* `PIPELINE`: the folder of the first backbone, a small DiT: an ordinary diffusers `DiTPipeline` folder
* `UNET_PIPELINE`: the folder of the second backbone: a diffusers `StableDiffusionPipeline` folder with the same autoencoder
* `REFERENCE`: the file of a ConvNet-3 that was trained on all of Fashion-MNIST. The measures use the features of this network.
* `DATA`: the folder with the four IDX files of Fashion-MNIST
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from dap.base.errors import DapError

CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The ten classes of Fashion-MNIST in label order (Xiao, Rasul & Vollgraf 2017)."""

PLACES = {
    "PIPELINE": "pipeline",
    "UNET_PIPELINE": "unet-pipeline",
    "REFERENCE": "reference/convnet3.safetensors",
    "DATA": "data",
}
"""Where in the package `dap_starters` the path of each name leads."""

SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def __getattr__(name: str) -> Path:
    """A path of `PLACES`. It is looked for when it is asked for, so that `dap` without the starters fails only where it needs
    them.

    Raises:
        DapError: the package of the starters is not installed.
    """
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _place()
    if place is None:
        raise DapError(
            "The starters and Fashion-MNIST are in a package of their own, which is not installed: pip install "
            "'diffusion-as-priors[starters]', or in the folder of the repository pip install ./starters. Without it, give "
            "data of your own (--data) and, to a method that samples, a backbone (--backbone); dap train-backbone needs it in "
            "any case, for it begins at the starter's autoencoder."
        )
    return place / PLACES[name]


def installed() -> bool:
    """Whether the package of the starters is installed."""
    return _place() is not None


def _place() -> Path | None:
    found = find_spec("dap_starters")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]) if places else None


def verify_data() -> None:
    """Check the four data files against their sha256.

    Raises:
        ValueError: a file is missing or differs; the message names it.
        DapError: the package of the starters is not installed.
    """
    folder = __getattr__("DATA")
    for name, expected in SHA256.items():
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path} is missing or damaged; reinstall the package diffusion-as-priors-starters")
