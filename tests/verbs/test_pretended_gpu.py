"""The verbs on a pretended GPU (`pretended`): nothing mixes tensors of two devices, and results are those of the CPU.

No machine of this project has a GPU, so that a mistake of this kind would be seen by users first.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap import tune_backbone
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.verbs.options import Machine
from pretended import OnGpu, pretended_gpu

QUICK = [
    ["--method", "auto", "--refine-steps", "2"],
    ["--method", "dap-slots"],
    ["--method", "dm", "--option", "iterations=1"],
]
SLOW = [
    ["--method", name] for name in ("vanilla", "dap", "mgd3", "manifold-gd", "d3hr", "vanilla+refine", "random+refine")
]
SLOW += [["--method", name, "--option", "iterations=1"] for name in ("dc", "dsa", "mtt")]
SLOW += [["--method", name, "--option", "epochs=1"] for name in ("igd", "minimax")]
FREE = {"dm", "dc", "dsa", "mtt"}
"""Methods without a backbone."""


def run(capsys, *words, device: str = "cuda") -> None:
    status = main([*map(str, words), "--device", device])
    assert status == 0, capsys.readouterr().err


def made(capsys, out: Path, *words, device: str) -> torch.Tensor:
    run(capsys, "distill", "--ipc", "2", "--out", out, *words, device=device)
    return DistilledSet.open(out).tensors()[0]


@pytest.mark.parametrize(
    "words", [*QUICK, *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW)], ids=lambda w: w[1]
)
def test_sets_are_made_and_equal_those_of_the_cpu(words, colours, pipeline_folder, tmp_path, capsys):
    words = [*words, "--data", colours]
    words += ["--size", "8"] if words[1] in FREE else ["--backbone", pipeline_folder, "--steps", "3"]
    on_cpu = made(capsys, tmp_path / "cpu", *words, device="cpu")
    with pretended_gpu():
        on_gpu = made(capsys, tmp_path / "gpu", *words, device="cuda")
    assert json.loads((tmp_path / "gpu" / "env.json").read_text())["device"].startswith("cuda")
    # The kernels are the CPU's, but code may choose another way to the same numbers on a GPU.
    assert (on_cpu - on_gpu).abs().max() <= 2 / 255


def test_networks_are_trained_and_sets_are_judged(colours, pipeline_folder, tmp_path, capsys):
    teacher, one = tmp_path / "teacher.safetensors", tmp_path / "set"
    with pretended_gpu():
        run(capsys, "train-teacher", "--data", colours, "--epochs", "1", "--network", "convnet3", "--out", teacher)
        run(
            capsys,
            "distill",
            "--method",
            "herding",
            "--data",
            colours,
            "--size",
            "8",
            "--ipc",
            "2",
            "--classifier",
            teacher,
            "--out",
            one,
        )
        run(capsys, "classify", one, "--backbone", pipeline_folder, "--data", colours, "--times", "2", "--reals", "2")
        run(
            capsys,
            "evaluate",
            one,
            "--protocol",
            "quick-hard",
            "--epochs",
            "1",
            "--networks",
            "convnet3,resnet18",
            "--out",
            tmp_path / "r",
        )
        run(
            capsys,
            "evaluate",
            one,
            "--protocol",
            "quick-soft",
            "--teacher",
            teacher,
            "--epochs",
            "1",
            "--out",
            tmp_path / "s",
        )
        run(capsys, "export", one, "--layout", "fkd", "--teacher", teacher, "--out", tmp_path / "fkd")


@pytest.mark.slow
def test_a_backbone_is_checked(pipeline_folder, capsys):
    with pretended_gpu():
        run(capsys, "check", pipeline_folder)


@pytest.mark.slow
def test_backbones_are_trained_and_tuned(colours, pipeline_folder, sd_folder, tmp_path, capsys):
    pictures, few = (
        tmp_path / "pictures",
        ["--minutes", "0.01", "--steps", "4", "--autoencoder-steps", "3", "--size", "16"],
    )
    for file in colours.glob("*/*/*.png"):
        larger = pictures / file.relative_to(colours)
        larger.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((16, 16)).save(larger)
    with pretended_gpu():
        run(capsys, "train-backbone", "--data", pictures, *few, "--out", tmp_path / "own")
        for folder in (pipeline_folder, sd_folder):
            tune_backbone(folder, pictures, tmp_path / f"tuned {folder.name}", steps=2, machine=Machine(device="cuda"))


@pytest.mark.slow
def test_methods_with_a_classifier_or_captions(colours, pipeline_folder, sd_folder, tmp_path, capsys):
    teacher, captions, source = tmp_path / "t.safetensors", tmp_path / "c.jsonl", open_source(colours, "train", size=8)
    keys = [key for label in range(3) for key in source.keys(label, range(8))]
    captions.write_text("".join(json.dumps({"path": key, "caption": "a thing"}) + "\n" for key in keys))
    to = ["--data", colours, "--ipc", "2", "--steps", "3"]
    with pretended_gpu():
        run(capsys, "train-teacher", "--data", colours, "--epochs", "1", "--network", "convnet3", "--out", teacher)
        of = {"cao2": ["--classifier", teacher, "--backbone", pipeline_folder], "d4m": ["--backbone", sd_folder]}
        of["vlcp"] = ["--captions", captions, "--option", "epochs=1", "--backbone", sd_folder]
        of["dap"] = ["--layer", "auto", "--scale", "auto", "--backbone", pipeline_folder]
        of["vanilla+refine"] = [
            "--refine-steps",
            "2",
            "--refine-prior",
            "1",
            "--backbone",
            pipeline_folder,
            "--ipc",
            "12",
        ]
        for method, words in of.items():
            run(capsys, "distill", "--method", method, *to, *words, "--out", tmp_path / method)
        by = f"backbone:{pipeline_folder}"
        run(
            capsys,
            "evaluate",
            tmp_path / "dap",
            "--protocol",
            "quick-soft",
            "--teacher",
            by,
            "--epochs",
            "1",
            "--out",
            tmp_path / "r",
        )


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
