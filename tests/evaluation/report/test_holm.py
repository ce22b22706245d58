"""Differences of one table, corrected for their number: the numbers, and the stars that say which differences survive."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dap.evaluation.report.against import compared
from dap.evaluation.report.findings import summary
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import accuracy_table
from dap.evaluation.spread import difference, holm, spread_of, welch
from reported import Outline, make_set, page_of, recipe, trial

RUNS = {
    "vanilla": [0.73, 0.72, 0.74, 0.731],
    "auto": [0.79, 0.781, 0.80, 0.789],
    "dap": [0.741, 0.728, 0.755, 0.743],
    "random": [0.7455, 0.7225, 0.757, 0.743],  # its own interval excludes 0, and the correction takes it back
    "dm": [0.75, 0.71, 0.77, 0.72],
}


def made(tmp_path, runs, **more):
    return [
        make_set(tmp_path / f"{method}-{seed}", recipe(method, seed), [trial(score, **more)])
        for method, scores in runs.items()
        for seed, score in enumerate(scores)
    ]


def test_a_known_example():
    """That of many textbooks, with R's `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04, 0.03, None, 0.005]) == [0.03, None, 0.06, 0.06, None, 0.02]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_it_rejects_what_the_stepwise_procedure_rejects(values, level):
    """Holm's own words: the kth smallest of m p-values is compared with level / (m − k + 1), until the first failure."""
    rejected, m = set(), len(values)
    for k, i in enumerate(sorted(range(m), key=lambda i: values[i])):
        if values[i] * (m - k) >= level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(values)) if p is not None and p < level} == rejected


@given(st.lists(st.floats(0.4, 0.9), min_size=3, max_size=6), st.lists(st.floats(0.4, 0.9), min_size=3, max_size=6))
def test_a_p_value_is_below_five_per_cent_where_the_interval_excludes_zero(a, b):
    for found in (welch(a, b), difference(*(spread_of([[x] for x in s], tuple(range(len(s)))) for s in (a, b)))):
        if found.interval is None or found.p is None:
            gaps = [x - y for x, y in zip(a, b, strict=False)] if found.paired else []
            assert len({round(gap, 8) for gap in gaps}) <= 1 and (found.paired or max(map(np.ptp, (a, b))) < 1e-7)
            continue
        assert 0 <= found.p <= 1
        if min(abs(end) for end in found.interval) > 1e-9:
            assert found.shown is (found.p < 0.05)


def test_equal_gaps_show_no_spread_and_so_no_certainty():
    """Of 30 test images two gaps are often equal. A spread of 0 says nothing on further sets."""
    one, other = spread_of([[19 / 30], [20 / 30]], (0, 1)), spread_of([[18 / 30], [19 / 30]], (0, 1))
    same = [
        welch([0.5, 0.5], [0.5, 0.5]),
        welch([0.75, 0.75], [0.5, 0.5]),
        welch([0.75], [0.5]),
        difference(one, other),
    ]
    assert all(found.p is None and found.interval is None and not found.shown for found in same)
    assert compared("dap", same[-1]) == (
        "dap: +3.3 points against vanilla (n = 2 sets of the same seeds, and the gaps are equal, so no spread is known)"
    )
    assert "the accuracies of each are equal" in compared("dap", same[1])


def test_stars_stand_where_the_correction_leaves_a_difference(tmp_path):
    table = accuracy_table(summarise(load(made(tmp_path, RUNS))))
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(table.csv()))}
    tested = [method for method in RUNS if method != "vanilla"]
    p = {method: stats.ttest_rel(RUNS[method], RUNS["vanilla"]).pvalue for method in tested}
    for method, corrected in zip(tested, holm(list(p.values())), strict=True):
        assert float(lines[method]["p"]) == pytest.approx(p[method])
        assert float(lines[method]["p_holm"]) == pytest.approx(corrected)
    assert lines["vanilla"]["p"] == lines["vanilla"]["p_holm"] == ""
    (column,) = (i for i, one in enumerate(table.columns) if one.name == "vs vanilla")
    stars = {row[0].value.lower() for row in table.rows if row[column].text.endswith("*")}
    assert stars == {method for method in tested if float(lines[method]["p_holm"]) < 0.05}
    assert stars == {"auto", "dap"} and {method for method in tested if p[method] < 0.05} == {"auto", "dap", "random"}
    said = "*: the difference survives Holm’s correction over all 4 comparisons with vanilla at 5\u00a0%."
    page = " ".join(Outline(table.html()).texts)
    for text in (page, table.markdown(), " ".join(table.terminal(90, colour=False).split("\n"))):
        assert said in text and text.count("survives") == 2 and said.replace("vanilla", "random") in text
    assert "survives Holm's correction over all 4" in table.latex()
    bold = re.findall(r"\\textbf\{([^}]*)\}", table.latex())
    assert sorted(bold) == sorted(["+6.0*", "+4.8*", "+1.2*", "+1.2", "$-$1.2"])


