"""Every field of a pipeline's configuration is followed as diffusers follows it, or refused; never ignored in silence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from dap.backbones import from_pipeline, load
from dap.backbones.configurations import NETWORKS, OWN_WAY
from dap.backbones.finetune import drawn_latents
from dap.backbones.hub import open_autoencoder
from dap.base.errors import DapError


@pytest.fixture(scope="session")
def folders(tmp_path_factory, pipeline_folder) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    tiny.stable_diffusion().save_pretrained(root / "unet")
    tiny.stable_diffusion_3().save_pretrained(root / "mmdit")
    return {"dit": pipeline_folder, "unet": root / "unet", "mmdit": root / "mmdit"}


@pytest.fixture
def copied(folders, tmp_path):
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / kind, dirs_exist_ok=True))

    return copy


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(folder: Path) -> str:
    """The one sentence with which a folder is refused: the caller sees no other exception."""
    with pytest.raises(DapError) as refused:
        load(str(folder))
    return str(refused.value)


def as_scheduler(folder: Path, name: str, **values: object) -> None:
    import diffusers

    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, name)(**values).save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", name])


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "TCDScheduler"])
def test_a_scheduler_of_another_family_is_refused(copied, kind, name):
    """Case 6."""
    folder = copied(kind)
    as_scheduler(folder, name)
    assert re.search(rf"scheduler_config.json: .*{name}.*(DDIMScheduler)", refusal(folder))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_flow_read_through_a_solver_of_both_families(copied, name):
    """Case 7: flow_shift is read, and a prediction that diffusers would read as noise is refused."""
    folder = copied("mmdit")
    plain = load(str(folder))
    as_scheduler(folder, name, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    made = load(str(folder))
    assert made.schedule == plain.schedule and made.schedule.shift == 3.0
    for wrong in (-3, 0, "x", 1e300):
        change(folder / "scheduler" / "scheduler_config.json", flow_shift=wrong)
        assert "flow_shift" in refusal(folder)
    change(folder / "scheduler" / "scheduler_config.json", flow_shift=3.0, prediction_type="epsilon")
    assert "flow_prediction" in refusal(folder)
    change(folder / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    assert "is a flow" in refusal(folder)


@pytest.mark.parametrize("how", ["exponential", "linear"])
def test_a_dynamic_shift_is_that_of_diffusers(folders, copied, how):
    """Case 32: the shift that diffusers' pipeline computes for this number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    folder = copied("mmdit")
    values = {"use_dynamic_shifting": True, "time_shift_type": how, "base_image_seq_len": 2, "max_image_seq_len": 20}
    as_scheduler(folder, "FlowMatchEulerDiscreteScheduler", **values)
    theirs = FlowMatchEulerDiscreteScheduler(**values)
    mu = calculate_shift(4, 2, 20, 0.5, 1.15)
    shifted = theirs.time_shift(mu, 1.0, torch.tensor(0.3)).item()
    schedule = load(str(folder)).schedule
    shift = schedule.shift
    theirs.set_timesteps(7, mu=mu)
    torch.testing.assert_close(torch.tensor(schedule.times(7)), theirs.timesteps, rtol=1e-5, atol=1e-3)
    for name, wrong in {
        "base_image_seq_len": "x",
        "max_image_seq_len": 0,
        "time_shift_type": "foo",
        "base_shift": [],
    }.items():
        change(folder / "scheduler" / "scheduler_config.json", **{name: wrong})
        assert name in refusal(folder)
        change(folder / "scheduler" / "scheduler_config.json", **{name: values.get(name, 0.5)})
    assert shift * 0.3 / (1 + (shift - 1) * 0.3) == pytest.approx(shifted, rel=1e-5)


