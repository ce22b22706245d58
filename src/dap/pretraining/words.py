"""The text half of a small Stable Diffusion: a tokenizer that knows the class names, and a text encoder without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dap.pretraining.networks import seeded

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of Stable Diffusion 1 and 2."""

TEMPLATES = ("a photo of a {}", "a {}", "{}")
FEWEST_TOKENS, MOST_TOKENS = 16, 77
WIDTH = 64
"""The width of the encoded prompts."""


def prompts_of(class_names: Sequence[str]) -> list[str]:
    """First the empty prompt, then for each class its prompt by each template: 1 + classes · templates texts."""
    return ["", *(template.format(name) for name in class_names for template in TEMPLATES)]


def build_tokenizer(class_names: Sequence[str], tokens: int | None = None) -> Any:
    """A CLIP tokenizer. Its vocabulary has the words of our prompts, and all single bytes, so that it can spell any
    text.

    Args:
        class_names: the names of the classes.
        tokens: how many tokens a prompt may have. Default: as many as the longest of our prompts has, 16 to 77.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    words = sorted({word for text in (*TEMPLATES, *class_names) for word in text.lower().replace("-", " ").split()})
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
