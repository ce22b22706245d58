"""What the methods are, in words, for `dap methods`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from dap.methods import METHODS, find

WHEN: Mapping[str, tuple[str, str, str]] = {
    "random": ("real images, drawn at random", "as a baseline", "seconds"),
    "herding": ("real images near the mean", "real images, ipc ≥ 50", "a pass"),
    "k-center": ("real images covering a class", "rare kinds must be in", "a pass"),
    "dm": ("pixels matching mean features", "no backbone, ≤ 128 px", "--budget"),
    "dc": ("pixels matching gradients", "ipc 1, small images", "--budget"),
    "dsa": ("dc with random augmentation", "ipc 1, small images", "--budget"),
    "mtt": ("pixels on training paths", "ipc 1, hours to spend", "hours"),
    "rded": ("crops a classifier is sure of", "soft labels, ImageNet", "a pass"),
    "vanilla": ("samples of the backbone", "private images", "1"),
    "dit": ("vanilla on a DiT alone", "rows of the tables", "1"),
    "sd": ("vanilla on Stable Diffusion", "rows of the tables", "1"),
    "d4m": ("samples from cluster centres", "Stable Diffusion", "2"),
    "vlcp": ("d4m with captions, tuned", "captioned images", "tuning + 2"),
    "minimax": ("samples of a tuned backbone", "ImageNet on a GPU", "tuning + 1"),
    "mgd3": ("samples near cluster centres", "ImageNet, ipc 10–100", "2"),
    "manifold-gd": ("mgd3 along the images' surface", "ImageNet, ipc 10–100", "2"),
    "igd": ("samples with real gradients", "ImageNet on a GPU", "100"),
    "dap": ("samples pulled to real ones", "the paper's own form", "1.3 to 3"),
    "dap-slots": ("dap with a target per image", "private, ipc 10 up", "2 to 5"),
    "auto": ("prototypes, refined as a set", "a backbone that fits", "2"),
    "d3hr": ("noises grouped as real ones", "ImageNet, soft labels", "5"),
    "cao2": ("samples a classifier confirms", "a classifier at hand", "7"),
}
"""For each method what it makes, when to take it, and its cost: as a multiple of the time of `vanilla` on Fashion-MNIST at 10
images per class (docs/rivals.csv; the order of magnitude), or what decides it."""


def table(costs: Mapping[str, str] | None = None) -> str:
    """Every method by name: what it makes, when to take it, what it needs beyond real images, and its cost.

    Args:
        costs: the cost of methods for a folder. Default: relative to vanilla.
    """
    head = ("method", "makes", "take it for", "needs", "cost")
    rows = [
        (name, *WHEN[name][:2], _needs(made.needs - {"training"}), (costs or {}).get(name, WHEN[name][2]))
        for name, made in METHODS.items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    told = COST_OF_FOLDER if costs else COST
    return "\n".join([*lines, "", *told, "dap methods NAME says what one does, costs and can be told."])


COST = (
    "ipc: images per class. cost: a multiple of the time of vanilla on Fashion-MNIST, roughly; --budget:",
    "as much as fits the time you give; a pass: one look at the real images. dap methods --data FOLDER",
    "tells the time for your images.",
)
COST_OF_FOLDER = (
    "ipc: images per class. cost: the time for this folder on this machine, roughly; dm, dc and dsa with",
    "the papers' iterations, of which dap distill takes fewer, and --budget as many as fit. –: something",
    "that the method needs is not given, or it trains something whose time no time test tells.",
)


def one(name: str) -> str:
    """A method in full: its idea, reference, needs, cost and own options with their defaults.

    Raises:
        DapError: no such method.
    """
    made = find(name)
    parts = [f"{name}: {' '.join((made.__doc__ or '').split())}", ""]
    parts += [f"{word:11}{text}" for word, text in (("reference", made.reference), ("needs", _needs(made.needs)))]
    parts += [f"{'cost':11}{made.cost}"] if made.cost else []
    if made.Options is not None:
        parts += ["", "options, as --option NAME=VALUE (in dap compare METHOD.NAME=VALUE):"]
        for option, field in made.Options.model_fields.items():
            parts += [
                f"  {option} = {field.default}",
                textwrap.indent(textwrap.fill(field.description or "", 100), "      "),
            ]
    if made.guidance is not None:
        told = (
            ", ".join(f"{key} {value}" for key, value in made.guidance.items()) or "the backbone card's and the paper's"
        )
        parts += ["", f"guidance: its flags of dap distill (--scale, --layer, ...); defaults: {told}"]
    if made.sampling:
        parts += [
            "",
            f"sampling: {', '.join(f'{key} {value}' for key, value in made.sampling.items())} unless told otherwise",
        ]
    return "\n".join(parts)


def _needs(needs: Iterable[str]) -> str:
    return ", ".join(sorted(needs)) or "–"
