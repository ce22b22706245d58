"""What a stranger, a killed process or a bad disk may leave in the folder of a set: a report shows it or says what is wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dap.base.errors import DapError
from dap.evaluation.report import page as report
from dap.evaluation.report.records import load_set
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import accuracy_table
from pictures import bomb
from reported import judged, looked, make_set, page_of, recipe, write_lines

FILES = ("trials.jsonl", "measures.json", "images.json", "cost.json", "env.json", "protocols.json", "ranking.json",
         "zeroshot.json", "recipe.json", "import.json", "manifest.jsonl", "classes.json", "command.txt")  # fmt: skip
ZEROSHOT = {"backbone": "starter", "times": 3, "keep": [], "seed": 0, "agreement": 0.5, "seconds": 1.0, "judged": "a",
            "tested": "b", "real": {"accuracy": 0.5, "images": 4, "seconds": 2.0},
            "images": [{"label": 0, "slot": 0, "path": "images/class-0/00000.png", "predicted": 1}]}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_set(folder / "vanilla", recipe("vanilla", 0), [looked(0.6), looked(0.62, 1)])
    path = judged(make_set(folder / "dap", recipe("dap", 0), [looked(0.7), looked(0.72, 1, network="resnet18")]))
    (path / "zeroshot.json").write_text(json.dumps(ZEROSHOT))
    (path / "env.json").write_text(json.dumps({"versions": {"torch": "2"}, "device": "cpu", "weights": "a" * 64}))
    cost = {"seconds": 8.0, "images": 4, "needs": ["backbone"], "prepared": {"modes": {"seconds": 2.0, "made": False}}}
    (path / "cost.json").write_text(json.dumps(cost))
    return folder


def shown(folder: Path, out: Path) -> str:
    """Every rendering of a report on the sets in a folder."""
    page = report.write_report(sorted(folder.iterdir()), out, title="A title")
    rows = summarise([load_set(path) for path in sorted(folder.iterdir())])
    accuracy_table(rows).terminal(80, colour=False)
    return "".join(file.read_text(encoding="utf-8") for file in page.parent.iterdir())


EXAMPLES = int(os.environ.get("DAP_EXAMPLES", 60))

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "NaN", "<script>", "1e999", "{{x}}", "\x1b[2J", "\u202e", "-", "4"]
)
NUMBERS = (
    st.integers(-3, 3)
    | st.sampled_from([2**31, -(2**63), 2**64, 10**19, 1e30, -1e30, 1e300, 1e-320, 0.5, 1, 0, True])
    | st.floats(allow_nan=True, allow_infinity=True)
)
VALUES = st.recursive(
    st.none() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value: object, where: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, one in inner for place in places(one, (*where, key)))]


def mutated(value: object, place: tuple, new: object) -> object:
    if not place:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[place[0]] = mutated(value[place[0]], place[1:], new)
    return copied


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_value_in_any_file_is_shown_or_refused_in_a_sentence(whole, tmp_path, data):
    """First section, read through closed models: what the models accept, every rendering survives."""
    folder = tmp_path / "sets"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("map.npz"))  # its layout takes most of the time
    name = data.draw(st.sampled_from([name for name in FILES if name not in ("import.json", "command.txt")]))
    file = folder / "dap" / name
    lines = file.read_text().splitlines() if name.endswith("l") else [file.read_text()]
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(value)))
        value = mutated(value, place, data.draw(VALUES))
        if isinstance(value, dict) and data.draw(st.booleans()):
            value[data.draw(TEXTS)] = data.draw(VALUES)
    lines[number] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")
    try:
        text = shown(folder, tmp_path / "out")
    except DapError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert "<script>alert" not in text and text.encode()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"", b"\0" * 9, b"[" * 3000, b"{}", b"[]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"{}\n{}\n7\n"],
)
def test_bytes_that_are_no_such_file(whole, tmp_path, name, content):
    shutil.copytree(whole, tmp_path / "sets")
    (tmp_path / "sets" / "dap" / name).write_bytes(content)
    try:
        shown(tmp_path / "sets", tmp_path / "out")
    except DapError as error:
        assert name in str(error) and "\n" not in str(error)
    except FileNotFoundError as error:  # classes.json names none
        assert name == "classes.json" and "is not a distilled set" in str(error)


@pytest.mark.parametrize("name", [*FILES, "map.npz"])
def test_special_files_are_a_sentence_and_never_wait(whole, tmp_path, name):
    """First section, special files: a pipe, a device, a folder and a dangling link in place of a file."""
    for kind in ("pipe", "device", "folder", "dangling"):
        folder = tmp_path / kind / "sets"
        shutil.copytree(whole, folder)
        file = folder / "dap" / name
        file.unlink(missing_ok=True)
        if name == "import.json":  # it is asked where there is no recipe
            (folder / "dap" / "recipe.json").unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("nowhere")
        if name == "map.npz":
            assert "map.npz cannot be drawn" in shown(folder, tmp_path / kind / "out")
            continue
        with pytest.raises(DapError, match=name):
            shown(folder, tmp_path / kind / "out")


def test_a_line_that_is_left_out_is_counted_and_the_reason_is_shown(tmp_path):
    path = make_set(tmp_path / "a", recipe("dap", 0))
    good = looked(0.7)
    bad = [{**good, "last": 1.5}, {**good, "confusion": "x"}, {**good, "network": ["x"]}, {**good, "seed": "0"}]
    write_lines(path / "trials.jsonl", [good, *bad])
    with (path / "trials.jsonl").open("a") as file:
        file.write('{"half": ')
    page = page_of([path], tmp_path / "out")
    assert (
        "5 unreadable line(s)" in page
        and "trials.jsonl, line 2: last: the value should be less than or equal to 1" in page
    )
    assert len(load_set(path).trials) == 1


def test_numbers_that_no_chart_can_hold_are_refused_and_large_ones_are_drawn(tmp_path):
    paths = [make_set(tmp_path / str(i), recipe("dap", i, scale=10.0**i), [looked(0.5)]) for i in range(3)]
    for path in paths:
        measures = json.loads((path / "measures.json").read_text())
        (path / "measures.json").write_text(json.dumps({**measures, "diversity": 1e30, "kid": -1e30, "coverage": 0}))
    assert "1000000000000000019884624838656" in page_of(paths, tmp_path / "out").replace(",", "")
    (paths[0] / "measures.json").write_text('{"diversity": 1e31}')
    with pytest.raises(DapError, match=r"measures\.json: the number 1e\+31 is too large"):
        load_set(paths[0])


@pytest.mark.parametrize("fault", ["text", "cut", "bomb", "nan", "huge", "object", "shape", "labels"])
def test_a_map_that_cannot_be_drawn_is_said(whole, tmp_path, fault):
    shutil.copytree(whole, tmp_path / "sets")
    file = tmp_path / "sets" / "dap" / "map.npz"
    with np.load(file) as opened:
        arrays = dict(opened)
    if fault == "text":
        file.write_text("no zip")
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:300])
    else:
        changes = {
            "bomb": {"train": np.zeros((40_000, 4000), np.float32)},
            "nan": {"train": arrays["train"] * math.nan},
            "huge": {"train": arrays["train"] + np.float32(3e38)},
            "object": {"features": np.array([{}], dtype=object)},
            "shape": {"synthetic": arrays["synthetic"][:, :1]},
            "labels": {"train_label": arrays["train_label"].astype(np.float64) * math.nan},
        }
        np.savez_compressed(file, **{**arrays, **changes[fault]})
    assert "map.npz cannot be drawn" in shown(tmp_path / "sets", tmp_path / "out")


def test_a_bomb_among_the_images_is_not_unpacked(tmp_path):
    """First section, special files: a decompression bomb inside a set."""

    path = make_set(tmp_path / "a", recipe("dap", 0))
    (path / "images" / "class-0" / "00000.png").write_bytes(bomb(60_000, 10_000_000))
    assert "no readable file" in page_of([path], tmp_path / "out")


def test_every_map_is_unpacked_once_for_a_page_and_again_when_it_changes(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "sets")
    shutil.copytree(tmp_path / "sets" / "dap", tmp_path / "sets" / "dap-1")  # another seed, which is not drawn
    recipe_file = tmp_path / "sets" / "dap-1" / "recipe.json"
    recipe_file.write_text(json.dumps({**json.loads(recipe_file.read_text()), "seed": 1}))
    read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **how: read.append(file.name) or load(file, **how))
    report.write_report(sorted((tmp_path / "sets").iterdir()), tmp_path / "out", title="A title")
    assert sorted(read) == [str(tmp_path / "sets" / name / "map.npz") for name in ("dap-1", "dap")]
    (tmp_path / "sets" / "dap" / "map.npz").write_bytes(b"PK torn")
    assert "map.npz cannot be drawn" in shown(tmp_path / "sets", tmp_path / "out")
