"""The command line in real subprocesses: what it makes, how it fails, and that kill −9 loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dap.cli.main import main
from messages import apart_from_data


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error::UserWarning:dap"}


def dap(*args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dap", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def call(capsys, *args: object) -> tuple[int, str]:
    """The command in this process: its status and its standard error."""
    status = main([str(a) for a in args])
    return status, capsys.readouterr().err


@pytest.fixture(scope="module")
def flags(pipeline_folder, colours) -> list[object]:
    given = ["--backbone", pipeline_folder, "--data", colours, "--steps", 6, "--ipc", 4, "--block", 2]
    return ["--method", "dap", "--reals", 4, *given]


def hashes(folder: Path) -> dict[str, str]:
    file = folder / "manifest.jsonl"  # a kill between the first image and its line leaves none
    lines = file.read_text().splitlines() if file.exists() else []
    return {record["path"]: record["sha256"] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "set"
    done = dap("distill", *flags, "--out", out)
    assert "12 images in" in done.stdout and "Next: dap evaluate" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return out


def test_what_a_set_holds(whole, capsys):
    assert len(hashes(whole)) == 12 == len(list((whole / "images").rglob("*.png")))
    assert json.loads((whole / "recipe.json").read_text())["guidance"]["reals"] == 4
    env = json.loads((whole / "env.json").read_text())
    assert len(env["weights"]) == 64 and "torch" in env["versions"]
    card = (whole / "README.md").read_text()
    assert "CC0-1.0" in card and "blue, green, red" in card
    assert "distill" in (whole / "command.txt").read_text()
    assert main(["verify", str(whole)]) == 0 and "is whole: 12 images" in capsys.readouterr().out


def test_killed_twice_and_resumed_gives_the_same_hashes(whole, flags, tmp_path):
    """SIGKILL as soon as a few more images are there, twice over; then let it finish."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "dap", "distill", *map(str, flags), "--out", str(out)]
    for wanted in (1, 7):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        deadline = time.monotonic() + 200
        while len(list(out.glob("images/*/*.png"))) < wanted:
            assert process.poll() is None, "it finished before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(hashes(out)) < 12
    assert main([str(word) for word in ("distill", *flags, "--out", out)]) == 0
    assert hashes(out) == hashes(whole)
    assert not list(out.rglob(".tmp-*"))


def test_sigterm_is_a_clean_stop(flags, tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "dap", "distill", *map(str, flags), "--out", str(out), "--steps", "300"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 200
    while not (out / "manifest.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert "run the same command to go on" in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM


def test_order_and_growth_do_not_change_an_image(whole, flags, tmp_path, capsys):
    """Two of the four slots first, the classes asked for alone: the same bytes for the same (class, slot)."""
    out = tmp_path / "small"
    small = [*flags[: flags.index("--ipc")], "--ipc", 2, "--block", 2, "--classes", "red"]
    assert call(capsys, "distill", *small, "--out", out)[0] == 0
    mine, all_of_them = hashes(out), hashes(whole)
    assert mine == {path: all_of_them[path] for path in mine} and len(mine) == 2


def test_evaluate_and_report(whole, tmp_path, capsys):
    status = main(["evaluate", str(whole), "--epochs", "2", "--trials", "2", "--out", str(tmp_path / "r")])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "Report:" in printed.out and "%" in printed.out
    page = (tmp_path / "r" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "data:image/png;base64" in page
    results = tmp_path / "r" / "judged" / whole.name  # --out takes everything that is written
    lines = (results / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    main(["evaluate", str(whole), "--epochs", "2", "--trials", "3", "--out", str(tmp_path / "r")])
    assert len((results / "trials.jsonl").read_text().splitlines()) == 3, "finished trials are kept"
    measures = json.loads((results / "measures.json").read_text())
    assert {"representativeness", "coverage", "diversity"} <= set(measures)


def test_a_folder_of_others_is_judged(colours, tmp_path, capsys):
    import shutil

    theirs = tmp_path / "theirs"
    shutil.copytree(colours / "train", theirs)
    status, err = call(capsys, "evaluate", theirs, "--epochs", 1)
    assert status == 1 and "say what to test on with --data FOLDER" in err
    status, err = call(capsys, "evaluate", theirs, "--data", colours, "--epochs", 1, "--out", tmp_path / "r")
    assert status == 0, err
    assert not (theirs / "trials.jsonl").exists()
    assert (tmp_path / "r" / "judged" / "theirs" / "trials.jsonl").exists() and (
        tmp_path / "r" / "report.html"
    ).exists()


def test_sweep_resumes(flags, tmp_path, capsys):
    common = ["sweep", *flags, "--vary", "scale=0,0.1", "--sets", 1, "--epochs", 1, "--out", tmp_path]
    assert call(capsys, *common)[0] == 0
    first = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("images/*/*.png")}
    assert len(first) == 24
    assert call(capsys, *common)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("images/*/*.png")} == first
    assert call(capsys, "report", tmp_path, "--out", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "report.html").exists() and (tmp_path / "report.csv").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--backbone", "/no/such/weights"], "There is no backbone at '/no/such/weights'"),
        (["--classes", "red", "purple"], "purple"),
        (["--layer", "17"], "no layer '17' to tap. Known: 0, 1, 2"),
        (["--kernel", "rfb"], "Did you mean 'rbf'"),
        (["--scale", "-1"], "guidance.scale"),
        (["--method", "dapp"], "Did you mean 'dap'"),
        (["--steps", "5000"], "steps must be between 2 and 1000"),
        (["--method", "vanilla"], "no guidance, so these options mean nothing to it: reals"),
        (["--repulsion", "1"], "block >= ipc"),
        (["--device", "cuda"], "no such CUDA device"),
        (["--scale", "1e38", "--unit", "paper"], "guidance.scale: the value should be less than or equal to"),
        (["--device", "abacus"], "There is no device 'abacus'"),
        (["--unit", "paper"], "give a scale"),
        (["--kernel", "rbf(bandwidth=median)"], "a parameter is a number"),
    ],
)
def test_each_mistake_is_one_clear_sentence(flags, tmp_path, capsys, no_accelerator, change, says):
    status, err = call(capsys, "distill", *flags, *change, "--out", tmp_path / "set")
    assert status == 1
    told = apart_from_data(err)
    assert says in err and "Traceback" not in err and len(told) == 1
    assert told[0].rpartition("\r")[2].startswith("dap: error: ")


