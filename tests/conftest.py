"""Shared fixtures. Nothing here opens a socket, needs a GPU or downloads weights."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import tempfile
from pathlib import Path

import pytest
import torch

# One thread here and in every process that a test starts: processes with a thread for each core, as many at once as there are
# workers of pytest, wait for each other's cores most of their time. A test that is about threads says --threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Tests, and the processes that they start, remember hashes of images in a folder of their own, not in the user's cache.
if "DAP_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="dap-tests-")  # removed when this process ends
    os.environ["DAP_CACHE"] = _cache.name

# Waiting for the disk protects from a loss of power, which no test makes. A process that is killed loses nothing that it has
# written. The processes that tests start wait as ever.
os.fsync = lambda handle: None

NAMES = ["red", "green", "blue"]


@pytest.fixture
def unchecked():
    """Types are not checked, as nobody checks them where the package is used: what is passed is refused by the package."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """No other machine has an address, as without a network. Libraries ask for some in passing, and take the error for an
    answer."""
    really = socket.getaddrinfo

    def asked(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if name and name not in ("localhost", socket.gethostname()) and not re.fullmatch(r"[\d.]+|[\da-f:]+", name):
            raise socket.gaierror(socket.EAI_NONAME, f"tests ask nobody for the address of {name}")
        return really(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", asked)


@pytest.fixture(autouse=True, scope="session")
def _starters_data_once():
    """The 60,000 images of the starters are unpacked once a process, not once for each test that looks at them."""
    from dap import starter
    from dap.data.real import sources

    really = sources.read_idx
    kept = {}

    def once(path):
        if Path(path).parent != starter.DATA:
            return really(path)
        if path not in kept:
            kept[path] = really(path)
            kept[path].flags.writeable = False
        return kept[path]

    sources.read_idx = once
    yield
    sources.read_idx = really


def tiny_transformer(classes: int = 3, learned: bool = True, seed: int = 0):
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned else 4,
            num_layers=3,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=classes,
            norm_num_groups=4,
        )
        for parameter in model.parameters():  # adaLN-zero starts as the identity, which would hide every mistake
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tiny_vae(seed: int = 1):
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=8,
        ).eval()


@pytest.fixture
def no_accelerator(monkeypatch) -> None:
    """The machine has no GPU, whatever it has: a test of what is said then needs no other machine."""
    for owner, name, value in (
        (torch.cuda, "device_count", 0),
        (torch.cuda, "is_available", False),
        (torch.backends.mps, "is_available", False),
    ):
        # torch's compiler, which transformers may import meanwhile, looks for what these functions wrap.
        monkeypatch.setattr(owner, name, functools.wraps(getattr(owner, name))(lambda value=value: value))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    """A DiTPipeline folder like the hub's, tiny and with random weights: 8 px images, three colours as classes."""
    from diffusers import DDIMScheduler, DiTPipeline

    folder = tmp_path_factory.mktemp("pipeline")
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipe = DiTPipeline(tiny_transformer(), tiny_vae(), scheduler, id2label=dict(enumerate(NAMES)))
    pipe.save_pretrained(folder)
    (folder / "classes.json").write_text(json.dumps(NAMES))
    (folder / "card.yaml").write_text("size: 8\nlicence: CC0-1.0\nlayer: 1\ncfg: 2.0\nscale: 0.1\nunit: step\n")
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """An image folder of three classes with 12 training and 6 test images each, 8 px, told apart by colour."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 12), ("test", 6)):
        for label, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(0, 100, (8, 8, 3), generator=generator)
                pixels[..., label] += 150
                Image.fromarray(pixels.byte().numpy()).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def imagenet_pipeline_folder(tmp_path_factory) -> Path:
    """A DiTPipeline folder of ImageNet's thousand labels, named in model_index.json as the hub's are; 8 px images."""
    from diffusers import DDIMScheduler, DiTPipeline

    from dap import imagenet

    folder = tmp_path_factory.mktemp("imagenet-dit")
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    DiTPipeline(tiny_transformer(classes=1000), tiny_vae(), scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(label): name for label, name in enumerate(imagenet.names().values())}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "card.yaml").write_text("size: 8\nlicence: CC0-1.0\nlayer: 1\n")
    return folder


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A StableDiffusionPipeline folder like the hub's, tiny and with random weights: 8 px images."""
    import tiny

    folder = tmp_path_factory.mktemp("sd")
    tiny.stable_diffusion().save_pretrained(folder)
    (folder / "card.yaml").write_text("size: 8\nlicence: CC0-1.0\nlayer: mid\n")  # as the card of Stable Diffusion 1.5
    return folder


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory) -> Path:
    """A corner of ImageNet as ILSVRC lays it out, 4 training and 2 validation JPEGs for each class of the smoke recipes."""
    from PIL import Image

    from dap.imagenet import subset

    folder = tmp_path_factory.mktemp("imagenet")
    generator = torch.Generator().manual_seed(0)
    wnids = sorted({w for name in ("imagenette", "imagewoof", "imagenet1k") for w in subset(name)[:3]})
    for split, n in (("train", 4), ("val", 2)):
        for wnid in wnids:
            (folder / split / wnid).mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(0, 256, (9, 12, 3), generator=generator).byte().numpy()
                Image.fromarray(pixels).save(folder / split / wnid / f"{wnid}_{i}.JPEG")
    return folder


@pytest.fixture(scope="session")
def backbone(pipeline_folder):
    from dap.backbones import load

    return load(str(pipeline_folder))


@pytest.fixture(scope="session")
def source(colours):
    from dap.data.real.sources import open_source

    return open_source(colours, "train", size=8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that opens a connection fails."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a test tried to open a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
