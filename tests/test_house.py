"""The order of the house: who may import whom, who prints, and how long a file and a folder may be."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dap

ROOT = Path(dap.__file__).parent

ROOMS = [
    ["dap.base"],
    ["dap.imagenet", "dap.expressions", "dap.starter", "dap.protocol_names"],
    ["dap.kernels", "dap.networks"],
    ["dap.choices", "dap.shipped", "dap.guidance"],
    ["dap.resolved", "dap.backbones"],
    ["dap.solvers", "dap.posterior"],
    ["dap.sampling"],
    ["dap.refining"],
    ["dap.data.real", "dap.data.clusters", "dap.data.pooling"],
    ["dap.starter.images"],
    ["dap.data.sets", "dap.data.bank", "dap.data"],
    ["dap.data.typical"],
    ["dap.recipe", "dap.cost", "dap.choosing", "dap.pretraining"],
    ["dap.evaluation.current", "dap.evaluation.listed", "dap.evaluation.spread"],
    ["dap.evaluation.origins", "dap.evaluation.renamed", "dap.evaluation.taken"],
    ["dap.evaluation.comparable", "dap.evaluation.training", "dap.published"],
    ["dap.evaluation.measures", "dap.evaluation.report"],
    ["dap.evaluation"],
    ["dap.methods", "dap.pipelines"],
    ["dap.described"],
    ["dap.objects", "dap.named"],
    ["dap.workshop"],
    ["dap.engines"],
    ["dap.verbs"],
    ["dap.testing"],
    ["dap.cli"],
    ["dap.__main__", "dap.starter.train", "dap.starter.reference"],
    ["dap.starter.unet"],
]
"""Rooms from the ground up. A module imports from its own room and from the rows above it in this list, and from no other."""

STRANGERS = {
    "dap.evaluation": ("dap.guidance", "dap.backbones", "dap.solvers", "dap.sampling", "dap.recipe", "dap.methods")
}
"""Rooms that know nothing of each other although their rows would allow it: what judges a set must not know how it was made."""


def modules() -> dict[str, Path]:
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in MODULES else str(node.module)} & MODULES.keys()
    # The root's names are lazy: `from dap import __version__` runs nothing.
    return found - {"dap"}


def rank(module: str) -> tuple[int, str]:
    """The row of a module's room, and the room."""
    fits = [
        (len(room), row, room)
        for row, rooms in enumerate(ROOMS)
        for room in rooms
        if f"{module}.".startswith(f"{room}.")
    ]
    assert fits, f"{module} is in no room of this list"
    return max(fits)[1:]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"dap"}))
def test_imports_run_one_way(module):
    row, room = rank(module)
    for other in imports(module):
        lower, home = rank(other)
        assert home == room or lower < row, f"{module} ({room}) imports {other} ({home})"
        assert not any(module.startswith(one) and other.startswith(STRANGERS[one]) for one in STRANGERS), (
            module,
            other,
        )


def test_no_circle():
    """Of imports inside functions neither: such a circle works, and nobody can follow it."""
    graph = {module: imports(module) for module in MODULES if module != "dap"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_command_line_parses_arguments_and_prints():
    for file in ROOT.rglob("*.py"):
        if file.parent.name == "cli" or file.parent.name == "starter":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert "print" not in calls, file
        assert "argparse" not in {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}, file


def test_guidance_calls_autograd_in_one_place():
    """Besides, those that optimise pixels, latents or weights do, and IGD, whose energy is a gradient itself."""
    users = {
        f.relative_to(ROOT).as_posix()
        for f in ROOT.rglob("*.py")
        if not {"evaluation", "testing"} & set(f.parts) and "autograd.grad(" in f.read_text(encoding="utf-8")
    }
    own = {f"methods/matching/{name}.py" for name in ("base", "dm", "dc", "mtt")}
    own |= {"methods/diffusion/cao2.py", "backbones/finetune.py", "refining/seen.py"}
    assert users - own <= {"guidance/base.py", "guidance/influence.py"}


def test_files_stay_small():
    long = {f.name: n for f in ROOT.rglob("*.py") if (n := len(f.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long


def test_folders_stay_small():
    crowded = {
        folder.relative_to(ROOT).as_posix(): n
        for folder in [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir())]
        if (n := len([file for file in folder.glob("*") if file.suffix in (".py", ".yaml")])) > 18
    }
    assert not crowded


MAP = ROOT.parents[1] / "docs" / "architecture.md"


def defined() -> set[str]:
    """`module.function` and `Class.method` of the whole package."""
    found = set()
    for module, file in MODULES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        places = [(module.rpartition(".")[2], tree)] + [
            (node.name, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        ]
        found |= {f"{name}.{node.name}" for name, place in places for node in place.body if hasattr(node, "name")}
    return found


def test_the_walks_of_the_map_exist_and_are_as_long_as_it_says():
    import re

    text = MAP.read_text(encoding="utf-8")
    known, walks = defined(), re.findall(r"^\*\*.*\((\d+) functions.*\):\n\n((?:\d+\. .*\n(?:   .*\n)*)+)", text, re.M)
    assert len(walks) == 3
    for length, steps in walks:
        names = re.findall(r"^\d+\. `([\w.]+)`", steps, re.M)
        assert len(names) == int(length)
        assert not [name for name in names if ".".join(name.split(".")[-2:]) not in known]


def test_the_map_names_every_room():
    text = MAP.read_text(encoding="utf-8")
    rooms = {path.parent if path.name == "__init__.py" else path for path in ROOT.rglob("*.py")} - {ROOT}
    top = {path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "") for path in rooms if path.parent == ROOT}
    assert not {
        name for name in top - {"__main__.py"} if f"`{name}`" not in text and name != "data/" and name != "evaluation/"
    }


def test_no_two_files_of_tests_have_one_name():
    """pytest would import one of them alone."""
    times = Counter(file.name for file in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in times.items() if count > 1] == []
