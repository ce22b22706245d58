"""The benchmarks run, and the field's training loop written for one of them is what it says it is."""

from __future__ import annotations

import json
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EVALUATION, RIVALS = (ROOT / "benchmarks" / name for name in ("evaluation.py", "rivals.py"))


def test_a_tiny_comparison_of_training_loops(monkeypatch, capsys):
    flags = "--network convnet1 --size 16 --ipc 1 --test-per-class 2 --epochs 4 --rounds 2 --workers 0 --device cpu"
    monkeypatch.setattr(sys, "argv", [EVALUATION.name, *flags.split()])
    with torch.random.fork_rng():
        runpy.run_path(str(EVALUATION), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    rounds = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(r["round"], r["way"]) for r in rounds] == [(0, "plain"), (0, "dap"), (1, "plain"), (1, "dap")]
    assert {r["way"]: (len(r["train"]), len(r["test"])) for r in rounds} == {"plain": (4, 2), "dap": (2, 2)}
    assert all(0 <= r["last"][0] <= r["best"][0] <= 1 and min(r["train"]) > 0 for r in rounds)
    header, row = (next(line for line in lines if line.startswith(start)) for start in ("| network", "| convnet1"))
    assert "3000 epochs, 100 looks" in header and header.count("|") == row.count("|")


def test_training_and_testing_must_be_told_apart(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [EVALUATION.name, "--epochs", "2"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EVALUATION), run_name="__main__")
    assert "two epochs without a look are needed" in capsys.readouterr().err


def test_cutmix_of_the_plain_loop_knows_the_area_it_kept():
    cut_mixed = runpy.run_path(str(EVALUATION))["cut_mixed"]
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 12, 9)
    random.seed(0)
    torch.manual_seed(0)
    for _ in range(20):
        mixed, others, own = cut_mixed(images, torch.arange(5))
        for label, (image, other) in enumerate(zip(mixed, others.tolist(), strict=True)):
            assert set(image.unique().tolist()) <= {label, other}
            if label != other:
                assert (image == label).float().mean().item() == pytest.approx(own, abs=1e-6)


def test_the_rivals_tables_are_what_the_ledger_says():
    """docs/results.md shows what docs/rivals.csv holds, and nothing else."""
    rivals = runpy.run_path(str(RIVALS))
    page = (ROOT / "docs" / "results.md").read_text()
    shown = page.partition(rivals["BEGIN"])[2].partition(rivals["END"])[0].strip()
    assert shown == rivals["tables"](rivals["ledger"](ROOT / "docs" / "rivals.csv"))


def cell(out, method, seed, accuracies, ipc=1, larger=None, **trial):
    """What `dap compare` leaves of a set and its trainings."""
    folder = out / f"method={method}" / f"seed{seed}"
    folder.mkdir(parents=True)
    recipe = {"method": method, "ipc": larger or ipc, "seed": seed}
    if larger is None:
        (folder / "recipe.json").write_text(json.dumps(recipe))
    else:
        (folder / "import.json").write_text(json.dumps({"classes": ["bag"], "ipc": ipc, "recipe": recipe}))
    (folder / "classes.json").write_text(json.dumps({"folders": ["bag"], "ipc": ipc}))
    (folder / "cost.json").write_text(json.dumps({"seconds": 30.0}))
    known = {"protocol": "small-hard", "network": "convnet3", **trial}
    trials = [known | {"seed": k, "last": value, "best": 1.0} for k, value in enumerate(accuracies)]
    (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))


def test_trainings_are_taken_up_once_and_summed_up_by_hand(tmp_path, monkeypatch, capsys):
    (tmp_path / "rivals.csv").write_text("method\n")
    (tmp_path / "results.md").write_text("before <!-- made by benchmarks/rivals.py --write -->old")
    for seed, (random_, herding) in enumerate([((0.5, 0.52), (0.6,)), ((0.55, 0.55), (0.7,))]):
        cell(tmp_path / "a", "random", seed, random_)
        cell(tmp_path / "a", "herding", seed, herding)
        cell(tmp_path / "b", "random", seed, (0.4,), larger=2)
        cell(tmp_path / "c", "random", seed, (0.8,), ipc=2)
        cell(tmp_path / "d", "random", seed, (0.3,), network="resnet18")
    for _ in range(2):
        folders = [str(tmp_path / name) for name in "abcd"]
        monkeypatch.setattr(sys, "argv", [RIVALS.name, "--docs", str(tmp_path), "--write", "--add", *folders])
        runpy.run_path(str(RIVALS), run_name="__main__")
    assert not capsys.readouterr().out
    assert len((tmp_path / "rivals.csv").read_text().splitlines()) == 1 + 4 + 2 + 2 + 2 + 2
    page = (tmp_path / "results.md").read_text()
    assert page.startswith("before <!--") and "old" not in page
    assert "| `random` | 53.0 ± 2.8 | 2 × 2 | – | 51.4 ± 3.8 | – | 30 |" in page
    assert "| `herding` | 65.0 ± 7.1 | 2 × 1 | – | 67.0 | classifier | 30 |" in page
    assert "drawn down" in page and "| `random` | 80.0 ± 0.0 (2) | 40.0 ± 0.0 (2) |" in page
    assert "several networks" in page and "| `random` | 53.0 ± 2.8 (2) | 30.0 ± 0.0 (2) |" in page


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["dit-small", "sd-small"])
def test_shapes_with_random_weights_still_open_and_are_measured(shape):
    """What a backbone's configuration must say has grown since these shapes were written, and nobody had tried them again."""
    layer = "4" if shape == "dit-small" else "mid"
    flags = f"--shape {shape} --device cpu --batch 1 --reals 2 --steps 2 --rounds 1 --no-plain --ipc 1 --layer {layer}"
    command = [sys.executable, str(ROOT / "benchmarks" / "sampling.py"), *flags.split()]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    row = ran.stdout.splitlines()[-3]
    assert row.startswith(f"| {layer} | 2 | 1 |") and "%" in row