def test_a_stable_diffusion_3_without_its_third_text_encoder(folders):
    """Case 8: text_encoder_3 is null in model_index.json."""
    index = json.loads((folders["mmdit"] / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None]
    made = load(str(folders["mmdit"]))
    assert len(set(made.condition(["red", "green"]).tolist())) == 2


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("unet", {"sample_size": None}, "sample_size is None.*side of its square latents"),  # case 9
        ("unet", {"sample_size": [4, 8]}, r"sample_size is \[4, 8\].*square"),  # case 10
        ("unet", {"num_class_embeds": 5}, "num_class_embeds is 5.*besides the prompt"),  # case 11
        (
            "unet",
            {"addition_embed_type": "text_time"},
            "addition_embed_type is 'text_time'.*StableDiffusionXL",
        ),  # case 11
        ("unet", {"attention_type": "gated"}, "attention_type is 'gated'"),
        ("unet", {"a_new_field": 3}, "a_new_field is 3.*does not know"),
        ("unet", {"norm_eps": -1.0}, "norm_eps is -1.0"),
        ("unet", {"layers_per_block": "two"}, "layers_per_block is 'two'"),
        (
            "unet",
            {"layers_per_block": 100_000},
            "asks for about 200,000 layers.*more than 500.*layers_per_block 100000",
        ),
        ("unet", {"transformer_layers_per_block": [1, 300]}, "asks for about 600 layers"),
        ("vae", {"layers_per_block": 251}, "asks for about 502 layers"),
        ("text_encoder", {"num_hidden_layers": 501}, "asks for about 501 layers"),
        ("unet", {"block_out_channels": 7}, "block_out_channels is 7"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0"),
        ("vae", {"scaling_factor": [1.0]}, "scaling_factor is"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1.*null"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean"),
        ("scheduler", {"beta_end": "big"}, "beta_end is 'big'"),
        ("scheduler", {"beta_start": 0.9}, "beta_start is 0.9 and beta_end"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'"),  # case 20
        ("scheduler", {"rescale_betas_zero_snr": True}, "zero terminal signal"),  # case 20
        ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),  # case 20
        ("scheduler", {"num_train_timesteps": -3}, "num_train_timesteps is -3"),
        ("scheduler", {"trained_betas": [0.1, 0.2]}, "2 trained_betas but num_train_timesteps is 1000"),
        ("scheduler", {"clip_sample": True}, "clip_sample is True.*set it to false"),
        ("tokenizer", {"model_max_length": "x"}, "model_max_length is 'x'"),
        ("text_encoder", {"hidden_size": -1}, "hidden_size is -1"),
    ],
)
def test_a_field_that_is_not_honoured_is_refused_with_file_and_value(copied, part, values, says):
    folder = copied("unet")
    file = (
        folder
        / part
        / {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
    )
    change(file, **values)
    said = refusal(folder)
    assert re.search(says, said) and str(file) in said, said


@pytest.mark.parametrize("text", ["NaN", "1e400", "[1, 2", '{"a": 1, "a": 2}', "3", ""])
@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_file_that_is_no_configuration_is_a_sentence(copied, file, text):
    folder = copied("unet")
    (folder / file).write_text('{"beta_end": NaN}' if text == "NaN" else text)
    assert file.rpartition("/")[2] in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copied, part):
    """Cases 16 and 17: a folder of the pipeline is missing wholly."""
    folder = copied("unet")
    shutil.rmtree(folder / part)
    said = refusal(folder)
    assert f"has no {part}/" in said and "hub id" not in said


def test_a_tokenizer_without_its_length_and_one_too_long(copied):
    """Case 17: OverflowError before."""
    folder = copied("unet")
    file = folder / "tokenizer" / "tokenizer_config.json"
    values = json.loads(file.read_text())
    del values["model_max_length"]
    file.write_text(json.dumps(values))
    assert "does not say how long a prompt may be" in refusal(folder)
    file.write_text(json.dumps(values | {"model_max_length": 77}))
    assert "its text encoder reads 32" in refusal(folder)


def test_a_tokenizer_of_other_weights_is_named(copied):
    """Found by fuzzing: the message did not say whose tokenizer."""
    folder = copied("unet")
    file = folder / "tokenizer" / "tokenizer_config.json"
    change(file, eos_token="a token that the text encoder does not know")
    said = refusal(folder)
    assert "has tokens up to" in said and str(folder) in said


