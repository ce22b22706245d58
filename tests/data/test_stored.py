"""Images that need not fit into memory: the same bytes, in the same order, in whatever way they are kept."""

from __future__ import annotations

import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.held import Part
from dap.data.real.memory import MemorySource
from dap.data.real.sources import open_source
from dap.data.real.stored import budget as budgets
from dap.data.real.stored import gathering
from dap.data.real.stored.budget import GIB, Budget, budget_of, disk_budget, free_memory, memory_budget
from dap.data.real.stored.gathering import gathered, stored
from dap.data.real.stored.streams import Packed, Streamed
from dap.evaluation.training.batches import Images
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.trained import train_classifier
from trainings import AUGMENTED, tiny

WAYS = [("memory", 0), ("disk", 0), ("nothing", 0), ("memory", 2), ("nothing", 2)]


@pytest.fixture(params=WAYS, ids=[f"{keep}-{workers}" for keep, workers in WAYS])
def way(request, tmp_path):
    keep, workers = request.param
    return {"budget": Budget(2**40, 2**40, tmp_path / "files"), "keep": keep, "workers": workers}


@pytest.fixture
def folder(colours, tmp_path):
    """Real images of which two are broken."""
    made = tmp_path / "data"
    shutil.copytree(colours, made)
    (made / "train" / "red" / "5.png").write_bytes(b"no image")
    whole = (made / "train" / "blue" / "11.png").read_bytes()
    (made / "train" / "blue" / "11.png").write_bytes(whole[: len(whole) // 2])
    return made


def opened(folder, **how):
    return open_source(folder, "train", size=8, max_bad_fraction=0.2, **how)


def all_of(images):
    return images.take(slice(None)) if isinstance(images, Streamed) else images


def test_every_way_gives_the_images_of_tensors_in_their_order(folder, way):
    plain, plain_labels = opened(folder).tensors(dtype=torch.uint8)
    source = opened(folder)
    images, labels, whole = stored(source, **way)
    assert whole and images.dtype == torch.uint8 and images.shape == plain.shape == (34, 3, 8, 8)
    assert labels.equal(plain_labels) and labels.dtype == torch.int64
    assert all_of(images).equal(plain) and torch.cat(list(images.split(5))).equal(plain)
    assert sorted(key for key, _ in source.bad) == ["blue/11.png", "red/5.png"]
    assert stored(Part(opened(folder), "train", 0.25), **way)[0].shape[0] == 25  # of 27, without the two broken ones
    if isinstance(images, Streamed):
        order = torch.randperm(34, generator=torch.Generator().manual_seed(0))
        assert images.take(order).equal(plain[order]) and images.nbytes == plain.nbytes
        parts = order.split(7)
        assert all(part.equal(plain[rows]) for part, rows in zip(images.in_parts(parts), parts, strict=True))


def test_images_of_16_bits_keep_their_depth_where_that_is_asked(folder, way):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(folder / "train" / "green" / "3.png")
    plain = opened(folder).tensors()[0]
    images, _, whole = stored(opened(folder), exact=True, **way)
    assert not whole and images.dtype == torch.float32 and all_of(images).equal(plain)
    images, _, whole = stored(opened(folder), **way)
    assert not whole and all_of(images).equal(opened(folder).tensors(dtype=torch.uint8)[0])


def test_broken_images_end_the_reading_as_they_do_without_a_stream(folder, way):
    for index in range(12):
        (folder / "train" / "red" / f"{index}.png").write_bytes(b"no image")
    for limit, told in (
        (0.2, "13 broken images among the 36|broken images among the 36 to read"),
        (0.9, "all images of class 'red'"),
    ):
        with pytest.raises(DapError, match=told):
            stored(open_source(folder, "train", size=8, max_bad_fraction=limit), **way)
        with pytest.raises(DapError, match=told):
            open_source(folder, "train", size=8, max_bad_fraction=limit).tensors()


def test_an_image_that_goes_while_it_is_streamed_is_named(folder, tmp_path):
    for workers in (0, 2):
        shutil.copy(folder / "train" / "green" / "2.png", folder / "train" / "green" / "1.png")
        images, _, _ = stored(opened(folder), Budget(1, 0, None), keep="nothing", workers=workers)
        (folder / "train" / "green" / "1.png").unlink()
        with pytest.raises(DapError, match=r"cannot decode .*green/1\.png: no such file"):
            list(images.split(5))
    images, _, _ = stored(opened(folder), Budget(1, 2**30, tmp_path), keep="disk")
    assert isinstance(images, Packed) and not list(tmp_path.glob("dap-images*"))  # it has no name
    images.file.truncate(1000)
    with pytest.raises(DapError, match="was cut while it was read"):
        list(images.split(5))


def test_rows_come_whole_however_little_the_system_reads_at_once(tmp_path, monkeypatch):
    """Linux reads no more than 2 GiB at once."""
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = gathered(lambda row: images[row] / 255, 5, 8, Budget(1, 2**20, tmp_path), keep="disk").images
    really = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, places, at: really(file, [places[0][:100]], at))
    assert torch.equal(kept.take(slice(0, 5)), images)


def test_processes_that_decode_say_each_warning_once(tmp_path, caplog):
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for index in range(80):
            Image.fromarray(np.full((8, 8), 3 * index, np.uint16)).save(tmp_path / "train" / label / f"{index:03d}.png")
    gathering._said.clear()
    with caplog.at_level(logging.WARNING, "dap"):
        stored(open_source(tmp_path, "train", size=8), Budget(2**30), workers=2)
    assert len([line for line in caplog.messages if "bits" in line]) == 1


def test_the_generator_of_torch_is_left_alone(folder, way):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images, _, _ = stored(opened(folder), **way)
    list(images.split(4))
    assert torch.get_rng_state().equal(before)


def test_a_budget_decides_how_images_are_kept(folder, tmp_path, caplog):
    nbytes = 36 * 3 * 8 * 8
    for memory, disk, kind in ((2 * nbytes, 0, "Tensor"), (nbytes, nbytes, "Packed"), (nbytes, nbytes - 1, "Decoding")):
        with caplog.at_level(logging.INFO, "dap"):
            images, _, _ = stored(opened(folder), Budget(memory, disk, tmp_path))
        assert type(images).__name__ == kind
    assert "34 images of 8 px lie in a file" in caplog.text and "are decoded in every pass" in caplog.text
    assert budget_of(tmp_path, 2, 0.001) == Budget(2 * GIB, int(0.001 * GIB), tmp_path)
    assert 0 <= memory_budget() <= free_memory() and disk_budget(tmp_path / "not" / "there") > 0
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DapError, match="--memory takes a number of GiB above 0"):
            memory_budget(wrong)
        with pytest.raises(DapError, match="--disk takes a number of GiB above 0"):
            disk_budget(tmp_path, wrong)


