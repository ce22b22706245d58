"""Methods: everything that makes a distilled set, behind one interface.

This module knows every method by name and by one sentence, and imports a method's own module only when the method is asked
for. The command line lists the methods in its help, and must not wait for torch to do so.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dap.base.errors import DapError
from dap.base.registry import Lazy, resolve

if TYPE_CHECKING:
    from dap.methods.base import Made, Method, Options, Task, Unit, plan

__all__ = ["METHODS", "SUMMARIES", "Made", "Method", "Options", "Task", "Unit", "find", "plan"]

_KNOWN = {
    "random": ("selection.random:Random", "real images, drawn at random"),
    "herding": ("selection.herding:Herding", "real images whose mean feature follows the mean of their class"),
    "k-center": ("selection.kcenter:KCenter", "real images that cover their class"),
    "dm": ("matching.dm:Dm", "pixels that match the mean features of real images in random networks"),
    "dc": ("matching.dc:Dc", "pixels whose gradients match those of real images in a network under training"),
    "dsa": ("matching.dc:Dsa", "dc with the same random augmentation of real and synthetic images"),
    "mtt": ("matching.mtt:Mtt", "pixels that train a network along the path of networks trained on real images"),
    "rded": ("selection.rded:Rded", "crops of real images that a classifier is sure of, tiled into one image"),
    "vanilla": ("diffusion.vanilla:Vanilla", "samples of the backbone without guidance"),
    "dit": ("diffusion.vanilla:Dit", "vanilla, on a diffusion transformer alone"),
    "sd": ("diffusion.vanilla:Sd", "vanilla, on Stable Diffusion alone"),
    "d4m": ("diffusion.d4m:D4m", "samples that start from noised cluster centres of the class's latents"),
    "vlcp": ("diffusion.vlcp:Vlcp", "d4m with the caption of each cluster as the prompt, on a fine-tuned U-Net"),
    "minimax": ("diffusion.minimax:Minimax", "samples of a backbone fine-tuned to be representative and diverse"),
    "mgd3": ("diffusion.mgd3:Mgd3", "samples drawn towards cluster centres of the class's latents"),
    "manifold-gd": ("diffusion.manifold_gd:ManifoldGd", "mgd3 with a push towards the local plane around each centre"),
    "igd": ("diffusion.igd:Igd", "samples whose gradients follow those of real images, and that keep apart"),
    "dap": ("diffusion.dap:Dap", "samples pulled towards real images in the backbone's own features"),
    "dap-slots": ("diffusion.dap:DapSlots", "dap with a target for every image and repulsion between images"),
    "auto": ("diffusion.auto:Auto", "prototypes, denoised, then moved together until the set is like the real images"),
    "d3hr": ("diffusion.d3hr:D3HR", "samples from a group of noises that is like the inverted real images"),
    "cao2": ("diffusion.cao2:CaO2", "the samples that a classifier agrees with, refined under the diffusion loss"),
}

METHODS: Mapping[str, type[Method]] = Lazy({name: f"dap.methods.{place}" for name, (place, _) in _KNOWN.items()})
"""The class of each method by name; its module is imported when the class is asked for."""

SUMMARIES: Mapping[str, str] = {name: summary for name, (_, summary) in _KNOWN.items()}
"""What each method makes, by name, for a list of methods."""


REFINED = "+refine"
"""The end of a method's name that refines the images of the method, as in mgd3+refine."""


def find(name: str) -> Method:
    """The method behind a name or `file.py:Name`; `NAME+refine` is that method with a refinement after it.

    Raises:
        DapError: the name is unknown, or the object is not a `Method`.
    """
    from dap.methods.base import Method

    if name.endswith(REFINED):
        from dap.methods.refined import Refined

        return Refined(find(name.removesuffix(REFINED)))
    method = resolve(name, METHODS, "method")()
    if not isinstance(method, Method):
        raise DapError(f"{name!r} is not a method; subclass dap.methods.Method.")
    return method


def __getattr__(name: str) -> Any:
    """The names of `dap.methods.base` that whoever writes a method needs, imported when they are asked for."""
    if name not in {"Made", "Method", "Options", "Task", "Unit", "plan"}:
        raise AttributeError(f"module 'dap.methods' has no attribute {name!r}")
    return getattr(importlib.import_module("dap.methods.base"), name)
