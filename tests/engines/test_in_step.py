"""Several processes train one teacher in step: the result is that of one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.evaluation.training.evaluate import Plan, _Ready, evaluate
from dap.evaluation.training.in_step import Group
from dap.evaluation.training.loading import load_trained, save_classifier
from dap.evaluation.training.trained import train_on_tensors
from dap.verbs.options import Engine, Machine
from dap.verbs.training.teacher import train_teacher
from trainings import AUGMENTED, stripes, tiny

DAP = [sys.executable, "-P", "-m", "dap"]


@pytest.mark.parametrize("of", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 64])
def test_parts_of_a_batch_hold_each_image_once_or_all_of_them(n, of):
    parts = [list(range(n))[Group(k, of).part(n)] for k in range(of)]
    shares = [list(range(n))[Group(k, of).share(n)] for k in range(of)]
    assert [*chain(*shares)] == list(range(n))
    assert [*chain(*parts)] == (list(range(n)) if n >= of else list(range(n)) * of)
    assert all(parts), "a process without an image would let the others wait"


class Told(Group):
    """A group whose first process speaks to nobody."""

    def agreed(self, text: str | None) -> str:
        return text or ""


def test_the_number_of_processes_is_a_part_of_a_checkpoint():
    """A training of several processes went on in one alone, without a word."""
    train, protocol = stripes(12), tiny(**AUGMENTED)
    groups = [None, *(Told(0, of) for of in (1, 2, 3, 8))]
    keys = [_Ready(train, train, protocol, 2, Plan(group=group)).key for group in groups]
    assert len(set(keys)) == len(groups)
    assert keys[2] == _Ready(train, train, protocol, 2, Plan(group=Told(0, 2))).key


def test_an_unfinished_training_that_is_not_gone_on_with_is_named(tmp_path, caplog):
    train, protocol = stripes(12), tiny(epochs=1, looks=1)
    for begun in ("ab-0.pt", "ab-1.pt"):
        (tmp_path / begun).write_bytes(b"begun by others")
    for seed, named in ((0, True), (2, False)):
        caplog.clear()
        list(evaluate(train, train, protocol, [seed], classes=2, checkpoints=tmp_path, every=1e9))
        assert ("by another number of processes, so this one begins anew" in caplog.text) is named


@pytest.mark.parametrize("of", [None, 2])
def test_a_teacher_says_how_many_processes_trained_it(tmp_path, of):
    train, protocol = stripes(12), tiny(epochs=1, looks=1)
    made, _ = train_on_tensors(train, train, protocol, 2)
    save_classifier(replace(made, processes=of), tmp_path / "teacher.safetensors")
    assert load_trained(tmp_path / "teacher.safetensors").processes == of


def flags(colours, out, network="convnet1"):
    return [
        *("train-teacher", "--data", str(colours), "--out", str(out), "--network", network, "--threads", "1"),
        *("--protocol", "small-hard", "--epochs", "3", "--set", "size=16", "--set", "width=4", "--set", "batch=8"),
    ]


def test_two_processes_train_what_one_trains(colours, tmp_path):
    """Without augmentation. The sums of gradients come in another order, so the last bits differ."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    subprocess.run([*DAP, *flags(colours, one)], check=True, timeout=250)
    told = list[tuple[int, int]]()

    class Epochs(Watcher):
        def epoch(self, seed: int, done: int, total: int) -> None:
            told.append((done, total))

    changes = {"size": 16, "width": 4, "batch": 8}
    how = {"protocol": "small-hard", "epochs": 3, "changes": changes, "machine": Machine(threads=1)}
    trial = train_teacher(str(colours), two, network="convnet1", **how, watcher=Epochs(), engine=Engine(workers=2))
    assert told[-1] == (4, 4) and (trial.epochs, trial.n_test) == (3, 18), "small-hard has one epoch more"
    expected, found = load_file(one), load_file(two)
    assert expected.keys() == found.keys()
    assert [load_trained(path).processes for path in (one, two)] == [None, 2]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["one.safetensors", "two.safetensors"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mistake_is_said_once_and_the_command_can_be_ended(colours, tmp_path):
    out = tmp_path / "out.safetensors"
    wrong = [*flags(colours, out), "--set", "lr=10000", "--set", "epochs=30", "--workers", "2"]
    told = subprocess.run([*DAP, *wrong], timeout=250, capture_output=True, text=True)
    assert told.returncode == 1 and not out.exists()
    assert told.stderr.splitlines()[-1].startswith("dap: error: The loss became") and "Traceback" not in told.stderr
    long = [*flags(colours, out), "--workers", "2"]
    long[long.index("--epochs") + 1] = "100000"
    with subprocess.Popen([*DAP, *long], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "epoch" in line:
                break
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        process.wait(60)
    assert process.returncode == 143 and "Traceback" not in rest and time.monotonic() - began < 60


def test_what_cannot_be_trained_in_step_is_a_sentence(colours, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(DapError, match="give --workers N on one machine"):
        train_teacher(str(colours), out, network="convnet1", engine=Engine(shard="1/2"))
    with pytest.raises(DapError, match="or by torchrun"):
        train_teacher(str(colours), out, engine=Engine(engine="ray"))
