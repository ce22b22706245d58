"""Guidances. A guidance adds a push to each reverse step. Each paper has a file of its own."""

from dap.guidance.base import Descend, Energy, Guidance, Nothing, Scaled, State, Sum, Window
from dap.guidance.influence import Deviation, Influence
from dap.guidance.manifold import Manifold
from dap.guidance.modes import Modes
from dap.guidance.representative import Representative
from dap.guidance.set_level import EnergyDistance, LogDet, MeanMatching, SquaredMMD
from dap.guidance.strength import Paced, Trusted
from dap.guidance.transport import SinkhornDivergence

__all__ = [
    "Descend",
    "Deviation",
    "Energy",
    "EnergyDistance",
    "Guidance",
    "Influence",
    "LogDet",
    "Manifold",
    "MeanMatching",
    "Modes",
    "Nothing",
    "Paced",
    "Representative",
    "Scaled",
    "SinkhornDivergence",
    "SquaredMMD",
    "State",
    "Sum",
    "Trusted",
    "Window",
]
