"""Captions: how a path is found, what is no caption, and writing them with a model or without one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.captions import read_captions
from dap.data.real.held import Part
from dap.data.real.sources import open_source
from dap.verbs.caption import caption, write_captions


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        file = tmp_path / "captions.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return file

    return written


def line(path, text):
    return {"path": path, "caption": text}


def test_a_path_is_found_by_its_end_and_another_split_s_is_none(source, write):
    file = write(
        line("red/0.png", "early"),
        line("/somewhere/else/train/red/0.png", "later"),
        line("./red//1.png", "dots"),
        {"file_name": "train\\green\\2.png", "text": " as a folder's metadata "},
        line("val/green/3.png", "of the test images"),
        line("yellow/3.png", "of no class"),
        line("green/3.png", "  "),
        line("3.png", "a name that three images have"),
        line("blue/11.png", "blue"),
    )
    assert dict(read_captions(file, source)) == {
        "red/0.png": "later",
        "red/1.png": "dots",
        "green/2.png": "as a folder's metadata",
        "blue/11.png": "blue",
    }


@pytest.mark.parametrize("folder", ["dev", "Testing", "valid", "seg_test", "eval", "val", "images_test"])
def test_every_word_for_a_test_split_is_one_in_a_path_too(source, write, folder):
    lines = [line(f"train/{name}/0.png", "mine") for name in source.class_names]
    file = write(*lines, *(line(f"{folder}/{name}/0.png", "of a test image") for name in source.class_names))
    assert set(read_captions(file, source).values()) == {"mine"}


def test_the_folder_of_the_source_is_no_other_split_whatever_it_is_called(colours, tmp_path, write):
    whole = open_source(colours, "train", size=8)
    shutil.copytree(whole.place[1], tmp_path / "dev")
    source = open_source(tmp_path, "train", size=8, chosen={"train": "dev"})
    file = write(*(line(f"{tmp_path}/dev/{key}", "mine") for label in range(3) for key in source.keys(label, [0])))
    assert len(read_captions(file, source)) == 3
    assert len(read_captions(file, Part(source, "train", 0.1))) >= 2


def test_a_bare_name_is_found_where_one_image_has_it(imagenet, write):
    source = open_source(imagenet, "train", size=8)
    whole = [line(f"{name}_0.JPEG", name) for name in source.class_names]
    found = read_captions(write(*whole), source)
    assert found == {f"{name}/{name}_0.JPEG": name for name in source.class_names}


def test_what_is_no_caption_is_named(source, write, tmp_path):
    for wrong in ("[1]", '{"path": "red/0.png"}', '{"path": 1, "caption": "x"}', "red/0.png"):
        with pytest.raises(DapError, match="captions.jsonl, line 2: .* A line must be"):
            read_captions(write(line("red/0.png", "x"), wrong), source)
    with pytest.raises(
        DapError, match="no caption of any image of class 'blue' .* An image there is 'blue/0.png', and one"
    ):
        read_captions(write(line("red/0.png", "x"), line("green/0.png", "x")), source)
    with pytest.raises(DapError, match="There is no file of captions"):
        read_captions(tmp_path / "nowhere.jsonl", source)


def say(images, ask):
    """A caption that tells the images apart, and what was asked."""
    return [f"{ask or 'seen'} {image.mean():.6f}" for image in images]


def read(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_every_image_gets_its_own_caption_and_a_killed_run_goes_on(source, tmp_path):
    whole, torn = tmp_path / "a.jsonl", tmp_path / "deep" / "b.jsonl"
    told = []
    assert write_captions(source, whole, say, "m", batch=5, tell=lambda *done: told.append(done)) == 36
    assert told[-1] == ("captions", 36, 36)
    for label in range(3):
        images = source.images(label, range(12))
        for key, image in zip(source.keys(label, range(12)), images, strict=True):
            assert {"path": key, "caption": f"seen {image.mean():.6f}", "model": "m"} in read(whole)

    calls = []

    def dies(images, ask):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return say(images, ask)

    with pytest.raises(KeyboardInterrupt):
        write_captions(source, torn, dies, "m", batch=5)
    torn.write_text(torn.read_text()[:-4])  # cut in the last line
    assert write_captions(source, torn, say, "m", batch=5) > 0
    assert sorted(map(json.dumps, read(torn))) == sorted(map(json.dumps, read(whole)))
    assert write_captions(source, torn, say, "m") == 0


def test_fewer_a_class_are_a_part_of_more(source, tmp_path):
    file = tmp_path / "a.jsonl"
    assert write_captions(source, file, say, "m", per_class=2) == 6
    before = read(file)
    assert write_captions(source, file, say, "m", per_class=5) == 9 and read(file)[:6] == before
    assert len({said["path"] for said in read(file)}) == 15


def test_the_question_names_the_class(source, tmp_path):
    write_captions(source, tmp_path / "a.jsonl", say, "m", ask="a {} is", per_class=1)
    assert {said["caption"].split(" is")[0] for said in read(tmp_path / "a.jsonl")} == {"a red", "a green", "a blue"}


def test_captions_of_another_model_or_to_another_question_are_not_mixed(source, tmp_path):
    file = tmp_path / "a.jsonl"
    write_captions(source, file, say, "m", per_class=1)
    with pytest.raises(DapError, match="has captions by m; choose another file for those by n"):
        write_captions(source, file, say, "n")
    with pytest.raises(DapError, match="has captions by m; choose another file for those by m asked 'what'"):
        write_captions(source, file, say, "m", ask="what")


def test_captions_by_hand_stay_whatever_their_paths(source, write):
    """A later caption counts, so one that is there under another name of the image must not be made again."""
    file = write(line("train/red/0.png", "mine"), {"file_name": "./green/4.png", "text": "mine too"})
    assert write_captions(source, file, say, "m") == 34
    found = read_captions(file, source)
    assert len(found) == 36 and found["red/0.png"] == "mine" and found["green/4.png"] == "mine too"


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A captioner of BLIP's kind, tiny and with random weights."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "red", "thing", "of", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    text |= {"bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3, "is_decoder": True}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


def test_captions_of_a_model_of_transformers_by_command(blip, colours, tmp_path, capsys):
    out = tmp_path / "captions.jsonl"
    assert main(["caption", "--data", str(colours), "--out", str(out), "--model", str(blip), "--per-class", "2"]) == 0
    assert "6 captions added" in capsys.readouterr().out
    assert len(read(out)) == 6 and all(said["model"] == str(blip) for said in read(out))
    again = tmp_path / "again.jsonl"
    run = [
        "caption",
        "--data",
        str(colours),
        "--out",
        str(again),
        "--model",
        str(blip),
        "--per-class",
        "2",
        "--batch",
        "1",
    ]
    assert main(run) == 0
    assert read(again) == read(out), "a caption is its image's, whatever the batch"
    assert main(["caption", "--data", str(colours), "--out", str(again), "--model", str(tmp_path / "no")]) == 1
    assert "captioner" in capsys.readouterr().err


def test_a_split_that_names_nothing_is_one_sentence(colours, tmp_path):
    with pytest.raises(DapError, match="data.split: train=FOLDER,test=FOLDER is needed"):
        caption(colours, tmp_path / "c.jsonl", split="foo", say=lambda images, question: ["x"] * len(images))
