"""Weights in a file for which the network of its config.json has no place. diffusers and transformers leave them out and warn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import shown

HARMLESS = frozenset({"caption_projection.y_embedding", "pos_embed.pos_embed"})
"""Tensors in published weights that decide no prediction: the caption of dropped prompts, with which PixArt was trained and which
pipelines replace by an empty prompt, and a table of positions that the network computes itself."""


@contextmanager
def refused(where: Path) -> Iterator[None]:
    """Refuse weights that a network loaded inside this block left over. One thread at a time may be inside, see `base.alone`.

    diffusers and transformers say themselves which names a network ignores by design, such as the `position_ids` of older files.
    A text encoder may also leave over the other parts of the model that it is a part of, such as the head of a language model.

    Args:
        where: the folder, for the message.

    Raises:
        DapError: a network left over weights, as one does whose config.json asks for fewer layers than were trained.
    """
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel

    # Neither library lets a pipeline ask what its networks left over, so their own reckoning is listened to.
    of_diffusers: Any = ModelMixin.__dict__["_load_pretrained_model"]
    of_transformers: Any = PreTrainedModel.__dict__["_adjust_missing_and_unexpected_keys"]
    found: list[tuple[str, list[str]]] = []

    def loaded(cls: Any, *args: Any, **options: Any) -> Any:
        told = of_diffusers.__get__(None, cls)(*args, **options)
        found.append((cls.__name__, list(told[2])))
        return told

    def adjusted(self: Any, info: Any) -> None:
        of_transformers(self, info)
        found.append((type(self).__name__, own(self, info.unexpected_keys)))

    patched: list[tuple[Any, str, Any, Any]] = [
        (ModelMixin, "_load_pretrained_model", classmethod(loaded), of_diffusers),
        (PreTrainedModel, "_adjust_missing_and_unexpected_keys", adjusted, of_transformers),
    ]
    for of, name, ours, _ in patched:
        setattr(of, name, ours)
    try:
        yield
    finally:
        for of, name, _, theirs in patched:
            setattr(of, name, theirs)
    for network, left in found:
        if names := [name for name in left if name not in HARMLESS]:
            raise DapError(
                f"The weights of the {network} in {shown(where)} hold {len(names)} tensors for which its config.json leaves no "
                f"place, such as {shown(min(names))}, so the network is not the one that was trained. Fetch or save the folder "
                "anew."
            )


def own(network: Any, names: Any) -> list[str]:
    """Those of the names that lie inside a part of the network, and not in another part of a model that it was taken from."""
    parts, prefix = {name for name, _ in network.named_children()}, f"{network.base_model_prefix}."
    return [name for name in names if name.removeprefix(prefix).partition(".")[0] in parts]
