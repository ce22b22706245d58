"""ADM (guided-diffusion): its U-Net against diffusers' own with the same weights, and its files through convert, load, distil."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import tiny
from dap import distill
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.converting import adm
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.networks.adm import ADMUNet2DModel
from dap.sampling import Batch, images
from dap.testing import check_backbone

CONFIG = {"sample_size": 8, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1]}
"""The smallest: every norm has 32 groups."""


def network(**options):
    return tiny.seeded(lambda: ADMUNet2DModel(**CONFIG | {"num_head_channels": 16} | options), std=0.05)


@pytest.fixture
def known(monkeypatch):
    """As if the authors had published weights of this size."""
    monkeypatch.setitem(adm.KNOWN, (32, (1, 2), 1), {"sample_size": 8, "num_head_channels": 16})


PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
PLACES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0": "down_blocks.0.downsamplers.0",
    "input_blocks.3.0": "down_blocks.1.resnets.0",
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.1.2": "up_blocks.0.upsamplers.0",
    "output_blocks.2.0": "up_blocks.1.resnets.0",
    "output_blocks.3.0": "up_blocks.1.resnets.1",
}
"""ADM's places of CONFIG -> diffusers'."""


def as_diffusers(state, heads, together):
    """The weights by the names of `UNet2DModel`."""
    found = {}
    for name, value in state.items():
        place = max((p for p in PLACES if name.startswith(f"{p}.")), key=len)
        inner, _, kind = name.removeprefix(f"{place}.").rpartition(".")
        new = PLACES[place]
        if inner == "qkv":
            flat = value.flatten(1) if kind == "weight" else value
            split = flat.unflatten(0, (heads, 3, -1)).transpose(0, 1) if together else flat.unflatten(0, (3, heads, -1))
            found |= {f"{new}.to_{of}.{kind}": part.flatten(0, 1) for of, part in zip("qkv", split, strict=True)}
        elif inner in ("norm", "proj_out"):
            to = {"norm": "group_norm", "proj_out": "to_out.0"}[inner]
            found[f"{new}.{to}.{kind}"] = value.squeeze(-1)
        else:
            found[".".join(filter(None, [new, PARTS.get(inner, inner), kind]))] = value
    return found


@pytest.mark.parametrize("together", [True, False])
def test_the_network_is_diffusers_where_diffusers_can_hold_it(together):
    from diffusers import UNet2DModel

    theirs = UNet2DModel(
        sample_size=8,
        out_channels=6,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=16,
        attn_norm_num_groups=32,
        num_class_embeds=3,
    ).eval()
    mine = network(num_class_embeds=3, heads_together=together)
    theirs.load_state_dict(as_diffusers(mine.state_dict(), 4, together))
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 2, 1])
    for t in (0, 417, 999):
        torch.testing.assert_close(mine(x, t, labels).sample, theirs(x, t, labels).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"sample_size": 64, "channel_mult": [1, 2, 3, 4], "heads_together": False}, 296),
        ({"sample_size": 128, "model_channels": 256, "channel_mult": [1, 1, 2, 3, 4], "num_heads": 4}, 422),
        ({"sample_size": 256, "model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]}, 554),
        ({"sample_size": 512, "model_channels": 256, "channel_mult": [0.5, 1, 1, 2, 2, 4, 4]}, 559),
    ],
)
def test_the_published_sizes_are_read_from_the_tensors(options, millions):
    """The numbers of weights are those of the paper; attention is at 32, 16 and 8 px."""
    from accelerate import init_empty_weights

    side, levels = options["sample_size"], len(options["channel_mult"])
    attended = [level for level in range(levels) if side >> level in (32, 16, 8)]
    options = {
        "num_class_embeds": 1000,
        "attention_levels": attended,
        "num_res_blocks": 3 if side == 64 else 2,
    } | options
    if "num_heads" in options:
        options["num_head_channels"] = None
    with init_empty_weights():
        made = ADMUNet2DModel(**options)
    assert round(sum(weight.numel() for weight in made.parameters()) / 1e6) == millions
    said = adm.config_of(made.state_dict(), Path("file"))
    assert said.pop("beta_schedule", "linear") == ("squaredcos_cap_v2" if side == 64 else "linear")
    assert said == {name: made.config[name] for name in said}


@pytest.mark.parametrize("labels", [3, None])
def test_a_file_is_converted_loaded_and_distilled(known, tmp_path, colours, labels):
    """With the prefix of DDP, among a trainer's other things; the folder opens again, also as a copy elsewhere."""
    mine = network(num_class_embeds=labels)
    file, names = tmp_path / "256x256_diffusion.pt", tmp_path / "names.json"
    names.write_text('["red", "green", "blue"]')
    torch.save({"step": 3, "state_dict": {f"module.{name}": value for name, value in mine.state_dict().items()}}, file)
    folder = convert(file, tmp_path / "folder", classes=names if labels else None)
    found = load(str(shutil.copytree(folder, tmp_path / "copy")))
    assert found.clip == 1 and found.learned_variance and found.unconditional == (labels is None)
    assert found.card.licence == ("MIT" if labels is None else "unknown"), (
        "a file of other labels is not the published one"
    )
    x = torch.randn(2, 3, 8, 8)
    told = (torch.tensor([2, 0]),) if labels else ()
    output = mine(x, 500, *told).sample
    given = found.predict(x, 500, found.condition(["blue", "red"]))
    assert torch.equal(given.eps, output[:, :3]) and torch.equal(given.variance, output[:, 3:])
    assert found.layers == ("down.0", "down.1", "down.2", "down.3", "mid", "up.0", "up.1", "up.2", "up.3")
    assert not [f for f in check_backbone(found) if f.level == "wrong"]
    run = {"data": str(colours), "classes": ["red", "blue"], "ipc": 1, "steps": 3, "reals": 4}
    made = distill(out=tmp_path / "set", backbone=str(folder), method="dap", **run)
    assert made.tensors()[0].shape == (2, 3, 8, 8)
    with pytest.raises(DapError, match="leave out --vae"):
        convert(file, tmp_path / "folder", vae="x/y")
    with pytest.raises(DapError, match="but --classes has 2 names"):
        names.write_text('["red", "green"]')
        convert(file, tmp_path / "folder", classes=names)


