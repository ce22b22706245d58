"""The names of methods and networks as papers write them. Files, flags and CSV keep the names of the command line."""

from __future__ import annotations

import re

METHODS = {
    "random": "Random",
    "herding": "Herding",
    "k-center": "K-Center",
    "dm": "DM",
    "dc": "DC",
    "dsa": "DSA",
    "mtt": "MTT",
    "rded": "RDED",
    "vanilla": "Vanilla",
    "dit": "DiT",
    "sd": "Stable Diffusion",
    "d4m": "D4M",
    "vlcp": "VLCP",
    "minimax": "Minimax",
    "mgd3": "MGD3",
    "manifold-gd": "ManifoldGD",
    "igd": "IGD",
    "dap": "DAP",
    "dap-slots": "DAP-slots",
    "auto": "Auto",
    "d3hr": "D3HR",
    "cao2": "CaO2",
}
"""The names of the methods of this library."""

NETWORKS = {
    "convnet3d": "ConvNet3D",
    "small_convnet3d": "small ConvNet3D",
    "r3d18": "R3D-18",
    "resnetap10": "ResNetAP-10",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_b0": "EfficientNet-B0",
    "swin_t": "Swin-T",
    "swin_v2_t": "SwinV2-T",
}
"""The names of those networks whose name is more than a family and a depth."""

FAMILIES = {"convnet": "ConvNet", "resnet": "ResNet"}
"""The families of networks that are named with their depth."""


def method_title(name: str) -> str:
    """The name of a method in a report: "DM" for "dm", "MGD3 + refinement" for "mgd3+refine". Other names stay as they are."""
    base, refined = (name.removesuffix("+refine"), True) if name.endswith("+refine") else (name, False)
    return METHODS.get(base, base) + (" + refinement" if refined else "")


def network_title(name: str) -> str:
    """The name of a network in a report: "ConvNet-3" for "convnet3". The names of others' networks stay as they are."""
    if found := re.fullmatch(r"([a-z]+)(\d+)", name):
        family, depth = found.groups()
        if family in FAMILIES:
            return f"{FAMILIES[family]}-{depth}"
    return NETWORKS.get(name, name)
