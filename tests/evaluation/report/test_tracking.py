"""Runs of TensorBoard and Weights & Biases, read back from what they wrote."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.report import tracking
from dap.evaluation.report.records import load
from reported import looked, make_set, recipe

WANDB = """
import sys
from pathlib import Path
from dap.evaluation.report.records import load
from dap.evaluation.report.tracking import track

print(track(load([Path(sys.argv[1])]), "wandb", Path(sys.argv[2]), project="trial-project"))
"""


@pytest.fixture
def made(tmp_path: Path) -> list[Path]:
    """A finished set and one of which half the images are missing."""
    finished = make_set(tmp_path / "sets" / "dap" / "seed0", recipe("dap", 0), [looked(0.7), looked(0.6, 1)])
    return [finished, make_set(tmp_path / "sets" / "dap" / "seed1", recipe("dap", 1), [looked(0.5)], slots=1)]


def test_tensorboard_holds_curves_figures_and_images(made: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time replaces the first
        folder = tracking.track(load(made), "tensorboard", tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["seed0"], "an unfinished set is left out"
    events = EventAccumulator(str(folder / "seed0"), size_guidance={"images": 0}).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("accuracy/convnet3/small-hard/seed1")]
    assert curve == [(e, pytest.approx(0.5 + 0.1 * e / 300)) for e in (100, 200, 300)]
    assert events.Scalars("last/convnet3/small-hard/seed0")[0].value == pytest.approx(0.7)
    assert events.Scalars("measures/diversity")[0].value == 5
    assert events.Tags()["images"] == ["images/shirt", "images/bag"]
    assert events.Images("images/bag")[0].width == 2 * (8 + 2)
    assert b"guidance.scale" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]


def test_a_set_of_others_is_whole_as_it_is_and_what_is_left_out_is_told(made, tmp_path, caplog) -> None:
    """Its classes may have unequally many images, and no recipe says how many there should be."""
    uneven = make_set(tmp_path / "sets" / "uneven", None)
    lines = (uneven / "manifest.jsonl").read_text().splitlines(keepends=True)
    (uneven / "manifest.jsonl").write_text("".join(lines[:3]))
    assert [record.path for _, record in tracking._named(load([*made, uneven]))] == [made[0], uneven]
    assert f"{made[1]} is not logged, as it still lacks 2 images" in caplog.text and "uneven" not in caplog.text


def test_wandb_holds_curves_config_and_images(made: list[Path], tmp_path: Path) -> None:
    """In a process of its own, since it talks to its own service over a local socket, which tests here may not open."""
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", WANDB, str(made[0]), str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[-1]) == tmp_path / "out" / "wandb"
    (log,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    written = log.read_bytes()
    for text in ("trial-project", "guidance.scale", "accuracy/convnet3/small-hard/seed1", "measures/diversity"):
        assert text.encode() in written, text
    pictures = sorted(path.parent.name for path in log.parent.glob("files/media/images/**/*.png"))
    assert len(pictures) == 4


def test_a_missing_package_is_one_sentence(
    made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else importlib.util.find_spec(name))
    assert main(["report", str(made[0]), "--out", str(tmp_path / "out"), "--track", "wandb"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'diffusion-as-priors[wandb]'" in said
    assert not (tmp_path / "out").exists(), "said before the work"
    with pytest.raises(DapError, match="no tracker 'mlflow'; choose tensorboard or wandb"):
        tracking.track(load(made), "mlflow", tmp_path)
