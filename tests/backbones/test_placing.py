"""Where the parts of a backbone lie. The CPU stands for a GPU here: diffusers' hooks are the same for both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny_text
from dap.backbones import from_pipeline, load
from dap.backbones.finetune import tuned
from dap.backbones.placing import place, settle
from dap.base.errors import DapError
from dap.cli.main import main

CPU = torch.device("cpu")
KINDS = {"sdxl": tiny_text.sdxl, "pixart": tiny_text.pixart, "flux": tiny_text.flux, "sana": tiny_text.sana}


@pytest.fixture(params=KINDS)
def build(request, tmp_path):
    (tmp_path / "card.yaml").write_text("size: 8\n")

    def built():
        pipe = KINDS[request.param]()
        return pipe, from_pipeline(pipe, path=str(tmp_path), name=request.param)

    return built


def by_layers(pipe):
    """What diffusers' `enable_sequential_cpu_offload` does. It would say "cpu:0", which no tensor calls its device."""
    from accelerate import cpu_offload

    def enable(device):
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)

    return enable


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_an_offloaded_backbone_computes_the_same(build, how):
    """Predictions, features with their gradient, both ways through the autoencoder, prompts in between, and the hash."""
    (_, plain), (pipe, offloaded) = build(), build()
    pipe.enable_sequential_cpu_offload = by_layers(pipe)
    settle(offloaded, pipe, CPU, how)
    weights = {parameter.device.type for parameter in offloaded.denoiser.parameters()}
    assert ("meta" in weights) == (how == "sequential"), "a layer that waits is nowhere but in its hook"
    x = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def told(backbone, *names):
        leaf, condition = x.clone().requires_grad_(), backbone.condition(names)
        seen = backbone.predict(leaf, 500, condition, layer=backbone.layers[1], grad_through="features")
        (gradient,) = torch.autograd.grad(seen.features.square().sum(), leaf)
        several = backbone.features(x, 500, condition, backbone.layers[:2])
        return seen.eps, seen.features.detach(), gradient, *several.values(), backbone.decode(backbone.encode(image))

    for names in (("red", "green"), ("blue", "red")):
        for mine, theirs in zip(told(offloaded, *names), told(plain, *names), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert offloaded.weights_hash() == plain.weights_hash()
    with pytest.raises(DapError, match="cannot be fine-tuned while parts of it are offloaded; leave out --offload"):
        tuned(offloaded)


def test_text_encoders_wait_outside_the_device(build, monkeypatch):
    """They are not moved with the rest, come when a prompt is new, and leave again, also after a failure."""
    pipe, backbone = build()
    moved = []
    monkeypatch.setattr(nn.Module, "to", lambda self, where: moved.append((type(self).__name__, str(where))) or self)
    names = [type(encoder).__name__ for encoder in backbone._encoders]
    place(pipe, torch.device("cuda"))
    assert moved and all(where == "cuda" for _, where in moved) and not {name for name, _ in moved} & set(names)
    moved.clear()
    backbone.condition(["red"])
    assert moved == [], "a pipeline that somebody else uses keeps its parts where they are"
    settle(backbone, pipe, torch.device("cuda"), "none")
    monkeypatch.setattr(backbone, "device", torch.device("cuda"))
    both = [(name, "cuda") for name in names] + [(name, "cpu") for name in names]

    def fails(prompts):
        raise RuntimeError("no room")

    monkeypatch.setattr(type(backbone), "encode_prompts", fails)
    with pytest.raises((RuntimeError, TypeError)):
        backbone._encode(["green"])
    assert moved == both


def test_what_cannot_be_offloaded_is_said(pipeline_folder, colours, tmp_path, capsys, caplog):
    with pytest.raises(DapError, match="no way to offload 'disk'; use none, model or sequential"):
        load(str(pipeline_folder), device="cpu", offload="disk")
    with pytest.raises(DapError, match="does not go with --dtype float16.*bfloat16"):
        load(str(pipeline_folder), device="cpu", offload="model", dtype="float16")
    run = ["distill", "--method", "vanilla", "--data", str(colours), "--ipc", "1", "--steps", "2", "--device", "cpu"]
    run += ["--backbone", str(pipeline_folder), "--offload", "model", "--out", str(tmp_path / "s")]
    assert main(run) == 0, capsys.readouterr().err
    assert "--offload model has no effect on the CPU" in caplog.text + capsys.readouterr().err
