"""Features of real images, as the guidance needs them: φ(x_t^{(j)}, t) for N images of a class at a noise level.

The paper leaves open how the real images are chosen, noised, pooled and reused. Each of these is a field of `BankOptions`
with a default and its reason; all of them go into the manifest and into the key of the disk cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Time
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.choices import BankOptions
from dap.data.clusters import balanced_kmeans

CHUNK = 64
"""Real images that go through the network together."""


@runtime_checkable
class RealImages(Protocol):
    """What the bank asks of real data; `dap.data.real.sources.Source` is one."""

    class_names: tuple[str, ...]

    def good(self, label: int, n: int, seed: int, least: int | None = None) -> list[int]:
        """A seeded draw of n images of a class that can be decoded; of `least` or more where it has no n of them."""
        ...

    def images(self, label: int, indices: Sequence[int]) -> Tensor:
        """(n, 3, size, size) in [0, 1]."""
        ...

    def count(self, label: int) -> int:
        """How many images the class has."""
        ...

    def fingerprint(self) -> str:
        """A hash of the listing."""
        ...


class FeatureBank:
    """Real features per class and step, computed on demand.

    Args:
        source: the real images, at the backbone's size.
        backbone: whose features.
        options: see `BankOptions`.
        ipc: images per class, the number of shares under targets=slot.
        run_seed: used where `options.seed` is None.
        keep: hold a class's features in memory while the class is being sampled; worth it when it has several batches.
        cache: None, or a folder that keeps them between runs; entries are keyed by everything they depend on.

    Raises:
        DapError: the layer does not exist, or options that contradict each other.
    """

    def __init__(
        self,
        source: RealImages,
        backbone: Backbone,
        options: BankOptions | None = None,
        *,
        ipc: int,
        run_seed: int = 0,
        keep: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        options = options or BankOptions()
        self.source, self.backbone, self.options, self.ipc, self.keep = source, backbone, options, ipc, keep
        self.layer = backbone.check_layer(options.layer or backbone.card.layer)
        self.branch: Literal["cond", "null"] = options.branch
        self.seed = run_seed if options.seed is None else options.seed
        if options.targets == "slot" and options.refresh == "step":
            raise DapError("targets: slot needs refresh: fixed, for a share is a fixed set of real images.")
        self._cache = None if cache is None else Path(cache) / self._key()
        self._ready: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._features: dict[tuple[int, Time], Tensor] = {}

    def begin(self, labels: Sequence[int]) -> None:
        """Draw and encode the labels' real images; other labels are let go."""
        self._ready = {k: v for k, v in self._ready.items() if k in labels}
        self._features = {k: v for k, v in self._features.items() if k[0] in labels}
        for label in labels:
            if label not in self._ready:
                self._ready[label] = self._draw(label)

    def at(self, label: int, t: Time) -> Float[Tensor, "n d"]:
        """φ of the label's real images at timestep t, (N, D) float32, after `transform`."""
        t = 0 if self.options.noise == "none" else t
        if (label, t) in self._features:
            return self._features[label, t].float()
        name = f"{label:05d}/{t:04d}" if isinstance(t, int) else f"{label:05d}/{t:010.5f}"
        features = self._cached(name, lambda: self._kept(self._tap(label, t)))
        if self.keep:
            self._features[label, t] = features
        return features.float()

    def shares(self, label: int) -> Float[Tensor, "slots n"] | None:
        """Under targets=slot, each slot's weights over the N reals (rows sum to 1); else None."""
        return self._ready[label][1]

    def transform(self, features: Float[Tensor, "b tokens width"]) -> Float[Tensor, "b d"]:
        """Pool and normalise as the options say; float32."""
        x = features.float().mean(1) if self.options.pool == "mean" else features.float().flatten(1)
        return x / (x.square().sum(1, keepdim=True) + 1e-12).sqrt() if self.options.normalise == "l2" else x

    def _kept(self, features: Tensor) -> Tensor:
        """What is kept of a layer's output: after `transform`, in half precision where that loses nothing."""
        plain = self.options.pool == "none" and self.options.normalise == "none"
        return self.transform(features).to(features.dtype if plain else torch.float32)

    def _draw(self, label: int) -> tuple[Tensor, Tensor | None]:
        """Latents (N, C, *spatial) of the label's reals, and the slots' weights over them."""
        n = min(self.options.reals, self.source.count(label))
        if self.options.targets == "class":
            return self._encode(label, n, "reals", least=1), None
        pool = min(self.source.count(label), max(n, self.options.clustered, self.ipc))
        if pool < self.ipc:
            name = self.source.class_names[label]
            raise DapError(
                f"Class {name!r} has {pool} real images, too few for {self.ipc} targets; use targets: class."
            )
        latents = self._encode(label, pool, "reals", least=self.ipc)
        cluster = balanced_kmeans(latents.flatten(1), self.ipc, self._seed_of(label, "kmeans"))
        quota = max(1, n // self.ipc)
        chosen = torch.cat([(cluster == slot).nonzero()[:quota, 0] for slot in range(self.ipc)])
        weights = (cluster[chosen][None] == torch.arange(self.ipc)[:, None]).float()
        return latents[chosen.to(latents.device)], weights / weights.sum(1, keepdim=True)

    def _encode(self, label: int, n: int, purpose: str, *, least: int) -> Tensor:
        seed = self._seed_of(label, purpose)

        def compute() -> Tensor:
            images = self.source.images(label, self.source.good(label, n, seed, least))
            parts = images.to(self.backbone.device).split(CHUNK)
            return torch.cat([self.backbone.encode(part) for part in parts])

        return self._cached(f"{label:05d}/latents-{seed:016x}-{n}", compute)

    def _tap(self, label: int, t: Time) -> Tensor:
        options, latents = self.options, self._ready[label][0]
        if options.refresh == "step":
            latents = self._encode(label, len(latents), f"reals at {t}", least=1)
        n = len(latents)
        condition = (
            self.backbone.null(n)
            if self.branch == "null"
            else self.backbone.condition([self.source.class_names[label]] * n)
        )
        if options.noise == "none":
            return self._features_of(latents, 0, condition)
        moment = (t,) if options.noise == "fresh" or options.refresh == "step" else ()
        owners = [0] * n if options.noise == "shared" else list(range(n))
        gens = generators([self._seed_of(label, "noise", *moment, owner) for owner in owners])
        eps = normal(latents.shape[1:], gens, latents)
        alpha, sigma = self.backbone.schedule.level(t)
        return self._features_of(alpha * latents + sigma * eps, t, condition)

    def _features_of(self, x: Tensor, t: Time, condition: Tensor) -> Tensor:
        parts = zip(x.split(CHUNK), condition.split(CHUNK), strict=True)
        return torch.cat([self.backbone.tap(part, t, of, self.layer) for part, of in parts])

    def _seed_of(self, label: int, *purpose: object) -> int:
        return seed_of(self.seed, self.source.class_names[label], *purpose)

    def _key(self) -> str:
        parts = {
            "options": self.options.model_dump(exclude={"seed"}) | {"layer": self.layer},
            "seed": self.seed,
            "ipc": self.ipc if self.options.targets == "slot" else None,
            "prompts": [self.backbone.card.template, self.backbone.card.negative_prompt],
            "classes": [list(self.source.class_names), list(self.backbone.class_names)],
            "source": self.source.fingerprint(),
            "weights": self.backbone.weights_hash(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _cached(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if self._cache is None:
            return compute()
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        path = self._cache / f"{name}.safetensors"
        try:
            return load_file(path, device=str(self.backbone.device))["x"]
        except (FileNotFoundError, SafetensorError):  # absent, or cut short by a crash of the machine
            value = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        save_file({"x": value.contiguous()}, aside)
        os.replace(aside, path)
        return value
