"""What was fetched by half: pointers of Git LFS, weights in parts that lack one, tars that end early, and too few images."""

from __future__ import annotations

import shutil

import pytest
import torch

from dap.backbones import load
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.imports import import_set
from dap.data.typical import margins_of, ridge
from dap.evaluation.training.loading import load_trained
from dap.methods import METHODS

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 333123456\n"


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_pointer_in_place_of_weights_is_named(part, pipeline_folder, tmp_path, capsys):
    folder = tmp_path / "weights"
    shutil.copytree(pipeline_folder, folder)
    (folder / part / "diffusion_pytorch_model.safetensors").write_text(POINTER)
    with pytest.raises(
        DapError, match=rf"{part}/diffusion_pytorch_model.safetensors is a Git LFS pointer .*git lfs pull"
    ):
        load(str(folder))
    assert main(["convert", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "is a Git LFS pointer and not the file itself" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.parquet", "x.tar"])
def test_a_pointer_in_place_of_a_file_of_images_is_named(name, tmp_path):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DapError, match=f"{name} is a Git LFS pointer"):
        import_set(tmp_path / name, tmp_path / "set")


def test_a_pointer_in_place_of_a_checkpoint_a_teacher_and_an_image(tmp_path, colours):
    (tmp_path / "DiT.pt").write_text(POINTER)
    with pytest.raises(DapError, match="DiT.pt is a Git LFS pointer"):
        from dap.backbones.converting.checkpoints import opened

        opened(tmp_path / "DiT.pt")
    (tmp_path / "teacher.safetensors").write_text(POINTER)
    with pytest.raises(DapError, match=r"teacher.safetensors is a Git LFS pointer"):
        load_trained(tmp_path / "teacher.safetensors")
    shutil.copytree(colours, tmp_path / "data")
    for file in (tmp_path / "data" / "train" / "red").iterdir():
        file.write_text(POINTER)
    source = open_source(tmp_path / "data", "train", size=8)
    with pytest.raises(DapError, match="it is a Git LFS pointer and not the image"):
        source.good(source.class_names.index("red"), 3, 0)


def test_parts_of_weights_that_are_missing_are_named(pipeline_folder, tmp_path):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(pipeline_folder)
    folder = tmp_path / "parts"
    pipe.save_pretrained(folder, max_shard_size="20KB")
    for name in ("classes.json", "card.yaml"):
        shutil.copy(pipeline_folder / name, folder / name)
    assert load(str(folder)).weights_hash() == load(str(pipeline_folder)).weights_hash()
    (index,) = (folder / "transformer").glob("*.index.json")
    held = index.read_bytes()
    index.unlink()
    with pytest.raises(
        DapError, match=r"transformer has its weights in \d+ parts, .*lacks the index .*fetch this file too"
    ):
        load(str(folder))
    index.write_bytes(held)
    second = sorted((folder / "transformer").glob("*-00002-of-*"))[0]
    second.unlink()
    with pytest.raises(DapError, match=r"transformer has \d+ of \d+ parts of its weights, .*and lacks part 2; fetch"):
        load(str(folder))


def test_a_tar_that_is_cut_between_two_images_is_noticed(colours, tmp_path):
    made, out = tmp_path / "set", tmp_path / "shards"
    assert main(["distill", "--method", "random", "--data", str(colours), "--ipc", "2", "--out", str(made)]) == 0
    assert main(["export", str(made), "--layout", "webdataset", "--out", str(out)]) == 0
    (shard,) = out.glob("*.tar")
    import tarfile

    data = shard.read_bytes()
    with tarfile.open(shard) as archive:
        starts = [member.offset for member in archive if member.name.endswith(".png")]
    for cut in starts[1:]:
        shard.write_bytes(data[:cut])
        with pytest.raises(DapError, match="without the empty blocks that close a tar file, so it is cut"):
            import_set(out, tmp_path / "again", class_names=["red", "green", "blue"])
    shard.write_bytes(data)
    assert len(import_set(out, tmp_path / "again")) == 6


ALONE = [name for name, method in METHODS.items() if not method.needs & {"classifier", "captions"}]
"""The methods that need nothing beside the data and a backbone."""


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("sd",)])
def test_too_large_an_ipc_leaves_no_folder(name, pipeline_folder, colours, tmp_path, capsys):
    """Either the method can make more images than there are real ones, or it says so before anything is written."""
    words = ["distill", "--method", name, "--data", str(colours), "--ipc", "13", "--steps", "2", "--device", "cpu"]
    out = tmp_path / "set"
    options = {"minimax": ["tune_steps=1"], "mtt": ["experts=1", "expert_epochs=1", "start=0", "ahead=1"]}.get(name, [])
    options += {"dm": ["iterations=0"], "dc": ["iterations=0"], "dsa": ["iterations=0"]}.get(name, [])
    backbone = ["--backbone", str(pipeline_folder)] if "backbone" in METHODS[name].needs else ["--size", "8"]
    status = main([*words, *backbone, *(p for option in options for p in ("--option", option)), "--out", str(out)])
    said = capsys.readouterr().err
    assert status == 0 or not out.exists(), said
    assert "Traceback" not in said
    if status:
        assert "13" in said


def test_a_class_whose_images_are_all_broken_is_left_out_of_the_regression():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 5, generator=generator) + label for label, n in enumerate((8, 0, 9))]
    features[1] = torch.zeros(0, 1)
    judges = ridge(lambda label: features[label], 3)
    assert judges.shape == (2, 6, 3) and judges.isfinite().all()
    without = ridge(lambda label: [features[0], features[2]][label], 2)
    torch.testing.assert_close(judges[:, :, [0, 2]], without, rtol=1e-4, atol=1e-5)
    assert margins_of(features[2], 2, judges).isfinite().all()


def test_typical_images_of_a_class_that_cannot_be_decoded(pipeline_folder, colours, tmp_path):
    from dap.data.typical import Typical

    shutil.copytree(colours, tmp_path / "data")
    for file in (tmp_path / "data" / "train" / "red").iterdir():
        file.write_bytes(b"no image")
    source = open_source(tmp_path / "data", "train", size=8, max_bad_fraction=1.0)
    backbone = load(str(pipeline_folder), device="cpu")
    typical = Typical(source, 0.5, backbone, backbone.layers[0])
    green = source.class_names.index("green")
    assert len(typical.good(green, 3, 0)) == 3
    with pytest.raises(DapError, match="has only 0 decodable images"):
        typical.good(source.class_names.index("red"), 1, 0)
