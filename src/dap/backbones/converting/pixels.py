"""Checkpoints of models of pixels, as their authors publish them: which family a file is of, and the pipeline that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dap.backbones.base import Card
from dap.backbones.converting import adm, edm
from dap.backbones.converting.checkpoints import bare, unwrapped
from dap.backbones.converting.parts import class_names
from dap.backbones.hub import DTYPES, open_autoencoder
from dap.backbones.opening import from_pipeline, tried
from dap.base.errors import DapError
from dap.base.parsing import shown


def open_pixels(
    path: Path,
    found: Mapping[str, Any],
    names: Sequence[str] | None,
    *,
    dtype: str,
    vae: str | None = None,
    offline: bool = False,
) -> tuple[Any, Card, Sequence[str]] | None:
    """The pipeline in a checkpoint file of ADM, EDM or EDM2, its card and its class names. None if the file is of another kind.

    Args:
        path: the file, for its name.
        found: what the file holds, see `checkpoints.opened`.
        names: the caller's class names, in label order. Default: ImageNet's for weights of 1000 labels, CIFAR-10's for those of
            a file that says so, else numbers.
        dtype: the number format that the weights get.
        vae: the folder or hub id of the autoencoder, for EDM2's models of latents.
        offline: never ask the network for the autoencoder.

    Raises:
        DapError: the weights are of no published model, or there are too many or too few names.
    """
    state = bare({str(name): value for name, value in unwrapped(found).items() if isinstance(value, Tensor)})
    kind = edm.family(edm.bare(state))
    made = found.get("preconditioning", "EDMPrecond")
    if kind is not None and made not in ("EDMPrecond", "Precond"):
        raise DapError(
            f"{path.name} is a baseline of EDM's paper, with {shown(str(made))}, which dap does not sample; give weights that "
            "EDM itself trained, such as edm-cifar10-32x32-cond-vp.pkl."
        )
    if kind is not None:
        autoencoder = vae and open_autoencoder(vae, dtype=dtype, offline=offline, pipeline="EDMPipeline")
        pipe: Any = edm.pipeline(state, kind, path, DTYPES[dtype], autoencoder, found.get("sigma_data", 0.5))
    elif adm.fits(state):
        if vae is not None:
            raise DapError(f"{path.name} is a model of pixels, which has no autoencoder: leave out --vae.")
        pipe = adm.pipeline(state, path, DTYPES[dtype])
    else:
        return None
    rows = pipe.unet.config.num_class_embeds or 0
    if rows or names is not None:
        names = class_names(path, rows, names)
    published = edm.PUBLISHED.match(path.name) if kind else adm.PUBLISHED.fullmatch(path.name)
    known = published is not None and rows in (0, 10, 1000)
    name = (adm.NAME if kind is None else edm.NAMES[kind]) if known else path.name
    backbone = tried(from_pipeline(pipe, name=name, class_names=names))
    return pipe, backbone.card, backbone.class_names
