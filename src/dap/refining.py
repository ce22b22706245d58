r"""Refinement: finished latents of a class follow an energy of the set; the backbone's own denoising can hold them back.

Sampling makes one image after the other look right. A refinement then moves all images of a class together, by a little,
until the set as a whole is like the real images in the backbone's features. At each step it noises the latents to a random
low level t and descends, by Adam,

    E(\varphi(\alpha_t z + \sigma_t \epsilon))

An energy alone also finds directions that no image has: it writes fine textures into the latents that only the tapped layer
sees. They show as noise that the backbone cannot predict. So each image whose error of denoising at low noise,

    \| \epsilon_\theta(\alpha_s z + \sigma_s \epsilon) - \epsilon \|^2,

is above that of real images can also be drawn (`Descent.prior`) along -(\epsilon_\theta - \epsilon). This is the gradient of the
error without the Jacobian of the network (Poole et al. 2023). Images that the backbone finds as likely as real ones are left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Schedule, Time, VariancePreserving, steps_of
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.guidance.base import Energy, State, per_image_norm
from dap.sampling import Batch

CHUNK = 10
"""How many images go through the network at once with a graph."""


@dataclass(frozen=True)
class Descent:
    """How latents are refined.

    Attributes:
        steps: how many steps of Adam are taken.
        rate: the first learning rate; it falls to 0 in a straight line.
        times: the noise levels of the energy, as fractions of the schedule; each step takes one of them at random.
        prior: the length of the push of the prior, measured by that of the energy's gradient. 0 leaves the prior out.
        prior_times: the noise levels of the prior, as `times`.
    """

    steps: int
    rate: float = 0.06
    times: tuple[float, ...] = (0.05, 0.15, 0.3)
    prior: float = 0.0
    prior_times: tuple[float, ...] = (0.02, 0.05)


def time_of(schedule: Schedule, fraction: float) -> Time:
    """The time of a schedule at a fraction of its length: a whole timestep, or a number on a flow."""
    steps = steps_of(schedule)
    return round(fraction * (steps - 1)) if isinstance(schedule, VariancePreserving) else fraction * steps


def denoising_error(backbone: Backbone, z: Tensor, condition: Tensor, t: Time, noise: Tensor) -> Tensor:
    """ε_θ(α_t z + σ_t ε, t) − ε for each image, (B, C, *spatial), without a graph."""
    alpha, sigma = backbone.schedule.level(t)
    with torch.no_grad():
        parts = zip((alpha * z + sigma * noise).split(CHUNK), condition.split(CHUNK), strict=True)
        return torch.cat([backbone.predict(part, t, of).eps for part, of in parts]) - noise


def refine(
    backbone: Backbone,
    energies: Sequence[Energy],
    batch: Batch,
    latents: Float[Tensor, "b c *spatial"],
    descent: Descent,
    *,
    usual: Callable[[int, Time], float] | None = None,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> Float[Tensor, "b c *spatial"]:
    """Refined latents of a batch.

    Args:
        backbone: the backbone in whose features the energies look.
        energies: their sum is lowered. Each looks at its own `layer`. They must not differentiate further than the features.
        batch: what the latents are; all images that an energy looks at together must be in one batch.
        latents: x_0, clean.
        descent: how far and how fast.
        usual: for a label and a time, the mean squared error of denoising of real images. None: without the prior.
        told: called after each step with the steps done and the steps in all.

    Raises:
        DapError: an energy does not go with the features alone, a layer is unknown, or a latent is not finite.
    """
    energies, layers = tuple(energies), [backbone.check_layer(energy.layer or "") for energy in energies]
    if odd := [type(energy).__name__ for energy in energies if energy.grad_through != "features"]:
        raise DapError(f"A refinement looks at features alone, so the energy {odd[0]} cannot lead it.")
    for energy in energies:
        energy.begin(sorted(set(batch.labels)))
    condition = backbone.condition([batch.class_names[label] for label in batch.labels])
    labels, slots = torch.tensor(batch.labels), torch.tensor(batch.slots)
    gens = generators([seed_of(seed, "refine") for seed in batch.seeds])
    clock = torch.Generator().manual_seed(seed_of(batch.seeds[0], "times of refine"))

    def drawn(fractions: Sequence[float]) -> Time:
        return time_of(backbone.schedule, fractions[int(torch.randint(len(fractions), (1,), generator=clock))])

    def energy_at(x: Tensor, t: Time, features: dict[str, Tensor], noise: Tensor, z: Tensor) -> Tensor:
        alpha, sigma = backbone.schedule.level(t)
        total = x.new_zeros(())
        for energy, layer in zip(energies, layers, strict=True):
            state = State(x, x.detach(), z, noise, features[layer], t, 0, 1, alpha, sigma, labels, slots)
            total = total + energy(state).sum()
        return total

    z = latents.to(backbone.device).float().clone().requires_grad_(True)
    adam = torch.optim.Adam([z], descent.rate)
    for step in range(descent.steps):
        adam.param_groups[0]["lr"] = descent.rate * (1 - step / descent.steps)
        t, noise = drawn(descent.times), normal(z.shape[1:], gens, z)
        z.grad = _gradient(backbone, z.detach(), t, noise, condition, layers, energy_at)
        if usual is not None and descent.prior > 0:
            s, other = drawn(descent.prior_times), normal(z.shape[1:], gens, z)
            error = denoising_error(backbone, z.detach(), condition, s, other)
            allowed = torch.tensor([usual(label, s) for label in batch.labels]).to(error)
            above = (error.square().flatten(1).mean(1) > allowed).view(-1, *[1] * (z.ndim - 1))
            length = per_image_norm(z.grad) / per_image_norm(error).clamp_min(1e-30)
            z.grad = z.grad + descent.prior * length * error * above
        if not torch.isfinite(z.grad).all():
            raise DapError(
                f"The refinement's gradient is not finite at step {step + 1} of {descent.steps}; use --dtype float32, or look "
                "at the weights with dap check."
            )
        adam.step()
        told(step + 1, descent.steps)
    return z.detach()


def _gradient(
    backbone: Backbone,
    z: Tensor,
    t: Time,
    noise: Tensor,
    condition: Tensor,
    layers: Sequence[str],
    energy_at: Callable[..., Tensor],
) -> Tensor:
    """The gradient of the energies in z. It holds the graph of no more than `CHUNK` images, and is exact for any number.

    An energy depends on an image through its features alone. So the features of all images are computed without a graph, the
    energy is differentiated in them, and then each chunk is passed again, with a graph, to carry its part back to z.
    """
    alpha, sigma = backbone.schedule.level(t)
    x = alpha * z + sigma * noise
    parts = list(zip(x.split(CHUNK), condition.split(CHUNK), strict=True))
    if len(parts) == 1:
        with torch.enable_grad():
            leaf = x.requires_grad_(True)
            total = energy_at(leaf, t, backbone.features(leaf, t, condition, layers), noise, z)
            return alpha * torch.autograd.grad(total, leaf)[0]
    with torch.no_grad():
        found = [backbone.features(part, t, of, layers) for part, of in parts]
    with torch.enable_grad():
        features = {
            layer: torch.cat([part[layer] for part in found]).requires_grad_(True) for layer in dict.fromkeys(layers)
        }
        total = energy_at(x, t, features, noise, z)
        wanted = dict(zip(features, torch.autograd.grad(total, list(features.values())), strict=True))
        back: list[Tensor] = []
        for number, (part, of) in enumerate(parts):
            leaf = part.detach().requires_grad_(True)
            again = backbone.features(leaf, t, of, layers)
            pulls = [wanted[layer].split(CHUNK)[number] for layer in again]
            back.append(torch.autograd.grad(list(again.values()), leaf, pulls)[0])
    return alpha * torch.cat(back)