def test_workers_of_one_machine_share_memory_and_disk_alike(tmp_path, monkeypatch):
    """Eight workers, each of which took most of the disk, would fill it."""
    monkeypatch.setattr(budgets, "free_memory", lambda: 100 * GIB)
    monkeypatch.setattr(budgets.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000 * GIB))
    assert budget_of(tmp_path) == Budget(75 * GIB, 900 * GIB, tmp_path)
    monkeypatch.setenv("DAP_WORKER", "2/8")
    assert budget_of(tmp_path) == Budget(75 * GIB // 8, 900 * GIB // 8, tmp_path)
    assert budget_of(tmp_path, 4, 16) == Budget(GIB // 2, 2 * GIB, tmp_path), "what the user says is for all of them"
    assert budget_of(tmp_path, 4, 10**6).disk == 125 * GIB


def test_images_in_memory_and_one_image_can_be_gathered(way):
    source = MemorySource({"a": torch.rand(3, 3, 8, 8), "b": torch.rand(1, 3, 8, 8)}, size=8)
    images, labels, whole = stored(source, exact=True, **way)
    assert not whole and all_of(images).equal(source.tensors()[0]) and labels.tolist() == [0, 0, 0, 1]
    found = gathered(lambda row: torch.full((3, 2, 2), 1.0), 1, 2, **way)
    assert all_of(found.images).equal(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))


@pytest.mark.parametrize("changes", [{}, AUGMENTED], ids=["fixed steps", "augmented"])
def test_a_classifier_is_the_same_to_the_last_bit_in_every_way(folder, tmp_path, changes, monkeypatch):
    found = []
    for budget in (Budget(2**40), Budget(1, 2**30, tmp_path), Budget(1)):
        classifier, trial = train_classifier(
            opened(folder),
            open_source(folder, "test", size=8),
            tiny(epochs=3, **{"batch": 8, **changes}),
            budget=budget,
        )
        found.append((classifier.fingerprint, trial.curve, trial.train_last, trial.confusion))
    assert found[0] == found[1] == found[2]
    monkeypatch.setattr(gathering, "decoders", lambda n: 2)
    again, _ = train_classifier(
        opened(folder),
        open_source(folder, "test", size=8),
        tiny(epochs=3, **{"batch": 8, **changes}),
        budget=Budget(1),
    )
    assert again.fingerprint == found[0][0]


def test_accuracies_on_the_starters_data_are_the_same_in_every_way(tmp_path):
    protocol = tiny(size=32, epochs=2, batch=32)
    few = ["Bag", "Dress", "Trouser"]
    train = open_source("fashion-mnist", "train", size=32, classes=few).tensors(20, dtype=torch.uint8)
    test = open_source("fashion-mnist", "test", size=32, classes=few)
    whole = test.tensors(dtype=torch.uint8)
    plain = next(evaluate(train, whole, protocol, [0], classes=3, budget=Budget(2**40)))
    for keep in ("disk", "nothing"):
        images, labels, _ = stored(test, Budget(1, 2**30, tmp_path), keep=keep)
        assert labels.equal(whole[1])
        trial = next(evaluate(train, (images, labels), protocol, [0], classes=3, budget=Budget(1)))
        assert (trial.curve, trial.confusion, trial.train_last) == (plain.curve, plain.confusion, plain.train_last)


def test_slices_are_the_same_whether_images_are_read_or_lie_in_memory(folder, tmp_path):
    source = opened(folder)
    plain, labels = source.tensors(dtype=torch.uint8)
    images, _, _ = stored(source, Budget(1, 2**30, tmp_path))
    protocol = tiny(size=8, test=[{"op": "resize"}, {"op": "normalize"}])
    ready = [Images((one, labels), protocol.test_steps, torch.device("cpu"), keep=0) for one in (plain, images)]
    for (a, la), (b, lb) in zip(*(one.slices() for one in ready), strict=True):
        assert a.equal(b) and la.equal(lb) and a.stride() == b.stride()
    rows = torch.tensor([5, 2, 9])
    assert ready[0].take(rows).equal(ready[1].take(rows)) and ready[0].take(slice(3)).equal(ready[1].take(slice(3)))
