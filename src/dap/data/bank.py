"""Features of real images, as the guidance needs them: φ(x_t^{(j)}, t) for N images of a class at a noise level.

The paper leaves open how the real images are chosen, noised, pooled and reused. `BankOptions` has a field for each of these
choices, with a default and its reason. All of them go into the manifest and into the key of the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Time
from dap.base.cache import limit
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import generators, normal, seed_of
from dap.base.store import Store
from dap.choices import BankOptions
from dap.data.clusters import balanced_kmeans
from dap.data.pooling import pooled, spread
from dap.data.real.stored.budget import memory_budget

log = logging.getLogger("dap")

CHUNK = 64
"""How many real images go through the network at once."""


@runtime_checkable
class RealImages(Protocol):
    """What the bank needs of a source of real images; `dap.data.real.sources.Source` has it."""

    class_names: tuple[str, ...]

    def good(self, label: int, n: int, seed: int, least: int | None = None) -> list[int]:
        """The indices of a seeded draw of n images of a class, all of which can be decoded.

        If the class has fewer than n such images, all of them are given, as long as there are `least`.
        """
        ...

    def images(self, label: int, indices: Sequence[int]) -> Tensor:
        """The images (n, 3, size, size) in [0, 1] of some indices."""
        ...

    def count(self, label: int) -> int:
        """How many images a class has."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the images change."""
        ...


