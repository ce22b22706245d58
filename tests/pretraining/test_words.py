"""The prompts of a small Stable Diffusion: those that it is trained on are those that it is asked for."""

from __future__ import annotations

import pytest
import torch

from dap.base.errors import DapError
from dap.imagenet import spoken
from dap.pretraining.denoisers import learner_of
from dap.pretraining.networks import Sizes, autoencoder
from dap.pretraining.words import TEMPLATES, build_tokenizer, check_names, prompt_ids, prompts_of

CPU = torch.device("cpu")
KINDS = ["sea_lion", "n01440764", "hamster,golden hamster", "n02124075", "two words", "T-shirt/top", "Bär"]
"""Names of every kind that folders have: with an underscore, WordNet ids, synonyms, blanks, other signs, other letters."""


def test_training_and_sampling_say_the_same_names():
    """Training said 'n01440764' and 'sea_lion', and every later run 'tench' and 'sea lion'."""
    from dap.backbones.base import Card
    from dap.backbones.prompts import Prompts

    card = Card("", "", 1, 1.0, "all", "0", 0.0, "step", template=TEMPLATES[0])
    asked = Prompts(lambda prompts: (), card).of_classes(KINDS)
    assert [asked[name] for name in KINDS] == prompts_of(KINDS)[1 :: len(TEMPLATES)]
    tokenizer = build_tokenizer(KINDS)
    rows = prompt_ids(tokenizer, KINDS, CPU)[1 :: len(TEMPLATES)]
    how = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    for name, row in zip(KINDS, rows, strict=True):
        assert tokenizer(asked[name], **how).input_ids == row.tolist()
    for word in ("tench", "lion", "hamster"):
        assert len(tokenizer(word).input_ids) == 3, "a word of a prompt is one token"


def test_names_that_are_spoken_as_they_are_give_the_vocabulary_of_before():
    names = [name for name in KINDS if spoken(name) == name]
    assert names and prompts_of(names) == ["", *(t.format(name) for name in names for t in TEMPLATES)]


def test_the_preview_shows_the_prompts_that_are_asked_for():
    from dap.backbones.base import Card

    sizes = Sizes(kind="unet", size=16, levels=[8, 16], width=32, depth=1)
    card = Card("", "", 16, 1.0, "all", "mid", 0.0, "step", template=TEMPLATES[0])
    learner = learner_of(sizes, autoencoder(sizes, 0), KINDS, card, 0)
    rows = learner.twin().condition(KINDS)
    ids = prompt_ids(learner.tokenizer, [spoken(name) for name in KINDS], CPU)
    assert torch.equal(learner.backbone.ids[rows], ids[1 :: len(TEMPLATES)])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "n02084071"], "n02084071 is none of ImageNet's thousand classes.*; rename the class"),
        (["Apple", "apple"], "reads the classes 'Apple' and 'apple' as the same tokens"),
        (["a_b", "a b"], "have the same prompt, 'a photo of a a b'"),
        (["n01440764", "tench,fish"], "have the same prompt, 'a photo of a tench'"),
        (["x" * 90 + "a", "x" * 90 + "b", "y-" * 80], "is longer than the 77 tokens.*Give a shorter name"),
    ],
)
def test_classes_that_the_backbone_could_not_be_asked_for_are_refused(names, said):
    with pytest.raises(DapError, match=said):
        check_names(names)


def test_classes_that_it_can_be_asked_for_are_taken():
    check_names(KINDS)