def test_a_small_autoencoder_works(copied):
    """Case 12: TAESD encodes to latents and decodes as diffusers does."""
    from diffusers import AutoencoderTiny

    folder = copied("unet")
    shutil.rmtree(folder / "vae")
    small = tiny.seeded(
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )
    small.save_pretrained(folder / "vae")
    change(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    made = load(str(folder))
    assert made.card.size == 8
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    z = made.encode(images)
    torch.testing.assert_close(z, small.encode(images * 2 - 1).latents)
    torch.testing.assert_close(made.decode(z), (small.decode(z).sample / 2 + 0.5).clamp(0, 1).detach())
    drawn = drawn_latents(made, images, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, z), "it has no distribution to draw from"
    again = open_autoencoder(str(folder), dtype="float32", offline=True)
    torch.testing.assert_close(again.encode(images * 2 - 1).latents, small.encode(images * 2 - 1).latents)


@pytest.mark.parametrize("of", ["AsymmetricAutoencoderKL", "VQModel", "AutoencoderKLTemporalDecoder"])
def test_an_autoencoder_of_another_class_is_refused_wherever_it_is_opened(copied, of):
    folder = copied("unet")
    change(folder / "model_index.json", vae=["diffusers", of])
    change(folder / "vae" / "config.json", _class_name=of)
    assert f"the autoencoder is {of}; AutoencoderKL and AutoencoderTiny are supported" in refusal(folder)
    with pytest.raises(DapError, match=f"vae holds '{of}'; AutoencoderKL and AutoencoderTiny are supported"):
        open_autoencoder(str(folder), dtype="float32", offline=True)


def test_latents_that_overflow_in_float16_are_drawn_in_float32():
    pipe = tiny.stable_diffusion()
    pipe.vae.encoder.conv_in.weight.data.mul_(6e4 / pipe.vae.encoder.conv_in.weight.abs().max())
    made = from_pipeline(pipe.to(torch.float16), name="narrow")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.isfinite(pipe.vae.encode((images * 2 - 1).half()).latent_dist.mean).all()
    assert torch.isfinite(drawn_latents(made, images, torch.Generator().manual_seed(0))).all()


def test_an_overflow_in_float16_is_decoded_in_float32(caplog):
    """Case 22: the last layer multiplies by more than float16 holds, and the images are those of float32."""
    wide, narrow = tiny.stable_diffusion(), tiny.stable_diffusion()
    for pipe in (wide, narrow):
        for weight in (pipe.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.bias):
            weight.data.mul_(6e4 / weight.abs().max())
    made = from_pipeline(narrow.to(torch.float16), name="narrow")
    z = 10 * torch.randn(2, *made.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.isfinite(narrow.vae.decode(z.half() / narrow.vae.config.scaling_factor).sample).all()
    for _ in range(2):
        assert torch.isfinite(made.decode(z)).all()
    assert caplog.text.count("overflows in float16") == 1
    torch.testing.assert_close(made.decode(z), from_pipeline(wide, name="wide").decode(z), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cfg: .nan", "not a finite number"),
        ("cfg: many", "cfg: "),
        ("size: 64", "says size: 64, but these weights make images of 8 px"),  # case 34
        ("size: -1", "size: "),
        ("colour: red", "Unknown field 'colour'"),
        ("- 1", "should hold a mapping"),
        ("scale: [1]", "scale: "),
        ("unit: miles", "unit: "),
    ],
)
def test_a_card_says_what_it_may_say(copied, text, says):
    folder = copied("unet")
    (folder / "card.yaml").write_text(text)
    said = refusal(folder)
    assert says in said and "card.yaml" in said


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2, 3]", "[]", '["a", NaN]', '["a", null, "b"]'])
def test_names_of_classes_are_names(copied, text):
    folder = copied("dit")
    (folder / "classes.json").write_text(text)
    assert "classes.json" in refusal(folder)


