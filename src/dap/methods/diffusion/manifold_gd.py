"""ManifoldGD: see `dap.guidance.manifold` for the paper and its equation."""

from __future__ import annotations

import math

from pydantic import Field

from dap.base.errors import DapError
from dap.guidance import Guidance, Manifold, Modes, Window
from dap.methods.base import Task
from dap.methods.diffusion.mgd3 import ClassModes, Discovery, ModeOptions
from dap.methods.diffusion.vanilla import Vanilla


class ManifoldOptions(ModeOptions, frozen=True):
    """The options of MGD3, and the neighbourhoods of the modes."""

    discovery: Discovery = Field(
        default="tree",
        description="How the modes are found. tree: the centroids of the ipc leaves of bisecting k-means, which always "
        "splits the "
        "leaf with the largest squared error. kmeans, nearest: as in mgd3.",
    )
    manifold: float = Field(
        default=0.1,
        ge=0,
        description="Length of a full push towards the plane; the paper has 0.1. With 0 the method is MGD3.",
    )
    radius: float = Field(
        default=0.1,
        gt=0,
        description="Radius of the neighbourhood of a mode, in latents. The paper has 0.1, and 0.05 on ImageNette.",
    )
    bandwidth: float = Field(
        default=0.2,
        gt=0,
        description="The push is full where x_t is farther from its neighbours than this. The paper has 0.2 on ImageNette and "
        "ImageWoof, 0.1 on ImageNet-100 and ImageNet-1K.",
    )
    tangent: int = Field(default=3, ge=1, description="Dimension of the plane; the paper has 3.")
    neighbours: int = Field(
        default=12, ge=2, description="How many noised points the plane is fitted to; the paper has 12."
    )
    points: int = Field(
        default=300,
        ge=2,
        description="How many noised points are drawn at each step to find the neighbours among; the paper has 300.",
    )
    widening: float = Field(default=2.0, ge=1, description="The radius is this many times larger at the first step.")
    warm: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Part of the run over which the radius shrinks back. The paper has 5 of 50 steps.",
    )


class ManifoldGd(Vanilla):
    """MGD3 towards the leaves of a tree of clusters, with a push of each x_t towards the local plane around its mode.

    The text of the paper projects the pull of the mode onto the plane. Its released code, which is followed here,
    keeps the whole pull and adds a push along the normal of the plane. That code hands the leaves out level by level;
    as there are as many leaves as images, this only decides which slot gets which leaf, and here the leaves stay in
    the order of the tree. The code decomposes a D × D matrix at each guided step; here the twelve neighbours are
    decomposed, which gives the same plane.
    """

    clips = True
    reference = "Roy, Lee, Chakraborty & Lokhande, CVPR 2026 (ManifoldGD)"
    cost = "as mgd3; 300 random points and a small decomposition an image and guided step"
    Options = ManifoldOptions

    def build(self, task: Task) -> Guidance:
        options = task.options
        size = math.prod(task.backbone.latent_shape)
        if options.tangent >= size:
            raise DapError(f"A plane in {size} dimensions cannot have {options.tangent}; lower tangent.")
        centres = ClassModes(task, options)
        shape = options.model_dump(
            include={"radius", "bandwidth", "tangent", "neighbours", "points", "widening", "warm"}
        )
        manifold = Manifold(centres, options.manifold, **shape)
        return Window(Modes(centres, options.scale) + manifold, stop=options.stop)
