"""What is said of the packages that dap needs: their licences, their hashes, and that no file names a registry."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
GROUPS = {"dap": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def names(group: str) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in GROUPS[group]}


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_licences_has_every_package_of_pyproject(group):
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M
    )
    told = {canonicalize_name(name): (licence, by) for name, _, licence, by in rows}
    missing = names(group) - set(told)
    assert not missing, f"run make licences: {missing}"
    for name in names(group):
        licence, by = told[name]
        assert licence.strip() and (group if group == "dap" else f"extra {group}") in by, (name, by)


def test_every_carried_file_of_weights_and_data_has_a_licence():
    page = (ROOT / "docs" / "licences.md").read_text()
    starter = ROOT / "starters"
    carried = {file.parent for suffix in ("safetensors", "gz") for file in starter.rglob(f"*.{suffix}")}
    named = re.findall(r"`(starters/dap_starters/[\w-]+)/`", page)
    assert carried and all(any(folder.is_relative_to(ROOT / one) for one in named) for folder in carried)


def test_the_hashed_file_has_the_pinned_versions_and_their_hashes():
    text = (ROOT / "requirements-hashed.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==([\w.+!]+)[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)", text, re.M)
    found = {canonicalize_name(name): version for name, version, _ in entries}
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text, re.M)), "each entry has hashes"
    assert len(found) > 80 and all(hashes.strip() for _, _, hashes in entries)
    wanted = names("dap") | names("dev")
    assert wanted <= set(found), f"run make hashes: {wanted - set(found)}"
    pinned = {canonicalize_name(name): version for name, version in PINNED.items()}
    changed = {name: (version, found[name]) for name, version in pinned.items() if found.get(name, version) != version}
    assert not changed, f"run make hashes: {changed}"


@pytest.mark.parametrize("name", ["requirements-hashed.txt", "constraints.txt", "Makefile", "docs/licences.md"])
def test_no_file_names_a_registry(name):
    text = (ROOT / name).read_text()
    assert "://" not in text and "-".join(["index", "url"]) not in text


def test_every_dependency_has_a_lower_bound():
    """`make test-oldest` takes the lowest version that is allowed. Without a bound that is the first one ever made."""
    for line in (line for lines in GROUPS.values() for line in lines):
        assert any(one.operator in (">=", "==", "~=", ">") for one in Requirement(line).specifier), line
