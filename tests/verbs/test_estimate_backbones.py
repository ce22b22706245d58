"""`--dry-run` of train-backbone, tune-backbone and convert: steps, time and disk, and nothing is made or fetched."""

from __future__ import annotations

import json

import pytest
import torch

import dap
from dap.base.errors import DapError
from dap.cli.main import main
from dap.pretraining import encoding, planning
from dap.pretraining.networks import Sizes
from dap.verbs.options import Machine
from dap.verbs.planning.backbones import planned_backbone, planned_tuning

CPU = Machine(device="cpu")
SIZES = Sizes(
    kind="dit", size=16, levels=[8, 16], layers=1, width=32, depth=1, patch=1, batch_images=4, batch_latents=8
)
WISHES = {"kind": "dit", "size": 16, "seed": 0, "flip": True, "autoencoder_steps": None, "machine": CPU}
SMALL = {"minutes": 0.01, "steps": 2, "autoencoder_steps": 3, "size": 16}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of 15 images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(("green", "red")):
        (folder / name).mkdir()
        for k in range(15):
            Image.new("RGB", (16, 16), (10 * k, 200 * label, 90)).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def rates(monkeypatch):
    """A step of the autoencoder takes half a second, one of the denoiser a quarter, and encoding an image a tenth."""
    monkeypatch.setattr(planning, "autoencoder_seconds", lambda sizes, device: 0.5)
    monkeypatch.setattr(planning, "denoiser_seconds", lambda sizes, classes, device: 0.25)
    chosen = ("dap.verbs.training.backbone.chosen", lambda wish: (SIZES, "tiny ones", 0.5, 0.25))
    monkeypatch.setattr(*chosen)
    monkeypatch.setattr(encoding, "seconds_of_encoding", lambda vae, sizes, images, device: 0.1)


def test_the_stages_fill_the_minutes(pictures, tmp_path, rates):
    out = tmp_path / "mine"
    first, middle, second = planned_backbone(pictures, out, minutes=10, **WISHES)
    assert (first.name, second.name) == ("autoencoder", "denoiser") and {first.kind, second.kind} == {"steps"}
    assert (middle.name, middle.kind, middle.left) == ("encoding", "images", 4 * 26 + 4), (
        "four versions, and the held-out ones"
    )
    assert middle.seconds == pytest.approx(10.8)
    assert first.pieces == int(600 * 0.35 * 0.9 / 0.5) == 378 and first.seconds == pytest.approx(189)
    assert second.pieces == int((600 - 189 - 10.8) * 0.9 / 0.25) == 1440 and second.seconds == pytest.approx(360)
    assert sum(one.seconds for one in (first, middle, second)) < 600
    assert first.disk > 0 and second.disk > 0 and not out.exists()
    told = {**WISHES, "autoencoder_steps": 7}
    first, _, second = planned_backbone(pictures, out, minutes=10, steps=20, **told)
    assert [(one.pieces, one.seconds) for one in (first, second)] == [(7, 3.5), (20, 5.0)]
    with pytest.raises(DapError, match="too few to learn anything"):
        planned_backbone(pictures, out, minutes=0.1, **WISHES)
    with pytest.raises(DapError, match="--size takes a multiple of 16"):
        planned_backbone(pictures, out, minutes=1, **{**WISHES, "size": 17})


