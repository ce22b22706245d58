"""ManifoldGD: see `dap.guidance.manifold` for the paper and its equation."""

from __future__ import annotations

import math

from pydantic import Field

from dap.base.errors import DapError
from dap.guidance import Guidance, Manifold, Modes, Window
from dap.methods.base import Task
from dap.methods.diffusion.mgd3 import ClassModes, Discovery, ModeOptions
from dap.methods.diffusion.vanilla import Vanilla


class ManifoldOptions(ModeOptions):
    """MGD3's, and the neighbourhoods of the modes."""

    discovery: Discovery = Field(
        default="tree",
        description="tree: the centroids of ipc leaves of bisecting k-means, always the leaf of the largest squared error "
        "next. kmeans, nearest: as mgd3.",
    )
    manifold: float = Field(
        default=0.1, ge=0, description="Length of a full push to the plane, the paper's 0.1. 0 leaves MGD3 alone."
    )
    radius: float = Field(
        default=0.1, gt=0, description="Of a mode's neighbourhood in latents. The paper: 0.1; 0.05 on ImageNette."
    )
    bandwidth: float = Field(
        default=0.2,
        gt=0,
        description="Distance of x_t to its neighbours beyond which the push is full. The paper: 0.2 on ImageNette and "
        "ImageWoof, 0.1 on ImageNet-100 and ImageNet-1K.",
    )
    tangent: int = Field(default=3, ge=1, description="Dimension of the plane; the paper's.")
    neighbours: int = Field(default=12, ge=2, description="Noised points the plane is fitted to; the paper's.")
    points: int = Field(default=300, ge=2, description="Noised points a step to find them among; the paper's.")
    widening: float = Field(default=2.0, ge=1, description="The radius is this many times larger at the first step.")
    warm: float = Field(
        default=0.1, ge=0, le=1, description="Part of the run over which it shrinks back. The paper: 5 of 50 steps."
    )


class ManifoldGd(Vanilla):
    """MGD3 towards the leaves of a tree of clusters, and a push of each x_t to the local plane around its mode.

    The text of the paper projects the mode's pull onto the plane; its released code, followed here, keeps that pull whole
    and adds a push along the normal. The code also deals the leaves out level by level, which with as many leaves as images
    only decides which slot gets which; here they stay in the tree's order. Its D × D eigen-decomposition for each guided
    step is a decomposition of the twelve neighbours here, and gives the same plane.
    """

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
