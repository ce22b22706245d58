"""Devices and threads that this machine does not have are told in a sentence, before any work, by every verb (case 35)."""

from __future__ import annotations

import os

import pytest
import torch

from dap import Machine, distill
from dap.base.errors import DapError
from dap.cli.main import main

ABSENT = ["meta", "mps", "cuda:7", "cuda:300", "cuda:-1", "xla", "privateuseone", "nonsense", "cpu:7", "CPU"]


def commands(colours, out) -> list[list[str]]:
    return [
        ["distill", "--method", "random", "--data", colours, "--size", "8", "--ipc", "1", "--out", out],
        ["distill", "--backbone", "starter", "--ipc", "1", "--out", out],
        ["sweep", "--method", "random", "--out", out],
        ["compare", "--methods", "random", "--out", out],
        ["demo", "--out", out],
        ["evaluate", colours / "train", "--data", colours],
        ["train-teacher", "--data", colours, "--out", out],
        ["classify", colours / "train", "--backbone", "starter", "--data", colours],
        ["caption", "--data", colours, "--out", out, "--model", colours],
        ["check", "linear"],
        ["check", "starter"],
        ["check", "random"],
    ]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_here_is_told_by_every_verb(device, colours, tmp_path, capsys, no_accelerator):
    out = tmp_path / "out"
    for words in commands(colours, out):
        status = main([*map(str, words), f"--device={device}"])
        said = capsys.readouterr().err
        assert status == 1 and "use --device" in said and "Traceback" not in said, words
        assert not out.exists(), words


def test_cuda_on_a_machine_without_it(colours, tmp_path, capsys, no_accelerator):
    for words in commands(colours, tmp_path / "out"):
        assert main([*map(str, words), "--device", "cuda"]) == 1
        assert "this machine has no such CUDA device; use --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("threads", [100_000, 10**9])
def test_more_threads_than_can_run_are_told(threads, colours, tmp_path, capsys):
    before = torch.get_num_threads()
    for words in commands(colours, tmp_path / "out")[:8]:
        assert main([*map(str, words), "--threads", str(threads)]) == 1
        said = capsys.readouterr().err
        assert f"this machine has {os.cpu_count()} processors. Give --threads a number from 1 to " in said, words
    assert torch.get_num_threads() == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "many"])
def test_a_number_of_threads_that_is_none(threads, colours, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*map(str, commands(colours, tmp_path / "out")[0]), f"--threads={threads}"])
    assert "a whole number of at least 1 is needed" in capsys.readouterr().err


def test_a_python_program_is_told_too_and_the_advice_works(colours, tmp_path):
    how = {"method": "random", "data": str(colours), "size": 8, "ipc": 1}
    for threads in (0, -1, 100_000):
        with pytest.raises(DapError, match="torch cannot run in"):
            distill(out=tmp_path / "out", machine=Machine(threads=threads), **how)
    before = torch.get_num_threads()
    try:
        distill(out=tmp_path / "out", machine=Machine(threads=max(256, 4 * (os.cpu_count() or 1)), device="cpu"), **how)
    finally:
        torch.set_num_threads(before)
