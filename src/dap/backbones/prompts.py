"""Text conditions: a prompt for each class, encoded once by the pipeline's own encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dap.backbones.base import Card
from dap.errors import DapError
from dap.imagenet import spoken

TOGETHER = 32
"""Prompts that go through the text encoders at once."""


class Prompts:
    """Conditions of a text-conditioned backbone: row numbers of a table of encoded prompts.

    A condition then is one whole number an image, as for label-conditioned backbones, however large the encoding.

    Args:
        encode: prompts to what the network takes: tensors (n, …), such as token states and a pooled vector.
        card: its template and negative prompt.

    Raises:
        DapError: a template without {}.
    """

    def __init__(self, encode: Callable[[list[str]], tuple[Tensor, ...]], card: Card) -> None:
        self.template = "{}" if card.template is None else card.template
        if "{}" not in self.template:
            raise DapError(f"The prompt template {self.template!r} has no {{}} for the class name.")
        self._encode = encode
        self._rows: dict[str, int] = {}
        self._table: tuple[Tensor, ...] = ()
        self._null = card.negative_prompt or ""

    def prompt(self, class_name: str) -> str:
        """The template with the class's name: the first of comma-separated synonyms, an ImageNet id by its name.

        Raises:
            DapError: a WordNet id that is none of ImageNet's thousand.
        """
        return self.template.replace("{}", spoken(class_name))

    def condition(self, class_names: Sequence[str]) -> Tensor:
        """Row numbers (n,).

        Raises:
            DapError: two classes with one prompt, or a WordNet id without a name.
        """
        prompts = {name: self.prompt(name) for name in class_names}
        owners: dict[str, str] = {}
        for name, prompt in prompts.items():
            if owners.setdefault(prompt, name) != name:
                raise DapError(
                    f"The classes {owners[prompt]!r} and {name!r} have the same prompt, {prompt!r}, so their images could "
                    "not differ. Rename one, or give ImageNet's folders by WordNet id."
                )
        return self.numbers([prompts[name] for name in class_names])

    def null(self, n: int) -> Tensor:
        """The row of the negative prompt, n times."""
        return self.numbers([self._null]).expand(n)

    def rows(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The encodings (n, …) behind row numbers."""
        return tuple(part[condition] for part in self._table)

    @torch.no_grad()
    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """Row numbers (n,) of prompts as they are; new ones are encoded."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            parts = [self._encode(new[start : start + TOGETHER]) for start in range(0, len(new), TOGETHER)]
            encoded = tuple(torch.cat(rows) for rows in zip(*parts, strict=True))
            old = self._table or tuple(part[:0] for part in encoded)
            self._rows |= {prompt: len(self._rows) + i for i, prompt in enumerate(new)}
            self._table = tuple(torch.cat(pair) for pair in zip(old, encoded, strict=True))
        return torch.tensor([self._rows[prompt] for prompt in prompts], device=self._table[0].device)
