"""The text half of a small Stable Diffusion: a tokenizer that knows the class names, and a text encoder without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Card
from dap.backbones.prompts import Prompts, Tokenizer
from dap.imagenet import spoken
from dap.pretraining.networks import seeded

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of Stable Diffusion 1 and 2."""

TEMPLATES = ("a photo of a {}", "a {}", "{}")
FEWEST_TOKENS, MOST_TOKENS = 16, 77
WIDTH = 64
"""The width of the encoded prompts."""


def prompts_of(class_names: Sequence[str]) -> list[str]:
    """First the empty prompt, then for each class its prompt by each template: 1 + classes · templates texts.

    They say `imagenet.spoken` names, because the finished backbone is asked for these.

    Raises:
        DapError: a name is a WordNet id that is none of ImageNet's thousand.
    """
    return ["", *(template.format(spoken(name)) for name in class_names for template in TEMPLATES)]


def check_names(class_names: Sequence[str]) -> None:
    """Check, before anything is trained, that the finished backbone can be asked for each of these classes.

    Raises:
        DapError: as `Prompts.of_classes`.
    """
    tokenizer = build_tokenizer(class_names)
    card = Card("", "", 1, 1.0, "all", "0", 0.0, "step", template=TEMPLATES[0])
    Prompts(lambda prompts: (), card, [Tokenizer(tokenizer, tokenizer.model_max_length)]).of_classes(class_names)


def build_tokenizer(class_names: Sequence[str], tokens: int | None = None) -> Any:
    """A CLIP tokenizer. Its vocabulary has the words of our prompts, and all single bytes, so that it can spell any
    text.

    Args:
        class_names: the names of the classes, as folders have them.
        tokens: how many tokens a prompt may have. Default: as many as the longest of our prompts has, 16 to 77.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    said = map(spoken, class_names)
    words = sorted({word for text in (*TEMPLATES, *said) for word in text.lower().replace("-", " ").split()})
    letters = sorted(ByteLevel.alphabet())
    pieces, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        if not (word.isalpha() and word.isascii()):
            continue
        while len(parts) > 1:  # left to right: p h o t o -> ph o t o -> pho t o -> …
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens or MOST_TOKENS)
    if tokens is None:
        longest = max(map(len, made(prompts_of(class_names), truncation=True, max_length=MOST_TOKENS).input_ids))
        made.model_max_length = min(max(longest, FEWEST_TOKENS), MOST_TOKENS)
    return made


def build_text_encoder(tokenizer: Any, seed: int = 0) -> Any:
    """A CLIP text encoder of two layers whose first weights the seed decides."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed):
        return CLIPTextModel(config).eval()


def prompt_ids(tokenizer: Any, class_names: Sequence[str], device: torch.device) -> Tensor:
    """Token ids (1 + classes · templates, tokens) of `prompts_of`."""
    how = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(prompts_of(class_names), **how, return_tensors="pt").input_ids.to(device)