def test_labels_of_an_index_are_numbers(copied):
    folder = copied("dit")
    (folder / "classes.json").unlink()
    change(folder / "model_index.json", id2label={"one": "red"})
    assert "id2label" in refusal(folder)


def test_all_that_decides_a_prediction_is_in_the_hash(copied):
    """Kind 1: a factor of the autoencoder, a beta, a word of the tokenizer, the number of heads, the order of the labels."""
    folder = copied("unet")
    found = {load(str(folder)).weights_hash()}
    for file, values in (
        ("scheduler/scheduler_config.json", {"beta_end": 0.013}),
        ("vae/config.json", {"scaling_factor": 0.3}),
        ("unet/config.json", {"attention_head_dim": 4}),
        ("unet/config.json", {"norm_eps": 1e-3}),
        ("text_encoder/config.json", {"num_attention_heads": 4}),
    ):
        before = (folder / file).read_text()
        change(folder / file, **values)
        found.add(load(str(folder)).weights_hash())
        (folder / file).write_text(before)
    assert len(found) == 6
    file = folder / "tokenizer" / "tokenizer.json"
    said = json.loads(file.read_text())
    words = said["model"]["vocab"]
    first, second = [word for word in words if word.endswith("</w>")][:2]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(said))
    found.add(load(str(folder)).weights_hash())
    assert len(found) == 7
    dit = copied("dit")
    one = load(str(dit)).weights_hash()
    names = json.loads((dit / "classes.json").read_text())
    (dit / "classes.json").write_text(json.dumps(names[::-1]))
    assert load(str(dit)).weights_hash() != one


def test_the_hash_does_not_move_when_prompts_are_read(folders):
    made = load(str(folders["unet"]))
    before = made.weights_hash()
    made.condition(["red", "green"])
    assert made.weights_hash() == before


def test_classes_that_the_text_encoder_cannot_tell_apart_stop(folders):
    """Kind 7: names in two cases become the same tokens; two names become the same unknown ones; a long one is cut off."""
    made = load(str(folders["unet"]))
    with pytest.raises(DapError, match="'Red' and 'red' as the same tokens"):
        made.condition(["Red", "red"])
    with pytest.raises(DapError, match=r"longer than the 32 tokens.*--template"):
        made.condition(["a very long name of a class that has more words than anybody would give to one class"])


def test_two_names_of_one_label_stop(backbone):
    names = backbone.class_names
    with pytest.raises(DapError, match="are the same label 0"):
        backbone.condition([names[0], names[0].upper()])


