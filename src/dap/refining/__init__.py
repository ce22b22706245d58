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

A set that is too large to move together is refined block after block, as kernel herding adds points one after the other (Chen,
Welling & Smola 2010): the images of earlier blocks are `Finished` members, which the energy sees and does not move.

How well a set is like real images that pull none of its images says when to stop: see `Descent.patience`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Schedule, Time, VariancePreserving, steps_of
from dap.base.errors import DapError, NotFinite
from dap.base.parsing import brief, check_options
from dap.base.seeding import generators, normal, seed_of
from dap.base.store import Checkpoint
from dap.guidance.base import Energy, per_image_norm
from dap.refining.seen import Finished, Seen, denoising_error, weighted
from dap.sampling import Batch

__all__ = ["Descent", "Finished", "denoising_error", "refine", "time_of"]

LOOK = 10
"""How many steps lie between two looks at the held-out energy."""


@dataclass(frozen=True)
class Descent:
    """How latents are refined.

    Attributes:
        steps: how many steps of Adam are taken.
        rate: the first learning rate; it falls to 0 in a straight line.
        times: the noise levels of the energy, as fractions of the schedule; each step takes one of them at random.
        prior: the length of the push of the prior, measured by that of the energy's gradient. 0 leaves the prior out.
        prior_times: the noise levels of the prior, as `times`.
        repel: the length of the push of the repulsions at the first step, measured by that of the energy's gradient. The weight
            that gives this length stays, so the push fades as the images come apart.
        patience: the refinement stops when the held-out energy has not fallen for this many steps. 0 takes all steps.

    Raises:
        DapError: a number is below 0, or a noise level is no fraction of the schedule.
    """

    steps: int
    rate: float = 0.06
    times: tuple[float, ...] = (0.05, 0.15, 0.3)
    prior: float = 0.0
    prior_times: tuple[float, ...] = (0.02, 0.05)
    repel: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        check_options(self, dict.fromkeys(("steps", "rate", "prior", "repel", "patience"), 0))
        for name in ("times", "prior_times"):
            levels = getattr(self, name)
            if not levels or not all(isinstance(level, Real) and 0 <= float(level) <= 1 for level in levels):
                raise DapError(
                    f"Descent takes {name} as fractions of the schedule, such as (0.05, 0.3), not {brief(levels)}."
                )


def time_of(schedule: Schedule, fraction: float) -> Time:
    """The time of a schedule at a fraction of its length: a whole timestep, or a number on a flow."""
    steps = steps_of(schedule)
    return round(fraction * (steps - 1)) if isinstance(schedule, VariancePreserving) else fraction * steps