def test_classes_the_backbone_does_not_know(pipeline_folder, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "data" / "zebra").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "zebra" / "1.png")
    args = ["distill", "--backbone", pipeline_folder, "--data", tmp_path / "data", "--out", tmp_path / "set"]
    status, err = call(capsys, *args)
    assert status == 1 and "zebra" in err and "red, green, blue" in err
    assert not (tmp_path / "set").exists()


def test_broken_images_are_named_counted_and_limited(pipeline_folder, colours, tmp_path, capsys, caplog):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(colours, data)
    victim = data / "train" / "red" / "3.png"
    victim.write_bytes(victim.read_bytes()[:60])
    given = ["--backbone", pipeline_folder, "--data", data, "--steps", 2, "--reals", 12, "--ipc", 2]
    args = ["distill", "--method", "dap", *given]
    status, err = call(capsys, *args, "--out", tmp_path / "one")
    # Twelve of the class's twelve are asked for and eleven can be read: "all of a smaller class" are those.
    assert status == 0 and "left out red/3.png" in caplog.text, err
    slots = ["--targets", "slot", "--ipc", 12]
    status, err = call(capsys, *args, *slots, "--out", tmp_path / "slots")
    assert status == 1 and "red" in err and "11" in err  # twelve targets need twelve
    status, err = call(capsys, *args, "--reals", 8, "--out", tmp_path / "two")
    assert status == 0, err
    for i in range(9):
        (data / "train" / "red" / f"{i}.png").write_text("not an image")
    status, err = call(capsys, *args, "--reals", 3, "--out", tmp_path / "three")
    assert (status == 1 and "not an image" in err.lower()) or "could not be decoded" in err.lower()


def test_a_read_only_folder_and_a_changed_recipe(whole, flags, tmp_path, capsys, monkeypatch):
    status, err = call(capsys, "distill", *flags, "--scale", "0.3", "--out", whole)
    assert status == 1 and "guidance.scale: 0.1 -> 0.3" in err
    target = tmp_path / "file"
    target.write_text("in the way")
    status, err = call(capsys, "distill", *flags, "--out", target / "set")
    assert status == 1 and "Traceback" not in err and "file" in err

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "ro"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    status, err = call(capsys, "distill", *flags, "--out", tmp_path / "ro")
    assert status == 1 and "Permission denied" in err and str(tmp_path / "ro") in err


