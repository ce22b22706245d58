"""The documentation site: it builds strictly and without network, loads nothing from elsewhere, and has what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import dap

ROOT = Path(__file__).parents[2]

# A build whose process may open no connection at all. With --quiet, mkdocs would not count the warnings that make it fail.
BUILD = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the build of the site tried to open a connection")
socket.socket.connect = socket.create_connection = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, str(ROOT / "mkdocs.yml"), str(out)]
    done = subprocess.run(
        command, cwd=out, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr
    return out


class Seen(HTMLParser):
    """What a page loads when it is opened, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.text: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.ids |= {of["id"]} if of.get("id") else set()
        if tag in ("script", "img", "iframe", "source"):
            self.loaded += [of["src"]] if of.get("src") else []
        if tag == "link" and "canonical" not in (of.get("rel") or ""):
            self.loaded += [of["href"]]

    def handle_data(self, data):
        self.text.append(data)


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for what in Seen(page).loaded:
            assert not re.match(r"(?:\w+:)?//", what), (page.name, what)
            if (
                not what.startswith("data:") and page.name != "404.html"
            ):  # a server answers with 404.html from any folder
                assert (page.parent / what.split("?")[0].split("#")[0]).exists(), (page.name, what)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:\w+:)?//|@import", style.read_text(encoding="utf-8")), style


def test_every_public_name_of_the_package_is_in_the_reference(site):
    missing = {f"dap.{name}" for name in dap.__all__} - Seen(site / "api" / "dap.html").ids
    assert not missing, "name them in docs/api/dap.md"


@pytest.mark.parametrize(
    ("page", "names"),
    {
        "kernels": ["dap.kernels.Kernel.distance", "dap.kernels.Linear", "dap.kernels.parse"],
        "guidance": ["dap.guidance.base.Energy", "dap.sampling.sample", "dap.refining.refine"],
        "backbones": ["dap.backbones.base.Card", "dap.backbones.base.Backbone.predict"],
        "data": ["dap.data.bank.FeatureBank", "dap.data.sets.distilled.DistilledSet.open"],
        "methods": ["dap.methods.base.Method.prepare", "dap.methods.base.Task"],
        "evaluation": ["dap.evaluation.training.protocol.Protocol", "dap.evaluation.measures.own.Subject"],
    }.items(),
)
def test_the_reference_has_the_parts_that_one_extends(site, page, names):
    assert not set(names) - Seen(site / "api" / f"{page}.html").ids


def test_pages_of_files_outside_docs_and_the_notebook_are_there(site):
    for page, words in {
        "index": "Two commands",
        "security": "What is trusted",
        "changelog": "0.1.0",
        "contributing": "Rules of the house",
        "notebook": "How well do networks learn from them?",
    }.items():
        assert words in "".join(Seen(site / f"{page}.html").text), page
    assert 'src="data:image' in (site / "notebook.html").read_text(encoding="utf-8")


def test_lists_and_tables_are_lists_and_tables(site):
    """The site's Markdown wants an empty line where the repository's wants none: what is left of a mark shows as text."""
    for page in site.rglob("*.html"):
        main = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.S)
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", main[0] if main else "", flags=re.S)
        assert not re.search(r"<p>[^<]*\n[*-] |<p>\||\*\*\w|^\d\. ", text, re.M), page.name


@pytest.mark.parametrize("link", ["no.md", "index.md#no", "../src/no.py", "/index.md"])
def test_a_link_to_nothing_fails(link, tmp_path):
    """By the rules of mkdocs.yml, on a site of one page."""
    rules = re.search(r"^validation:\n(?: .*\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert rules
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(f"site_name: one\ntheme: null\nplugins: []\n{rules[0]}")
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[one](index.md#one)\n")
    build(config)
    (tmp_path / "docs" / "index.md").write_text(f"# One\n\n[two]({link})\n")
    with pytest.raises(Abort, match="1 warnings in strict mode"):
        build(config)


def test_links_of_the_repository_become_those_of_the_site():
    sys.path.insert(0, str(ROOT / "docs" / "_site"))
    try:
        import hook
    finally:
        sys.path.pop(0)
    there = hook.linked("[code](../src/dap/sampling.py), [it](../SECURITY.md#what-is-trusted)", "docs", "faq.md")
    assert there == "code (`src/dap/sampling.py`), [it](security.md#what-is-trusted)"
    assert hook.linked("[a](../SECURITY.md)", "docs/api", "api/x.md") == "[a](../SECURITY.md)", (
        "docs/SECURITY.md is no file"
    )
    assert hook.linked("[a](../src/no.py)", "docs", "faq.md") == "[a](../src/no.py)", "mkdocs warns of it"
    assert hook.linked("[![p](docs/a.svg)](docs/results.md#x)", "", "index.md") == "[![p](a.svg)](results.md#x)"
    assert hook.linked("```sh\n[a](../src/dap/sampling.py)\n```", "docs", "faq.md").startswith("```sh\n[a](../src")


def test_the_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == dap.__version__ and cited["cff-version"] == "1.2.0"
    (paper,) = cited["references"]
    assert paper["title"] == "Diffusion Models as Dataset Distillation Priors" and len(paper["authors"]) == 7
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(one["name"] in pyproject and one["name"] in (ROOT / "LICENSE").read_text() for one in cited["authors"])


def test_issue_forms_are_whole():
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.name != "config.yml":
            assert form["name"] and form["description"] and all(part["attributes"]["label"] for part in form["body"])
            ids = [part["id"] for part in form["body"]]
            assert len(ids) == len(set(ids)) >= 4, file