def refine(
    backbone: Backbone,
    energies: Sequence[Energy],
    batch: Batch,
    latents: Float[Tensor, "b c *spatial"],
    descent: Descent,
    *,
    usual: Callable[[int, Time], float] | None = None,
    repulsions: Sequence[Energy] = (),
    held_out: Sequence[Energy] = (),
    finished: Finished | None = None,
    told: Callable[[int, int], object] = lambda done, total: None,
    looked: Callable[[int, float], object] = lambda step, energy: None,
    checkpoint: Checkpoint | None = None,
) -> Float[Tensor, "b c *spatial"]:
    """Refined latents of a batch.

    Args:
        backbone: the backbone in whose features the energies look.
        energies: their sum is lowered. Each looks at its own `layer`. They must not differentiate further than the features.
        batch: what the latents are; all images that an energy looks at together must be in one batch, or finished.
        latents: x_0, clean.
        descent: how far and how fast.
        usual: for a label and a time, the mean squared error of denoising of real images. None: without the prior.
        repulsions: energies that keep the images apart. Their sum is lowered too, with the weight that `Descent.repel` says.
        held_out: energies that lead nothing. Their sum, over all times, decides under `Descent.patience` what is kept.
        finished: images of the same classes that are members of their sets and stay as they are.
        told: called after each step with the steps done and the steps in all.
        looked: called with each value of the sum of `held_out`, and the number of steps before it.
        checkpoint: keeps unfinished work. A killed refinement goes on from it, and gives the same bytes.

    Raises:
        DapError: an energy does not go with the features alone, a layer is unknown, there is nothing held out to be patient
            with, or a latent is not finite.
    """
    if descent.patience and not held_out:
        raise DapError("A refinement with patience needs energies against held-out real images; give held_out.")
    seen = Seen(backbone, batch, finished, [*energies, *repulsions, *held_out])
    leading, apart = weighted(energies), weighted(repulsions)
    gens = generators([seed_of(seed, "refine") for seed in batch.seeds])
    clock = torch.Generator().manual_seed(seed_of(batch.seeds[0], "times of refine"))

    def drawn(fractions: Sequence[float]) -> Time:
        return time_of(backbone.schedule, fractions[int(torch.randint(len(fractions), (1,), generator=clock))])

    z = latents.to(backbone.device).float().clone().requires_grad_(True)
    adam = torch.optim.Adam([z], descent.rate)
    watch = _Watch(seen, batch, held_out, descent, looked)
    first, weight, states = 0, None, {"clock": clock, **{str(row): gen for row, gen in enumerate(gens)}}
    if checkpoint is not None and (state := checkpoint.read()) is not None:
        first, weight = state["step"], state["weight"]
        adam.load_state_dict(state["adam"])
        watch.load(state["watch"])
        for name, value in state["random"].items():
            states[name].set_state(value)
        with torch.no_grad():
            z.copy_(state["z"])
    for step in range(first, descent.steps):
        if not watch.goes_on(step, z.detach()):
            told(descent.steps, descent.steps)
            break
        adam.param_groups[0]["lr"] = descent.rate * (1 - step / descent.steps)
        t, noise = drawn(descent.times), normal(z.shape[1:], gens, z)
        if apart and weight is None:  # from the first step on, so that the push ends where the images are apart
            of, by = (seen.gradient(z.detach(), t, noise, part).norm().item() for part in (leading, apart))
            weight = descent.repel * of / by if by > 0 else 0.0
        z.grad = seen.gradient(z.detach(), t, noise, [*leading, *weighted(repulsions, weight or 0.0)])
        if usual is not None and descent.prior > 0:
            s, other = drawn(descent.prior_times), normal(z.shape[1:], gens, z)
            error = denoising_error(backbone, z.detach(), seen.condition, s, other)
            allowed = torch.tensor([usual(label, s) for label in batch.labels]).to(error)
            above = (error.square().flatten(1).mean(1) > allowed).view(-1, *[1] * (z.ndim - 1))
            length = per_image_norm(z.grad) / per_image_norm(error).clamp_min(1e-30)
            z.grad = z.grad + descent.prior * length * error * above
        if not torch.isfinite(z.grad).all():
            raise NotFinite(
                f"The refinement's gradient is not finite at step {step + 1} of {descent.steps}",
                "use --dtype float32, or look at the weights with dap check",
            )
        adam.step()
        told(step + 1, descent.steps)
        if checkpoint is not None and checkpoint.due:
            random = {name: generator.get_state() for name, generator in states.items()}
            written = {
                "step": step + 1,
                "weight": weight,
                "adam": adam.state_dict(),
                "watch": watch.state(),
                "random": random,
            }
            checkpoint.write({**written, "z": z.detach().clone()})
    else:
        watch.goes_on(descent.steps, z.detach())
    return z.detach() if watch.kept is None else watch.kept


class _Watch:
    """Looks at a set from time to time, at one noise, and keeps the latents with the lowest energy of all looks."""

    def __init__(
        self,
        seen: Seen,
        batch: Batch,
        energies: Sequence[Energy],
        descent: Descent,
        looked: Callable[[int, float], object],
    ) -> None:
        self.seen, self.batch, self.energies, self.descent, self.looked = (
            seen,
            batch,
            weighted(energies),
            descent,
            looked,
        )
        self.curve, self.kept = list[list[float]](), None

    def goes_on(self, step: int, z: Tensor) -> bool:
        """Look at the latents if it is time to, and say whether the energy has fallen lately."""
        steps, patience = self.descent.steps, self.descent.patience
        if not patience or (step % min(LOOK, patience) and step < steps):
            return True
        noise = normal(z.shape[1:], generators([seed_of(seed, "held out") for seed in self.batch.seeds]), z)
        times = [time_of(self.seen.backbone.schedule, fraction) for fraction in self.descent.times]
        value = sum(self.seen.value(self.energies, z, t, noise) for t in times) / len(times)
        if all(value < lowest for _, lowest in self.curve):
            self.kept = z.clone()
        self.curve.append([step, value])
        self.looked(step, value)
        return step - min(self.curve, key=lambda look: look[1])[0] < patience

    def state(self) -> dict[str, Any]:
        return {"curve": self.curve, "kept": self.kept}

    def load(self, state: dict[str, Any]) -> None:
        self.curve, self.kept = state["curve"], state["kept"]
        for step, value in self.curve:
            self.looked(int(step), value)
