"""The picture of the results: it shows every cell of the ledger that was measured, no other, and no name covers another."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import benched

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def rivals():
    return benched.load("picture", "rivals")


def line(method, ipc, set_seed, last, network="convnet3", protocol="quick-hard", backbone="starter", **more):
    known = {
        "method": method,
        "ipc": str(ipc),
        "set_seed": str(set_seed),
        "last_percent": str(last),
        "network": network,
    }
    known |= {"protocol": protocol, "backbone": backbone, "drawn_from": "", "options": "{}", "variant": ""}
    return known | {"trial_seed": "0"} | more


def panels(svg):
    """Each panel's heading and its element."""
    root = ElementTree.fromstring(svg)
    return {panel.find(f"{SVG}text").text: panel for panel in root.findall(f"{SVG}g")}  # type: ignore[union-attr]


def marks(panel):
    """What the marks say, by method and images per class: the words, whether the mark is hollow, and whether it has a bar."""
    found = {}
    for group in panel.findall(f"{SVG}g"):
        before = None
        for part in group:
            if part.tag == f"{SVG}circle":
                name, ipc, said = re.fullmatch(r"(.+), (\d+) per class: (.+)", part.find(f"{SVG}title").text).groups()
                assert (name, int(ipc)) not in found
                found[name, int(ipc)] = (
                    said,
                    part.get("class") == "one",
                    before is not None and "V" in before.get("d"),
                )
            before = part if part.tag == f"{SVG}path" else None
    return found


def test_the_committed_pictures_are_those_of_the_ledger(rivals):
    lines = rivals.ledger(DOCS / "rivals.csv")
    for protocol, name in rivals.PICTURES.items():
        said = f"docs/{name} is not that of docs/rivals.csv; run python benchmarks/rivals.py --picture"
        assert (DOCS / name).read_text(encoding="utf-8") == rivals.picture(lines, protocol), said
        assert rivals.picture(lines[::-1], protocol) == rivals.picture(lines, protocol), (
            "the order of lines is no matter"
        )


@pytest.mark.parametrize("protocol", ["quick-hard", "small-hard"])
def test_every_measured_cell_is_drawn_with_its_mean_and_interval(rivals, protocol):
    """Computed anew from the file, without the code that makes the tables."""
    cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with (DOCS / "rivals.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            judged = row["protocol"].removesuffix("+looks=1") == protocol and row["network"] in rivals.NETWORKS
            if judged and not row["drawn_from"] and not row.get("variant"):
                cell = cells[row["network"], row["method"], row["backbone"], int(row["ipc"])]
                cell[row["options"]][row["set_seed"]].append(float(row["last_percent"]))
    drawn = {heading: marks(panel) for heading, panel in panels(rivals.picture(_lines(rivals), protocol)).items()}
    wanted = defaultdict(dict)
    for (network, method, backbone, ipc), options in cells.items():
        sets = max(([fmean(of) for of in options[said].values()] for said in sorted(options)), key=len)
        mean, said = fmean(sets), f"{fmean(sets):.4f} % (one set)"
        if len(sets) > 1:
            half = stats.t.ppf(0.975, len(sets) - 1) * stats.sem(
                sets
            )  # 0 where all sets are alike, as those of Herding
            said = f"{mean:.4f} % (± {half:.4f}, {len(sets)} sets)"
        names = {name: rivals.BACKBONES[name] for name in ("starter", "starter-unet") if backbone in (name, "")}
        for name in names.values():
            heading = f"{rivals.NETWORKS[network]}, {name}"
            if heading in drawn:
                wanted[heading][method, ipc] = (said, len(sets) == 1, len(sets) > 1)
    assert drawn.keys() == wanted.keys() and len(drawn) > 1
    for heading, cells_of in wanted.items():
        assert drawn[heading].keys() == cells_of.keys()
        for which, (said, *form) in cells_of.items():
            shown, *form_shown = drawn[heading][which]
            numbers = [[float(n) for n in re.findall(r"[\d.]+", words)] for words in (shown, said)]
            assert form_shown == form and numbers[0] == pytest.approx(numbers[1], abs=0.0501), which


def _lines(rivals):
    return rivals.ledger(DOCS / "rivals.csv")


def test_what_was_not_measured_is_not_drawn(rivals):
    lines = [line("auto", 10, seed, 79 + seed) for seed in (0, 1, 2)] + [
        line("auto", 50, 0, 83),
        line("vanilla", 10, 0, 74),
    ]
    lines += [line("random", 10, 0, 72, backbone=""), line("auto", 10, 0, 70, network="resnet18")]
    unseen = [line("auto", 1, 0, 55, protocol="small-hard"), line("dap", 10, 0, 73, drawn_from="100")]
    unseen += [line("dap", 10, 0, 73, variant="γ = 1"), line("dap", 10, 0, 73, network="mobilenet_v2")]
    svg = rivals.picture(lines + unseen, "quick-hard")
    found = {heading: marks(panel) for heading, panel in panels(svg).items()}
    assert set(found) == {"ConvNet-3, DiT starter", "ResNet-18, DiT starter"}
    assert set(found["ConvNet-3, DiT starter"]) == {("auto", 10), ("auto", 50), ("vanilla", 10), ("random", 10)}
    assert found["ConvNet-3, DiT starter"]["auto", 10] == ("80.0 % (± 2.5, 3 sets)", False, True)
    assert found["ResNet-18, DiT starter"] == {("auto", 10): ("70.0 % (one set)", True, False)}
    assert "γ" not in svg and "mobilenet" not in svg and ">1<" not in svg, "an axis begins where the marks begin"


def test_of_several_options_the_one_with_most_sets_is_shown_and_said_to_be(rivals):
    """Not the best one: a picture of accuracies must not choose by them."""
    lines = [line("rded", 10, seed, 60 + seed, options='{"factor": 2}') for seed in (0, 1)]
    lines.append(line("rded", 10, 0, 71, options='{"factor": 1}'))
    svg = rivals.picture([*lines, line("vanilla", 10, 0, 74)], "quick-hard")
    assert marks(panels(svg)["ConvNet-3, DiT starter"])["rded", 10][0].startswith("60.5 % (±")
    assert "the one with most sets is shown" in svg


def test_a_name_from_a_file_is_text(rivals):
    svg = rivals.picture([line("<script>&", 10, 0, 74)], "quick-hard")
    assert "<script>" not in svg and ("<script>&", 10) in marks(panels(svg)["ConvNet-3, DiT starter"])


@pytest.mark.parametrize("name", ["accuracy.svg", "accuracy-small-hard.svg"])
def test_no_name_covers_another_and_none_leaves_the_picture(name):
    """By the room that a name takes in a wide typeface: 0.62 of the size of the type for a character."""
    root = ElementTree.fromstring((DOCS / name).read_text(encoding="utf-8"))
    width, height = (float(root.get(side, "")) for side in ("width", "height"))
    boxes = []
    for panel in root.findall(f"{SVG}g"):
        left, top = map(float, re.findall(r"[\d.]+", panel.get("transform", "")))
        for text in panel.findall(f"{SVG}text"):
            x, y, size = left + float(text.get("x", "")), top + float(text.get("y", "")), 11
            wide = 0.62 * size * len(text.text or "")
            begin = x - {"end": wide, "middle": wide / 2}.get(text.get("text-anchor", "start"), 0)
            boxes.append((begin, begin + wide, y - size + 2, y + 1, text.text))
    for i, (begin, end, upper, lower, text) in enumerate(boxes):
        assert begin >= 0 and end <= width + 4 and upper >= 0 and lower <= height, text
        for other in boxes[:i]:
            apart = end <= other[0] or other[1] <= begin or lower <= other[2] or other[3] <= upper
            assert apart, (text, other[4])


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20), st.floats(5, 14))
def test_names_are_spread_out_as_little_as_is_needed(wanted, gap):
    spread_out = benched.load("picture").spread_out
    wanted = sorted(wanted)
    placed = np.array(spread_out(wanted, gap, 0, 300))
    assert (np.diff(placed) >= gap - 1e-6).all() and placed[0] >= -1e-6 and placed[-1] <= 300 + 1e-6
    if len(wanted) == 1 or np.diff(wanted).min() >= gap:
        assert placed == pytest.approx(np.array(wanted))
    # No group of neighbours that touch could move together and come nearer to its wishes.
    for group in np.split(np.arange(len(placed)), np.flatnonzero(np.diff(placed) > gap + 1e-6) + 1):
        inside = placed[group[0]] > 1e-6 and placed[group[-1]] < 300 - 1e-6
        if inside:
            assert placed[group].mean() == pytest.approx(np.array(wanted)[group].mean(), abs=1e-6)


