"""The toy of clips: only the motion tells its directions apart."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import torch

import benched
from dap.data.real.sources import open_source


def test_a_clip_backwards_is_one_of_the_other_direction():
    toy = benched.load("moving_garments")
    image = torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8)
    how = {"frames": 6, "size": 32, "speed": 3}
    right, left = toy.moved(image, 1, 5, **how), toy.moved(image, -1, 5 + 3 * 5, **how)
    assert right.shape == (6, 32, 32, 3) and right.dtype == np.uint8
    assert (right[::-1] == left).all() and not (right == left).all()
    assert (np.roll(right[0], 3, axis=1) == right[1]).all()


def test_the_script_writes_a_folder_of_clips(tmp_path, monkeypatch):
    flags = f"--out {tmp_path} --garments Bag --train 3 --test 2 --frames 4 --size 16"
    monkeypatch.setattr(sys, "argv", ["moving_garments.py", *flags.split()])
    runpy.run_path(str(benched.BENCHMARKS / "moving_garments.py"), run_name="__main__")
    source = open_source(tmp_path, "train", size=16, frames=4)
    assert source.class_names == ("Bag left", "Bag right") and source.count(0) == 3
    clip = source.images(1, [0])[0]
    assert torch.equal(clip[:, 0].roll(2, dims=-1), clip[:, 1])  # nothing is lost on the way
    assert open_source(tmp_path, "test", size=16, frames=4).count(1) == 2
