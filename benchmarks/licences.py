"""Write `docs/licences.md`: under which licences the packages come that dap needs, and the weights and data that it carries.

Command: `make licences`. The licences of packages are those that the installed packages say of themselves.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dap.starter import PIPELINE, UNET_PIPELINE

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "licences.md"

SHORT = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Shorter names of what classifiers say."""


def named(project: dict[str, object]) -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: "dap" for the dependencies of every user, and each extra by its name."""
    extras = project.get("optional-dependencies", {})
    assert isinstance(extras, dict)
    groups = {"dap": project["dependencies"], **extras}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}  # pyright: ignore[reportGeneralTypeIssues]


def licence(of: Distribution) -> str:
    """What a package says of its licence: the expression, else the classifiers, else the first line of the old field."""
    about: Any = of.metadata
    if expression := about.get("License-Expression"):
        return expression
    said = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    said = [SHORT.get(one, one) for one in said if one != "OSI Approved"]
    if said:
        return ", ".join(said)
    first = next(iter((about.get("License") or "").strip().splitlines()), "")
    return SHORT.get(first, first)[:60] or "not said; see the package"


def reached(wanted: dict[str, list[Requirement]]) -> dict[str, tuple[str, set[str]]]:
    """For each package its own name, and who asks for it: "dap", "extra NAME", or the names of other packages."""
    found: dict[str, tuple[str, set[str]]] = {}
    todo = [
        ("dap" if group == "dap" else f"extra {group}", requirement)
        for group, requirements in wanted.items()
        for requirement in requirements
    ]
    seen = set[tuple[str, frozenset[str]]]()
    while todo:
        by, requirement = todo.pop(0)
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras, *ASKED.get(by, ()))
        ):
            continue
        found.setdefault(name, (requirement.name, set()))[1].add(by)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        ASKED[name] = ASKED.get(name, set()) | extras
        try:
            asked = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        todo += [(name, Requirement(line)) for line in asked]
    return found


ASKED: dict[str, set[str]] = {}
"""The extras with which each package is asked for."""


def packages(wanted: dict[str, list[Requirement]]) -> str:
    direct = {canonicalize_name(one.name) for requirements in wanted.values() for one in requirements}
    rows = {True: list[str](), False: list[str]()}
    for name, (said, by) in sorted(reached(wanted).items()):
        try:
            of = distribution(name)
            cells = [of.metadata["Name"], of.version, licence(of)]
        except PackageNotFoundError:
            cells = [said, "not installed here", "see the package"]
        others = sorted(one for one in by if one == "dap" or one.startswith("extra "))
        who = others or sorted(by)[:3] + ["…"] * (len(by) > 3)
        rows[name in direct].append(
            "| " + " | ".join(re.sub(r"\s+", " ", c).replace("|", "/") for c in (*cells, ", ".join(who))) + " |"
        )
    head = "| package | version | licence | asked for by |\n|---|---|---|---|\n"
    return (
        f"## Packages that dap asks for\n\n{head}" + "\n".join(rows[True]) + "\n\n"
        f"## Packages that these ask for\n\nOn Linux with Python 3.11; other systems leave some of them out.\n\n{head}"
        + "\n".join(rows[False])
    )


def carried() -> str:
    rows = ["| dap itself | `src/`, `tests/`, `docs/` | MIT | `LICENSE` |"]
    for what, folder in (("weights: starter", PIPELINE), ("weights: starter-unet", UNET_PIPELINE)):
        card = yaml.safe_load((Path(folder) / "card.yaml").read_text(encoding="utf-8"))
        place = Path(folder).relative_to(ROOT).as_posix()
        rows.append(f"| {what} | `{place}/` | {card['licence']} | made by `dap.starter.train` on Fashion-MNIST |")
    rows.append(
        "| weights: reference classifier | `starters/dap_starters/reference/` | MIT | `dap.starter.reference`, Fashion-MNIST |"
    )
    rows.append(
        "| data: Fashion-MNIST | `starters/dap_starters/data/` | MIT, © 2017 Zalando SE | `starters/dap_starters/data/LICENSE` |"
    )
    rows.append(
        "| names and subsets of ImageNet | `src/dap/imagenet.py`, `src/dap/data/subsets/` | facts | ids and names, no images |"
    )
    return "## What dap carries\n\n| what | where | licence | source |\n|---|---|---|---|\n" + "\n".join(rows)


def published() -> str:
    cards = yaml.safe_load((files("dap.backbones") / "cards.yaml").read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {card['licence']} |" for name, card in sorted(cards.items()) if "licence" in card and "/" in name
    ]
    return (
        "## Weights that people load\n\ndap carries none of these. The card of a distilled set repeats the licence of its "
        "backbone and of its data.\n\n| weights | licence |\n|---|---|\n" + "\n".join(rows)
    )


def page() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    head = (
        "# Licences\n\n`make licences` writes this page. What packages say of themselves may be wrong or short; their own files "
        "decide.\nThe images of a distilled set follow the licences of its backbone and of its data, see the README."
    )
    return "\n\n".join([head, carried(), published(), packages(named(project))]) + "\n"


if __name__ == "__main__":
    OUT.write_text(page(), encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)} is written")
