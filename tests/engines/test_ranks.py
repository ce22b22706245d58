"""Which of several processes a process is, from what its launcher says."""

from __future__ import annotations

import pytest

from dap.base.errors import DapError
from dap.engines.ranks import Rank, device_for, rank_of


@pytest.mark.parametrize(
    ("shard", "environment", "found"),
    [
        ("1/3", {}, Rank(0, 3)),
        ("3/3", {"RANK": "0", "WORLD_SIZE": "5"}, Rank(2, 3)),
        (None, {"RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "1"}, Rank(4, 5, 1)),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}, Rank(2, 8)),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "4",
                "SLURM_LOCALID": "1",
            },
            Rank(9, 12, 1),
        ),
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, Rank(0, 1, 0)),
        (None, {"DAP_WORKER": "2/4", "RANK": "0", "WORLD_SIZE": "1"}, Rank(1, 4)),
    ],
)
def test_a_launcher_is_understood(shard, environment, found):
    assert rank_of(shard, environment) == found


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", "1.0/3", "1/3\n"])
def test_another_shard_is_a_sentence(text):
    with pytest.raises(DapError, match="--shard takes I/N"):
        rank_of(text, {})


def test_no_launcher_is_a_sentence():
    with pytest.raises(DapError, match="--shard I/N, such as 1/3, 2/3 and 3/3"):
        rank_of(None, {"RANK": "x", "WORLD_SIZE": "3"})


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("units", [1, 2, 10, 23])
def test_processes_begin_in_different_places(of, units):
    firsts = [Rank(number, of).first(units) for number in range(of)]
    assert firsts == sorted(firsts) and firsts[0] == 0 and all(first < units for first in firsts)
    assert len(set(firsts)) == min(of, units)


def test_each_process_of_a_machine_takes_its_own_gpu():
    assert [device_for("auto", Rank(k, 8, k), 4) for k in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:3",
        "cuda:0",
    ]
    assert device_for("cuda:2", Rank(1, 8, 1), 4) == "cuda:2", "the user has named one"
    assert device_for("auto", Rank(1, 8, 1), 1) == "auto", "SLURM shows each process its own GPU alone"
    assert device_for("cuda", Rank(1, 8), 4) == "cuda" and device_for("cpu", Rank(1, 8, 1), 4) == "cpu"
