"""What is made once and kept."""

from __future__ import annotations

import multiprocessing
import time

import torch

from dap.store import Checkpoint, Store


def test_made_once_for_a_key(tmp_path):
    made = []

    def make(value):
        def called():
            made.append(value)
            return {"x": torch.full((2,), float(value))}

        return called

    store = Store(tmp_path, {"data": "a"})
    assert store.get("modes", {"k": 1}, make(1))["x"].tolist() == [1, 1]
    assert store.get("modes", {"k": 1}, make(2))["x"].tolist() == [1, 1]
    assert store.used["modes"]["made"]
    again = Store(tmp_path, {"data": "a"})
    assert again.get("modes", {"k": 1}, make(3))["x"].tolist() == [1, 1]
    assert not again.used["modes"]["made"]
    assert again.get("modes", {"k": 2}, make(4))["x"].tolist() == [4, 4]
    assert Store(tmp_path, {"data": "b"}).get("modes", {"k": 1}, make(5))["x"].tolist() == [5, 5]
    assert made == [1, 4, 5]


def test_without_a_folder_it_is_kept_in_memory():
    store = Store()
    first = store.get("a", {}, lambda: {"x": torch.ones(1)})
    assert store.get("a", {}, lambda: {"x": torch.zeros(1)}) is first
    checkpoint = store.checkpoint("a", {})
    checkpoint.write({"i": 1})
    assert checkpoint.read() is None and not checkpoint.due


def test_a_damaged_entry_is_made_again(tmp_path):
    Store(tmp_path).get("a", {}, lambda: {"x": torch.ones(3)})
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    assert Store(tmp_path).get("a", {}, lambda: {"x": torch.zeros(3)})["x"].sum() == 0


def _make_slowly(folder, marks):
    def make():
        marks.put(1)
        time.sleep(0.5)
        return {"x": torch.ones(1)}

    Store(folder).get("slow", {}, make)


def test_of_several_processes_one_makes_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    marks = context.Queue()
    processes = [context.Process(target=_make_slowly, args=(tmp_path, marks)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert marks.get(timeout=5) == 1 and marks.empty()


def test_a_checkpoint_is_of_its_key_alone(tmp_path):
    store = Store(tmp_path, every=0.0)
    checkpoint = store.checkpoint("pixels", {"lr": 1})
    assert checkpoint.read() is None and checkpoint.due
    checkpoint.write({"iteration": 7, "images": torch.ones(2)})
    state = store.checkpoint("pixels", {"lr": 1}).read()
    assert state is not None and state["iteration"] == 7 and state["images"].sum() == 2
    assert store.checkpoint("pixels", {"lr": 2}).read() is None
    assert Checkpoint(checkpoint.path, "another").read() is None
    checkpoint.path.write_bytes(b"torn")
    assert checkpoint.read() is None
    store.discard(checkpoint)
    store.discard(checkpoint)
    assert not list(tmp_path.glob("*.pt"))
