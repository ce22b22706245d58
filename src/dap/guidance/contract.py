"""What an energy and a guidance give has one shape. Others would broadcast, and no error would say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import check_one_of
from dap.guidance.state import GradThrough, State


def check_words(guidance: Any) -> None:
    """Check the words by which a guidance says where its features come from and how far a gradient flows.

    Raises:
        DapError: a word is unknown. Another half, or no gradient, would be taken in its place.
    """
    for name, known in (("branch", ("cond", "null")), ("grad_through", get_args(GradThrough))):
        check_one_of(getattr(guidance, name), known, f"The guidance {type(guidance).__name__} takes {name}")


def energies_of(energy: Callable[[State], Tensor], state: State) -> Float[Tensor, " b"]:
    """The energy of each image of a batch.

    Raises:
        DapError: the energy gives anything else than one number an image, such as their sum.
    """
    found: Any = energy(state)
    if not isinstance(found, Tensor) or found.shape != (len(state.x),):
        raise DapError(
            f"The energy {type(energy).__name__} gives {_form(found)} for {len(state.x)} images; give one number an image, a "
            f"tensor of shape ({len(state.x)},)."
        )
    return found


def pushed(guidance: Callable[[State], Tensor], state: State) -> Float[Tensor, "b c *spatial"]:
    """The push of a guidance.

    Raises:
        DapError: it has another shape than the sample, to which it would be added all the same.
    """
    push: Any = guidance(state)
    if not isinstance(push, Tensor) or push.shape != state.x.shape:
        raise DapError(
            f"The guidance {type(guidance).__name__} gives {_form(push)}; a push has the shape of the sample, "
            f"{tuple(state.x.shape)}."
        )
    return push


def _form(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
