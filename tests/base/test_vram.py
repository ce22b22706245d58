"""`--vram`: torch refuses what goes beyond it, what is kept on a GPU fits it, and what does not fit goes through in halves.

There is no GPU here. What torch would be asked of one is recorded, and networks that run out of its memory are made up.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dap.backbones.guided import ClassifierFree
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.bank import FeatureBank
from dap.posterior import Levels, errors

GPU = torch.device("cuda", 1)
GIB = 2**30


class Card:
    """A GPU of 16 GiB of which 10 are free. This process has taken 3 and uses 1."""

    def __init__(self, monkeypatch):
        self.fractions = []
        monkeypatch.setattr(vram, "_limits", {})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=16 * GIB))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: self.fractions.append(args))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (10 * GIB, 16 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda n: GIB)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda n: 3 * GIB)


def test_torch_gets_the_limit_and_what_is_free_is_within_it(monkeypatch):
    card = Card(monkeypatch)
    assert vram.free(GPU) == 12 * GIB, "10 are free, and torch keeps 2 for later"
    assert vram.limit(GPU, 4) is None
    assert card.fractions == [(0.25, 1)]
    assert vram.free(GPU) == 3 * GIB, "of 4 GiB one is taken"
    assert vram.limit(GPU, 100) is None
    assert card.fractions[-1] == (1.0, 1) and vram.free(GPU) == 12 * GIB, "no more than the GPU has"
    assert vram.limit(GPU, None) is None
    assert vram.limit(GPU, None) is None
    assert card.fractions == [(0.25, 1), (1.0, 1), (1.0, 1)], "taken away once"


@pytest.mark.parametrize("gib", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_one_sentence(gib):
    for device in (GPU, torch.device("cpu")):
        with pytest.raises(DapError, match="--vram takes a number of GiB above 0, such as 8, not"):
            vram.limit(device, gib)


def test_on_a_cpu_it_is_said_to_have_no_effect(colours, tmp_path, capsys):
    flags = ["--method", "random", "--data", str(colours), "--ipc", "1", "--device", "cpu"]
    assert main(["distill", *flags, "--out", str(tmp_path / "a"), "--vram", "3"]) == 0
    assert "--vram has no effect on cpu" in capsys.readouterr().err
    assert main(["distill", *flags, "--out", str(tmp_path / "b")]) == 0
    assert "--vram" not in capsys.readouterr().err
    name = "manifest.jsonl"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert main(["distill", *flags, "--out", str(tmp_path / "c"), "--vram", "0"]) == 1
    assert "--vram takes a number of GiB above 0" in capsys.readouterr().err


class Small:
    """Work on a GPU that has room for some rows."""

    def __init__(self, room, work):
        self.room, self.work, self.rows = room, work, []

    def __call__(self, x, *more, **options):
        self.rows.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.work(x, *more, **options)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 100])
def test_rows_that_do_not_fit_go_through_in_halves(room):
    x, y = torch.arange(11.0)[:, None], torch.arange(11.0).neg()[:, None]
    work = Small(room, lambda x, y: 2 * x + y)
    assert torch.cat(vram.in_parts(work, 5, x, y)).equal(x)
    if room >= 5:
        assert work.rows == [5, 5, 1], "parts that fit are the parts that were asked for"
    one = Small(0, lambda x: x)
    with pytest.raises(torch.OutOfMemoryError):
        vram.in_parts(one, 4, x)
    assert one.rows == [4, 2, 1]
    assert len(vram.in_parts(lambda x: x, 3, x[:0])) == 1, "no rows are one part, as torch splits them"


def test_a_backbone_on_a_small_gpu_gives_what_it_gives_on_a_large_one(backbone, source, monkeypatch):
    """Encoding, decoding, features of real images, both halves of a step and the errors of a diffusion classifier."""

    def results():
        bank = FeatureBank(source, backbone, ipc=2)
        bank.begin([0])
        latents = bank.latents(0)
        x, condition = latents[:5], backbone.condition([source.class_names[0]] * 5)
        step = ClassifierFree(backbone, 2.0).predict(x, 500, condition, layer=backbone.layers[0])
        names = list(source.class_names[:2])
        found = [latents, bank.at(0, 300), backbone.decode(x), step.eps, step.features]
        return [*found, errors(backbone, x, names, Levels(2))]

    expected = results()
    small = {name: Small(2, getattr(backbone, name)) for name in ("predict", "tap")}
    for name, work in small.items():
        monkeypatch.setattr(backbone, name, work)
    vae = backbone.vae
    small |= {name: Small(2, getattr(vae, name)) for name in ("encode", "decode")}
    monkeypatch.setattr(vae, "encode", small["encode"])
    monkeypatch.setattr(vae, "decode", small["decode"])
    for found, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert all(max(work.rows) > 2 for work in small.values()), "each of them ran out of memory first"