def test_a_full_disk(flags, tmp_path):
    """A real file system of 100 kB where the machine lets us mount one; the write itself fails, in a real process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let the test mount a small file system (test_distilled.py simulates it)")
    try:
        done = dap("distill", *flags, "--out", disk / "set", check=False)
        assert done.returncode == 1 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
        assert "What was made is kept" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=5m", str(disk)], check=True)
        assert main([str(word) for word in ("distill", *flags, "--out", disk / "set")]) == 0
        assert len(hashes(disk / "set")) == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_help_is_complete_and_importing_is_light():
    text = dap("distill", "--help").stdout
    for flag in ("--scale", "--layer", "--targets", "--repulsion", "--out", "--cfg-channels", "--reals-seed"):
        assert flag in text
    code = "import sys, dap, dap.cli.main; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_mistakes_in_a_sweep_come_before_any_work(flags, tmp_path, capsys):
    for vary, says in (("kernel=linear,rfb", "rbf"), ("seed=1,2", "--sets"), ("color=1", "Known")):
        status, err = call(capsys, "sweep", *flags, "--vary", vary, "--out", tmp_path / "s")
        assert status == 1 and says in err and not (tmp_path / "s").exists()
    assert call(capsys, "sweep", *flags, "--seed", "x", "--out", tmp_path / "s")[0] == 1
    (tmp_path / "r.yaml").write_text("guidance:\ndata: here\n")
    status, err = call(capsys, "distill", tmp_path / "r.yaml", "--classes", "red", "--out", tmp_path / "s")
    assert status == 1 and "Line 2: data: " in err


def test_an_unfinished_or_changed_set_is_not_judged_by_old_trials(whole, tmp_path, capsys, caplog):
    import shutil

    copy = tmp_path / "set"
    shutil.copytree(whole, copy)
    for name in ("trials.jsonl", "measures.json"):
        (copy / name).unlink(missing_ok=True)
    judge = ["evaluate", copy, "--epochs", 1]
    assert call(capsys, *judge)[0] == 0
    with (copy / "trials.jsonl").open("a") as lines:
        lines.write('{"torn')
    assert call(capsys, *judge)[0] == 0
    assert len((copy / "trials.jsonl").read_text().splitlines()) == 1
    stale = (copy / "trials.jsonl").read_text().replace('"judged": "', '"judged": "0')
    (copy / "trials.jsonl").write_text(stale)
    assert call(capsys, *judge)[0] == 0
    assert "no longer count; 1 are kept in trials-before.jsonl" in caplog.text
    assert '"judged": "0' not in (copy / "trials.jsonl").read_text()
    assert (copy / "trials-before.jsonl").read_text() == stale, "nothing is lost"
    next((copy / "images").rglob("*.png")).unlink()
    status, err = call(capsys, *judge)
    assert status == 1 and "still lacks 1 image;" in err


def test_an_unknown_verb_is_a_usage_error():
    done = dap("destill", check=False)
    assert done.returncode == 2 and "distill" in done.stderr


def test_every_recipe_field_can_be_given_as_a_flag():
    """A valid value for each, so that no flag refuses what the field takes."""
    from dap.cli.main import build_app
    from dap.cli.recipe import recipe_fields
    from dap.recipe import Recipe

    odd = {
        "split": ["test=x"],
        "cfg-channels": ["3", "all"],
        "kernel": ["rbf"],
        "data": ["x"],
        "backbone": ["x"],
        "method": ["dap"],
    }
    app = build_app()
    for name, (flag, field) in recipe_fields().items():
        if name == "options":
            continue  # --option NAME=VALUE
        kinds = str(field.annotation)
        plain = ["true"] if "bool" in kinds else ["2"] if "int" in kinds else ["0.5"] if "float" in kinds else ["x"]
        literal = re.findall(r"Literal\[(.*?)\]", kinds)
        values = odd.get(flag) or ([v.strip(" '") for v in literal[0].split(",")] if literal else plain)
        for value in values:
            _, bound, _ = app.parse_args(["distill", "--out", "o", f"--{flag}", value])
            section, _, leaf = name.rpartition(".")
            given = [value] if name == "data.classes" else value
            Recipe.parse({section: {leaf: given}} if section else {leaf: given})
            assert bound.arguments["flags"] == {name: given}


def test_a_gpu_that_is_full_is_told_in_a_sentence(capsys, monkeypatch):
    import torch

    from dap.data.sets.distilled import DistilledSet

    def full(path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")

    monkeypatch.setattr(DistilledSet, "open", full)
    assert main(["verify", "x"]) == 1
    assert "Out of memory" in capsys.readouterr().err