MUTATED = [
    (kind, part, name)
    for kind, classes in {
        "dit": {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"},
        "unet": {"unet": "UNet2DConditionModel"},
        "mmdit": {"transformer": "SD3Transformer2DModel"},
    }.items()
    for part, of in classes.items()
    for name in NETWORKS[of]
]
VALUES = (True, None, 0, 2, 1e-3, "gelu", "layer_norm", [2, 2])


@pytest.mark.parametrize(("kind", "part", "name"), MUTATED)
def test_every_field_is_followed_as_diffusers_follows_it_or_refused(folders, tmp_path, kind, part, name):
    """Each field is given other values, one after the other. A folder that loads predicts what diffusers' own network does."""
    import diffusers

    folder = tmp_path / kind
    folder.mkdir()
    for one in folders[kind].iterdir():  # only the changed file is new
        if one.name != part:
            (folder / one.name).symlink_to(one)
    (folder / part).mkdir()
    for one in (folders[kind] / part).iterdir():
        if one.name != "config.json":
            (folder / part / one.name).symlink_to(one)
    values = json.loads((folders[kind] / part / "config.json").read_text())
    number = (0.25,) if isinstance(values.get(name), float) else ()
    for value in (*VALUES, *number):
        if value == values.get(name):
            continue
        (folder / part / "config.json").write_text(json.dumps(values | {name: value}))
        try:
            made = load(str(folder))
        except DapError:
            continue
        network = getattr(diffusers, values["_class_name"]).from_pretrained(str(folder / part))
        x = torch.randn(1, *made.latent_shape, generator=torch.Generator().manual_seed(1))
        if part == "vae":
            theirs = network.decode(x / network.config.scaling_factor).sample / 2 + 0.5
            torch.testing.assert_close(made.decode(x), theirs.clamp(0, 1).detach())
            continue
        condition = made.condition([(made.class_names or ("red",))[0]])
        with torch.no_grad():
            if kind == "dit":
                theirs = network(x, timestep=torch.tensor([500]), class_labels=condition).sample
            elif kind == "unet":
                theirs = network(x, torch.tensor([500]), made.encodings(condition)[0]).sample
            else:
                states, pooled = made.encodings(condition)
                theirs = network(x, states, pooled, torch.tensor([500.0])).sample
        torch.testing.assert_close(made.run(x, 500, condition), theirs)


def test_every_field_of_a_scheduler_is_in_a_table():
    """A field of a scheduler that is honoured, indifferent or refused by name: diffusers' next field fails here."""
    import inspect

    import diffusers

    from dap.backbones import configurations as known

    for of in (*known.PLAIN, *known.BOTH, *known.FLOWS):
        table = known.FLOW if of in known.FLOWS else {**known.BETAS, **known.FLOW}
        if of == "DPMSolverSDEScheduler":  # its module needs torchsde
            continue
        fields = set(inspect.signature(getattr(diffusers, of).__init__).parameters) - {"self"}
        assert fields <= set(table) | OWN_WAY, of


def test_every_field_of_a_network_is_in_its_table():
    import inspect

    import diffusers

    from dap import networks

    for of, table in NETWORKS.items():
        network = getattr(diffusers, of, None) or networks.find(of)
        assert set(inspect.signature(network.__init__).parameters) - {"self"} <= set(table), of


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_a_network_predicts_is_read_from_the_scheduler(copied, kind, prediction):
    """A DiT whose scheduler says v_prediction was read as predicting noise."""
    from diffusers import DDIMScheduler

    folder = copied(kind)
    as_scheduler(folder, "DDIMScheduler", clip_sample=False, prediction_type=prediction)
    made = load(str(folder))
    x = torch.randn(1, *made.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = made.condition([(made.class_names or ("red",))[0]])
    output = made.run(x, 400, condition)[:, : x.shape[1]]
    theirs = DDIMScheduler.from_pretrained(str(folder / "scheduler"))
    theirs.set_timesteps(1000)
    x0 = theirs.step(output, 400, x).pred_original_sample
    torch.testing.assert_close(
        made.schedule.eps_to_x0(x, 400, made.predict(x, 400, condition).eps), x0, atol=1e-4, rtol=1e-4
    )


def test_an_autoencoder_of_zeros_is_said_when_it_is_loaded(copied):
    from dap.backbones.converting.convert import convert

    folder = copied("dit")
    file = next((folder / "vae").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)
    assert "an image of one colour" in refusal(folder)
    with pytest.raises(DapError, match="an image of one colour"):
        convert(folder, folder.parent / "out")


def test_a_text_backbone_on_images_that_it_has_never_seen_is_said(tmp_path, caplog):
    """Kind 7: the starter U-Net on colourful pictures, and nothing on Fashion-MNIST."""
    from PIL import Image

    from dap.recipe import Recipe
    from dap.workshop import Workshop

    generator = torch.Generator().manual_seed(0)
    for name in ("Animals", "Plants"):
        (tmp_path / name).mkdir()
        for i in range(5):
            small = (255 * torch.rand(6, 6, 3, generator=generator)).to(torch.uint8).numpy()
            Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / name / f"{i}.png")
    workshop = Workshop(device="cpu")
    values = {"method": "vanilla", "ipc": 1, "sampling": {"steps": 2}, "backbone": {"path": "starter-unet"}}
    workshop.task(Recipe.parse(values | {"data": {"path": "fashion-mnist"}}))
    assert "never seen" not in caplog.text
    workshop.task(Recipe.parse(values | {"data": {"path": str(tmp_path)}}))
    assert caplog.text.count("has probably never seen images like these") == 1
