"""A backbone from any torch denoiser: labels, the tap at a layer, prediction and features in one pass, the autoencoder."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap import imagenet
from dap.backbones.base import Backbone, Card, Prediction
from dap.backbones.honoured import deciding
from dap.backbones.outputs import detached, tokens
from dap.backbones.schedules import Predicts, Schedule, Time, predicts_of
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.guidance.base import GradThrough

log = logging.getLogger(__name__)

PIXELS = 64 * 256**2
"""The largest number of pixels that go through the autoencoder at once. A larger image goes through alone."""


class _Left(Exception):
    """Leaves the network, so that the layers behind the last tapped one are not run."""


class ModuleBackbone(Backbone):
    """A frozen torch denoiser as a backbone; docs/extending.md has a whole example.

    A subclass calls this `__init__` and overrides only what is different from the following defaults:

    * `run` calls `denoiser(x, t, condition)` with t (B,) and takes the output as it is;
    * `read` understands the output as `predicts` says, followed by a variance under `learned_variance`;
    * `module` takes a layer's name as the path of a submodule, such as "blocks.3";
    * `condition` gives labels, positions in `class_names`, and `null` the label after the last;
    * `encode` and `decode` use `vae`. Without a `vae` latents are the pixels themselves, moved from [0, 1] to [−1, 1].

    Args:
        denoiser: the network. It is put into evaluation mode, and its parameters are frozen.
        vae: `AutoencoderKL` of diffusers, or None for a model in pixel space.
        card: the facts that belong to the weights.
        schedule: the noise schedule of the training.
        latent_shape: the shape of a latent, (C, *spatial).
        layers: the names of the layers that can be tapped.
        class_names: the names of the classes in label order. Empty for a backbone that takes prompts.
        predicts: "eps", "velocity" or "x0", or diffusers' word for one of them; see `predicts_of` and `Schedule.read`.
        learned_variance: whether the output holds the raw variance behind the prediction, along the channels.
        others: more modules that decide a prediction, by name, such as text encoders.

    Raises:
        DapError: `predicts` is another word.
    """

    def __init__(
        self,
        denoiser: Any,
        vae: Any = None,
        *,
        card: Card,
        schedule: Schedule,
        latent_shape: Sequence[int],
        layers: Sequence[str],
        class_names: Sequence[str] = (),
        predicts: str = "eps",
        learned_variance: bool = False,
        **others: nn.Module,
    ) -> None:
        self._parts: dict[str, nn.Module] = {"denoiser": denoiser, **({} if vae is None else {"vae": vae}), **others}
        for part in self._parts.values():
            # Training mode would drop labels or units at random.
            part.eval().requires_grad_(False)
        self.denoiser: Any = denoiser
        self.vae: Any = vae
        self.device = next(denoiser.parameters()).device
        self.card, self.schedule, self.latent_shape = card, schedule, tuple(latent_shape)
        self.layers, self.class_names = tuple(layers), tuple(class_names)
        self.predicts: Predicts = predicts_of(predicts)
        self.learned_variance = learned_variance
        self._labels = imagenet.lookup(self.class_names)
        self.offloaded = ""
        """How parts leave the device while others work, "model" or "sequential"; "" where all stay."""
        self._hash: str | None = None
        self._float32: Any = None
        """The autoencoder in float32, once it has overflowed in float16."""

    def condition(self, class_names: Sequence[str]) -> Tensor:
        """Labels (n,) of classes by name; see `dap.imagenet.find` for how names are compared.

        Raises:
            DapError: a name is unknown, or several labels have it.
        """
        if self.unconditional:
            return self.null(len(class_names))
        labels = {name: imagenet.find(name, self._labels) for name in class_names}
        unknown = [name for name, found in labels.items() if not found]
        if unknown:
            known = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
            data = ", ".join(list(labels)[:10]) + (", …" if len(labels) > 10 else "")
            raise DapError(
                f"{self.card.name} was not trained on {', '.join(map(repr, unknown[:5]))}. The data's classes: {data}. "
                f"The backbone's {len(self.class_names)}: {known}. Rename the class folders to the backbone's names, "
                "choose classes with --classes, or make a backbone for them with dap train-backbone --data FOLDER --out DIR."
            )
        for name, found in labels.items():
            if len(found) > 1:
                raise DapError(
                    f"{name!r} is the name of several labels of {self.card.name}: {found}. "
                    "Tell them apart in classes.json beside the weights, or name ImageNet's folders by WordNet id."
                )
        owners: dict[int, str] = {}
        for name, (label, *_) in labels.items():
            if owners.setdefault(label, name) != name:
                raise DapError(
                    f"The classes {owners[label]!r} and {name!r} are the same label {label} of {self.card.name} "
                    f"({self.class_names[label]!r}), so their images could not differ. Leave one of them out with --classes."
                )
        return torch.tensor([labels[name][0] for name in class_names], device=self.device)

    def null(self, n: int) -> Tensor:
        return torch.full((n,), len(self.class_names), device=self.device)

    def module(self, layer: str) -> nn.Module:
        """The module whose output gives the features of a layer."""
        return self.denoiser.get_submodule(layer)

    def tokens(self, output: Any) -> Tensor:
        """The features (B, tokens, width) in the output of a layer. Tokens that are none of the image are left out."""
        return tokens(output)

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        """The denoiser's raw output in float32.

        Args:
            x: x_t, (B, C, *spatial).
            t: one time for all images, or a tensor (B,).
            condition: (B, …).
        """
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        return self.denoiser(x.to(next(self.denoiser.parameters()).dtype), times, condition).float()

    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        """The prediction that the raw output of `run` stands for, without features."""
        output, variance = output.chunk(2, dim=1) if self.learned_variance else (output, None)
        eps, x0 = self.schedule.read(self.predicts, x, t, output)
        return Prediction(eps, variance, None, x0)

    def predict(
        self,
        x: Tensor,
        t: Time,
        condition: Tensor,
        *,
        layer: str | None = None,
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            kept.append(self.tokens(output))
            if grad_through == "denoiser" or not torch.is_grad_enabled():
                return output
            # The layers behind this one need no graph. Detaching the output is not enough, because the skip connections of a
            # U-Net carry a graph past this layer. The enclosing `set_grad_enabled` turns gradients on again.
            torch.set_grad_enabled(False)
            return detached(output)

        graph = grad_through == "denoiser" or (grad_through == "features" and layer is not None)
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()), self._hook(layer, keep):
            prediction = self.read(x, t, self.run(x, t, condition))
        return Prediction(prediction.eps, prediction.variance, kept[0] if kept else None, prediction.x0)

    @torch.no_grad()
    def tap(self, x: Tensor, t: Time, condition: Tensor, layer: str) -> Tensor:
        return self.features(x, t, condition, [layer])[layer]

    def features(self, x: Tensor, t: Time, condition: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(layer: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[layer] = self.tokens(output)
                if len(found) == len(set(layers)):
                    raise _Left

            return hook

        with contextlib.ExitStack() as stack, contextlib.suppress(_Left):
            for layer in dict.fromkeys(layers):
                stack.enter_context(self._hook(layer, keep(layer)))
            self.run(x, t, condition)
        assert found.keys() == set(layers), "a tapped layer was not reached"
        return found

    @contextmanager
    def _hook(self, layer: str | None, hook: Any) -> Iterator[None]:
        if layer is None:
            yield
            return
        handle = self.module(self.check_layer(layer)).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        x = images * 2 - 1
        if self.vae is None:
            return x.to(self.device)
        x = x.to(self.device, self.vae.dtype)
        means = torch.cat(vram.in_parts(lambda part: self._wide(part, _encoded), self._together, x))
        return (means - self._shift) * self._scale

    @torch.no_grad()
    def drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Latents drawn from the autoencoder's distribution of each image, of which `encode` gives the means. A model in pixel
        space and diffusers' small autoencoder have no distribution: they give what `encode` gives.

        Args:
            images: images (n, 3, h, w) in [0, 1].
            generator: draws on the CPU.
        """
        if self.vae is None:
            return self.encode(images)
        x = (images * 2 - 1).to(self.device, self.vae.dtype)
        mean, std = self._wide(x, lambda vae, part: torch.stack(posterior(vae, part)))
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return (mean + std * noise - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_with_graph(latents).clamp(0, 1)

    def decode_with_graph(self, latents: Tensor) -> Tensor:
        if self.vae is None:
            return latents / 2 + 0.5
        z = (latents.to(self.device) / self._scale + self._shift).to(self.vae.dtype)
        images = torch.cat(vram.in_parts(lambda part: self._wide(part, _decoded), self._together, z))
        return images / 2 + 0.5

    def _wide(self, x: Tensor, through: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """What comes through the autoencoder. A batch that overflows in float16 is computed again in float32.

        Every batch is tried in float16 first. An image must not depend on what was decoded before it, or a resumed set
        would have other bytes.
        """
        vae = self.vae
        out = through(vae, x)
        if vae.dtype != torch.float16 or torch.isfinite(out).all():
            return out
        if self._float32 is None:
            log.warning(
                "The autoencoder of %s overflows in float16; what overflows is computed in float32. --dtype bfloat16 is smaller.",
                self.card.name,
            )
            self._float32 = copy.deepcopy(vae).float()
        return through(self._float32, x.float())

    @property
    def _together(self) -> int:
        """How many images go through the autoencoder at once. Its activations grow with the pixels."""
        return max(1, PIXELS // (self.card.size**2 * (self.card.frames or 1)))

    @property
    def _shift(self) -> float | Tensor:
        """What is taken from the autoencoder's latents, for all channels or for each of them."""
        return self._by_channel("latents_mean", self.vae.config.get("shift_factor") or 0.0)

    @property
    def _scale(self) -> float | Tensor:
        """What the shifted latents are multiplied by."""
        return self.vae.config.scaling_factor / self._by_channel("latents_std", 1.0)

    def _by_channel(self, field: str, otherwise: float) -> float | Tensor:
        said = self.vae.config.get(field)
        return otherwise if said is None else torch.tensor(said, device=self.device).view(-1, 1, 1)

    def settings(self) -> dict[str, Any]:
        said = {**super().settings(), "predicts": self.predicts, "configurations": self._configurations()}
        if self.vae is None:
            return said
        return {
            **said,
            "latents": [self.vae.config.get("scaling_factor", 1.0), self.vae.config.get("shift_factor") or 0.0],
        }

    @contextmanager
    def widened(self) -> Iterator[bool]:
        tensors = (one for part in self._parts.values() for one in (*part.parameters(), *part.buffers()))
        narrow = [one for one in tensors if one.dtype == torch.float16]
        for one in narrow:
            one.data = one.data.float()
        try:
            yield bool(narrow)
        finally:
            for one in narrow:  # nothing is lost, because these values came from half precision
                one.data = one.data.half()

    def keep_hash(self) -> None:
        """Compute the hash of the weights now, for their values will not lie where they can be read."""
        self._hash = self.weights_hash()

    def weights_hash(self) -> str:
        return self._hash or super().weights_hash()

    def _configurations(self) -> dict[str, Any]:
        """The fields of each part that decide what its weights compute, such as the number of heads."""
        found = {part: deciding(module) for part, module in self._parts.items()}
        return {part: fields for part, fields in found.items() if fields}

    def state(self) -> dict[str, Tensor]:
        parts: Mapping[str, nn.Module] = self._parts
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }


def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of images, float32, before shift and scaling; whatever class the autoencoder
    is of.

    Args:
        vae: an autoencoder of diffusers.
        images: images in [-1, 1], in the number format of the autoencoder.
    """
    found = vae.encode(images)
    if hasattr(found, "latents"):  # diffusers' small autoencoder gives latents and not their distribution
        return found.latents.float(), torch.zeros_like(found.latents, dtype=torch.float32)
    if hasattr(found, "latent"):  # nor does its deep compression autoencoder
        return found.latent.float(), torch.zeros_like(found.latent, dtype=torch.float32)
    return found.latent_dist.mean.float(), found.latent_dist.std.float()


def _encoded(vae: Any, images: Tensor) -> Tensor:
    return posterior(vae, images)[0]


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample.float()
