"""The command lines and files of docs/scaling.md can be read, and every flag in them exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dap.cli.main import build_app
from dap.cli.verbs import VERBS
from dap.shipped import names as shipped_recipes

PAGE = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
JOBS = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
SCRIPTS = [text for kind, text in BLOCKS if kind == "bash"]


def commands() -> list[str]:
    """Each command line of `dap` in the page, with what launches it."""
    lines = [line for text in SCRIPTS for line in text.replace("\\\n", " ").splitlines()]
    lines += [job["spec"]["entrypoint"] for job in JOBS]
    return [line for line in lines if re.search(r"\bdap (distill|status|compare|evaluate)\b", line)]


@pytest.mark.parametrize("line", commands())
def test_every_command_line_can_be_read(line):
    words = shlex.split(line)
    words = words[words.index("dap") + 1 :]
    command, bound, _ = build_app().parse_args(words, print_error=False, exit_on_error=False)
    assert words[0] in VERBS and callable(command) and bound.arguments
    if words[0] == "distill":
        assert words[1] in shipped_recipes()


def test_the_page_has_what_it_promises():
    assert len(commands()) == 6 and len(JOBS) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_slurm_script_gives_each_task_a_gpu_and_says_which_it_is():
    (script,) = [text for text in SCRIPTS if "#SBATCH" in text]
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.M))
    assert re.fullmatch(r"0-\d+", asked["array"]) and asked["gpus-per-task"] == "1" and "requeue" in asked
    assert "--engine shard" in script and f"--threads {asked['cpus-per-task']}" in script


def test_the_ray_job_is_one():
    (job,) = JOBS
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    (workers,) = cluster["workerGroupSpecs"]
    pinned = (Path(__file__).parent.parent / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pinned
    for spec in (head, workers["template"]["spec"]):
        (container,) = spec["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" in workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
