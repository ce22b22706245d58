"""The report in a real browser, where there is one: errors, sorting, images, keyboard, tip, contrast, narrow screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Browser
from dap.evaluation.report import page as report
from reported import HOSTILE, judged, looked, luminance, make_set, recipe, trial

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM} on this machine")

TEXT = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return "#" + [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v.toString(16).padStart(2, "0")).join("");
  };
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const found = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || element.closest("script, style, title, .visually-hidden")) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const grounds = [];
    for (let up = element; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
    const ink = element.closest("svg") ? style.fill : style.color;
    const key = [over([...grounds, ink]), over(grounds)].join(" ");
    if (!found.has(key)) found.set(key, walk.currentNode.textContent.trim().slice(0, 40));
  }
  return [...found].map(([key, text]) => [...key.split(" "), text]);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every section, with a hostile class, method, network and key."""
    folder = tmp_path_factory.mktemp("sets")
    names = (HOSTILE, "'\"><img src=x onerror=alert(3)>")
    sets = []
    for i, method in enumerate(("vanilla", f"dap{HOSTILE}")):
        trials = [looked(0.6 + i / 10, k) for k in (0, 1)] + [looked(0.5, network=HOSTILE, device=HOSTILE)]
        sets.append(judged(make_set(folder / str(i), recipe(method, 0), trials, names, measures=i + 1), names))
    for i, scale in enumerate((0.1, 0.2, 0.3)):
        sets.append(make_set(folder / f"s{i}", recipe("dap", 0, scale=scale), [trial(0.7 + i / 50)], names))
    return report.write_report(sets, folder / "out", title=HOSTILE)


