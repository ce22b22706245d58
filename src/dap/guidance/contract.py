"""What an energy and a guidance give has one shape. Others would broadcast, and no error would say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.state import State


def energies_of(energy: Callable[[State], Tensor], state: State) -> Float[Tensor, " b"]:
    """The energy of each image of a batch.

    Raises:
        DapError: the energy gives anything else than one number an image, such as their sum.
    """
    found: Any = energy(state)
    if not isinstance(found, Tensor) or found.shape != (len(state.x),):
        told = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DapError(
            f"The energy {type(energy).__name__} gives {told} for {len(state.x)} images; give one number an image, a tensor of "
            f"shape ({len(state.x)},)."
        )
    return found


def pushed(guidance: Callable[[State], Tensor], state: State) -> Float[Tensor, "b c *spatial"]:
    """The push of a guidance.

    Raises:
        DapError: it has another shape than the sample, to which it would be added all the same.
    """
    push: Any = guidance(state)
    if not isinstance(push, Tensor) or push.shape != state.x.shape:
        told = f"a tensor of shape {tuple(push.shape)}" if isinstance(push, Tensor) else f"a {type(push).__name__}"
        raise DapError(
            f"The guidance {type(guidance).__name__} gives {told}; a push has the shape of the sample, {tuple(state.x.shape)}."
        )
    return push
