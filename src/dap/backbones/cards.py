"""The card and the class names of weights: cards.yaml, and the files card.yaml and classes.json beside the weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from dap.backbones.base import Card
from dap.backbones.hub import index_of, labels_of
from dap.backbones.known import known_cards
from dap.base.documents import fitted, read_names, read_yaml
from dap.base.errors import DapError
from dap.base.fields import Frames, FromFile, Name, Text
from dap.base.registry import suggest
from dap.choices import SolverName

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The facts on a pipeline that its modules do not hold.

    Attributes:
        name: the name of the weights in manifests and reports. A hub id is also the key into cards.yaml.
        folder: the folder of the weights, or None for a pipeline that was made in memory.
        class_names: the caller's names of the classes, in label order. None: the names in the folder.
        prompts: the caller's `template` and `negative_prompt`, if they replace those of the card.
    """

    name: str
    folder: Path | None = None
    class_names: Sequence[str] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def card(self, kind: str, *, size: int, layer: str, free: bool = False) -> Card:
        """The card of the weights.

        Later sources win: the defaults of the kind in cards.yaml, then `size` and `layer`, then the entry of the hub id in
        cards.yaml, then the folder's card.yaml, then the caller's prompts. The size is always that of the modules.

        Args:
            kind: the name of the kind, a key of cards.yaml, such as "dit".
            size: the side of the images in px, computed from the modules.
            layer: a layer in the middle, for weights whose best layer neither cards.yaml nor card.yaml names. The card says
                that it is guessed.
            free: whether card.yaml may choose another size, because the weights make images of any size.

        Raises:
            DapError: card.yaml is not a mapping, it has a field that no card has or a value that the field cannot have, or
                its size is not that of the weights' images.
        """
        cards = known_cards()
        values = {**cards[kind], "name": self.name, "layer": layer, **self._known(cards), "size": size}
        mine: dict[str, Any] = {}
        if self.folder and os.path.lexists(file := self.folder / "card.yaml"):
            mine = read_card(file)
            if mine.get("size", size) != size and not free:
                raise DapError(
                    f"{file} says size: {mine['size']}, but these weights make images of {size} px. Remove the size from it."
                )
            values |= mine
        guessed = "layer" not in {**cards[kind], **self._known(cards), **mine}
        values |= {"layer": str(values["layer"]), "guessed": guessed, **self.prompts}
        if values.get("cfg_interval") is not None:  # YAML has lists and no tuples
            values["cfg_interval"] = tuple(map(float, values["cfg_interval"]))
        return Card(**values)

    def names(self, pipe: Any, labels: int) -> list[str]:
        """The class names of a label-conditioned pipeline, in label order.

        A saved pipeline forgets its names. Numbers take their place, so that class folders named 0, 1, … still work.

        Args:
            pipe: the pipeline; its `labels` are a table of names.
            labels: the number of labels of the pipeline's network. Names beyond the last label stay. They are left over
                from before a fine-tuning, and only the user can say which names are right.

        Raises:
            DapError: classes.json is not a list of names.
        """
        if self.class_names is not None:
            return list(self.class_names)
        folder = self.folder
        if folder and (folder / "classes.json").is_file():
            return read_names(folder / "classes.json")
        # Two labels can share a name. The pipeline's own table from name to label has lost such labels; the file has them.
        index = folder is not None and (folder / "model_index.json").is_file()
        by_label = labels_of(folder, index_of(folder)) if folder and index else {}
        if not by_label:
            for name, label in (getattr(pipe, "labels", None) or {}).items():
                by_label[label] = f"{by_label[label]}, {name}" if label in by_label else name
        return [by_label.get(label, str(label)) for label in range(max(labels, 1 + max(by_label, default=0)))]

    def without_class_names(self) -> None:
        """Refuse class names for a backbone that is conditioned on text.

        Raises:
            DapError: the caller gave class names.
        """
        if self.class_names is not None:
            raise DapError(
                f"{self.name} takes prompts made from the data's class names: it has no class names of its own."
            )

    def without_prompts(self) -> None:
        """Refuse prompts for a backbone that is conditioned on labels, or on nothing.

        Raises:
            DapError: the caller gave prompts.
        """
        if self.prompts:
            given = " and ".join(self.prompts)
            raise DapError(f"{self.name} is conditioned on labels, not on prompts: leave out {given}.")

    def without_classes(self) -> tuple[str, ...]:
        """No class names, for a backbone whose weights know no classes, and a warning that says what follows from this.

        Raises:
            DapError: the caller gave class names.
        """
        if self.class_names is not None:
            raise DapError(f"{self.name} was trained without classes: it has no class names of its own.")
        log.warning(
            "%s knows no classes. A class comes into its images through the real images that guide alone, so without such a "
            "guidance (--method vanilla) the classes of the images are random.",
            self.name,
        )
        return ()

    def _known(self, cards: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        """The entry of cards.yaml for these weights.

        The key of the entry is a hub id. It is one of these, in this order: the name of the weights; the hub id of the
        hub cache in which the folder lies; a hub id that ends with the folder's name, because the folder of a copy
        often has that name.
        """
        ids = [self.name]
        if self.folder:
            folder = self.folder.resolve()
            ids += [
                part.removeprefix("models--").replace("--", "/") for part in folder.parts if part.startswith("models--")
            ]
            ids += [key for key in cards if "/" in key and key.endswith(f"/{folder.name}")]
        return next((cards[key] for key in ids if "/" in key and key in cards), {})


Part = Annotated[float, Field(ge=0, le=1)]


class CardFile(FromFile, frozen=True):
    """What a card.yaml may say. Every field is optional; see `Card`."""

    name: Name | None = None
    licence: Text | None = None
    size: Annotated[int, Field(ge=1, le=2**16)] | None = None
    cfg: Annotated[float, Field(ge=0, le=1000)] | None = None
    cfg_channels: Annotated[int, Field(ge=1, le=2**16)] | Literal["all"] | None = None
    layer: Name | Annotated[int, Field(ge=0, le=10**6)] | None = None
    scale: Annotated[float, Field(ge=0, le=1e9)] | None = None
    unit: Literal["paper", "step"] | None = None
    template: Text | None = None
    negative_prompt: Text | None = None
    frequency_shift: Annotated[float, Field(ge=-100, le=100)] | None = None
    frames: Frames | None = None
    cfg_interval: Annotated[list[Part], Field(min_length=2, max_length=2)] | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    steps: Annotated[int, Field(ge=2, le=100_000)] | None = None
    solver: SolverName | None = None
    eta: Annotated[float, Field(ge=0, le=1)] | None = None


def read_card(file: Path) -> dict[str, Any]:
    """The fields of a card.yaml.

    Raises:
        DapError: the file is not a mapping, it has a field that no card has, or a value that the field cannot have.
    """
    said = read_yaml(file, TypeAdapter(Any))
    if not isinstance(said, dict):
        raise DapError(f"{file} should hold a mapping such as 'licence: MIT'.")
    for key in said:
        if key not in CardFile.model_fields:
            raise DapError(f"Unknown field {key!r} in {file}. {suggest(str(key), CardFile.model_fields)}")
    fitted(said, CardFile, file)
    return {key: value for key, value in said.items() if value is not None}


def check_names(card: Card, labels: int, class_names: Sequence[str]) -> None:
    """Raise `DapError` unless there is a name for each label of a network."""
    if len(class_names) != labels:
        raise DapError(
            f"{card.name} has {labels} labels but {len(class_names)} class names; "
            "put the right list into classes.json beside the weights."
        )


def check_channels(card: Card, takes: int, gives: int, makes: int) -> None:
    """Raise `DapError` unless a transformer takes and gives as many channels as its autoencoder makes."""
    if not takes == gives == makes:
        raise DapError(
            f"The transformer of {card.name} takes {takes} channels and gives {gives}, its "
            f"autoencoder makes {makes}; take parts that were trained together."
        )


def check_clip(card: Card, side: int, step: int) -> None:
    """Raise `DapError` unless the clips on a card have a side in px that `side` divides, and 1 + `step`·k frames."""
    if card.size % side:
        raise DapError(
            f"{card.name} makes clips whose side is a multiple of {side} px, not {card.size}; mend the size in its card.yaml."
        )
    frames = card.frames or 1
    if (frames - 1) % step:
        fits = frames // step * step + 1
        raise DapError(
            f"{card.name} makes clips of 1 + {step}k frames, not {frames}; write frames: {fits} into its card.yaml."
        )


def image_size(latent_side: int, vae: Any) -> int:
    """The side in px of the images that latents decode to. Each level of the autoencoder except one doubles the side."""
    levels = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return latent_side * 2 ** (len(levels) - 1)


def shape_of(card: Card) -> tuple[int, ...]:
    """The shape of what weights make: an image (3, size, size), or a clip (3, frames, size, size)."""
    return (3, card.size, card.size) if card.frames is None else (3, card.frames, card.size, card.size)


def check_frames(card: Card, frames: int | None) -> None:
    """Raise `DapError` unless a backbone makes clips of as many frames as the data have, or images where they are images."""
    if card.frames == frames:
        return
    if card.frames is None:
        raise DapError(
            f"{card.name} makes images and the data are clips; leave out --frames, or take a video backbone such as a Latte or a "
            "Wan."
        )
    other = f", not {frames}, or write frames: {frames} into the card.yaml beside its weights."
    raise DapError(
        f"{card.name} makes clips of {card.frames} frames; read the data as such with --frames {card.frames}"
        + ("." if frames is None else other)
    )
