"""Text conditions: a prompt for each class, or a text for each image, encoded by the text encoders of a pipeline."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Card
from dap.backbones.modules import ModuleBackbone
from dap.base.errors import DapError
from dap.imagenet import spoken

T5 = 256
"""How many tokens diffusers gives to the third text encoder of a Stable Diffusion 3."""

LONGEST = 100_000
"""No tokenizer of a text encoder reads so many tokens. One without its files says that it reads 10**30."""

TOGETHER = 32
"""How many prompts go through the text encoders at once."""

KEPT = 256
"""How many texts of single images are kept encoded. There may be a million of them, while classes are at most a thousand."""


@dataclass(frozen=True)
class Tokenizer:
    """How one text encoder of a pipeline reads prompts.

    Attributes:
        own: the tokenizer of transformers.
        longest: how many tokens the text encoder reads. The rest of a prompt is cut off.
        lower: whether the pipeline takes the prompt in small letters, without spaces around it.
    """

    own: Any
    longest: int
    lower: bool = False

    def tokens(self, prompts: list[str]) -> list[tuple[int, ...]]:
        """The tokens of prompts, as the text encoder reads them."""
        return [
            tuple(ids) for ids in self.own(self._taken(prompts), truncation=True, max_length=self.longest).input_ids
        ]

    def whole(self, prompts: list[str]) -> list[bool]:
        """Whether the text encoder reads each of these prompts to its end."""
        return [
            len(ids) <= self.longest
            for ids in self.own(self._taken(prompts), truncation=False, verbose=False).input_ids
        ]

    def _taken(self, prompts: list[str]) -> list[str]:
        return [prompt.lower().strip() for prompt in prompts] if self.lower else prompts

    def fingerprint(self) -> str:
        """A hash of everything that decides the tokens of a text: the vocabulary, the merges, the normaliser, the length."""
        fast = getattr(self.own, "backend_tokenizer", None)
        # A call leaves its padding and truncation in the tokenizer, and they are no part of it.
        said = {} if fast is None else {**json.loads(fast.to_str()), "padding": None, "truncation": None}
        special = {name: str(text) for name, text in self.own.special_tokens_map.items()}
        told = [said or sorted(self.own.get_vocab().items()), special, self.longest, self.own.padding_side]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def tokenizers_of(pipe: Any, longest: Mapping[str, int] | None = None, *, lower: bool = False) -> list[Tokenizer]:
    """The tokenizers of a pipeline whose text encoders are there.

    Args:
        pipe: the pipeline.
        longest: by the ending of a tokenizer's name, "", "_2" or "_3", how many tokens the pipeline gives to its text
            encoder. Others give as many as their tokenizers say. Default: Stable Diffusion 3's.
        lower: whether the pipeline takes prompts in small letters.

    Raises:
        DapError: a tokenizer is not whole, or does not fit its text encoder.
    """
    found, of = [], getattr(pipe, "name_or_path", None) or "the pipeline"
    for part in ("", "_2", "_3"):
        most = ({"_3": T5} if longest is None else longest).get(part)
        own, encoder = getattr(pipe, f"tokenizer{part}", None), getattr(pipe, f"text_encoder{part}", None)
        if own is None or encoder is None:
            continue
        reading = most or own.model_max_length
        if reading > LONGEST:
            raise DapError(
                f"The tokenizer{part} of {of} does not say how long a prompt may be, so its files are not whole; copy "
                f"the folder tokenizer{part}/ of the weights there anew."
            )
        config = encoder.config
        reads = config.to_dict().get("max_position_embeddings")
        if reads and most is None and reading > reads:
            raise DapError(
                f"The tokenizer{part} of {of} makes prompts of {reading} tokens but its text encoder reads {reads}; set "
                f"model_max_length in tokenizer{part}/tokenizer_config.json to {reads}."
            )
        if max(own.get_vocab().values(), default=0) >= config.vocab_size:
            raise DapError(
                f"The tokenizer{part} of {of} has tokens up to {max(own.get_vocab().values())} but its text encoder "
                f"knows {config.vocab_size}; take a tokenizer and a text encoder that were trained together."
            )
        found.append(Tokenizer(own, reading, lower))
    return found


class Prompts:
    """Conditions of a text-conditioned backbone: row numbers of a table of encoded prompts.

    However large an encoding is, a condition is one whole number for each image, as it is for label-conditioned backbones.

    Args:
        encode: turns prompts into what the network takes: tensors (n, …), such as token states and a pooled vector.
        card: holds the template and the negative prompt.
        tokenizers: what the text encoders read prompts with. Empty: unknown, then no prompt is found to be cut off.

    Raises:
        DapError: the template has no {} for the class name.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], tuple[Tensor, ...]],
        card: Card,
        tokenizers: Sequence[Tokenizer] = (),
    ) -> None:
        self.template = "{}" if card.template is None else card.template
        if "{}" not in self.template:
            raise DapError(f"The prompt template {self.template!r} has no {{}} for the class name.")
        self._encode, self.tokenizers = encode, tuple(tokenizers)
        self._null = card.negative_prompt or ""
        self._table: tuple[Tensor, ...] = ()
        self._lasting: dict[str, int] = {}
        """Rows of class prompts and of the negative prompt; they are never given up."""
        self._passing: dict[str, int] = {}
        """Rows of other texts; the one that was asked for longest ago comes first."""

    def prompt(self, class_name: str) -> str:
        """The template with the name of a class, as `imagenet.spoken` says it.

        Raises:
            DapError: the name is a WordNet id that is none of ImageNet's thousand.
        """
        return self.template.replace("{}", spoken(class_name))

    def of_classes(self, class_names: Sequence[str]) -> dict[str, str]:
        """The prompts of classes, by name. Nothing is encoded.

        Raises:
            DapError: two classes have the same prompt, or prompts that the text encoders cannot tell apart; a prompt is
                cut off before its class name ends; or a WordNet id has no name.
        """
        prompts = {name: self.prompt(name) for name in class_names}
        owners: dict[str, str] = {}
        for name, prompt in prompts.items():
            if owners.setdefault(prompt, name) != name:
                raise DapError(
                    f"The classes {owners[prompt]!r} and {name!r} have the same prompt, {prompt!r}, so their images could "
                    "not differ. Rename one, or give ImageNet's folders by WordNet id."
                )
        self._check(prompts)
        return prompts

    def condition(self, class_names: Sequence[str]) -> Tensor:
        """Row numbers (n,) of the prompts of classes.

        Raises:
            DapError: as `of_classes`.
        """
        prompts = self.of_classes(class_names)
        return self._keep([prompts[name] for name in class_names])

    def _check(self, prompts: Mapping[str, str]) -> None:
        """Refuse prompts of classes that are cut off before the name ends, or that become the same tokens."""
        if not self.tokenizers:
            return
        heads = [prompt[: prompt.rfind(spoken(name)) + len(spoken(name))] for name, prompt in prompts.items()]
        whole = [tokenizer.whole(heads) for tokenizer in self.tokenizers]
        for i, (name, prompt) in enumerate(prompts.items()):
            if not any(fits[i] for fits in whole):
                longest = max(tokenizer.longest for tokenizer in self.tokenizers)
                raise DapError(
                    f"The prompt {prompt[:100]!r} of the class {name[:100]!r} is longer than the {longest} tokens that the text "
                    "encoder reads, so the class name is cut off. Give a shorter name, or a shorter "
                    "--template where the command takes one."
                )
        seen: dict[tuple[tuple[int, ...], ...], str] = {}
        read = zip(*(tokenizer.tokens(list(prompts.values())) for tokenizer in self.tokenizers), strict=True)
        for name, tokens in zip(prompts, read, strict=True):
            if (other := seen.setdefault(tokens, name)) != name:
                raise DapError(
                    f"The text encoder reads the classes {other!r} and {name!r} as the same tokens (prompt "
                    f"{prompts[name]!r}), so their images could not differ. Rename one of them."
                )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Row numbers (n,) of texts as they are, without the template. They are valid until `KEPT` other texts are asked for."""
        asked = [text for text in dict.fromkeys(texts) if text not in self._lasting]
        for text in asked:
            if text in self._passing:  # the newest comes last
                self._passing[text] = self._passing.pop(text)
        new = [text for text in asked if text not in self._passing]
        room = max(KEPT, len(asked)) - len(new)
        oldest = list(self._passing)[: max(0, min(len(new), len(self._passing) - room))]
        self._passing |= self._encoded(new, [self._passing.pop(text) for text in oldest])
        return self._numbers(texts)

    def null(self, n: int) -> Tensor:
        """The row number of the negative prompt, n times."""
        return self._keep([self._null]).expand(n)

    def rows(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The encodings (n, …) behind row numbers (n,)."""
        return tuple(part[condition] for part in self._table)

    def _keep(self, prompts: list[str]) -> Tensor:
        """Row numbers of prompts that are never given up."""
        asked = dict.fromkeys(prompts)
        self._lasting |= {text: self._passing.pop(text) for text in asked if text in self._passing}
        self._lasting |= self._encoded([text for text in asked if text not in self._lasting])
        return self._numbers(prompts)

    def _numbers(self, texts: Sequence[str]) -> Tensor:
        rows = self._lasting | self._passing
        return torch.tensor([rows[text] for text in texts], device=self._table[0].device)

    @torch.no_grad()
    def _encoded(self, new: list[str], given_up: Sequence[int] = ()) -> dict[str, int]:
        """Encode texts into the table, first into rows that were given up and then into new rows. Returns the rows."""
        if not new:
            return {}
        parts = [self._encode(new[start : start + TOGETHER]) for start in range(0, len(new), TOGETHER)]
        encoded = tuple(torch.cat(rows) for rows in zip(*parts, strict=True))
        table, old = self._table or tuple(part[:0] for part in encoded), len(given_up)
        rows = [*given_up, *range(len(table[0]), len(table[0]) + len(new) - old)]
        for part, fresh in zip(table, encoded, strict=True):
            part[list(given_up)] = fresh[:old]
        self._table = tuple(torch.cat([part, fresh[old:]]) for part, fresh in zip(table, encoded, strict=True))
        return dict(zip(new, rows, strict=True))


