"""Threads of one process load and build networks one after another, for the libraries change torch meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dap.backbones.hub import open_autoencoder, open_pipeline
from dap.evaluation.training.networks import build, check_shapes


@pytest.fixture
def slow(monkeypatch):
    """Make diffusers leave torch changed for a while, as loading a large model does, and count who is inside."""
    from diffusers import AutoencoderKL, DiffusionPipeline

    inside: list[int] = []
    most: list[int] = []

    def slowly(load):
        def patched(*args, **kwargs):
            inside.append(1)
            most.append(len(inside))
            register = nn.Module.register_parameter

            def empty(self, name, value):
                register(self, name, None if value is None else nn.Parameter(value.to("meta")))

            nn.Module.register_parameter = empty
            try:
                time.sleep(0.1)
            finally:
                nn.Module.register_parameter = register
                inside.pop()
            return load(*args, **kwargs)

        return patched

    # The first thread would put back the original, and the last one the other thread's function.
    for of in (DiffusionPipeline, AutoencoderKL):
        monkeypatch.setattr(of, "from_pretrained", slowly(of.from_pretrained))
    return most


def test_threads_load_and_build_one_after_another(slow, pipeline_folder):
    register = nn.Module.register_parameter

    def work(i):
        if i % 3 == 0:
            return open_pipeline(str(pipeline_folder), revision=None, dtype="float32", offline=True)[0].transformer
        if i % 3 == 1:
            return open_autoencoder(str(pipeline_folder), dtype="float32", offline=True)
        network = build("convnet1", classes=2, size=8, width=4)
        check_shapes(
            lambda: build("convnet1", classes=2, size=8, width=4),
            {k: tuple(v.shape) for k, v in network.state_dict().items()},
        )
        return network

    try:
        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(work, range(9)))
        assert all(weight.device.type == "cpu" for network in made for weight in network.parameters())
        assert slow and max(slow) == 1
        assert nn.Module.register_parameter is register
        assert nn.Linear(2, 2).weight.device.type == "cpu"
    finally:
        nn.Module.register_parameter = register  # or every later test of this process would fail too


def test_threads_seed_one_after_another():
    """The first weights are those of the seed, whatever other threads seed meanwhile."""
    from dap.evaluation.training.fitting import seeded

    def weights(seed):
        with seeded(seed, torch.device("cpu")):
            first = build("convnet2", classes=2, size=8, width=4)
            time.sleep(0.02)
            second = build("convnet2", classes=2, size=8, width=4)
        return torch.cat([weight.flatten() for network in (first, second) for weight in network.parameters()])

    wanted = [weights(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(weights, range(6)), wanted, strict=True))
