"""A batch norm cannot be trained on one image with a map of 1 x 1 pixel (case 36): said before any training or making."""

from __future__ import annotations

import re

import pytest
import torch

from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.fitting import check_last_batch, new_network
from dap.evaluation.training.protocol import load_protocol

SAID = "normalises over the batch, and with"


def protocol(network: str, batch: int, norm: str = "batch", size: int = 16):
    changes = {"size": size, "norm": norm, "batch": batch, "width": 4, "epochs": 1, "network": network}
    return load_protocol("quick-hard", **changes).settled(ipc=3, classes=3)


@pytest.mark.parametrize(
    ("network", "norm", "size", "batch", "images", "wrong"),
    [
        ("torchvision:squeezenet1_1", "batch", 32, 4, 9, False),  # it has no batch norm
        ("torchvision:resnet18", "batch", 16, 4, 9, True),
        ("torchvision:resnet18", "batch", 16, 8, 9, True),
        ("torchvision:resnet18", "batch", 16, 3, 9, False),
        ("torchvision:resnet18", "batch", 16, 10, 9, False),
        ("torchvision:resnet18", "batch", 16, 10, 1, True),
        ("torchvision:resnet18", "instance", 64, 8, 9, False),
        ("torchvision:resnet18", "batch", 64, 8, 9, False),  # maps of 2 x 2
        ("resnet18", "batch", 16, 8, 9, False),  # with its stem for small images the maps are 2 x 2
        ("torchvision:resnet18", "batch", 16, 1, 9, True),
        ("torchvision:resnet18", "batch", 16, 1, 7, True),
        ("convnet3", "batch", 8, 8, 9, False),
    ],
)
def test_what_is_said_is_what_training_would_meet(network, norm, size, batch, images, wrong):
    chosen = protocol(network, batch, norm, size)
    net = new_network(network, chosen, 3, 3).train()
    last = images % batch or batch
    fails = False
    try:
        net(torch.rand(min(last, images), 3, size, size))
    except ValueError:
        fails = True
    assert fails == wrong, "the case itself"
    if not wrong:
        return check_last_batch(network, chosen, 3, 3, images)
    with pytest.raises(DapError, match=SAID) as told:
        check_last_batch(network, chosen, 3, 3, images)
    if images > 1:  # the advice works
        other = int(re.findall(r"--set batch=(\d+)", str(told.value))[0])
        check_last_batch(network, protocol(network, other, norm, size), 3, 3, images)


def test_it_is_said_before_the_first_epoch():
    labelled = (torch.rand(9, 3, 16, 16), torch.arange(9) % 3)
    seen: list[int] = []
    with pytest.raises(DapError, match=SAID):
        list(
            evaluate(
                labelled,
                labelled,
                protocol("torchvision:resnet18", 8),
                [0],
                classes=3,
                progress=lambda *_: seen.append(1),
            )
        )
    assert not seen


def test_the_verbs_say_it_before_work(colours, tmp_path, capsys):
    small = ["--set", "size=16", "--set", "norm=batch", "--epochs", "1", "--device", "cpu"]
    how = ["--networks", "convnet1,torchvision:resnet18", "--protocol", "quick-hard", "--set", "batch=2", *small]
    made = tmp_path / "made"
    # Three classes of one image: batches of two and one.
    words = ["compare", "--data", colours, "--methods", "random", "--size", 8, "--ipc", 1, "--sets", 1, "--out", made]
    assert main([*map(str, words), *how]) == 1
    assert SAID in capsys.readouterr().err and not list(made.glob("**/*.png"))
    words = ["distill", "--data", colours, "--method", "random", "--size", 8, "--ipc", 1, "--out", tmp_path / "set"]
    assert main(list(map(str, words))) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "set"), *how]) == 1
    said = capsys.readouterr().err
    assert SAID in said and not (tmp_path / "set" / "trials.jsonl").exists()
    batch = re.findall(r"--set (batch=\d+)", said)[0]
    assert main(["evaluate", str(tmp_path / "set"), *how, "--set", batch]) == 0, "the advice works"
    words = ["train-teacher", "--data", colours, "--network", "torchvision:resnet18", "--out", tmp_path / "t", *small]
    capsys.readouterr()
    assert main([*map(str, words), "--set", "batch=35"]) == 1  # 36 images
    assert SAID in capsys.readouterr().err and not (tmp_path / "t").exists()
