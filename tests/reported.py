"""Sets in the documented layout, made for the tests of the report, and a look at the page as its parser sees it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dap.evaluation.current import key_of, key_of_ranking
from dap.evaluation.report import page as report
from dap.evaluation.report.expected import Claims
from dap.evaluation.report.summary import Row
from dap.evaluation.report.tables import accuracy_table

HOSTILE = "<script>alert(1)</script>"


def trial(last: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    record = {"protocol": "small-hard", "network": "convnet3", "seed": seed, "epochs": 300, "n_train": 4}
    record |= {"n_test": 10000, "last": last, "best": last + 0.01, "headline": "last", "curve": [[300, last]]}
    return record | {"train_last": 1.0, "seconds": 42.0, "device": "cpu", "torch": "2.15.0"} | changes


def recipe(method: str, seed: int, **guidance: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"method": method, "ipc": 2, "seed": seed, "data": {"path": "fashion-mnist"}}
    made |= {} if method == "random" else {"backbone": {"path": "starter"}, "sampling": {"steps": 50}}
    defaults = {"scale": 0.05, "unit": "step", "layer": 4, "targets": "class", "repulsion": 0.0}
    return made | ({"guidance": defaults | guidance} if guidance or method.startswith("dap") else {})


def make_set(
    path: Path,
    made: dict[str, Any] | None,
    trials: Sequence[dict[str, Any]] = (),
    classes: Sequence[str] = ("shirt", "bag"),
    slots: int = 2,
    side: int = 8,
    measures: float = 1.0,
) -> Path:
    """A set's folder in the documented layout, with noise for images."""
    noise = np.random.default_rng(
        zlib.crc32("/".join(path.parts[-2:]).encode())
    )  # sets with the same images are one set
    manifest = []
    for label, name in enumerate(classes):
        folder = path / "images" / f"class-{label}"
        folder.mkdir(parents=True)
        for slot in range(slots):
            file = folder / f"{slot:05d}.png"
            Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
            line = {"path": file.relative_to(path).as_posix(), "label": label, "class_name": name, "slot": slot}
            manifest.append(line | {"seed": 100 + slot, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    write_lines(path / "manifest.jsonl", manifest)
    folders = [f"class-{label}" for label in range(len(classes))]
    files: dict[str, Any] = {"classes.json": {"names": list(classes), "folders": folders}, "recipe.json": made}
    files["cost.json"] = {"seconds": 8.0, "peak_memory_gb": 0.9, "images": len(manifest)}
    files["measures.json"] = {
        "features": "convnet3",
        "representativeness": 3 * measures,
        "diversity": 5,
        "coverage": 0.4,
    }
    for name, content in files.items():
        if content is not None:
            (path / name).write_text(json.dumps(content))
    (path / "command.txt").write_text(f"dap distill --out {path.name}\n")
    if trials:
        write_lines(path / "trials.jsonl", trials)
    return path


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def sweep(tmp_path: Path, field: str, values: Sequence[Any], **changes: Any) -> list[Path]:
    return [
        make_set(
            tmp_path / f"{field}-{i}-{seed}",
            recipe("dap", seed, **{field: value}, **{key: change[i] for key, change in changes.items()}),
            [trial(0.7 + 0.01 * i + 0.001 * seed)],
        )
        for i, value in enumerate(values)
        for seed in (0, 1)
    ]


def page_of(paths: Sequence[Path], out: Path, title: str = "A title", expected: dict[str, str] | None = None) -> str:
    return report.write_report(paths, out, title=title, expected=expected).read_text(encoding="utf-8")


def table(rows: Sequence[Row], expected: dict[str, str] | Claims | None = None) -> str:
    """The accuracies as Markdown."""
    claims = expected if isinstance(expected, Claims) else Claims(expected)
    return accuracy_table(rows, claims).markdown()


class Outline(HTMLParser):
    """Every start tag with its attributes, and the text between tags that is not style or script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style" and data.strip():
            self.texts.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def classed(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def hostile(tmp_path: Path) -> list[Path]:
    made = [recipe("vanilla", 0), recipe(f"dap{HOSTILE}", 0, kernel=f'"><img src=x onerror=alert(2)>{HOSTILE}')]
    paths = [
        make_set(tmp_path / f"h{i}", one, [trial(0.7)], (HOSTILE, '" onload="alert(3)')) for i, one in enumerate(made)
    ]
    (paths[1] / "command.txt").write_text(f"dap {HOSTILE}")
    write_lines(paths[1] / "trials.jsonl", [trial(0.7 + i / 50, device=HOSTILE, network=HOSTILE) for i in range(2)])
    return paths


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ranked(path: Path, scores: dict[str, Any]) -> None:
    """Write a `ranking.json` that comes from the trials of a set from `make_set`, by whatever protocol."""
    hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    network, roles = lines[0]["network"], {"hard": lines[0]["protocol"]}
    of = {"network": network, "protocols": roles, "judged": key_of_ranking(lines, key_of(hashes), network, roles)}
    (path / "ranking.json").write_text(json.dumps({**scores, **of}))


def judged(
    path: Path, classes: Sequence[str] = ("shirt", "bag"), copies: int = 1, data: int = 0, slots: int = 2
) -> Path:
    """Give a set from `make_set` everything that judging it may add: neighbours, map, protocols, ranking, measures."""
    noise = np.random.default_rng(7)
    near = path / "neighbours"
    near.mkdir()
    images = []
    for i, line in enumerate(map(json.loads, (path / "manifest.jsonl").read_text().splitlines())):
        nearest = {}
        for space in ("feature", "pixel"):
            file = near / f"{space}-{i % 2}.png"
            Image.new("RGB", (8, 8), (i % 2, 0, 0) if space == "feature" else (0, 99, 0)).save(file)
            key = f"train/{i}.png"
            about = {"key": key, "label": line["label"], "distance": 1.5 + i, "file": f"neighbours/{file.name}"}
            nearest[space] = about
        about = {"label": line["label"], "slot": line["slot"], "path": line["path"], "nearest": nearest}
        images.append(about | {"predicted": 0, "probability": 0.75, "copy": i < copies})
    inspected = {"judged": "a", "features": "convnet3", "images": images, "copies": copies}
    (path / "images.json").write_text(json.dumps(inspected))
    (path / "protocols.json").write_text(json.dumps({"p1": {"name": "small-hard", "lr": 0.01, "labels": "hard"}}))
    ranking = {"hlr": 0.1, "ior": 0.02, "lrs": 0.4, "beta": 0.03, "ars": 0.5, "accuracies": {"full_hard": 0.9}}
    ranked(path, ranking)
    measures = json.loads((path / "measures.json").read_text())
    (path / "measures.json").write_text(json.dumps(measures | {"precision": 0.5, "mmd2": -0.001, "k": 5}))
    n = len(classes)
    real = np.random.default_rng(data).normal(size=(2, 12 * n, 4)).astype(np.float32)
    labels = np.repeat(np.arange(n), 12)
    own = noise.normal(size=(slots * n, 4)).astype(np.float32)
    arrays = {"synthetic": own, "synthetic_label": np.repeat(np.arange(n), slots), "train": real[0], "test": real[1]}
    np.savez(path / "map.npz", **arrays, train_label=labels, test_label=labels, features="convnet3", data=str(data))
    return path


def looked(last: float, seed: int = 0, confusion: Sequence[Sequence[int]] = ((8, 2), (1, 9)), **more: Any) -> Any:
    """A trial that recorded its curve, its confusion and its protocol."""
    curve = [[epoch, last - 0.1 + 0.1 * epoch / 300] for epoch in (100, 200, 300)]
    return trial(last, seed, curve=curve, confusion=[list(row) for row in confusion], by="p1", **more)