def test_a_backbone_that_is_there_has_nothing_left(pictures, tmp_path, capsys):
    out = tmp_path / "mine"
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = ["train-backbone", "--data", str(pictures), "--out", str(out), *flags, "--device", "cpu"]
    assert main([*command, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["left"]) for one in told["work"]] == [
        ("autoencoder", 3),
        ("encoding", 108),
        ("denoiser", 2),
    ]
    assert told["seconds"] > 0 and not out.exists()
    dap.train_backbone(pictures, out, **SMALL, machine=CPU)
    weights = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    assert 5 * weights < told["disk"] < 15 * weights, "the checkpoints take ten times as much while it trains"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 steps, 3 of them there already" in said and "Time: 0 s" in said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_tuning_takes_its_steps(pictures, pipeline_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "tuned"
    monkeypatch.setattr(planning, "seconds_of", lambda module, loss, device: loss_taken(loss))
    how = {"seed": 0, "flip": True, "machine": CPU}
    monkeypatch.setattr(encoding, "seconds_of_encoding", lambda vae, sizes, images, device: 0.1)
    [first, found] = planned_tuning(pipeline_folder, pictures, out, minutes=5, **how)
    assert (first.name, first.left) == ("encoding", 4 * 26 + 4) and first.seconds == pytest.approx(10.8)
    assert found.pieces == found.left == int((300 - 10.8) * 0.9 / 2) and found.seconds == pytest.approx(260)
    [_, found] = planned_tuning(pipeline_folder, pictures, out, minutes=5, steps=11, **how)
    assert (found.pieces, found.seconds) == (11, 22.0)
    whole = sum(file.stat().st_size for file in pipeline_folder.rglob("*") if file.is_file())
    assert whole < found.disk < 3 * whole and not out.exists()
    [found] = planned_tuning("nobody/nothing-like-this", pictures, out, minutes=5, **how)
    assert found.seconds is None and dict(found.downloads).keys() == {"nobody/nothing-like-this"}
    with pytest.raises(DapError, match="--rank takes"):
        planned_tuning(pipeline_folder, pictures, out, minutes=5, rank=0, **how)
    monkeypatch.undo()
    command = ["tune-backbone", str(pipeline_folder), "--data", str(pictures), "--out", str(out), "--steps", "3"]
    assert main([*command, "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "encoding: 108 images" in said and "tuning: 3 steps" in said and not out.exists()


def loss_taken(loss):
    """Two seconds for a step, whose loss is really taken."""
    import torch

    assert torch.isfinite(loss(torch.Generator().manual_seed(0)))
    return 2.0


def test_a_conversion_is_read_and_not_written(pipeline_folder, tmp_path, capsys):
    """What is told is what the folder then holds, and the same mistakes are said."""
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        command = ["convert", str(pipeline_folder), "--dtype", dtype, "--out", str(out)]
        assert main([*command, "--dry-run", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert not out.exists()
        reading, *networks = told["work"]
        assert reading["name"].startswith(f"reading {pipeline_folder}, ") and reading["seconds"] > 0
        assert main(command) == 0
        capsys.readouterr()
        for one in networks:
            (file,) = (out / one["name"].partition(",")[0].rpartition("/")[2]).glob("*.safetensors")
            data = file.read_bytes()
            head = int.from_bytes(data[:8], "little")
            held = json.loads(data[8 : 8 + head])
            assert one["disk"] == len(data) - 8 - head and one["pieces"] == len(held.keys() - {"__metadata__"})
        beside = sum(f.stat().st_size for f in out.rglob("*") if f.is_file() and f.suffix != ".safetensors")
        assert 0 < reading["disk"] <= beside and told["disk"] == sum(one["disk"] for one in told["work"])
        assert {one["name"].partition(",")[0] for one in networks} == {f"{dtype}/transformer", f"{dtype}/vae"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    for wrong in (["--out", str(tmp_path / "other")], ["--out", str(tmp_path / "float32"), "--heads", "3"]):
        said = []
        for dry in (["--dry-run"], []):
            assert main(["convert", str(pipeline_folder), *wrong, *dry]) == 1
            said.append(capsys.readouterr().err)
        assert said[0] == said[1] and said[0].startswith("dap: error: ")


def test_a_conversion_that_would_fetch_something_says_what_and_fetches_nothing(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    from dap.verbs.planning.backbones import planned_convert

    asked = []

    def cached(name, **options):
        asked.append((name, options["local_files_only"]))
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    torch.save({"final_layer.linear.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    monkeypatch.setattr("dap.backbones.converting.convert.config_of", lambda *args: {"num_embeds_ada_norm": 3})
    [found] = planned_convert(tmp_path / "x.pt", tmp_path / "out", vae="owner/vae")
    assert dict(found.downloads).keys() == {"owner/vae"} and found.seconds is None and not (tmp_path / "out").exists()
    assert ("owner/vae", True) in asked and ("owner/vae", False) not in asked
    with pytest.raises(DapError, match="owner/vae.* is not in this machine's cache"):
        planned_convert(tmp_path / "x.pt", tmp_path / "out", vae="owner/vae", offline=True)
    [found] = planned_convert("nobody/nothing-like-this", tmp_path / "out")
    assert dict(found.downloads).keys() == {"nobody/nothing-like-this"}