def test_the_picture_follows_the_colours_of_the_page(rivals):
    svg = rivals.picture(_lines(rivals), "quick-hard")
    assert "@media (prefers-color-scheme: dark)" in svg and "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in svg and "url(" not in svg


FRONT = DOCS / "front.svg"


@pytest.fixture(scope="module")
def front(rivals):
    return benched.load("front")


def test_the_picture_of_the_readme_is_that_of_the_ledger(rivals, front):
    svg = FRONT.read_text(encoding="utf-8")
    said = "docs/front.svg is not that of docs/rivals.csv; run python benchmarks/front.py"
    assert svg == front.drawn(front.kept(svg), _lines(rivals)), said
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "") and "prefers-color-scheme: dark" in svg


def test_the_bars_of_the_readme_s_picture_are_as_long_as_the_means(front):
    """Computed anew from the file: the mean over sets of the means over trainings."""
    cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with (DOCS / "rivals.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            judged = row["protocol"].removesuffix("+looks=1") == "quick-hard" and row["network"] == "convnet3"
            own = row["backbone"] in ("", "starter") and not row["drawn_from"] and not row["variant"]
            if judged and own and row["ipc"] == "10" and row["method"] in front.BARS:
                cells[row["method"]][row["options"]][row["set_seed"]].append(float(row["last_percent"]))
    root = ElementTree.fromstring(FRONT.read_text(encoding="utf-8"))
    shown = {}
    for bar in root.findall(f"{SVG}rect"):
        if (title := bar.find(f"{SVG}title")) is not None:
            name, said = (title.text or "").split(": ")
            shown[name] = (float(bar.get("width", "")), said)
    assert shown.keys() == cells.keys() and {"auto", "vanilla", "random"} <= shown.keys()
    for method, options in cells.items():
        sets = max(([fmean(of) for of in options[said].values()] for said in sorted(options)), key=len)
        wide, said = shown[method]
        assert wide == pytest.approx(front.BAR * fmean(sets) / 100, abs=0.06)
        assert said.startswith(f"{fmean(sets):.1f} %") and ("one set" in said) == (len(sets) == 1), method


def test_the_readme_s_picture_shows_images_and_the_accuracy_of_all_real_ones(front):
    import base64
    import io

    from PIL import Image

    images = front.kept(FRONT.read_text(encoding="utf-8"))
    assert images.keys() == front.SETS.keys()
    for data in images.values():
        image = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        assert image.shape == (len(front.CLASSES) * front.SIDE, front.SLOTS * front.SIDE) and image.std() > 30
    assert len({*images.values()}) == len(images)
    assert f"| {front.ALL} % (n = 1) |" in (DOCS / "results.md").read_text(encoding="utf-8")
