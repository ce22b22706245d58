"""What the energies of a refinement see of a set, and their gradient in its latents, whatever the number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Time
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.guidance.base import Energy, State
from dap.guidance.contract import energies_of
from dap.guidance.reals import check_classes
from dap.sampling import Batch

CHUNK = 10
"""How many images go through the network at once with a graph."""

HELD_BYTES = 2**30
"""Bytes of features of finished images that are kept. More are computed at each step."""

GRAPH_BYTES = 2**30
"""Bytes of graphs of `CHUNK` images each that are held beside the one in use. What does not fit is computed twice."""


@dataclass(frozen=True)
class Finished:
    """Images of a set that do not move any more.

    Attributes:
        batch: what they are.
        latents: x_0, clean, (m, C, *spatial).
    """

    batch: Batch
    latents: Float[Tensor, "m c *spatial"]


def denoising_error(backbone: Backbone, z: Tensor, condition: Tensor, t: Time, noise: Tensor) -> Tensor:
    """ε_θ(α_t z + σ_t ε, t) − ε for each image, (B, C, *spatial), without a graph."""
    alpha, sigma = backbone.schedule.level(t)
    with torch.no_grad():
        found = vram.in_parts(lambda x, of: backbone.predict(x, t, of).eps, CHUNK, alpha * z + sigma * noise, condition)
        return torch.cat(found) - noise


Weighted = list[tuple[Energy, float]]


def weighted(energies: Sequence[Energy], weight: float = 1.0) -> Weighted:
    return [(energy, weight) for energy in energies]


class Seen:
    """What the energies see: the finished images of a set, if there are any, and after them those that move.

    Args:
        backbone, batch, finished: as for `refine`.
        energies: all energies that will be asked for.

    Raises:
        DapError: as for `refine`.
    """

    def __init__(self, backbone: Backbone, batch: Batch, finished: Finished | None, energies: Sequence[Energy]) -> None:
        self.backbone, self.finished = backbone, finished
        self.layers = list(dict.fromkeys(backbone.check_layer(energy.layer or "") for energy in energies))
        if odd := [type(energy).__name__ for energy in energies if energy.grad_through != "features"]:
            raise DapError(f"A refinement looks at features alone, so the energy {odd[0]} cannot lead it.")
        labels = sorted(set(batch.labels))
        check_classes(energies, batch.class_names, labels)
        for energy in energies:
            energy.begin(labels)
        self.condition = backbone.condition([batch.class_names[label] for label in batch.labels])
        members = [part.batch for part in [finished] if part is not None] + [batch]
        self.labels = torch.tensor([label for part in members for label in part.labels])
        self.slots = torch.tensor([slot for part in members for slot in part.slots])
        self._still: dict[Time, dict[str, Tensor]] = {}
        self._noise: Tensor | None = None
        self._graphs: dict[tuple[str, ...], int] = {}
        """How many graphs of a chunk may be held beside the one in use, by the layers whose features they give."""

    def total(
        self, energies: Weighted, x: Tensor, t: Time, features: dict[str, Tensor], noise: Tensor, z: Tensor
    ) -> Tensor:
        """The weighted sum of energies of the whole set, a number."""
        alpha, sigma = self.backbone.schedule.level(t)
        if self.finished is not None:
            x0, other, found = self._finished(t)
            x, z, noise = torch.cat([alpha * x0 + sigma * other, x]), torch.cat([x0, z]), torch.cat([other, noise])
            features = {layer: torch.cat([found[layer], own]) for layer, own in features.items()}
        total = x.new_zeros(())
        for energy, weight in energies:
            of = features[self.backbone.check_layer(energy.layer or "")]
            state = State(x, x.detach(), z, noise, of, t, 0, 1, alpha, sigma, self.labels, self.slots)
            total = total + weight * energies_of(energy, state).sum()
        return total

    def value(self, energies: Weighted, z: Tensor, t: Time, noise: Tensor) -> float:
        """The weighted sum of energies of the whole set, without a graph."""
        alpha, sigma = self.backbone.schedule.level(t)
        x = alpha * z + sigma * noise
        with torch.no_grad():
            return self.total(energies, x, t, self.features(x, t, self.condition), noise, z).item()

    def features(self, x: Tensor, t: Time, condition: Tensor) -> dict[str, Tensor]:
        """The features of all layers, without a graph."""
        with torch.no_grad():
            found = vram.in_parts(
                lambda part, of: self.backbone.features(part, t, of, self.layers), CHUNK, x, condition
            )
            return {layer: torch.cat([part[layer] for part in found]) for layer in self.layers}

    def _finished(self, t: Time) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The finished latents, their noise and their features. Like real images they have one noise for all steps."""
        assert self.finished is not None
        batch, device = self.finished.batch, self.backbone.device
        z = self.finished.latents.to(device).float()
        if self._noise is None:
            self._noise = normal(z.shape[1:], generators([seed_of(seed, "finished") for seed in batch.seeds]), z)
        if t in self._still:
            return z, self._noise, {layer: found.to(device) for layer, found in self._still[t].items()}
        alpha, sigma = self.backbone.schedule.level(t)
        condition = self.backbone.condition([batch.class_names[label] for label in batch.labels])
        found = self.features(alpha * z + sigma * self._noise, t, condition)
        held = sum(value.nbytes for of in self._still.values() for value in of.values())
        if held + sum(value.nbytes for value in found.values()) <= HELD_BYTES:
            self._still[t] = {layer: value.cpu() for layer, value in found.items()}
        return z, self._noise, found

    def gradient(self, z: Tensor, t: Time, noise: Tensor, energies: Weighted) -> Tensor:
        """The gradient of energies in z. Beside `GRAPH_BYTES` it holds the graph of no more than `CHUNK` images, and is exact
        for any number.

        An energy depends on an image through its features alone. So the features of all images are computed first, the energy
        is differentiated in them, and then each chunk carries its part back to z: through its graph if that was held, else
        through that of another pass. Both ways give the same bits.
        """
        alpha, sigma = self.backbone.schedule.level(t)
        layers = list(dict.fromkeys(self.backbone.check_layer(energy.layer or "") for energy, _ in energies))
        x = alpha * z + sigma * noise
        parts = list(zip(x.detach().split(CHUNK), self.condition.split(CHUNK), strict=True))
        if len(parts) == 1:
            with torch.enable_grad():
                leaf = x.requires_grad_(True)
                features = self.backbone.features(leaf, t, self.condition, layers)
                return alpha * torch.autograd.grad(self.total(energies, leaf, t, features, noise, z), leaf)[0]
        passed = [self._passed(part, t, of, layers, number) for number, (part, of) in enumerate(parts)]
        with torch.enable_grad():
            features = {
                layer: torch.cat([found[layer].detach() for _, found in passed]).requires_grad_(True)
                for layer in layers
            }
            total = self.total(energies, x, t, features, noise, z)
            wanted = dict(zip(features, torch.autograd.grad(total, list(features.values())), strict=True))
            pulls = {layer: pull.split(CHUNK) for layer, pull in wanted.items()}
            back: list[Tensor] = []
            for number, (part, of) in enumerate(parts):
                leaf, found = passed[number]
                passed[number] = leaf, {}  # so the graph is free when this turn ends
                if not leaf.requires_grad:
                    leaf = part.clone().requires_grad_(True)
                    found = self.backbone.features(leaf, t, of, layers)
                back.append(
                    torch.autograd.grad(list(found.values()), leaf, [pulls[layer][number] for layer in found])[0]
                )
        return alpha * torch.cat(back)

    def _passed(
        self, part: Tensor, t: Time, condition: Tensor, layers: Sequence[str], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The features of a chunk and the x_t that they were computed from. Both have a graph if it may be held."""
        if number and number > self._graphs.get(tuple(layers), 0):
            with torch.no_grad():
                return part, self.backbone.features(part, t, condition, layers)
        leaf = part.clone().requires_grad_(True)
        with torch.enable_grad():
            if tuple(layers) in self._graphs:
                return leaf, self.backbone.features(leaf, t, condition, layers)
            weights = self.backbone.state().values()
            size, found = graph_bytes(lambda: self.backbone.features(leaf, t, condition, layers), weights)
        device = self.backbone.device
        room = min(GRAPH_BYTES, vram.free(device) // 2) if device.type == "cuda" else GRAPH_BYTES
        self._graphs[tuple(layers)] = room // max(1, size)
        return leaf, found


def graph_bytes(compute: Callable[[], Any], shared: Iterable[Tensor]) -> tuple[int, Any]:
    """How many bytes the graph of what `compute` gives holds, and what it gives. What is `shared`, such as weights, counts for
    nothing."""
    known = {tensor.untyped_storage().data_ptr() for tensor in shared}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = compute()
    return sum(held.values()), found
