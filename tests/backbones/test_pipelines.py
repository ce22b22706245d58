"""The diffusers face of the method, and the Python API of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap.backbones import ClassifierFree, from_pipeline, load
from dap.base.errors import DapError
from dap.sampling import Batch, images


@pytest.fixture(scope="module")
def pipe(pipeline_folder):
    from dap import DAPDiTPipeline

    return DAPDiTPipeline.from_pretrained(str(pipeline_folder))


def reals(n=5, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_loads_the_stock_folder_and_shares_modules(pipe, pipeline_folder):
    from diffusers import DiTPipeline

    from dap import DAPDiTPipeline

    stock = DiTPipeline.from_pretrained(str(pipeline_folder))
    mine = DAPDiTPipeline.from_pipe(stock)
    assert mine.transformer is stock.transformer
    # A pipeline that forgot its folder has no class names; labels work all the same.
    made = mine(
        [0, 2], {0: reals(), 2: reals()}, layer=1, scale=0.1, unit="step", num_inference_steps=3, output_type="pt"
    )
    assert made.images.shape == (2, 3, 8, 8)


def test_vanilla_equals_the_library(pipe, pipeline_folder):
    backbone = load(str(pipeline_folder))
    card = backbone.card
    batch = Batch(("red", "blue"), (0, 1), (0, 0), (3, 4))
    expected = images(ClassifierFree(backbone, card.cfg, card.cfg_channels), None, batch, steps=5)
    made = pipe(["red", "blue"], seeds=[3, 4], num_inference_steps=5, output_type="pt").images
    torch.testing.assert_close(made, expected)
    zero = pipe(
        ["red", "blue"],
        {"red": reals(), "blue": reals()},
        scale=0,
        seeds=[3, 4],
        num_inference_steps=5,
        output_type="pt",
    )
    assert torch.equal(zero.images, made)


def test_guidance_takes_pil_images_and_changes_the_sample(pipe):
    pictures = [Image.new("RGB", (20, 12), "red") for _ in range(3)]
    plain = pipe(["red"], num_inference_steps=4)
    guided = pipe(["red"], {"red": pictures}, scale=0.5, unit="step", num_inference_steps=4)
    assert plain.images[0].size == (8, 8) and plain.images[0].tobytes() != guided.images[0].tobytes()


def test_mistakes(pipe):
    with pytest.raises(DapError, match="none for 'red'; it has some for blue"):
        pipe(["red"], {"blue": reals()})
    with pytest.raises(DapError, match="Label 7"):
        pipe([7])
    with pytest.raises(DapError, match="2 images need 2 seeds"):
        pipe([0, 1], seeds=[1])
    with pytest.raises(DapError, match="should be"):
        pipe(["red"], {"red": reals(size=16)})


def test_stable_diffusion_takes_class_names(tmp_path):
    from diffusers import StableDiffusionPipeline

    import tiny
    from dap import DAPStableDiffusionPipeline

    stock = tiny.stable_diffusion()
    mine = DAPStableDiffusionPipeline.from_pipe(stock)
    assert mine.unet is stock.unet
    names, run = ["dress", "dress", "bag"], {"num_inference_steps": 4, "output_type": "pt"}
    plain = mine(names, **run).images
    assert plain.shape == (3, 3, 8, 8)
    given = {"dress": reals(), "bag": [Image.new("RGB", (20, 12), "red")] * 2}
    assert torch.equal(mine(names, given, scale=0, **run).images, plain)
    guided = mine(names, given, scale=0.2, layer="up.1", repulsion=0.5, **run).images
    assert not torch.allclose(guided, plain, atol=1e-3)
    assert not torch.allclose(mine(names, template="{} on a table", **run).images, plain, atol=1e-4)
    with pytest.raises(DapError, match="none for 'bag'"):
        mine(names, {"dress": reals()})
    with pytest.raises(DapError, match="list of classes"):
        mine("dress")
    mine.save_pretrained(tmp_path)
    assert isinstance(StableDiffusionPipeline.from_pretrained(tmp_path), StableDiffusionPipeline)
    again = DAPStableDiffusionPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(again(names, **run).images, plain)


def test_a_fine_tuned_dit_has_its_own_null_label(backbone):
    assert backbone.null(2).tolist() == [3, 3]


def test_weights_hash_sees_every_weight(pipeline_folder, backbone):
    again = load(str(pipeline_folder))
    assert again.weights_hash() == backbone.weights_hash()
    again.transformer.proj_out_2.bias.data[0] += 1
    assert again.weights_hash() != backbone.weights_hash()


def test_a_pipeline_folder_that_is_none(tmp_path, pipeline_folder):
    with pytest.raises(DapError, match="no model_index.json"):
        load(str(tmp_path))
    with pytest.raises(DapError, match="There is no backbone at"):
        load("a/b/c")
    with pytest.raises(DapError, match="not in this machine.s cache of hub models"):
        load("nobody/nothing", offline=True)
    broken = tmp_path / "p"
    import shutil

    shutil.copytree(pipeline_folder, broken)
    (broken / "classes.json").write_text('["only one"]')
    with pytest.raises(DapError, match="3 labels but 1 class names"):
        load(str(broken))
    (broken / "card.yaml").write_text("licens: x\n")
    with pytest.raises(DapError, match="Did you mean 'licence'"):
        load(str(broken))


def test_hub_layout_without_our_files_still_loads(tmp_path, pipeline_folder):
    """As `facebook/DiT-XL-2-256` comes: pickled .bin weights, labels inside model_index.json, no classes.json, no card."""
    import json

    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(str(pipeline_folder))
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "great white shark, white shark"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.safetensors"))
    loaded = load(str(tmp_path))
    assert loaded.condition(["Tinca tinca", "goldfish", "white shark"]).tolist() == [0, 1, 2]
    # ImageNet has full names that two labels share: both are kept, and asking for one by that name is refused.
    index["id2label"] = {"0": "crane", "1": "goldfish", "2": "crane"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    twice = load(str(tmp_path))
    assert twice.class_names == ("crane", "goldfish", "crane")
    assert twice.condition(["goldfish"]).tolist() == [1]
    with pytest.raises(DapError, match=r"several labels of .*\[0, 2\]"):
        twice.condition(["crane"])
    assert loaded.card.cfg == 4.0 and loaded.card.cfg_channels == 3 and loaded.card.unit == "paper"
    assert from_pipeline(pipe, class_names=loaded.class_names).weights_hash() == loaded.weights_hash()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_of_the_pages_runs(page, monkeypatch, tmp_path):
    """Every python block of a page, in order, in one namespace, on the embedded starter with few steps."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        few = re.sub(r"(steps\"?[=:] ?)50", r"\g<1>2", block)
        exec(compile(few.replace("ipc=1, steps=2)", "ipc=1, steps=2, method='vanilla')"), page, "exec"), namespace)
    assert list(tmp_path.rglob("*.png"))
