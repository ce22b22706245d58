"""VLCP: text prototypes by hand, whose caption and centre a slot gets, the neutral setting, and the tuning."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from dap import sampling
from dap.backbones import from_pipeline
from dap.backbones.finetune import Denoising, TuningBatch, load_tuned, tuned
from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError
from dap.data.real.sources import open_source
from dap.methods.diffusion.vlcp import Vlcp, by_distance, inliers, text_prototypes, words_of
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop
from watching import hearing

NEUTRAL = {"text": "class", "strength": 1, "epochs": 0}


@pytest.fixture(scope="module")
def captions(colours, tmp_path_factory):
    """Of each image of two thirds of every class a caption of its own."""
    file = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    source, letters, lines = open_source(colours, "train", size=8), "abcdefghijkl", []
    for label, name in enumerate(source.class_names):
        for index, key in enumerate(source.keys(label, range(8))):
            lines.append(json.dumps({"path": key, "caption": f"{name} {letters[index]}{letters[index]}"}))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def make(colours, sd_folder, captions):
    def recipe(method="vlcp", ipc=2, seed=0, backbone=None, block=None, **options):
        values = {"data": {"path": str(colours)}, "sampling": {"steps": 4, "cfg": 2.0}, "block": block}
        values |= {"backbone": {"path": str(sd_folder), **(backbone or {})}, "options": options}
        values |= {"captions": str(captions)} if method == "vlcp" else {}
        return Recipe.parse({"method": method, "ipc": ipc, "seed": seed, **values})

    return recipe


def hashes(made):
    return [record["sha256"] for record in made.records]


def test_text_prototypes_by_hand():
    clusters = [
        ["A tench on grass", "a tench on wet grass, wet grass", "water and a boat"],
        ["a fish in water", "a man with a fish", "a boat, a boat-house"],
    ]
    # Of the first, by counts: wet 2, grass 3; water and boat 1 each. "fish" is the class's, "tench" is in most captions.
    assert text_prototypes(clusters, "fish", 30, common=0.9) == [1, 0]
    assert text_prototypes(clusters, "fish", 1, common=0.9)[0] == 0, "of equals the first: grass alone counts"
    # Without "grass", "wet" and "tench": of the first cluster only the third has words that count.
    assert text_prototypes([clusters[0]], "grass wet tench", 30, common=0.9) == [2]
    # What a third of all captions have, or more, does not count: water, fish and boat are in two of six each.
    assert text_prototypes(clusters, "x", 30, common=1 / 3)[1] == 1
    assert words_of("A boat-house, 2 men's fish don’t") == ["a", "men", "fish", "do"]


def test_words_of_number_and_place_count_and_function_words_do_not():
    """The authors leave out NLTK's stop words, which are fewer than scikit-learn's."""
    for seen in ("front", "side", "top", "behind", "two", "full", "thin"):
        assert text_prototypes([["a dog there", f"a dog {seen}", "a dog in it"]], "dog", 30, common=1) == [1], seen
    for unseen in ("itself", "does", "having", "just", "theirs", "against"):
        assert text_prototypes([["a wet dog", f"a dog {unseen} {unseen}"]], "dog", 30, common=1) == [0], unseen
    assert text_prototypes([["the judge's hat", "a red hat, a red hat"]], "judge's robe", 30, common=1) == [1]


def test_outliers_are_the_points_far_from_all_others():
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    points[7], points[19] = torch.tensor([30.0, 0.0]), torch.tensor([0.0, -25.0])
    assert set(range(30)) - set(inliers(points, 10, 2 / 30)) == {7, 19}
    assert inliers(points, 10, 0.0) == list(range(30))
    mine = torch.tensor([True, False, True] + [False] * 27)
    assert by_distance(points, points[2], mine) == [2, 0] and by_distance(points, points[5], mine & False) == [5]


def test_a_slot_gets_its_own_cluster_s_centre_and_a_caption_of_an_image_in_it(make, captions, tmp_path):
    shop, wanted = Workshop("cpu"), make(ipc=3, outliers=0, epochs=0, strength=0.5, block=2)
    made = distill(wanted, tmp_path / "a", workshop=shop)
    _, task = shop.task(wanted)
    backbone, source, images = task.backbone, task.source, made.tensors()[0]
    said = {line["path"]: line["caption"] for line in map(json.loads, captions.read_text().splitlines())}
    model = ClassifierFree(backbone, 2.0, task.recipe.sampling.cfg_channels)
    for label, name in enumerate(source.class_names):
        found = Vlcp().prototypes(task, label)
        latents = backbone.encode(source.images(label, range(8))).flatten(1)
        nearest = torch.cdist(latents, found["x"].flatten(1)).argmin(1)
        for slot in range(3):
            torch.testing.assert_close(
                found["x"][slot].flatten(), latents[nearest == slot].mean(0), atol=1e-3, rtol=1e-3
            )
            assert nearest[found["caption"][slot]] == slot
        mine = [record for record in made.records if record["class_name"] == name]
        keys = source.keys(label, found["caption"].tolist())
        assert [record["prompt"] for record in mine] == [said[key] for key in keys]
        assert all(record["prompt"].startswith(name) for record in mine)
        seeds, prompts = tuple(r["seed"] for r in mine), tuple(said[key] for key in keys)
        batch = sampling.Batch(source.class_names, (label,) * 3, (0, 1, 2), seeds, prompts)
        again = sampling.images(model, None, batch, steps=4, start=sampling.Start(found["x"], 2))
        torch.testing.assert_close(images[3 * label : 3 * label + 3], again, atol=0.003, rtol=0)


def test_the_neutral_setting_is_the_vanilla_sample(make, tmp_path):
    shop = Workshop("cpu")
    neutral = distill(make(**NEUTRAL), tmp_path / "a", workshop=shop)
    vanilla = distill(make("vanilla"), tmp_path / "b", workshop=shop)
    assert hashes(neutral) == hashes(vanilla)
    for place, change in enumerate(({"text": "prototype"}, {"strength": 0.5}, {"epochs": 1, "lr": 1e-2, "batch": 8})):
        other = distill(make(**NEUTRAL | change), tmp_path / f"c{place}", workshop=shop)
        if "text" in change:  # with random weights the text moves some images by less than a level of 255
            assert hashes(other) != hashes(vanilla)
        else:
            assert set(hashes(other)).isdisjoint(hashes(vanilla)), change


def test_tuning_is_shared_by_seeds_and_kept_until_its_weights_are(make, tmp_path, monkeypatch):
    """Also where the process dies between the last step and the writing of the weights."""
    from dap.base.store import Store

    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    shop, how = Workshop("cpu", cache=tmp_path / "cache"), {**NEUTRAL, "epochs": 2, "batch": 8, "lr": 1e-3}
    whole = distill(make(**how), tmp_path / "a", workshop=Workshop("cpu"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "_write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        distill(make(**how), tmp_path / "b", workshop=shop)
    assert len(list((tmp_path / "cache").glob("vlcp-*.pt"))) == 1
    told = []
    watcher = hearing(work=lambda what, done, total: told.append(what))
    resumed = distill(make(**how), tmp_path / "b", workshop=shop, watcher=watcher)
    assert "vlcp: fine-tuning" not in told and hashes(resumed) == hashes(whole)
    assert not list((tmp_path / "cache").glob("*.pt"))
    other = distill(make(seed=1, **how), tmp_path / "c", workshop=shop)
    assert not other.noted("cost.json")["prepared"]["vlcp"]["made"]


def test_a_dropped_caption_becomes_the_empty_text_and_not_the_negative_prompt(make, captions):
    """Tuned towards real images, the negative prompt would mean them afterwards."""
    shop, wanted = Workshop("cpu"), make(backbone={"negative_prompt": "no"}, batch=8)
    _, task = shop.task(wanted)
    twin = tuned(task.backbone)
    step, a_pass = Vlcp().passes(task, twin)
    given = step(0)
    assert a_pass == 3 and given.null is not None and len(given.null) == len(given.condition) == 8
    assert torch.equal(given.null, twin.prompt([""]).expand(8))
    assert not torch.equal(given.null, twin.null(8))
    asked = []
    run = twin.run
    twin.run = lambda x, t, condition: (asked.append(condition), run(x, t, condition))[1]
    Denoising(twin)(
        TuningBatch(given.latents, given.condition, given.labels, given.null), torch.Generator().manual_seed(0)
    )
    draw = torch.Generator().manual_seed(0)
    torch.randint(1000, (8,), generator=draw), torch.randn(given.latents.shape, generator=draw)
    dropped = torch.rand(8, generator=draw) < 0.1
    assert torch.equal(asked[0] == given.null, dropped | (given.condition == given.null))
    said = [json.loads(line)["caption"] for line in captions.read_text().splitlines()]
    rows = {int(twin.prompt([text])): text.split()[0] for text in said}
    for row, label in zip(given.condition.tolist(), given.labels, strict=True):
        assert rows[row] == task.source.class_names[label], "an image is tuned on its own class's caption"


def test_tuned_weights_are_put_into_a_copy(make):
    _, task = Workshop("cpu").task(make())
    before, twin = task.backbone.weights_hash(), tuned(task.backbone)
    changed = {name: value + 1 for name, value in twin.denoiser.named_parameters()}
    load_tuned(twin, changed)
    assert task.backbone.weights_hash() == before != twin.weights_hash()
    assert twin.vae is task.backbone.vae


def test_what_is_missing_is_said_before_any_work(make, colours, pipeline_folder, tmp_path, monkeypatch):
    out = tmp_path / "a"
    no_captions = {"method": "vlcp", "data": {"path": str(colours)}}
    with monkeypatch.context() as patched:
        patched.setattr("dap.backbones.load", lambda *args, **options: pytest.fail("loaded"))
        with pytest.raises(DapError, match="'vlcp' needs captions of the real images"):
            distill(Recipe.parse(no_captions), out)
        with pytest.raises(DapError, match="There is no file of captions nowhere.jsonl"):
            distill(Recipe.parse({**no_captions, "captions": "nowhere.jsonl"}), out)
        with pytest.raises(DapError, match="has no use for captions"):
            distill(Recipe.parse({**no_captions, "method": "vanilla", "captions": "x.jsonl"}), out)
    with pytest.raises(DapError, match="is told labels, not text"):
        distill(make(backbone={"path": str(pipeline_folder)}), out)
    with pytest.raises(DapError, match="8 take part, and outliers 0.1 of them are left out"):
        distill(make(ipc=8), out)
    with pytest.raises(DapError, match="fine-tunes Stable Diffusion's U-Net in --dtype float32"):
        distill(make(backbone={"dtype": "bfloat16"}), out)
    assert not out.exists()


def test_a_unet_that_predicts_velocities_is_not_tuned_as_if_it_predicted_noise(make, tmp_path):
    folder = tmp_path / "v"
    tiny.stable_diffusion("v_prediction").save_pretrained(folder)
    (folder / "card.yaml").write_text("size: 8\nlicence: CC0-1.0\n")
    with pytest.raises(DapError, match="VLCP trains only backbones that predict noise.* or give --option epochs=0"):
        distill(make(backbone={"path": str(folder)}), tmp_path / "a")
    assert len(distill(make(backbone={"path": str(folder)}, epochs=0), tmp_path / "b").records) == 6
    assert from_pipeline(tiny.stable_diffusion("v_prediction")).prediction_type == "v_prediction"


def test_on_the_starter(tmp_path):
    source = open_source("fashion-mnist", "train", size=32, classes=["Trouser", "Bag"])
    lines = [
        json.dumps({"path": key, "caption": f"{name} {'tall' if i % 2 else 'wide'}"})
        for label, name in enumerate(source.class_names)
        for i, key in enumerate(source.keys(label, range(12)))
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    values = {"method": "vlcp", "ipc": 2, "backbone": {"path": "starter-unet"}, "sampling": {"steps": 4}}
    values |= {"data": {"classes": ["Trouser", "Bag"]}, "captions": str(tmp_path / "captions.jsonl")}
    made = distill(Recipe.parse({**values, "options": {"epochs": 1, "batch": 8}}), tmp_path / "a")
    assert all(record["prompt"].split()[0] == record["class_name"] for record in made.records)
