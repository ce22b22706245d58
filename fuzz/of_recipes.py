"""Readers of recipes, protocols, kernel expressions and values of the command line."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from dap import kernels
from dap.cli import flags
from dap.cli.recipe import recipe_values, varied
from dap.evaluation.training.protocol import known_protocols, load_protocol
from dap.recipe import Recipe
from fuzz.target import Target

MINE = b"extends: small-hard\nname: mine\nepochs: 30\nmean: [0.5, 0.5, 0.5]\nlooks: 3\ncases: []\n"
KERNELS = (
    b"linear", b"linear + 0.5 * rbf(bandwidth=3)", b"polynomial(degree=2, offset=1.0)", b"rational-quadratic(alpha=2) * cosine",
    b"2 * (laplacian + rbf)", b"rbf(bandwidth=None)", b"-1 * linear", b"linear / 2", b"1e999 * linear", b"rbf(bandwidth=inf)",
)  # fmt: skip


def targets(folder: Path) -> list[Target]:
    """The readers of what a user writes."""
    recipes, protocols = folder / "recipes", folder / "protocols"
    recipes.mkdir(parents=True)
    protocols.mkdir()
    shipped = [file.read_bytes() for file in Path(str(files("dap") / "recipes")).rglob("*.yaml")]
    pinned = files("dap.evaluation.training") / "protocols"
    own = [(pinned / f"{name}.yaml").read_bytes() for name in known_protocols()]

    def parsed(path: Path) -> Any:
        return Recipe.parse(Recipe.load(path), str(path))

    def settled(path: Path) -> Any:
        protocol = load_protocol(path)
        return [protocol.settled(ipc=ipc, classes=10).look_epochs for ipc in (1, 10, 50)], protocol.decay_epochs

    def given(text: str) -> Any:
        name = FIELDS[len(text) % len(FIELDS)]
        return Recipe.parse(recipe_values(None, {name: text}))

    def checked(text: str) -> Any:
        return load_protocol("small-hard", **flags.assignments([text], "--set", "FIELD"))

    return [
        Target("recipe", "yaml", recipes, "mine.yaml", tuple(sorted(shipped)), parsed),
        Target("protocol", "yaml", protocols, "mine.yaml", (MINE, *own), settled),
        Target("kernel", "text", folder, "", KERNELS, kernels.parse),
        Target("recipe flag", "text", folder, "", (b"10", b"0.5", b"dap", b"rbf + linear", b"true", b"all"), given),
        Target("--set", "text", folder, "", (b"size=64", b"mean=[0.5]", b"epochs=3", b"labels=hard"), checked),
        Target("--option", "text", folder, "", (b"a=1", b"b=[1, {c: 2}]", b"c="),
               lambda text: flags.assignments([text], "--option", "NAME")),
        Target("--vary", "text", folder, "", (b"scale=0,0.5", b"layer=1", b"ipc="), lambda text: varied([text])),
    ]  # fmt: skip


FIELDS = ("ipc", "seed", "block", "data.size", "sampling.steps", "sampling.cfg", "sampling.cfg_channels", "guidance.scale",
          "guidance.squared", "guidance.start", "data.path", "data.classes", "backbone.dtype", "method")  # fmt: skip
