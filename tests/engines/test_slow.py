"""The engines' proofs: real clusters, launchers and kills. They take minutes, so `make test-slow` runs them and plain pytest does
not. Their last output is in docs/reliability.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from dap.data.sets.contents import part_files
from dap.data.sets.distilled import DistilledSet
from trainings import trials_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DAP = [sys.executable, "-P", "-m", "dap"]

SLOW = """
import os, time
from dap.methods.diffusion.vanilla import Vanilla

class Slow(Vanilla):
    def prepare(self, task):
        make = super().prepare(task)
        def slow(unit):
            time.sleep(float(os.environ.get("SECONDS_A_UNIT", "0")))
            return make(unit)
        return slow
"""

BAD = "from dap.base.errors import DapError\n"

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(3)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)  # SIGKILL
    else:
        nodes.append(cluster.add_node(num_cpus=1, **small))
    print("done", flush=True)
cluster.shutdown()
"""


@pytest.fixture
def flags(colours, pipeline_folder, tmp_path) -> list[str]:
    (tmp_path / "slow.py").write_text(SLOW)
    return [
        *("--data", str(colours), "--method", f"{tmp_path / 'slow.py'}:Slow", "--backbone", str(pipeline_folder)),
        *("--steps", "4", "--ipc", "15", "--block", "1", "--threads", "1"),
    ]


@pytest.fixture
def whole(flags, tmp_path) -> dict[str, bytes]:
    """The images and the manifest of a run in one process."""
    subprocess.run([*DAP, "distill", *flags, "--out", str(tmp_path / "one")], check=True, timeout=600)
    return images_of(tmp_path / "one")


def images_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the images, the manifest, the recipe and the facts of a set."""
    files = [*folder.glob("images/*/*"), *(folder / f"{n}.json" for n in ("recipe", "inputs", "classes", "env"))]
    return {str(f.relative_to(folder)): f.read_bytes() for f in (*files, folder / "manifest.jsonl")}


def wait_for(what: str, done, process: subprocess.Popen, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.1)


@contextmanager
def cluster(environment: dict[str, str]):
    """A cluster of three nodes on this machine. Yields its address and a function that kills a node or adds one."""
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **pipes) as process:
        assert process.stdin and process.stdout

        def say(word: str) -> None:
            assert process.stdin and process.stdout
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"

        try:
            yield next(line for line in process.stdout if ":" in line).strip(), say
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def test_a_ray_cluster_loses_a_node_and_gets_another_one(flags, whole, tmp_path):
    """Three nodes; one is killed with SIGKILL while it makes units, and another one joins."""
    out, told = tmp_path / "ray", tmp_path / "told"
    with cluster({**os.environ, "SECONDS_A_UNIT": "2"}) as (address, say), told.open("w") as errors:
        run = [*DAP, "distill", *flags, "--out", str(out), "--engine", "ray", "--address", address]
        with subprocess.Popen(run, stderr=errors, stdout=subprocess.PIPE, text=True) as process:
            wait_for("three actors", lambda: "Ray: 3 actors" in told.read_text(), process)
            wait_for("images", lambda: len(DistilledSet.open(out)) >= 6, process)
            say("kill")
            before = len(DistilledSet.open(out))
            say("add")
            stdout, _ = process.communicate(timeout=800)
    print(told.read_text(), stdout, f"{before} of 45 images were there when the node was killed")
    assert process.returncode == 0, told.read_text()
    assert before < 40 and images_of(out) == whole


def test_a_ray_cluster_does_a_grid_and_its_trainings(flags, tmp_path):
    """Cells and trainings by actors in three nodes, one of which is killed while it makes a set. The results are those of one
    process."""
    judging = [
        "--networks",
        "convnet1,convnet2",
        "--epochs",
        "2",
        "--set",
        "size=16",
        "--set",
        "width=4",
        "--seeds",
        "2",
    ]
    method = flags[flags.index("--method") + 1]
    rest = [flag for flag in flags if flag not in ("--method", method)]
    grid = [*DAP, "compare", *rest, "--methods", method, "--sets", "4", *judging]
    subprocess.run([*grid, "--out", str(tmp_path / "one")], check=True, timeout=600)
    told = tmp_path / "told"
    with cluster({**os.environ, "SECONDS_A_UNIT": "0.5"}) as (address, say), told.open("w") as errors:
        engine = ["--engine", "ray", "--address", address]
        run = [*grid, "--out", str(tmp_path / "ray"), *engine]
        with subprocess.Popen(run, stderr=errors, stdout=subprocess.PIPE, text=True) as process:
            begun = tmp_path / "ray"
            wait_for("images of two sets", lambda: len({f.parts[-5] for f in begun.rglob("*.png")}) >= 2, process)
            say("kill")
            say("add")
            process.communicate(timeout=800)
        print(told.read_text())
        assert process.returncode == 0, told.read_text()
        sets = sorted(path.parent for path in begun.rglob("classes.json"))
        again = [*DAP, "evaluate", *map(str, sets), "--trials", "3", *judging[:-2], "--out", str(begun)]
        done = subprocess.run([*again, *engine], capture_output=True, text=True, timeout=800)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    alone = [tmp_path / "one" / path.relative_to(begun) for path in sets]
    again = [*DAP, "evaluate", *map(str, alone), "--trials", "3", *judging[:-2], "--out", str(tmp_path / "one")]
    subprocess.run(again, check=True)
    assert len(sets) == 4 and [trials_of(path) for path in sets] == [trials_of(path) for path in alone]
    assert [images_of(path) for path in sets] == [images_of(path) for path in alone]
    left = [file for place in begun.rglob(".claims") for file in place.iterdir()]
    assert not left and all(len(trials_of(path)) == 6 for path in sets)


def test_a_mistake_in_an_actor_is_one_sentence(flags, tmp_path):
    """On a cluster of this machine alone, which Ray starts."""
    (tmp_path / "slow.py").write_text(
        SLOW.replace("time.sleep(", "if unit.label: raise DapError('No more.')\n            (") + BAD
    )
    run = [*DAP, "distill", *flags, "--out", str(tmp_path / "out"), "--engine", "ray", "--workers", "1"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "dap: error: No more.", done.stderr
    assert len(DistilledSet.open(tmp_path / "out")) >= 10, "what was made is kept"


def test_torchrun_with_three_processes(flags, whole, tmp_path):
    out = tmp_path / "torchrun"
    run = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "dap", "distill"]
    done = subprocess.run(
        [*run, *flags, "--out", str(out), "--engine", "shard"],
        env={**os.environ, "SECONDS_A_UNIT": "0.5"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0 and done.stdout.count("45 images in") == 3
    assert images_of(out) == whole


def test_three_shells_of_which_one_is_killed(flags, whole, tmp_path):
    out = tmp_path / "shards"
    environment = {**os.environ, "SECONDS_A_UNIT": "0.5"}
    runs = [
        subprocess.Popen(
            [*DAP, "distill", *flags, "--out", str(out), "--shard", f"{k}/3"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in (1, 2, 3)
    ]
    wait_for("six images", lambda: len(part_files(out)) >= 6, runs[0])
    runs[1].send_signal(signal.SIGKILL)
    killed = runs[1].communicate()[0]  # a shell, too, notices at once that its child has died
    said = [runs[0].communicate(timeout=600)[0], killed, runs[2].communicate(timeout=600)[0]]
    print(*said)
    assert [run.returncode for run in runs] == [0, -9, 0]
    assert len(re.findall("45 images in", "".join(said))) == 2
    assert images_of(out) == whole and not (out / ".work").exists()