class PromptedBackbone(ModuleBackbone):
    """A `ModuleBackbone` that is conditioned on text: classes are prompts, so any class that has a name will do.

    A subclass says how prompts are encoded, and its `run` gets the encodings of a condition from `encodings`.

    Args: as `ModuleBackbone`, without class names, and
        tokenizers: what the text encoders read prompts with.
    """

    def __init__(
        self, denoiser: Any, vae: Any, *, card: Card, tokenizers: Sequence[Tokenizer] = (), **rest: Any
    ) -> None:
        super().__init__(denoiser, vae, card=card, **rest)
        self.encoders_wait = False
        """Whether the text encoders wait in the memory of the machine while they do not encode. A pipeline that somebody else
        uses too keeps them where they are."""
        self.make_room: Callable[[], object] | None = None
        """Called before prompts are encoded, so that other parts leave the device."""
        self._encoders = [part for name, part in self._parts.items() if name.startswith("text_encoder")]
        self._prompts = Prompts(self._encode, card, tokenizers)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, ...]:
        if self.make_room is not None:
            self.make_room()
        if not self.encoders_wait or self.device.type == "cpu":
            return self.encode_prompts(prompts)
        try:
            for encoder in self._encoders:
                encoder.to(self.device)
            return self.encode_prompts(prompts)
        finally:
            for encoder in self._encoders:
                encoder.to("cpu")

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """The encodings of prompts, as the denoiser takes them: tensors (n, …)."""

    def encodings(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The tensors (B, …) of `encode_prompts` behind a condition (B,)."""
        return self._prompts.rows(condition)

    def condition(self, class_names: Sequence[str]) -> Tensor:
        return self._prompts.condition(class_names)

    def prompt(self, texts: Sequence[str]) -> Tensor:
        return self._prompts.texts(texts)

    def null(self, n: int) -> Tensor:
        return self._prompts.null(n)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "tokenizers": [tokenizer.fingerprint() for tokenizer in self._prompts.tokenizers]}
