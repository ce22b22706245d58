"""The verbs on a pretended GPU (`pretended`): nothing mixes tensors of two devices, and results are those of the CPU.

No machine of this project has a GPU, so that a mistake of this kind would be seen by users first.
"""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from PIL import Image

from dap import tune_backbone
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.verbs.options import Machine
from pretended import OnGpu, pretended_gpu

QUICK = ["auto --refine-steps 2", "dap-slots", "dm --option iterations=1"]
SLOW = ["vanilla", "dap", "mgd3", "manifold-gd", "d3hr", "vanilla+refine", "random+refine"]
SLOW += ["dc --option iterations=1", "dsa --option iterations=1", "mtt --option iterations=1"]
SLOW += ["igd --option epochs=1", "minimax --option epochs=1"]
FREE = ("dm", "dc", "dsa", "mtt")
"""Methods without a backbone."""


@pytest.fixture(params=["cuda", pytest.param("mps", marks=pytest.mark.slow)])
def gpu(request):
    """The name of a pretended GPU, which is there during the test."""
    with pretended_gpu(request.param):
        yield request.param


@pytest.fixture
def run(capsys, gpu):
    """Runs a command on the pretended GPU, or on another device."""

    def command(line: str, device: str = gpu) -> None:
        status = main([*shlex.split(line), "--device", device])
        assert status == 0, capsys.readouterr().err

    return command


@pytest.mark.parametrize("method", [*QUICK, *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW)])
def test_sets_are_made_and_equal_those_of_the_cpu(method, colours, pipeline_folder, tmp_path, gpu, run):
    of = "--size 8" if method.startswith(FREE) else f"--backbone {pipeline_folder} --steps 3"
    images = []
    for device in ("cpu", gpu):
        run(f"distill --method {method} --data {colours} {of} --ipc 2 --out {tmp_path / device}", device)
        assert json.loads((tmp_path / device / "env.json").read_text())["device"].startswith(device)
        images.append(DistilledSet.open(tmp_path / device).tensors()[0])
    # The kernels are the CPU's, but code may choose another way to the same numbers on a GPU.
    assert (images[0] - images[1]).abs().max() <= 2 / 255


def test_networks_are_trained_and_sets_are_judged(colours, pipeline_folder, tmp_path, run):
    teacher, one = tmp_path / "teacher.safetensors", tmp_path / "set"
    run(f"train-teacher --data {colours} --epochs 1 --network convnet3 --out {teacher}")
    run(f"distill --method herding --data {colours} --size 8 --ipc 2 --classifier {teacher} --out {one}")
    run(f"classify {one} --backbone {pipeline_folder} --data {colours} --times 2 --reals 2")
    run(f"evaluate {one} --protocol quick-hard --epochs 1 --networks convnet3 --out {tmp_path / 'hard'}")
    run(f"evaluate {one} --protocol quick-soft --epochs 1 --teacher {teacher} --out {tmp_path / 'soft'}")
    run(f"export {one} --layout fkd --teacher {teacher} --out {tmp_path / 'fkd'}")


@pytest.mark.slow
def test_a_backbone_is_checked(pipeline_folder, run):
    run(f"check {pipeline_folder}")


@pytest.mark.slow
def test_backbones_are_trained_and_tuned(colours, pipeline_folder, sd_folder, tmp_path, gpu, run):
    pictures = tmp_path / "pictures"
    for file in colours.glob("*/*/*.png"):
        larger = pictures / file.relative_to(colours)
        larger.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((16, 16)).save(larger)
    few = "--minutes 0.01 --steps 4 --autoencoder-steps 3 --size 16"
    run(f"train-backbone --data {pictures} {few} --out {tmp_path / 'own'}")
    for folder in (pipeline_folder, sd_folder):
        tune_backbone(folder, pictures, tmp_path / f"tuned {folder.name}", steps=2, machine=Machine(device=gpu))


@pytest.mark.slow
def test_methods_with_a_classifier_or_captions(colours, pipeline_folder, sd_folder, tmp_path, run):
    teacher, captions, source = tmp_path / "t.safetensors", tmp_path / "c.jsonl", open_source(colours, "train", size=8)
    keys = [key for label in range(3) for key in source.keys(label, range(8))]
    captions.write_text("".join(json.dumps({"path": key, "caption": "a thing"}) + "\n" for key in keys))
    run(f"train-teacher --data {colours} --epochs 1 --network convnet3 --out {teacher}")
    for words in (
        f"cao2 --ipc 2 --backbone {pipeline_folder} --classifier {teacher}",
        f"vlcp --ipc 2 --backbone {sd_folder} --captions {captions} --option epochs=1",
        f"d4m --ipc 2 --backbone {sd_folder}",
        f"dap --ipc 2 --backbone {pipeline_folder} --layer auto --scale auto",
        f"vanilla+refine --ipc 12 --backbone {pipeline_folder} --refine-steps 2 --refine-prior 1",
    ):
        run(f"distill --method {words} --data {colours} --steps 3 --out {tmp_path / words.split()[0]}")
    of = f"--teacher backbone:{pipeline_folder} --epochs 1"
    run(f"evaluate {tmp_path / 'dap'} --protocol quick-soft {of} --out {tmp_path / 'report'}")


def test_the_pretended_gpu_refuses_what_a_real_one_refuses():
    with pretended_gpu():
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + on_cpu
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([on_cpu, on_gpu])
        with pytest.raises(RuntimeError, match="same device"):
            on_cpu[torch.zeros(1, dtype=torch.long, device="cuda")]
        with pytest.raises(TypeError, match="numpy"):
            on_gpu.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        with pytest.raises(RuntimeError, match="generator"):
            on_gpu.normal_(generator=torch.Generator())
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.Linear(3, 1).to("cuda")(on_cpu)
    with pretended_gpu("mps"):
        with pytest.raises(TypeError, match="float64"):
            torch.ones(3).to("mps").double()
        with pytest.raises(TypeError, match="float64"):
            torch.ones(3, dtype=torch.float64).to("mps")


def test_the_pretended_gpu_allows_what_a_real_one_allows():
    with pretended_gpu():
        weights = torch.nn.Linear(3, 1)
        inside = weights.weight
        weights.to("cuda")
        assert inside is weights.weight and isinstance(inside, OnGpu) and inside.device == torch.device("cuda:0")
        x = torch.ones(2, 3).to("cuda", torch.float64).float().requires_grad_()
        weights(x).sum().backward()
        assert isinstance(x.grad, OnGpu) and isinstance(inside.grad, OnGpu)
        torch.optim.SGD(weights.parameters(), lr=0.1).step()
        assert (x * 2 + torch.tensor(1.0))[torch.tensor([1])].tolist() == [[3.0, 3.0, 3.0]]
        assert x.detach().cpu().numpy().sum() == 6 and x.new_zeros(2).is_cuda and x.to("cpu").device.type == "cpu"
        assert torch.zeros(2).copy_(torch.ones(2, device="cuda")).tolist() == [1, 1]
    assert torch.zeros(1).device.type == "cpu" and not isinstance(torch.zeros(1), OnGpu)
