"""Networks of clips, and that the steps of a protocol do the same to every frame."""

from __future__ import annotations

import pytest
import torch

from dap.base.errors import DapError
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.networks import build
from dap.evaluation.training.networks.clips import unfolded
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.steps import Flip, Normalize
from dap.evaluation.training.transforms import run

CASES = [("convnet3d", 16, 64, "none"), ("small_convnet3d", 5, 16, "instance"), ("r3d18", 4, 16, "batch")]


@pytest.mark.parametrize(("name", "frames", "size", "norm"), CASES)
def test_networks_see_time(name, frames, size, norm):
    torch.manual_seed(0)
    net = build(name, channels=3 * frames, classes=4, size=size, norm=norm, width=8).eval()
    clip = torch.rand(2, 3, frames, size, size)
    logits = net(clip.flatten(1, 2))
    assert logits.shape == (2, 4)
    assert net.features(clip.flatten(1, 2)).shape[0] == 2
    backwards = net(clip.flip(2).flatten(1, 2))
    assert not torch.allclose(logits, backwards, atol=1e-4)
    assert torch.equal(unfolded(clip.flatten(1, 2)), clip)


@pytest.mark.parametrize("name", ["convnet3d", "small_convnet3d", "r3d18"])
def test_networks_of_clips_refuse_images(name):
    with pytest.raises(
        DapError, match="network of clips of at least .* frames, and these are images; distil with --frames N"
    ):
        build(name, channels=3, classes=4, size=64, norm="batch")


def test_bounds_of_the_networks():
    with pytest.raises(DapError, match="at least 8 frames, and these are clips of 4 frames"):
        build("convnet3d", channels=12, classes=4, size=64, norm="none")
    with pytest.raises(DapError, match="at most 128 px"):
        build("convnet3d", channels=48, classes=4, size=160, norm="none")
    with pytest.raises(DapError, match="at least 64 px"):
        build("convnet3d", channels=48, classes=4, size=32, norm="none")
    with pytest.raises(DapError, match="no form without normalisation"):
        build("r3d18", channels=12, classes=4, size=32, norm="none")


def test_wang_networks_shape_is_that_of_the_paper():
    """16 frames of 112 px: 28, 7 and 2 px after the layers, 16, 8 and 4 time steps, and 3 after the last pooling."""
    net = build("convnet3d", channels=48, classes=50, size=112, norm="none")
    shapes = []
    for part in net.body:
        part.register_forward_hook(lambda _part, _inputs, output: shapes.append(tuple(output.shape[1:])))
    net.eval()(torch.zeros(1, 48, 112, 112))
    assert [shape for shape in shapes if shape[-1] in (28, 7, 2)][-1] == (128, 4, 2, 2)
    assert shapes[-1] == (128, 3, 1, 1)


def test_every_frame_of_a_clip_gets_the_same_step():
    clip = torch.rand(3, 3, 4, 6, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = unfolded(run([Normalize(mean=mean, std=std)], clip.flatten(1, 2)))
    wanted = (clip - torch.tensor(mean).view(1, 3, 1, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(found, wanted)
    flipped = unfolded(run([Flip(p=0.5)], clip.flatten(1, 2), torch.Generator().manual_seed(0)))
    for one, before in zip(flipped, clip, strict=True):
        assert torch.equal(one, before) or torch.equal(one, before.flip(-1))
    with pytest.raises(DapError, match="3 means, but the images have 4 channels"):
        run([Normalize(mean=mean, std=std)], torch.rand(1, 4, 6, 6))


def test_only_a_network_that_sees_time_tells_directions_apart():
    """Classes that differ in the direction of a motion alone: a bar that moves to the right or to the left."""
    generator = torch.Generator().manual_seed(0)

    def clips(n: int):
        start = torch.randint(0, 16, (n,), generator=generator)
        labels = torch.arange(n) % 2
        found = torch.zeros(n, 3, 6, 16, 16)
        for i in range(n):
            for t in range(6):
                found[i, :, t, :, (start[i] + (2 * t if labels[i] else -2 * t)) % 16] = 1
        return found.flatten(1, 2), labels

    protocol = load_protocol("clips-quick", size=16, width=8, epochs=25, mean=[0.1], std=[0.3])
    train, test = clips(40), clips(40)
    (trial,) = evaluate(train, test, protocol, [0], classes=2)
    assert trial.last > 0.9
    stills = [
        (images.unflatten(1, (3, 6))[:, :, :1].repeat(1, 1, 6, 1, 1).flatten(1, 2), y) for images, y in (train, test)
    ]
    (trial,) = evaluate(*stills, protocol, [0], classes=2)
    assert trial.last < 0.8