class FeatureBank:
    """The features of real images, for each class and step, computed when they are asked for.

    Args:
        source: the real images, at the backbone's size.
        backbone: the network whose features are taken.
        options: see `BankOptions`.
        ipc: images per class, which is the number of shares under targets=slot.
        run_seed: the seed of the draw where `options.seed` is None.
        keep: whether the features of a class stay in memory while the class is sampled, as far as half of the free memory goes.
            This pays if a class has several batches.
        cache: a folder in which runs share features, or None: nothing is written to disk. Entries are keyed by everything they
            depend on. Several processes may use one folder at a time; what two of them want is computed by one.
        skip: how many real images of a class's draw are left out. A bank with `skip=n` so has other images than one with
            `reals=n` and the same seed.
        beside: another bank of the same images, such as one for another layer, whose latents this bank takes over.
        steps: at how many steps the features of a class are asked for. It decides with the number of classes whether the cache
            has room for the features; without room they are computed anew, and the latents alone are kept.
        memory: bytes that real images and their features may take on a CPU; None: what is free, less a reserve.

    Raises:
        DapError: the layer does not exist, two options contradict each other, or the images have another size than those of
            the backbone.
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
        skip: int = 0,
        beside: FeatureBank | None = None,
        steps: int = 1,
        memory: int | None = None,
    ) -> None:
        options = options or BankOptions()
        card = backbone.card
        card.check_images(getattr(source, "size", card.size), getattr(source, "frames", card.frames))
        if beside is None and getattr(getattr(backbone, "denoiser", None), "dtype", None) == torch.float16:
            log.warning(
                "float16 rounds small gradients to 0, so pushes towards real images are less exact. bfloat16 does not."
            )
        self.skip, self.beside = skip, beside
        self.source, self.backbone, self.options, self.ipc, self.keep = source, backbone, options, ipc, keep
        self.layer = backbone.check_layer(options.layer or backbone.card.layer)
        self.branch: Literal["cond", "null"] = options.branch
        self.matched: Literal["own", "common"] | None = options.noise if options.noise in ("own", "common") else None
        self.seed = run_seed if options.seed is None else options.seed
        if options.targets == "slot" and options.refresh == "step":
            raise DapError("targets: slot needs refresh: fixed, for a share is a fixed set of real images.")
        self._key = None if cache is None else self._key_of_all()
        self._cache = None if cache is None else Path(cache)
        self.steps, self.memory = steps, memory
        self._fits: bool | None = None if cache is not None else False
        """Whether the cache has room for the features of all classes and steps. None: the first features will say it."""
        self._room = 0
        self._folder = Path(cache or "") / "real features" / (self._key or "")
        self._stores: dict[int, Store] = {}
        self._ready: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._features: dict[tuple[int, Time], Tensor] = {}
        self._spreads: dict[tuple[int, Time], tuple[Tensor, Tensor]] = {}

    def fingerprint(self) -> str:
        """A hash of everything that the features depend on, and no more."""
        return self._key_of_all()

    def begin(self, labels: Sequence[int]) -> None:
        """Draw and encode the real images of these labels. What was kept of other labels is dropped."""
        self._room = _room(self.backbone.device, self.memory) if self.keep else 0
        self._ready = {k: v for k, v in self._ready.items() if k in labels}
        self._features = {k: v for k, v in self._features.items() if k[0] in labels}
        self._spreads = {k: v for k, v in self._spreads.items() if k[0] in labels}
        self._stores = {k: v for k, v in self._stores.items() if k in labels}
        for label in labels:
            if not 0 <= label < len(self.source.class_names):
                raise DapError(
                    f"The real images have {counted(len(self.source.class_names), 'class')}, and no label {label}."
                )
            if label not in self._ready and self.beside is not None:
                self.beside.begin(labels)
                self._ready[label] = self.beside._begun(label)
            elif label not in self._ready:
                n = min(self.options.reals, self.source.count(label) - self.skip)
                if self.options.targets == "slot":
                    self._ready[label] = self._split(label, n)
                else:
                    self._ready[label] = self._encode(label, n, "reals", least=1), None

    def at(self, label: int, t: Time) -> Float[Tensor, "n d"]:
        """φ of a label's N real images at timestep t after `transform`, (N, D) float32, on the backbone's device.

        `begin` must have been called with the label. Under noise=own and noise=common all images have the one `noise` of the
        label and the time.
        """
        self._begun(label)
        t = 0 if self.options.noise == "none" else t
        if (label, t) in self._features:
            return self._features[label, t].float()
        if self._fits is False:
            features = self._tap(label, t)
        else:
            features = self._cached(label, "features", {"t": t}, lambda: self._tap(label, t))
            if self._fits is None:
                self._fits = self._weighed(features)
        if self.options.normalise == "channel":
            self._spreads[label, t] = spread(features.float())
            features = self._scaled(features.float(), label, t).flatten(1)
        if self.keep and sum(one.nbytes for one in self._features.values()) + features.nbytes <= self._room:
            self._features[label, t] = features
        return features.float()

    def _begun(self, label: int) -> tuple[Tensor, Tensor | None]:
        """The latents of a label, and the shares of the slots in them."""
        if label not in self._ready:
            raise DapError(f"The bank has not drawn real images of the label {label}; call begin([{label}]) first.")
        return self._ready[label]

    def _weighed(self, features: Tensor) -> bool:
        """Whether features of this size, of all classes and steps, take no more than half of the cache. Says so if they do."""
        classes, most = len(self.source.class_names), limit()
        total = features.nbytes * self.steps * classes
        if total <= most // 2:
            return True
        log.info(
            "Features of real images would take %.3g GiB of the cache (%.3g MiB for each of %d classes and %d steps), which may "
            "have %.3g GiB. So each class's features are computed again in every run, and the cache keeps the encoded images "
            "alone. A smaller --pool, fewer --reals, or a larger DAP_CACHE_GIB lets them be kept.",
            total / 2**30, features.nbytes / 2**20, classes, self.steps, most / 2**30,
        )  # fmt: skip
        return False

    def latents(self, label: int) -> Float[Tensor, "n c *spatial"]:
        """The clean latents of a label's N real images. `begin` must have been called with the label."""
        return self._begun(label)[0]

    def clean(self, label: int, t: Time) -> Float[Tensor, "n c *spatial"]:
        """The clean latents of a label's N real images at timestep t. They differ from `latents` under refresh=step alone."""
        latents = self._begun(label)[0]
        return (
            self._encode(label, len(latents), f"reals at {t}", least=1) if self.options.refresh == "step" else latents
        )

    def noise(self, label: int, t: Time) -> Float[Tensor, "c *spatial"]:
        """The one noise of a label at timestep t, which samples and real images share under noise=common."""
        clean = self._begun(label)[0]
        return normal(clean.shape[1:], generators([self._seed_of(label, "noise", t, 0)]), clean)[0]

    def tap(self, x: Float[Tensor, "b c *spatial"], label: int, t: Time) -> Float[Tensor, "b tokens width"]:
        """φ of x_t as images of a label, before `transform`. It is differentiable in x if x requires grad."""
        condition = self._condition(label, len(x))
        if x.requires_grad:
            return self.backbone.features(x, t, condition, [self.layer])[self.layer]
        return torch.cat(
            vram.in_parts(lambda part, of: self.backbone.tap(part, t, of, self.layer), CHUNK, x, condition)
        )

    def shares(self, label: int) -> Float[Tensor, "slots n"] | None:
        """Under targets=slot the weights of the N real images for each slot; each row sums to 1. Otherwise None."""
        return self._begun(label)[1]

    def transform(self, features: Float[Tensor, "b tokens width"], label: int, t: Time) -> Float[Tensor, "b d"]:
        """Pool and normalise features of a layer as the options say; float32. Under normalise=channel the spreads are those of
        the features of `at`."""
        t = 0 if self.options.noise == "none" else t
        x = self._pooled(features)
        return self._scaled(x, label, t).flatten(1) if self.options.normalise == "channel" else self._unit(x.flatten(1))

    def _pooled(self, features: Tensor) -> Float[Tensor, "b cells width"]:
        x, pool = features.float(), self.options.pool
        side = math.isqrt(x.shape[1])
        if pool not in ("none", "mean") and side**2 != x.shape[1]:
            raise DapError(
                f"pool: {pool} needs tokens in a square; layer {self.layer} of {self.backbone.card.name} has {x.shape[1]} "
                "tokens. Take pool: mean or none."
            )
        return pooled(x, pool)

    def _unit(self, x: Tensor) -> Tensor:
        return x / (x.square().sum(1, keepdim=True) + 1e-12).sqrt() if self.options.normalise == "l2" else x

    def _scaled(self, x: Tensor, label: int, t: Time) -> Tensor:
        if (label, t) not in self._spreads:
            self.at(label, t)
        mean, std = self._spreads[label, t]
        return (x - mean) / std

    def _split(self, label: int, n: int) -> tuple[Tensor, Tensor]:
        """Latents (N, C, *spatial) of real images of a label, a share for each slot, and the weights of the slots over them."""
        pool = min(self.source.count(label), max(n, self.options.clustered, self.ipc))
        if pool < self.ipc:
            name = self.source.class_names[label]
            raise DapError(
                f"Class {name!r} has {counted(pool, 'real image')}, too few for {self.ipc} targets; use targets: class."
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
            drawn = self.source.good(label, self.skip + n, seed, self.skip + least)[self.skip :]
            images = self.source.images(label, drawn)
            return torch.cat(vram.in_parts(self.backbone.encode, CHUNK, images.to(self.backbone.device)))

        return self._cached(label, "latents", {"seed": seed, "n": n}, compute)

    def _tap(self, label: int, t: Time) -> Tensor:
        """The features of a label's real images at timestep t, after `transform`; in half precision where that loses nothing."""
        options, latents = self.options, self.clean(label, t)
        x = latents
        if options.noise != "none":
            alpha, sigma = self.backbone.schedule.level(t)
            x = alpha * latents + sigma * self._noises(label, t, latents)
        features = self.tap(x, label, t)
        if options.normalise == "channel":  # the spreads are taken when the features are read
            return self._pooled(features)
        plain = options.pool == "none" and options.normalise == "none"
        return self._unit(self._pooled(features).flatten(1)).to(features.dtype if plain else torch.float32)

    def _noises(self, label: int, t: Time, latents: Tensor) -> Tensor:
        """The noises of a label's real images at timestep t, as the options say."""
        options = self.options
        if self.matched is not None:
            return self.noise(label, t).expand_as(latents)
        moment = (t,) if options.noise == "fresh" or options.refresh == "step" else ()
        owners = [0] * len(latents) if options.noise == "shared" else range(len(latents))
        gens = generators([self._seed_of(label, "noise", *moment, owner) for owner in owners])
        return normal(latents.shape[1:], gens, latents)

    def _condition(self, label: int, n: int) -> Tensor:
        if self.branch == "null":
            return self.backbone.null(n)
        return self.backbone.condition([self.source.class_names[label]] * n)

    def _seed_of(self, label: int, *purpose: object) -> int:
        return seed_of(self.seed, self.source.class_names[label], *purpose)

    def _key_of_all(self) -> str:
        """A hash of everything that the features of all classes depend on."""
        parts = {
            "options": self.options.model_dump(exclude={"seed"}) | {"layer": self.layer},
            "seed": self.seed,
            "ipc": self.ipc if self.options.targets == "slot" else None,
            "prompts": [self.backbone.card.template, self.backbone.card.negative_prompt],
            "classes": [list(self.source.class_names), list(self.backbone.class_names)],
            "source": self.source.fingerprint(),
            "weights": self.backbone.weights_hash(),
        } | ({"skip": self.skip} if self.skip else {})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _cached(self, label: int, name: str, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, from the class's part of the cache if there is a cache."""
        if self._key is None:
            return (
                compute().contiguous()
            )  # as a store keeps it: a CPU's kernels round by the order of the axes in memory
        if label not in self._stores:
            # The store holds nothing in memory: whether features stay there is the choice of `keep`.
            folder = self._folder / f"{label:05d}"
            self._stores[label] = Store(folder, {"bank": self._key}, hold=0, cache=self._cache)
        key = {"class": self.source.class_names[label], **key}
        found = self._stores[label].get(name, key, lambda: {"x": compute()})["x"]
        # A file is mapped into memory at an address of its own, and a CPU's kernels round by address. So a copy is taken, and
        # features from a file give the same bytes as features that were computed just now.
        return found.to(self.backbone.device, copy=True)


def _room(device: torch.device, memory: int | None = None) -> int:
    """Bytes that features may take on a device: half of what is free there, or of the budget of memory on a CPU."""
    if device.type == "cuda":
        return vram.free(device) // 2
    return (memory_budget() if memory is None else memory) // 2