def test_samples_equal_the_learned_variance_of_diffusers(known, tmp_path):
    """The pipeline that `convert` writes, sampled by diffusers' own `DDPMPipeline`, and by dap from the same noise."""
    from diffusers import DDPMPipeline, DDPMScheduler

    network(num_class_embeds=None).save_pretrained(tmp_path / "n")
    pipe = DDPMPipeline(
        ADMUNet2DModel.from_pretrained(tmp_path / "n"),
        DDPMScheduler(num_train_timesteps=20, beta_end=0.4, variance_type="learned_range"),
    )
    pipe.set_progress_bar_config(disable=True)
    batch = Batch.of(("red", "blue"), [0, 1], [0, 0], 0)
    gens = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    theirs = pipe(batch_size=2, generator=gens, num_inference_steps=20, output_type="pt").images
    mine = images(ClassifierFree(from_pipeline(pipe, name="adm"), 1.0), None, batch, steps=20)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_the_lines_of_the_page_write_a_folder_that_loads(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "backbones.md"
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    mine = network(num_class_embeds=3)
    torch.save(mine.state_dict(), "model.pt")
    exec(compile(lines, str(page), "exec"), {})
    found, x = load("my-adm"), torch.randn(1, 3, 8, 8)
    assert torch.equal(found.predict(x, 9, found.condition(["2"])).eps, mine(x, 9, torch.tensor([2])).sample[:, :3])


def altered(change):
    state = network(num_class_embeds=3).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("middle_block.0.in_layers.2.bias"), "it lacks middle_block.0.in_layers.2.bias"),
        (lambda s: s.update(odd=torch.ones(1)), "it also has odd"),
        (lambda s: s.update({"out.0.bias": torch.ones(3)}), "another shape of out.0.bias"),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}), "takes 6 channels.*upsampler"),
        (lambda s: s.update({"time_embed.0.weight": torch.ones(128, 64)}), "did not publish.*docs/backbones.md"),
        (lambda s: s.pop("input_blocks.3.0.in_layers.2.weight"), "without residual blocks"),
    ],
)
def test_another_network_of_the_same_code_is_refused(known, tmp_path, change, says):
    file = tmp_path / "adm.pt"
    torch.save(altered(change), file)
    with pytest.raises(DapError, match=re.compile(says)):
        convert(file, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_names_other_code_of_this_package_is_refused(known, tmp_path, monkeypatch):
    """Only the networks of the closed list may be named: not every class that this package has."""
    torch.save(network(num_class_embeds=3).state_dict(), tmp_path / "adm.pt")
    folder = convert(tmp_path / "adm.pt", tmp_path / "folder")
    monkeypatch.delitem(sys.modules, "dap.networks.adm")  # as in a process that has not used it yet
    assert load(str(folder)).card.size == 8
    index = folder / "model_index.json"
    text = index.read_text()
    for library, name in (("dap.networks.sit", "ADMUNet2DModel"), ("dap.networks.adm", "Steps"), ("dap", "distill")):
        index.write_text(text.replace("dap.networks.adm", library).replace("ADMUNet2DModel", name))
        with pytest.raises(DapError, match="names code of its own"):
            load(str(folder))
