"""What conversions share: parts of models in one file, networks with the tensors of a file, and the names of the classes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dap import imagenet
from dap.backbones.converting.shapes import Unlike
from dap.backbones.honoured import check_fields
from dap.backbones.hub import DTYPES, check_whole
from dap.backbones.known import Kind
from dap.base.alone import alone
from dap.base.errors import DapError, first_line

Predicted = Literal["epsilon", "v_prediction"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes of CIFAR-10, in label order."""


@dataclass(frozen=True)
class Said:
    """What a user says of a file, because the file does not.

    Attributes:
        tokenizer: the folder or hub id of the tokenizer. None: see `tokenizer_for`.
        vae: the folder or hub id of another autoencoder. None: that of the file.
        prediction: what the U-Net predicts, "epsilon" or "v_prediction". None: "epsilon" for a Stable Diffusion 1; of a Stable
            Diffusion 2 one prediction at the last timestep tells it.
        size: the side of the images in px. None: 512, and 768 for a Stable Diffusion 2 that predicts a velocity, and 256 for
            latent diffusion's ImageNet model.
        heads: how many heads each attention of latent diffusion's ImageNet model has. None: 1, as the published one has.
        encoder: the folder or hub id of the T5 of a PixArt, or of the DINOv2 of a REG.
    """

    tokenizer: str | None = None
    vae: str | None = None
    prediction: str | None = None
    size: int | None = None
    heads: int | None = None
    encoder: str | None = None


UNET, VAE = "model.diffusion_model.", "first_stage_model."
"""What stands before the names of each network's tensors."""
AVERAGED = "model_ema."
"""What stands before the moving averages of the U-Net's tensors, whose names have no dots there."""


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net, with the moving averages that the file has. The hub's folders of these weights have them too."""
    inner = UNET.removeprefix("model.")
    return {
        name: state.get(AVERAGED + (inner + name).replace(".", ""), value) for name, value in under(state, UNET).items()
    }


def converted(
    of: Any, state: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any], dtype: str, path: Path, kind: Kind
) -> Any:
    """A network of diffusers with these weights, by diffusers' single-file loader.

    Args:
        of: the class of the network.
        state: its tensors, by the authors' names without the prefix.
        prefix: what stands before the names in the file.
        config: the fields of the network.
        dtype: the number format of the weights.
        path: the file, for messages.
        kind: the kind of the pipeline, which decides the values that a field may have.

    Raises:
        DapError: a tensor of the network is missing, or a field has a value that is not followed.
        Unlike: the tensors and the network do not have as many numbers.
    """
    check_fields(config, of.__name__, kind, path)
    with tempfile.TemporaryDirectory() as folder, alone():
        (Path(folder) / "config.json").write_text(json.dumps({"_class_name": of.__name__, **config}))
        named = {prefix + name: tensor for name, tensor in state.items()}
        with quiet():
            made = of.from_single_file(named, config=folder, torch_dtype=DTYPES[dtype], local_files_only=True)
    check_whole(made, of.__name__, path)
    there, taken = (sum(tensor.numel() for tensor in one.values()) for one in (state, made.state_dict()))
    if there != taken:
        raise Unlike(f"its {of.__name__} has {there:,} numbers, and diffusers' network of these blocks has {taken:,}")
    for weight in made.parameters():
        # A file may be mapped into memory; `hub.open_pipeline` says why the weights get memory of their own.
        weight.data = weight.data.clone()
    return made.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without diffusers' remarks on number formats and on tensors that its loader leaves out; both are checked here."""
    from diffusers.utils import logging as own

    before = own.get_verbosity()
    own.set_verbosity_error()
    try:
        yield
    finally:
        own.set_verbosity(before)


def check_betas(state: Mapping[str, Tensor], schedule: Mapping[str, Any]) -> None:
    """Compare the noise levels that a file may keep with those of the published weights of its kind.

    Raises:
        Unlike: they are others.
    """
    if (kept := state.get("betas")) is None:
        return
    start, end, steps = schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if kept.shape != betas.shape or not torch.allclose(kept.double(), betas, rtol=1e-3):
        raise Unlike(
            f"it keeps {kept.numel()} noise levels from {kept.flatten()[0]:.2g} to {kept.flatten()[-1]:.2g}, and the published "
            f"weights have {steps} from {start:g} to {end:g}"
        )


def filled(network: Any, state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, code: str) -> None:
    """Put the tensors of a file into a network that was made without any.

    Args:
        network: the network.
        state: the tensors by name.
        path: the file, for messages.
        dtype: the number format that the weights get.
        code: the name of the authors' code or of the model, for messages.

    Raises:
        DapError: a tensor is missing, unknown or of a wrong shape.
    """
    own = network.state_dict()
    for problem, names in (
        ("lacks", [name for name in own if name not in state]),
        ("also has", sorted(set(state) - set(own))),
        ("has another shape of", [name for name in own if name in state and own[name].shape != state[name].shape]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DapError(f"{path} is not a checkpoint of {code}: it {problem} {', '.join(names[:3])}{more}.")
    try:
        network.load_state_dict({name: value.to(dtype, copy=True) for name, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise DapError(f"{path} is not a checkpoint of {code}: {first_line(error)}") from error


def class_names(path: Path, labels: int, given: Sequence[str] | None) -> list[str]:
    """The names of the classes of a checkpoint.

    They are those that the user gives, else ImageNet's for 1000 labels, CIFAR-10's for ten of a file that says so in its name,
    and numbers for all others.

    Args:
        path: the file.
        labels: the number of labels, without a null label.
        given: the user's names, in label order, or None.

    Raises:
        DapError: the user gives another number of names.
    """
    if given is not None:
        if len(given) != labels:
            raise DapError(f"{path.name} has {labels} labels but --classes has {len(given)} names.")
        return list(given)
    if labels == 1000:
        return list(imagenet.names().values())
    return list(CIFAR10) if labels == 10 and "cifar10" in path.name else [str(label) for label in range(labels)]


def ranked(state: Mapping[str, Tensor], name: str, rank: int, path: Path, code: str) -> Tensor:
    """A tensor of a file, which must have so many dimensions and not be empty.

    Args:
        state: the tensors by name.
        name: its name.
        rank: how many dimensions it has.
        path: the file, for messages.
        code: the name of the authors' code or of the model, for messages.

    Raises:
        DapError: there is no such tensor.
    """
    if name not in state or state[name].ndim != rank or not state[name].numel():
        found = f"{name} has the shape {tuple(state[name].shape)}" if name in state else f"it lacks {name}"
        raise DapError(f"{path} is not a checkpoint of {code}: {found}.")
    return state[name]


def heads_of(given: int | None, known: Mapping[int, int], width: int, path: Path) -> int:
    """The number of attention heads of a transformer, which a checkpoint lacks.

    Args:
        given: what the user or the file says, or None.
        known: the number of heads by the width of the published networks.
        width: the width of a token.
        path: the file, for messages.

    Raises:
        DapError: nobody says the number, or it does not divide the width.
    """
    heads = known.get(width) if given is None else given
    if heads is None:
        raise DapError(f"{path} does not say how many attention heads its width {width} is split into; give --heads.")
    if heads < 1 or width % heads:
        raise DapError(f"{heads} heads do not divide the width {width} of {path}; give another --heads.")
    return heads
