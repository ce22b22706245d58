"""A map of real and distilled images: one joint t-SNE (van der Maaten & Hinton 2008) of their features, a panel a group.

The features come from `map.npz` in the folders of the sets. Sets with the same real features share a map. The panels of a map
are comparable point by point, because all groups were laid out together. The same features always give the same layout.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dap.base.documents import regular
from dap.base.parsing import shown
from dap.data.real.recent import Recent
from dap.evaluation.report.drawings.charts import tag
from dap.evaluation.report.gallery import common_seed, with_seed
from dap.evaluation.report.groups import Group
from dap.evaluation.report.records import SetRecord

Array = NDArray[Any]

REAL_POINTS, OWN_POINTS, PANELS = 1200, 300, 12
"""The largest numbers in a map: points of each real split, points of one group, and panels."""
SIDE = 360
CLASS_COLOURS = 10
"""Number of class colours in the page's CSS. Further classes take the colours again, and their names tell them apart."""
MARGIN = 14
LARGEST = 512 * 2**20
"""How many bytes a `map.npz` may unpack to: 512 MiB. The maps that judging writes have a few MiB."""
KEPT = 128 * 2**20
"""How many bytes of maps that were read stay in memory."""


@dataclass(frozen=True)
class Features:
    """The arrays of one `map.npz`: features (n, k), float32, and labels (n,), of the set and of real train and test
    images."""

    synthetic: Array
    synthetic_label: Array
    train: Array
    train_label: Array
    test: Array
    test_label: Array
    features: str
    """The name of the network that computed the features."""
    data: str
    """Fingerprint of the real data."""

    def alike(self, other: Features) -> bool:
        """Whether both were measured against the same real features."""
        named = (self.features, self.data) == (other.features, other.data)
        arrays = ("train", "train_label", "test", "test_label")
        return named and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)


Read = tuple[Features | None, str | None]
"""The features of a file, or why they cannot be drawn; (None, None) where there is no file."""

_recent: Recent[Read] = Recent(KEPT)


def read_map(path: Path) -> Features | None:
    """The features in a set's `map.npz`; None where there is none that can be drawn."""
    return _read_once(path / "map.npz")[0]


def undrawn(path: Path) -> str | None:
    """Why a set's `map.npz` cannot be drawn, as a sentence; None where it can be drawn or there is none."""
    return _read_once(path / "map.npz")[1]


def _read_once(file: Path) -> Read:
    """What a file holds. A page asks twice: for the notes and for the maps."""
    mark = _mark(file)
    read = _recent.get(mark)
    if read is None:
        read = _read(file)
        arrays = () if read[0] is None else (getattr(read[0], name) for name in ("synthetic", "train", "test"))
        _recent.put(mark, read, 1000 + 2 * sum(array.nbytes for array in arrays))
    return read


