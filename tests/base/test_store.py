"""What is made once and kept."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from dap.base.checksums import digest_of
from dap.base.store import Checkpoint, Store


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


def test_seconds_are_those_of_all_keys_of_a_name(tmp_path, monkeypatch):
    """Three classes' modes cost three times one's, however often they are asked for; what was there before is told apart."""
    clock = iter(range(1000))
    store = Store(tmp_path)
    for key in range(3):
        monkeypatch.setattr("dap.base.store.time.monotonic", lambda: float(next(clock)))
        for _ in range(2):
            store.get("modes", {"k": key}, lambda: {"x": torch.ones(1)})
    assert store.used == {"modes": {"seconds": 3.0, "made": True}}
    again = Store(tmp_path)
    for key in (3, 0, 1):
        again.get("modes", {"k": key}, lambda: {"x": torch.ones(1)})
    assert again.used["modes"] == {"seconds": 1.0, "made": True}
    assert again.used["modes (made before)"] == {"seconds": 2.0, "made": False}


def test_what_lies_in_a_folder_does_not_pile_up_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("dap.base.store.HELD_BYTES", 1000)
    store, made = Store(tmp_path), []

    def make(key):
        made.append(key)
        return {"x": torch.full((100,), float(key))}

    for _ in range(2):
        for key in range(9):
            assert store.get("spread", {"k": key}, lambda key=key: make(key))["x"].unique().tolist() == [key]
            assert store._bytes() <= 1000
    assert made == list(range(9)) and store.used["spread"]["made"] and len(store.used) == 1
    memory = Store()
    for key in range(9):
        memory.get("spread", {"k": key}, lambda key=key: make(key))
    assert memory.get("spread", {"k": 0}, lambda: make(0))["x"].sum() == 0 and len(made) == 18


@pytest.mark.parametrize(
    "name", ["prototypes of T-shirt/top", "modes of " + "long " * 100, "a/../../../b", "Ä" * 200, "NUL\0"]
)
def test_a_name_may_hold_what_no_file_name_does(tmp_path, name):
    folder = tmp_path / "a" / "b" / "c"
    store = Store(folder)
    store.get(name, {}, lambda: {"x": torch.ones(2)})
    store.checkpoint(name, {}).write({"i": 1})
    assert Store(folder).get(name, {}, lambda: {"x": torch.zeros(2)})["x"].sum() == 2
    assert store.checkpoint(name, {}).read()["i"] == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and {file.parent for file in files} == {folder}


def test_large_checkpoints_are_written_more_rarely(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dap.base.store.time.monotonic", lambda: now[0])
    checkpoint = Store(tmp_path, every=60.0).checkpoint("a", {})
    save = torch.save
    monkeypatch.setattr("dap.base.store.torch.save", lambda *args: (save(*args), now.__setitem__(0, now[0] + 30.0)))
    checkpoint.write({"i": 1})
    now[0] += 299
    assert not checkpoint.due, "half a minute of writing after a minute's work would be a third of the time"
    now[0] += 2
    assert checkpoint.due


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint = Store(tmp_path).checkpoint("a", {})
    checkpoint.write({"i": 1})

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dap.base.store.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write({"i": 2})
    assert checkpoint.read()["i"] == 1 and [file.name for file in tmp_path.iterdir()] == [checkpoint.path.name]


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


def test_a_store_can_hold_nothing_in_memory(tmp_path):
    """Asked for again, it is read from its file; what a store without a folder made stays, because it has no other place."""
    made = []

    def make():
        made.append(1)
        return {"x": torch.ones(3)}

    lean = Store(tmp_path, hold=0)
    for _ in range(2):
        assert torch.equal(lean.get("a", {}, make)["x"], torch.ones(3)) and not lean._held
    assert len(made) == 1
    memory = Store(None, hold=0)
    for _ in range(2):
        memory.get("a", {}, make)
    assert len(made) == 2


def _made(folder, key, value, **more):
    return Store(folder, {"data": "a"}, **more).get("modes", {"k": key}, lambda: {"x": torch.full((50,), float(value))})


def _one(folder, value):
    """The entry of this value."""
    from safetensors.torch import load_file

    return next(file for file in folder.glob("*.safetensors") if load_file(file)["x"][0] == value)


@pytest.mark.parametrize("fault", ["swapped", "renamed", "cut", "pixel", "seconds", "old", "empty", "text", "folder"])
def test_an_entry_that_is_not_what_it_says_is_made_again_and_named(tmp_path, caplog, fault):
    """First section: a swapped entry gave other images with exit 0."""
    from safetensors.torch import save_file

    _made(tmp_path, 1, 1), _made(tmp_path, 2, 2)
    first, second = _one(tmp_path, 1), _one(tmp_path, 2)
    whole = first.read_bytes()
    if fault == "swapped":
        aside = tmp_path / "aside"
        first.rename(aside), second.rename(first), aside.rename(second)
    elif fault == "renamed":
        second.replace(first)
    elif fault == "cut":
        first.write_bytes(whole[:-9])
    elif fault == "pixel":
        first.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif fault == "seconds":
        first.write_bytes(whole.replace(b'"seconds":"0.0', b'"seconds":"9.0'))
        assert first.read_bytes() != whole
    elif fault == "old":
        save_file({"x": torch.full((50,), 1.0)}, first, {"seconds": "0.00"})
    elif fault == "folder":
        first.unlink(), first.mkdir()
        with pytest.raises(OSError, match="directory"):
            _made(tmp_path, 1, 3)
        return
    else:
        first.write_bytes(b"" if fault == "empty" else b"not tensors")
    caplog.clear()
    assert _made(tmp_path, 1, 3)["x"].unique().tolist() == [3], "it is not used"
    (line,) = caplog.messages
    assert str(first) in line and "made again" in line
    caplog.clear()
    assert _made(tmp_path, 1, 4)["x"].unique().tolist() == [3] and not caplog.messages, "what was made again is kept"


def test_a_whole_entry_of_any_kind_of_tensor_passes_its_check(tmp_path, caplog):
    kinds = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "yes": torch.tensor([True, False]),
    }
    Store(tmp_path).get("kinds", {"Ä": "\udce9"}, lambda: dict(reversed(kinds.items())))
    found = Store(tmp_path).get("kinds", {"Ä": "\udce9"}, lambda: pytest.fail("it is made again"))
    assert all(torch.equal(found[name], value) for name, value in kinds.items()) and not caplog.messages


@pytest.mark.parametrize("fault", ["swapped", "flipped", "cut"])
def test_a_checkpoint_that_is_not_what_it_says_is_not_used(tmp_path, caplog, fault):
    store = Store(tmp_path, every=0.0)
    one, two = (store.checkpoint("pixels", {"lr": lr}) for lr in (1, 2))
    for i, checkpoint in enumerate((one, two)):
        checkpoint.write(
            {"images": torch.full((4000,), float(i)), "optimiser": {"state": {0: {"step": 3.0}}, "x": (1, None)}}
        )
    assert one.read() is not None and not caplog.messages
    if fault == "swapped":
        two.path.replace(one.path)
    else:
        data = bytearray(one.path.read_bytes())
        data[len(data) // 2] ^= 64
        one.path.write_bytes(data if fault == "flipped" else data[: len(data) // 2])
    assert one.read() is None
    (line,) = caplog.messages
    assert str(one.path) in line and "starts anew" in line


def _age(file, seconds):
    import os

    os.utime(file, (time.time() - seconds,) * 2)


def test_a_cache_stays_below_its_limit_and_loses_what_was_not_used_for_longest(tmp_path, monkeypatch, caplog):
    from dap.base import cache

    each = 200_000
    monkeypatch.setenv("DAP_CACHE_GIB", str(5.5 * each / 2**30))
    cache._written.clear()
    (tmp_path / "my-0123456789abcdef.txt").write_bytes(b"x" * 3 * each)

    def get(key):
        inner = tmp_path / "real features" / str(key % 2)
        store = Store(inner, cache=tmp_path, hold=0)
        store.get("features", {"k": key}, lambda: {"x": torch.full((each // 4,), float(key))})
        (made,) = (
            file
            for file in inner.glob("*.safetensors")
            if f'\\"k\\": {key}' in file.read_bytes()[:400].decode("latin1")
        )
        return made

    files = []
    for key in range(5):
        files.append(get(key))
        _age(files[-1], 1000 - key)
    get(0)  # this one is used again
    left = Store(tmp_path, cache=tmp_path).checkpoint("begun", {})
    left.write({"x": torch.zeros(1)})
    from filelock import FileLock

    with FileLock(files[1].with_name(f".{files[1].stem}.lock")):  # another process has this one in use
        get(5), get(6)
    assert [file.exists() for file in files] == [True, True, False, False, True]
    assert left.path.exists() and (tmp_path / "my-0123456789abcdef.txt").exists()
    assert any("larger than" in line and str(tmp_path) in line for line in caplog.messages)
    _age(left.path, 2 * cache.OLD)
    get(7), get(9)
    assert not left.path.exists(), "what a killed run left long ago goes"
    monkeypatch.setenv("DAP_CACHE_GIB", "much")
    with pytest.raises(cache.DapError, match="set it to a number of GiB"):
        get(11)


@pytest.mark.parametrize("state", [{"spent": "long"}, {}, {"spent": 1.0, "x": torch.zeros(2).to_sparse()}])
def test_a_checkpoint_with_a_right_checksum_and_other_contents_is_not_used(tmp_path, caplog, state):
    """Found by fuzzing: KeyError for a checkpoint that lacks its seconds."""
    state = {"key": "k", **state}
    plain = {name: value for name, value in state.items() if name != "x"}
    torch.save({**state, "sha256": digest_of(plain)}, tmp_path / "x.pt")
    assert Checkpoint(tmp_path / "x.pt", "k").read() is None
    assert "x.pt" in caplog.text and "starts anew" in caplog.text