@pytest.fixture
def shown(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.errors.clear()
    browser.open(page)
    yield browser
    assert browser.errors == [] and browser.run("document.documentElement.dataset.error") is None


def test_it_runs_without_an_error_and_loads_its_images(shown: Browser) -> None:
    assert shown.run("document.documentElement.dataset.ready") == "true"
    assert shown.run("document.title") == HOSTILE
    shown.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    images = "[...document.querySelectorAll('button.tile img')]"
    loaded = f"Promise.all({images}.map((image) => {{ image.loading = 'eager'; return image.decode(); }}))"
    assert shown.run(f"{loaded}.then((all) => all.length)") == 5 * 2 * 2
    assert shown.run("[...document.querySelectorAll('svg.map')].every((s) => s.querySelector('use, .train'))")


def test_every_sortable_table_sorts_both_ways(shown: Browser) -> None:
    count = shown.run("document.querySelectorAll('table.sortable').length")
    assert count >= 7
    script = """((t, c) => {
      const table = document.querySelectorAll("table.sortable")[t];
      const button = table.tHead.rows[0].cells[c].querySelector("button");
      const values = () => [...table.tBodies[0].rows].map((r) => r.cells[c].dataset.sort).filter((v) => v !== "");
      const seen = [];
      for (let i = 0; i < 2; i++) {
        button.click();
        seen.push([button.parentElement.getAttribute("aria-sort"), values()]);
      }
      return seen;
    })"""
    for table in range(count):
        name = shown.run(f"document.querySelectorAll('table.sortable')[{table}].parentElement.ariaLabel")
        column = 1 if "Accuracy: " not in name else 4
        for order, values in shown.run(f"{script}({table}, {column})"):
            numbers = [float(value) for value in values] if all(map(numeric, values)) else values
            assert numbers == sorted(numbers, reverse=order == "descending"), (name, order)
    first = "document.querySelector('#measures thead th[data-better=lower] button')"
    shown.run(f"{first}.click()")
    assert shown.run(f"{first}.parentElement.ariaSort") == "ascending", "the best comes first"
    assert "sorted by representativeness, ascending" in shown.run("document.getElementById('status').textContent")


def numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def tip(browser: Browser) -> dict[str, Any]:
    return browser.run("""(() => {
      const tip = document.getElementById("tip");
      const box = tip.getBoundingClientRect();
      const inside = box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
      return { hidden: tip.hidden, text: tip.textContent, inside, images: [...tip.querySelectorAll("img")].length,
        warns: !tip.querySelector("p").hidden, tags: [...tip.querySelectorAll("script")].length,
        described: document.activeElement.getAttribute("aria-describedby") };
    })()""")


@pytest.mark.parametrize("width", [1280, 360])
def test_the_tip_follows_focus_keys_and_escape(browser: Browser, page: Path, width: int) -> None:
    browser.errors.clear()
    browser.open(page, width, 740)
    browser.run("document.querySelector('button.tile').scrollIntoView({ behavior: 'instant', block: 'center' })")
    browser.run("new Promise((done) => setTimeout(done, 200))")  # the scroll's own event hides a tip
    browser.run("document.querySelector('button.tile').focus({ preventScroll: true })")
    seen = tip(browser)
    assert not seen["hidden"] and seen["inside"] and seen["described"] == "tip" and seen["warns"]
    assert seen["images"] == 3 and "nearest real by features" in seen["text"] and "train/0.png" in seen["text"]
    assert "predicted" in seen["text"] and HOSTILE in seen["text"] and seen["tags"] == 0
    browser.press("ArrowRight")
    seen = tip(browser)
    assert "slot 1" in seen["text"] and not seen["warns"] and "seed 101" in seen["text"] and "sha256" in seen["text"]
    browser.press("Escape")
    assert tip(browser)["hidden"] and browser.errors == []


def test_the_tip_follows_the_mouse(shown: Browser) -> None:
    shown.run("document.querySelector('button.tile').scrollIntoView({ behavior: 'instant', block: 'center' })")
    shown.run("new Promise((done) => setTimeout(done, 200))")
    box = shown.run("document.querySelectorAll('button.tile')[1].getBoundingClientRect().toJSON()")
    shown.hover(box["x"] + 9, box["y"] + 9)
    assert not tip(shown)["hidden"] and "slot 1" in tip(shown)["text"]


def test_the_keyboard_reaches_and_works_everything(shown: Browser) -> None:
    reached = set()
    for _ in range(180):
        shown.press("Tab")
        reached.add(
            shown.run(
                "(() => { const a = document.activeElement; return a.closest('section')?.id + ' ' + a.tagName; })()"
            )
        )
    sections = set(shown.run("[...document.querySelectorAll('section')].map((s) => s.id)"))
    assert sections - {"curves", "training"} <= {name.split()[0] for name in reached}, "charts have nothing to work"
    shown.run("document.querySelector('.pick').focus()")
    shown.press("Enter")
    dim = shown.run("[...document.querySelectorAll('.map-group path.dim')].map((p) => p.dataset.class)")
    picked = shown.run("document.querySelector('.pick[aria-pressed=true]').dataset.class")
    assert dim and picked == HOSTILE and picked not in dim
    shown.press("Enter")
    assert shown.run("document.querySelectorAll('.map-group path.dim').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser: Browser, page: Path, scheme: str) -> None:
    """4.5 : 1 (WCAG 2.2 AA), of the colours the browser computes, backgrounds laid over each other."""
    browser.open(page, scheme=scheme)
    browser.run("document.querySelector('button.tile').focus()")
    found = browser.run(TEXT)
    assert len(found) > 8
    for ink, ground, text in found:
        low, high = sorted((luminance(ink), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, ink, ground, text)


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_screen_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_a_long_name_of_a_protocol_breaks(browser: Browser, tmp_path: Path) -> None:
    """It stands in the first sentence and in the findings where there are several settings."""
    long = [f"quick-hard+size={size}+mean=0.4492,0.3447,0.3444+std=0.2523,0.2451,0.2445" for size in (16, 24)]
    sets = [
        make_set(tmp_path / method, recipe(method, 0), [looked(0.6 + i / 10, protocol=one) for one in long])
        for i, method in enumerate(("vanilla", "random"))
    ]
    browser.open(report.write_report(sets, tmp_path / "out", title="Long"), 360)
    assert browser.run("document.body.innerText.split('+size=16').length") > 2
    assert browser.run("document.documentElement.scrollWidth") <= 360


def test_the_theme_changes_and_stays(shown: Browser, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = shown.run(ground)
    shown.run("document.getElementById('theme').click()")
    assert shown.run("document.documentElement.dataset.theme") == "dark" and shown.run(ground) != light
    for _ in range(20):  # Chromium hands what a page stored to the next page's process in its own time
        shown.open(page)
        if shown.run("document.documentElement.dataset.theme") == "dark":
            break
    assert shown.run("document.documentElement.dataset.theme") == "dark"
    shown.run("document.getElementById('theme').click()")