def test_the_large_shapes_have_configurations_that_open():
    """Without memory for their weights."""
    from dap.backbones.honoured import check_pipeline
    from dap.backbones.known import KINDS

    shapes = runpy.run_path(str(ROOT / "benchmarks" / "shapes.py"))
    with torch.device("meta"):
        made = {
            "dit": shapes["dit"](shapes["DIT"]["dit-xl-2"]),
            "unet": shapes["stable_diffusion"](shapes["SD"]["sd-1.5"]),
        }
        for pipe in made.values():
            check_pipeline(pipe, KINDS[type(pipe).__name__], None)


def test_the_script_of_the_gpu_day_names_flags_that_exist():
    """It runs nine minutes on a machine that costs money, so a misspelt flag must show here."""
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
    calls = re.findall(r"\$B/(\w+)\.py ([^\n]*)", script)
    assert len(calls) >= 12
    for module, words in calls:
        source = (ROOT / "benchmarks" / f"{module}.py").read_text()
        for flag in re.findall(r"(--[\w-]+)", words):
            assert f'"{flag}"' in source, f"{module}.py has no {flag}"
    limits = [int(seconds) for seconds in re.findall(r'part "[^"]+" (\d+)', script.rpartition("else")[2])]
    assert sum(limits) <= 9 * 60 - 10
    pinned = (ROOT / "constraints.txt").read_text()
    wheels = re.search(r'WHEELS="([^"]+)"', script)
    assert wheels is not None
    assert all(re.search(rf"^{name}==", pinned, re.M) for name in wheels[1].split())


@pytest.mark.slow
def test_the_one_table_has_a_row_for_every_part(tmp_path):
    """`make bench` at its smallest, without the start-up. Every cell is a ratio or a dash; the file has what was printed."""
    flags = "--quick --only sampling evaluation report --starter starter --steps 2 --report-ipc 1 --out table.md --evaluation"
    judged = "--network convnet1 --size 16 --ipc 1 --test-per-class 2 --epochs 3"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *flags.split(), judged]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    said, _, tables = (tmp_path / "table.md").read_text().partition("\n\n")
    assert tables.strip() in ran.stdout and re.search(
        r"load [\d.]+; processor seconds, 1 thread, 1 round of 2 steps", said
    )
    ratios, spent = (table.splitlines() for table in tables.strip().split("\n\n"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in ratios[2:]]
    assert {(part, what) for part, what, *_ in cells} >= {
        ("starter", "vanilla"),
        ("starter", "dap, ipc 10"), ("starter", "dap, a later batch"), ("starter", "dap-slots, ipc 10"),
        ("starter", "auto, ipc 10"), ("starter", "bank: 64 real images"), ("evaluation", "convnet1, an epoch"),
        ("report", "a set of 10 images"),
    }  # fmt: skip
    for part, what, _, *found in cells:
        numbers = [cell for cell in found[:3] if cell != "–"]
        assert numbers and all(float(cell) >= 0 for cell in numbers), (part, what)
    guided = next(row for row in cells if row[1] == "dap, ipc 10")
    assert float(guided[5]) > 3, "one image at a time with the whole network for the real images is no slower?"
    for line in spent[2:]:
        shares = [int(cell.strip(" %")) for cell in line.strip("|").split("|")[2:]]
        assert 97 <= sum(shares) <= 103 and min(shares) >= 0, line


@pytest.mark.slow
def test_the_start_up_is_measured_in_processes_of_its_own():
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--quick", "--only", "start-up"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = {cells[2].strip(): cells for cells in (line.split("|") for line in ran.stdout.splitlines()[4:] if line)}
    assert rows.keys() == {"`dap --help`", "`dap distill --help`", "`dap distill`, 1 image, 2 steps"}
    assert all(float(cells[4]) > 1 for cells in rows.values())
    assert float(rows["`dap distill`, 1 image, 2 steps"][5]) > 0.2


@pytest.mark.slow
def test_the_floor_says_what_changes_the_bits():
    flags = "--reals 8 --rounds 1 --layer 0"
    command = [sys.executable, str(ROOT / "benchmarks" / "floor.py"), *flags.split()]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = {cells[1].strip(): cells[5].strip() for cells in (line.split("|") for line in ran.stdout.splitlines()[4:])}
    assert rows["as today"] == "–" and {rows["bfloat16"], rows["4 real images"], rows["layer 0"]} == {"no"}