def test_the_family_is_the_whole_table(tmp_path):
    """Two networks double the comparisons, so that each is corrected for the others."""
    one = made(tmp_path / "a", RUNS)
    two = [
        make_set(tmp_path / "b" / f"{m}-{i}", recipe(m, i), [trial(s), trial(s, network="resnet18")])
        for m, scores in RUNS.items()
        for i, s in enumerate(scores)
    ]
    for paths, n in ((one, 4), (two, 8)):
        table = accuracy_table(summarise(load(paths)))
        assert f"over all {n} comparisons" in table.note and table.markdown().count(f"over all {n}") == 2 * n // 4
        assert table.terminal(200, colour=False).count("survives") == 2
        of_auto = next(line for line in table.lines() if line["method"] == "auto")
        assert of_auto["p_holm"] == pytest.approx(n * of_auto["p"])


def test_nothing_is_starred_where_nothing_survives_or_nothing_is_compared(tmp_path):
    runs = {name: RUNS[name] for name in ("vanilla", "dm")}
    single = accuracy_table(summarise(load(made(tmp_path / "a", {**runs, "dm": RUNS["auto"]}))))
    assert "Holm" not in single.note + single.markdown() and "*" not in single.markdown(), "one comparison needs none"
    weak = made(tmp_path / "b", {**runs, "random": [0.72, 0.75, 0.73, 0.74]})
    table = accuracy_table(summarise(load(weak)))
    assert "No difference survives Holm’s correction over both comparisons" in table.note
    assert "*" not in table.markdown() and "Holm" not in table.markdown()
    assert "No difference survives Holm’s correction" in page_of(weak, tmp_path / "out")


def test_a_difference_that_the_correction_takes_is_said_to_be_so_everywhere(tmp_path):
    """report.md opened with "+20 points over vanilla", and only the page said that nothing survived the correction."""
    unsure = [0.780, 0.751, 0.785, 0.757]  # better in each set, but not by much more than the sets vary
    runs = {
        "vanilla": [0.75, 0.74, 0.76, 0.75],
        "dap": unsure,
        "dm": [0.75, 0.75, 0.74, 0.75],
        "random": [0.5, 0.6, 0.5, 0.6],
    }
    paths = made(tmp_path / "a", runs)
    table = accuracy_table(summarise(load(paths)))
    by = {line["method"]: line for line in table.lines()}
    assert by["dap"]["p"] < 0.05 < by["dap"]["p_holm"]
    page = page_of(paths, tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    opening = re.search(r"DAP is \+[\d.]+ points over vanilla \([^)]*\)([^;.]*)", report)
    assert opening and opening[1] == ", which does not survive Holm’s correction over all 3 comparisons"
    assert "which does not survive Holm" in page
    random = next(line for line in report.splitlines() if "under vanilla" in line and "Random" in line)
    assert "does not survive" not in random and by["random"]["p_holm"] < 0.05


def test_differences_to_random_are_a_family_of_their_own(tmp_path):
    table = accuracy_table(summarise(load(made(tmp_path, RUNS))))
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(table.csv()))}
    tested = [method for method in RUNS if method != "random"]
    p = [stats.ttest_rel(RUNS[method], RUNS["random"]).pvalue for method in tested]
    for method, one, corrected in zip(tested, p, holm(p), strict=True):
        gap = np.mean(RUNS[method]) - np.mean(RUNS["random"])
        assert float(lines[method]["vs_random"]) == pytest.approx(gap)
        assert float(lines[method]["p_random"]) == pytest.approx(one)
        assert float(lines[method]["p_holm_random"]) == pytest.approx(corrected)
    assert lines["random"]["vs_random"] == "" and lines["random"]["vs_vanilla"] != ""


def test_random_takes_the_place_of_vanilla_where_there_is_none(tmp_path):
    runs = {method: RUNS[method] for method in RUNS if method != "vanilla"}
    paths = made(tmp_path, runs)
    rows = summarise(load(paths))
    names = [column.name for column in accuracy_table(rows).columns]
    assert "vs random" in names and "vs vanilla" not in names
    sentence, findings = summary(rows, load(paths))
    assert "points over random (95 %" in sentence
    assert any("between DM and random" in line or "DM is" in line for line in findings)
    alone = accuracy_table(summarise(load(made(tmp_path / "b", {"dm": RUNS["dm"]}))))
    assert "vs random" not in [column.name for column in alone.columns]
