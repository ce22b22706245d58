"""Kind 11: near-copies where the real data hold duplicates, names of real images, and images that are on both sides."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.measures.inspection import Inspector
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load_set
from dap.evaluation.report.sections import measures_table
from dap.evaluation.report.suspicious import near_copies


def drawing(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(
        torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed)).byte().numpy()
    )


def data(folder: Path, twice: int, once: int, tested: int = 0) -> Path:
    """Two classes. `twice` images of each are there two times, and `tested` of its test images are training images."""
    for label, name in enumerate(("cat", "dog")):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
        for i in range(twice + once):
            for copy in range(2 if i < twice else 1):
                drawing(1000 * label + i).save(folder / "train" / name / f"{i}-{copy}.png")
        for i in range(4):
            drawing(1000 * label + (i if i < tested else 500 + i)).save(folder / "test" / name / f"{i}.png")
    return folder


def inspected(made: DistilledSet, folder: Path, limit: int | None = None) -> dict:
    inspector = Inspector(
        open_source(folder, "train", size=16), open_source(folder, "test", size=16).tensors(),
        embedding("", 16), limit=limit,
    )  # fmt: skip
    inspector(made, *made.tensors(16), "key")
    return json.loads((made.path / "images.json").read_text())


def blank(path: Path, seeds: list[int], **record: object) -> DistilledSet:
    made = DistilledSet.blank(path, ("cat", "dog"), len(seeds))
    for label in range(2):
        for slot, seed in enumerate(seeds):
            pixels = torch.from_numpy(np.array(drawing(1000 * label + seed)))
            made.add(label, slot, pixels.permute(2, 0, 1).float() / 255, **record)
    return made


def test_duplicates_among_real_images_do_not_make_the_limit_zero(tmp_path):
    folder = data(tmp_path / "data", twice=6, once=20)
    found = inspected(blank(tmp_path / "set", [1, 900]), folder)
    rule = found["rule"]
    assert rule["why"] is None and rule["pixel"]["at_most"] > 0.1 and rule["duplicates"] == 24
    assert [line["copy"] for line in found["images"]] == [True, False] * 2


def test_where_real_images_come_in_twins_a_redrawn_one_is_flagged_and_the_share_of_twins_is_told(tmp_path):
    """Each real image is drawn twice, nearly alike. A third drawing is no nearer than twins are."""
    folder = tmp_path / "data"

    def redrawn(seed: int, turn: int) -> Image.Image:
        first, second = (np.asarray(drawing(one), np.float32) for one in (seed, 10_000 * turn + seed))
        return Image.fromarray((0.8 * first + 0.2 * second).astype(np.uint8))

    for label, name in enumerate(("cat", "dog")):
        for split, turns in (("train", (1, 2)), ("test", (4,))):
            (folder / split / name).mkdir(parents=True)
            for i in range(20):
                for turn in turns:
                    redrawn(1000 * label + i, turn).save(folder / split / name / f"{i}-{turn}.png")
    made = DistilledSet.blank(tmp_path / "set", ("cat", "dog"), 2)
    for label in range(2):
        for slot, image in enumerate((redrawn(1000 * label + 3, 3), drawing(1000 * label + 900))):
            made.add(label, slot, torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    found = inspected(made, folder)
    assert [line["copy"] for line in found["images"]] == [True, False] * 2
    assert found["rule"]["pixel"]["at_most"] == 0.45 and found["rule"]["reals"] > 0.9
    (told,) = near_copies(group_sets([load_set(made.path)]))
    assert "% of the real images are as near to another" in told and "e+" not in told


def test_without_a_limit_only_the_same_picture_is_flagged_and_the_reason_is_said(tmp_path, caplog):
    folder = data(tmp_path / "data", twice=8, once=0)
    made = blank(tmp_path / "set", [1, 900])
    found = inspected(made, folder)
    assert [line["copy"] for line in found["images"]] == [True, None] * 2
    assert "16" in found["rule"]["why"] or "32" in found["rule"]["why"]
    groups = group_sets([load_set(made.path)])
    assert any("only exact copies of real images are flagged" in line for line in near_copies(groups))
    table = measures_table(groups)
    assert table is not None and "near-copies, %" not in [column.name for column in table.columns]
    assert "share" not in found, "no share is given of what cannot be said"


def test_a_manifest_that_names_the_real_image_is_believed(tmp_path):
    """A set of real images at another size or compression: each is a copy, because the method says which one it is."""
    folder = data(tmp_path / "data", twice=0, once=20)
    found = inspected(blank(tmp_path / "set", [700], real="cat/5-0.png"), folder)
    assert found["share"] == 1 and found["images"][0]["original"]["key"] == "cat/5-0.png"


def test_the_number_that_is_searched_changes_no_measure(tmp_path):
    """`--neighbours 20` changed coverage from 0.104 to 0.890."""
    folder, measures = data(tmp_path / "data", twice=0, once=30), []
    for limit in (None, 8):
        made = blank(tmp_path / f"set{limit}", [1, 900])
        found = inspected(made, folder, limit)
        measures.append(
            {n: v for n, v in json.loads((made.path / "measures.json").read_text()).items() if n != "judged"}
        )
        assert found["searched"]["pixel"] == (60 if limit is None else 16)
    assert measures[0] == measures[1] and measures[0]["coverage"] > 0


def test_images_on_both_sides_are_counted_and_said(tmp_path, caplog):
    """Cases A24 and A9: test images that are training images, and a set that was drawn from the test images."""
    folder = data(tmp_path / "data", twice=0, once=20, tested=3)
    made = blank(tmp_path / "set", [0, 900])
    with caplog.at_level(logging.WARNING):
        found = inspected(made, folder)
    assert found["real"] == {"test": 8, "test_in_train": 6, "set": 4, "set_in_test": 2}
    said = near_copies(group_sets([load_set(made.path)]))
    for text in ("6 of 8 test images are training images too", "2 of 4 images of the set are test images"):
        assert text in caplog.text and any(text in line for line in said)
    clean = inspected(blank(tmp_path / "other", [900]), data(tmp_path / "clean", 0, 20))
    assert (clean["real"]["test_in_train"], clean["real"]["set_in_test"]) == (0, 0)


def test_evaluate_says_that_test_images_are_training_images(tmp_path, caplog):
    folder = data(tmp_path / "data", twice=0, once=20, tested=4)
    made = tmp_path / "set"
    assert (
        main(["distill", "--method", "random", "--data", str(folder), "--size", "16", "--ipc", "1", "--out", str(made)])
        == 0
    )
    small = ["--networks", "convnet1", "--set", "width=2", "--epochs", "1"]
    assert main(["evaluate", str(made), *small]) == 0
    assert "8 of 8 test images are training images too." in caplog.text
    page = (made / "report.html").read_text()
    assert "8 of 8 test images are training images too." in page
    assert "All 2 images of Random are near-copies" in page
    (trial,) = map(json.loads, (made / "trials.jsonl").read_text().splitlines())
    assert "+size=16+width=2+mean=" in trial["protocol"]


@pytest.mark.parametrize("side", [64, 32])
def test_data_of_ones_own_are_judged_with_their_own_values(tmp_path, side):
    """Kind 10: 64 px images are judged at 64 px with their own mean and std, not at 32 px with Fashion-MNIST's."""
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (side, side), (200, 100 * label, 0)).save(folder / split / name / f"{i}.png")
    made = tmp_path / "set"
    how = ["--method", "random", "--data", str(folder), "--size", str(side), "--ipc", "1", "--out", str(made)]
    assert main(["distill", *how]) == 0
    assert main(["evaluate", str(made), "--networks", "convnet1", "--set", "width=2", "--epochs", "1"]) == 0
    line = json.loads((made / "trials.jsonl").read_text())
    (facts,) = json.loads((made / "protocols.json").read_text()).values()
    assert facts["size"] == side and ("size=64" in line["protocol"]) == (side == 64)
    assert facts["mean"] == [round(200 / 255, 4), round(50 / 255, 4), 0.0]
    assert facts["std"] == [0.001, round(50 / 255, 4), 0.001]
    shutil.rmtree(folder / "test" / "dog")
    again = ["--networks", "convnet1", "--set", "width=2", "--epochs", "1", "--set", "size=16", "--set", "mean=[0.5]"]
    assert main(["evaluate", str(made), *again, "--set", "std=[0.5]"]) != 0


def test_fashion_mnist_is_judged_as_before(tmp_path):
    from dap.recipe import Data
    from dap.verbs.distill import open_workshop
    from dap.verbs.judges import loader
    from dap.verbs.options import Judging, Machine

    loaded = loader(Judging(), Machine(device="cpu"), open_workshop(Machine(device="cpu")))(Data(size=32))
    assert loaded.plan.protocol.name == "small-hard" and loaded.plan.protocol.mean == (0.2861,) * 3
