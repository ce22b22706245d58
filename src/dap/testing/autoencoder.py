"""Checks of a backbone: images to latents and back, whether the weights are trained, and a short run."""

from __future__ import annotations

import torch
from torch import Tensor

from dap.backbones.guided import ClassifierFree
from dap.guidance.base import Descend, Energy, State
from dap.sampling import Batch, latents
from dap.testing.findings import Verdicts, difference, draw, kind_of, warn, wrong
from dap.testing.probe import B, Probe


def encode(p: Probe) -> Verdicts:
    z, shape = p.backbone.encode(p.images), (B, *p.backbone.latent_shape)
    if tuple(z.shape[1:]) != shape[1:] or len(z) != len(p.images) or z.dtype != torch.float32:
        yield wrong(f"latents of {kind_of(p.images)} images are {kind_of(z)}; make them {shape} float32.")
        return ""
    if not torch.isfinite(z).all():
        yield wrong("latents of ordinary images are not finite; autoencoders often overflow in float16.")
        return ""
    if z.requires_grad:
        yield wrong("encode carries a graph; run it under torch.no_grad().")
    if difference(p.backbone.encode(p.images), z) > p.tolerance:
        yield wrong("two encodings of the same images differ; give the mean of the posterior, not a sample.")
    variance = z.var().item()
    if not 0.3 <= variance <= 3:
        yield warn(f"latents of real images have variance {variance:.2g}, not about 1: is the scaling factor right?")
    return f"latents of real images are {kind_of(z)}, of variance {variance:.2f}"


def decode(p: Probe) -> Verdicts:
    """Check the shape and range of decoded images. Latents far from the data are tried too: guidance can produce them."""
    size, flat = p.backbone.card.size, len(p.backbone.latent_shape) == 3
    for name, z in (("noise", p.x), ("latents far out", 10 * p.x[:1])):
        images = p.backbone.decode(z)
        good = len(images) == len(z) and images.ndim == z.ndim and images.shape[1] == 3
        if not good or (flat and tuple(images.shape[2:]) != (size, size)) or images.dtype != torch.float32:
            wanted = (len(z), 3, size, size) if flat else f"({len(z)}, 3, …)"
            yield wrong(f"decoding {name} gives {kind_of(images)}; the card says {wanted} float32.")
        elif not torch.isfinite(images).all():
            yield wrong(f"decoding {name} gives pixels that are not finite.")
        elif images.min() < 0 or images.max() > 1:
            low, high = images.min().item(), images.max().item()
            yield wrong(f"decoding {name} gives pixels from {low:.2f} to {high:.2f}; clamp images to [0, 1].")
        if images.requires_grad:
            yield wrong("decode carries a graph; run it under torch.no_grad().")
    return "images in [0, 1], also from latents far out"


def reconstruction(p: Probe) -> Verdicts:
    back = p.backbone.decode(p.latents)
    error = (back - p.images).square().mean().sqrt().item()
    if not error <= 0.1:
        yield warn(
            f"images come back from the autoencoder with an error of {error:.2f} of the range [0, 1] (root mean square); "
            "are its weights, its scaling factor and its shift right?"
        )
    return f"images come back with an error of {error:.3f} of the range [0, 1]"


def trained(p: Probe) -> Verdicts:
    """Check that the model is trained.

    Halfway between data and noise, a trained model predicts the noise better than any multiple of x does.
    """
    t = p.times[1]
    alpha, sigma = p.backbone.schedule.level(t)
    noise = draw(tuple(p.latents.shape), 5, p.backbone.device)
    x = alpha * p.latents + sigma * noise
    error = difference(p.backbone.predict(x, t, p.backbone.null(len(x))).eps, noise)
    naive = difference((x * noise).sum() / x.square().sum() * x, noise)
    if not error <= 0.9 * naive:
        yield warn(
            f"at t = {t:g} the predicted noise of real images is off by {error:.2f} of its norm, the best multiple of x by "
            f"{naive:.2f} only: these weights look untrained, or they do not predict eps."
        )
    return (
        f"at t = {t:g} the predicted noise of real images is off by {error:.2f} of its norm ({naive:.2f}: not trained)"
    )


class _Size(Energy):
    """The mean square of the features. This energy works on every backbone."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(self, state: State) -> Tensor:
        assert state.features is not None
        return state.features.float().square().flatten(1).mean(1)


def sampling(p: Probe) -> Verdicts:
    """Check runs of three steps: vanilla, guided with scale 0, and guided."""
    b, card = p.backbone, p.backbone.card
    model, work = ClassifierFree(b, card.cfg, card.cfg_channels), Batch.of(p.names[::2], [0, 1], [0, 0], 0)
    before = torch.get_rng_state()
    vanilla = latents(model, None, work, steps=3)
    if tuple(vanilla.shape) != (2, *b.latent_shape):
        yield wrong(f"a sample of 2 images has latents {kind_of(vanilla)}; they should be {(2, *b.latent_shape)}.")
    zero = latents(model, Descend(_Size(card.layer), 0.0, "step"), work, steps=3)
    if not torch.equal(zero, vanilla):
        yield wrong(
            f"guided with scale 0 the sample differs from vanilla by {difference(zero, vanilla):.1e} (relative)."
        )
    guided = latents(model, Descend(_Size(card.layer), 0.1, "step"), work, steps=3)
    moved = difference(guided, vanilla)
    if moved == 0:
        yield wrong(f"guidance through layer {card.layer!r} does not change the sample.")
    if not torch.equal(before, torch.get_rng_state()):
        yield wrong("a sample draws from torch's global generator; all noise comes from the images' own seeds.")
    return f"three steps are finite, vanilla and guided (guidance moves them by {moved:.0e}); scale 0 is vanilla bit for bit"


CHECKS = {
    "encode": encode,
    "decode": decode,
    "reconstruction": reconstruction,
    "trained": trained,
    "sampling": sampling,
}
