"""Text conditions: a prompt for each class or a text for each image, encoded by the pipeline's own encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dap.backbones.base import Card
from dap.base.errors import DapError
from dap.imagenet import spoken

TOGETHER = 32
"""Prompts that go through the text encoders at once."""

KEPT = 256
"""Texts of single images that are kept encoded. There may be a million of them, where the classes are a thousand."""


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
        self._passing: list[str] = []
        self._free: list[int] = []

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
        return self._lasting([prompts[name] for name in class_names])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Row numbers (n,) of texts as they are, without the template; good until `KEPT` others have been asked for."""
        asked = dict.fromkeys(texts)
        others = [text for text in self._passing if text not in asked]
        gone = max(0, len(others) + len(asked) - KEPT)
        self._free += [self._rows.pop(text) for text in others[:gone]]
        mine = [text for text in asked if text in self._passing or text not in self._rows]
        self._passing = others[gone:] + mine
        return self._numbers(list(texts))

    def null(self, n: int) -> Tensor:
        """The row of the negative prompt, n times."""
        return self._lasting([self._null]).expand(n)

    def rows(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The encodings (n, …) behind row numbers."""
        return tuple(part[condition] for part in self._table)

    def _lasting(self, prompts: list[str]) -> Tensor:
        self._passing = [text for text in self._passing if text not in prompts]
        return self._numbers(prompts)

    @torch.no_grad()
    def _numbers(self, prompts: list[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            parts = [self._encode(new[start : start + TOGETHER]) for start in range(0, len(new), TOGETHER)]
            encoded = tuple(torch.cat(rows) for rows in zip(*parts, strict=True))
            old = self._table or tuple(part[:0] for part in encoded)
            reused, self._free = self._free[: len(new)], self._free[len(new) :]
            size, more = len(old[0]), len(new) - len(reused)
            self._rows |= zip(new, [*reused, *range(size, size + more)], strict=True)
            for part, rows in zip(old, encoded, strict=True):
                part[reused] = rows[: len(reused)]
            self._table = tuple(torch.cat([a, b[len(reused) :]]) for a, b in zip(old, encoded, strict=True))
        return torch.tensor([self._rows[prompt] for prompt in prompts], device=self._table[0].device)
