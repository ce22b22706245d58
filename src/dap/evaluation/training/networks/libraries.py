"""The names of the networks of torchvision and timm. No network is built."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from dap.base.errors import DapError


def check_torchvision(model: str) -> None:
    """Raise `DapError` if torchvision has no such classifier."""
    from torchvision import models

    if model not in (known := models.list_models(module=models)):
        raise DapError(f"torchvision has no classifier {model!r}. {_like(model, known)}")


def check_timm(model: str) -> None:
    """Raise `DapError` if timm is not installed, or has no such model."""
    try:
        import timm
    except ImportError as error:
        raise DapError(f"timm:{model} needs the package timm; pip install 'diffusion-as-priors[timm]'.") from error
    if not timm.is_model(model):
        raise DapError(f"timm has no model {model!r}. {_like(model, timm.list_models())}")


CHECKS = {"torchvision": check_torchvision, "timm": check_timm}


def _like(name: str, known: Sequence[str]) -> str:
    """A sentence with the known names that resemble this name or contain it: at most 8 of them."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    found += [other for other in known if name in other and other not in found]
    return f"Close to it: {', '.join(found[:8])}." if found else f"Its {len(known)} names include {known[0]}."