def _mark(file: Path) -> tuple[str, int, int, int]:
    try:
        seen = file.stat()
    except (OSError, ValueError):
        return (str(file.absolute()), -1, -1, -1)
    return (str(file.absolute()), seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _read(file: Path) -> Read:
    names = ("synthetic", "train", "test")
    if not os.path.lexists(file):
        return None, None
    try:
        # The file is opened here, because numpy does not close a file that it cannot read.
        with regular(file).open("rb") as opened, zipfile.ZipFile(opened) as packed:
            if sum(part.file_size for part in packed.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as found:
                arrays = {name: np.asarray(found[name], np.float32) for name in names}
                labels = {f"{name}_label": np.asarray(found[f"{name}_label"]) for name in names}
                features, data = (
                    shown(str(found[name]))[:200] if name in found else "" for name in ("features", "data")
                )
        _check(arrays, labels)
    except Exception as error:  # a damaged archive raises many kinds of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return None, f"{shown(file)} cannot be drawn: {reason}."
    labels = {name: array.astype(np.int64) for name, array in labels.items()}
    return Features(**arrays, **labels, features=features, data=data), None


def _check(arrays: dict[str, Array], labels: dict[str, Array]) -> None:
    """Raise ValueError for arrays that do not fit together or cannot be laid out."""
    for name, array in arrays.items():
        of = labels[f"{name}_label"]
        if array.ndim != 2 or of.shape != array.shape[:1] or of.dtype.kind not in "iu":
            raise ValueError(f"{name} has shape {array.shape} and its labels shape {of.shape} of {of.dtype}")
        if not np.isfinite(array).all() or (array.size and np.abs(array).max() > 1e9):
            raise ValueError(f"{name} has features that are not finite or beyond 1e9")
        if of.size and (of.min() < 0 or of.max() > 10**6):
            raise ValueError(f"{name} has labels outside 0 to 10**6")
    if len({array.shape[1] for array in arrays.values()}) > 1 or not arrays["synthetic"].shape[1]:
        raise ValueError("its features differ in width")


def _map_of(record: SetRecord) -> Features | None:
    """The map of a set; None where the measures, with which it was written, are of other images."""
    return None if "measures.json" in record.left_out else read_map(record.path)


def maps(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One map for each real data set with features: its panels, the classes of the legend, and notes."""
    seed = common_seed(groups)
    read = [(group, record, _map_of(record)) for group in groups for record in [with_seed(group, seed)]]
    families: list[list[tuple[Group, SetRecord, Features]]] = []
    for group, record, found in read:
        if found is not None:
            family = next((f for f in families if f[0][2].alike(found)), None)
            families.append([(group, record, found)]) if family is None else family.append((group, record, found))
    drawn = [f for f in families if len(f[0][2].train) + len(f[0][2].test) >= 3]
    return [_map(number, family) for number, family in enumerate(drawn)]


def _map(number: int, family: Sequence[tuple[Group, SetRecord, Features]]) -> dict[str, Any]:
    shown = family[:PANELS]
    first = shown[0][2]
    real = {name: _thinned(getattr(first, f"{name}_label"), REAL_POINTS) for name in ("train", "test")}
    own = [_thinned(found.synthetic_label, OWN_POINTS) for _, _, found in shown]
    blocks = [first.train[real["train"]], first.test[real["test"]]]
    blocks += [found.synthetic[kept] for (_, _, found), kept in zip(shown, own, strict=True)]
    placed = np.split(_fitted(layout(np.concatenate(blocks))), np.cumsum([len(block) for block in blocks])[:-1])
    labels = [first.train_label[real["train"]], first.test_label[real["test"]]]
    record = shown[0][1]
    noun = record.noun
    classes = sorted({int(label) for part in labels for label in part})
    names = {label: record.class_name(label) for label in classes}
    identity = f"real-{number}"
    ground = tag("g", *_ground(placed[:2], labels, names, noun), id=identity)
    panels = []
    for i, ((group, drawn, found), kept) in enumerate(zip(shown, own, strict=True)):
        points = _points(placed[2 + i], found.synthetic_label[kept], drawn)
        behind = ground if i == 0 else tag("use", href=f"#{identity}")
        label = f"t-SNE of {group.label}: {len(kept)} distilled {noun}s among {len(placed[0])} real training and "
        label += f"{len(placed[1])} real test {noun}s"
        look = {"viewBox": f"0 0 {SIDE} {SIDE}", "role": "img", "aria_label": label, "class_": "map"}
        panels.append((group.label, drawn.seed, tag("svg", behind, tag("g", *points), **look)))
    counts = [len(part) for part in placed[:2]]
    features = f" of {first.features}" if first.features else ""
    notes = [f"{counts[0]} real training and {counts[1]} real test {noun}s in the features{features}."]
    left = len(family) - len(shown)
    notes += [f"{left} further groups are not drawn."] if left else []
    legend = [(label % CLASS_COLOURS, names[label]) for label in classes]
    return {"panels": panels, "legend": legend, "notes": notes}


def layout(features: Array, random_state: int = 0) -> Array:
    """Positions (n, 2) of features (n, k) by t-SNE. The perplexity is 30, or less for fewer than about a hundred points."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(features) - 1) / 3))
    # A start by PCA needs two directions in which the points differ. Without two directions any start is as good.
    start = "pca" if np.count_nonzero(np.ptp(features, axis=0)) >= 2 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TSNE(2, perplexity=perplexity, init=start, random_state=random_state, learning_rate="auto")
        return model.fit_transform(np.ascontiguousarray(features, np.float32))


def _fitted(points: Array) -> Array:
    """Points in the middle of the panel, scaled by the same factor in both directions to fit."""
    low, high = points.min(0), points.max(0)
    factor = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-9)
    return (points - (low + high) / 2) * factor + SIDE / 2


def _thinned(labels: Array, most: int) -> Array:
    """Indices of at most `most` points: equally many of each class, the first ones."""
    if len(labels) <= most:
        return np.arange(len(labels))
    each = max(1, most // len(np.unique(labels)))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return np.flatnonzero(rank < each)[:most]


def _ground(placed: Sequence[Array], labels: Sequence[Array], names: dict[int, str], noun: str) -> list[Markup]:
    """Real images: one path for each class and split, training images as dots and test images as crosses."""
    shapes = {"train": "h.01", "test": "m-2-2l4 4m0-4l-4 4"}
    parts = []
    for (split, shape), points, of in zip(shapes.items(), placed, labels, strict=True):
        for label, name in names.items():
            path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in points[of == label])
            if path:
                hint = tag("title", f"{name}, real {'training' if split == 'train' else 'test'} {noun}s")
                parts.append(tag("path", hint, d=path, class_=f"{split} k{label % CLASS_COLOURS}", data_class=name))
    return parts


def _points(placed: Array, labels: Array, record: SetRecord) -> list[Markup]:
    """Distilled images as diamonds, each with its class and slot."""
    slots: dict[int, int] = {}
    parts = []
    for (x, y), label in zip(placed, labels, strict=True):
        slot = slots[int(label)] = slots.get(int(label), -1) + 1
        name = record.class_name(int(label))
        hint = tag("title", f"{name}, distilled, {slot + 1} of its class")
        shape = f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5-4.5z"
        parts.append(tag("path", hint, d=shape, class_=f"own k{int(label) % CLASS_COLOURS}", data_class=name))
    return parts
