"""Measures how long a program of 17 verbs takes to start, with each of several libraries for command lines.

The times are processor seconds over those of bare Python.

One verb has a flag for every field of a small pydantic recipe with sections, as `dap distill` has; the others have eleven
flags of plain types. Install the libraries into an environment of their own, with bytecode, and run this file there:

    pip install cyclopts tyro typer "jsonargparse[signatures]" pydantic-settings
    python benchmarks/command_libraries.py
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from startup import cpu_seconds

VERBS = [f"verb{k}" for k in range(16)]

FLAGS = {
    "out": "Path",
    "protocol": "str = 'small-hard'",
    "trials": "int = 1",
    "epochs": "int | None = None",
    "teacher": "str | None = None",
    "on": "Literal['test', 'validation'] = 'test'",
    "device": "str = 'auto'",
    "offline": "bool = False",
    "threads": "int | None = None",
    "cache": "Path | None = None",
}

HEAD = "from pathlib import Path\nfrom typing import Annotated, Literal\n"


def function(name: str) -> str:
    """A verb as a typed function whose docstring explains its flags."""
    given = ", ".join(f"{flag}: {kind}" for flag, kind in FLAGS.items())
    says = "".join(f"        {flag}: What {flag} means, in a sentence of a few words.\n" for flag in FLAGS)
    return f'def {name}(sets: list[Path], *, {given}) -> None:\n    """Do it.\n\n    Args:\n{says}    """\n'


def model(name: str, fields: int) -> str:
    """A pydantic model with this number of fields."""
    lines = "".join(
        f"    {name}{k}: int = Field(default={k}, description='What it means, in words.')\n" for k in range(fields)
    )
    return f"class {name.title()}(BaseModel):\n{lines}"


MODELS = (
    "from pydantic import BaseModel, Field\n"
    + "".join(model(name, 9) for name in ("data", "backbone", "sampling", "guidance"))
    + "class Recipe(BaseModel):\n    seed: int = Field(default=0, description='The seed.')\n"
    + "".join(
        f"    {name}: {name.title()} = {name.title()}()\n" for name in ("data", "backbone", "sampling", "guidance")
    )
)

DISTILL = 'from models import Recipe\ndef distill(*, recipe: Recipe = Recipe()) -> None:\n    """Make a set."""\n'

SETTINGS = (
    "from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSubCommand\nfrom models import *\n"
    + "from pathlib import Path\nfrom typing import Literal\nclass Distill(BaseModel):\n    recipe: Recipe = Recipe()\n"
    + "class Plain(BaseModel):\n    sets: CliPositionalArg[list[Path]]\n"
    + "".join(f"    {flag}: {kind}\n" for flag, kind in FLAGS.items())
    + "class App(BaseSettings):\n    distill: CliSubCommand[Distill]\n"
    + "".join(f"    {verb}: CliSubCommand[Plain]\n" for verb in VERBS)
    + "CliApp.run(App)\n"
)

PROGRAMS = {
    "cyclopts": "from cyclopts import App\napp = App(name='dap', help_format='plaintext')\n"
    "app.command('distilling:distill', help='Make a set.')\n"
    + "".join(f"app.command('verbs:{verb}', help='Do it.')\n" for verb in VERBS)
    + "app()\n",
    "tyro": "import tyro, verbs\nfrom distilling import distill\n"
    f"known = {{'distill': distill, **{{name: getattr(verbs, name) for name in {VERBS}}}}}\n"
    "tyro.extras.subcommand_cli_from_dict(known, prog='dap')\n",
    "typer": "import typer, verbs\napp = typer.Typer(name='dap')\n"
    "@app.command()\ndef distill("
    + ", ".join(
        f"flag{k}: verbs.Annotated[int, typer.Option(help='What it means, in words.')] = {k}" for k in range(37)
    )
    + f") -> None: ...\nfor name in {VERBS}: app.command(name)(getattr(verbs, name))\napp()\n",
    "jsonargparse": "import verbs\nfrom distilling import distill\nfrom jsonargparse import auto_cli\n"
    f"auto_cli([distill, *(getattr(verbs, name) for name in {VERBS})], prog='dap')\n",
    "pydantic-settings": SETTINGS,
}

LINES = {
    "--help": ["--help"],
    "distill --help": ["distill", "--help"],
    "verb0 --help": ["verb0", "--help"],
    "a misspelt verb": ["verbO"],
    "a misspelt flag": ["verb0", "x", "--out", "y", "--protocl", "z"],
}


def main(runs: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("verbs.py").write_text(HEAD + "".join(map(function, VERBS)))
        Path("models.py").write_text(MODELS)
        Path("distilling.py").write_text(DISTILL)
        for name, text in PROGRAMS.items():
            Path(f"{name}.program.py").write_text(text)
        rows = {("", ""): ["-c", "pass"]}
        rows |= {(name, line): [f"{name}.program.py", *words] for name in PROGRAMS for line, words in LINES.items()}
        found: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
        for turn in range(runs + 1):
            for row, arguments in rows.items():
                seconds = cpu_seconds(arguments)
                found[row] += [seconds] if turn else []  # the first turn writes bytecode and is not counted
    bare = statistics.median(found["", ""])
    print("| library | " + " | ".join(f"`{line}`" for line in LINES) + " |\n" + "|---" * (len(LINES) + 1) + "|")
    for name in PROGRAMS:
        cells = (f"{statistics.median(found[name, line]) - bare:.2f}" for line in LINES)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
