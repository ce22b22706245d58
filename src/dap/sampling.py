"""The one sampling loop: ordinary ancestral steps of diffusers' scheduler, and after each the guidance's push.

x_{t−1} = x̃_{t−1} + push(x_t),     push = γ g_t for DAP (Eq. 8, Algorithm 1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone, ClassifierFree
from dap.errors import DapError
from dap.guidance.base import Guidance, Nothing, State
from dap.seeding import generators, image_seeds, normal

STEPS = 50


@dataclass(frozen=True)
class Batch:
    """Images that are sampled together.

    Attributes:
        class_names: of the data, in label order.
        labels: label of each image, in the data's label space.
        slots: which of the ipc images of its label each one is.
        seeds: one for each image; all its noise comes from it.
    """

    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    slots: tuple[int, ...]
    seeds: tuple[int, ...]

    @staticmethod
    def of(class_names: Sequence[str], labels: Sequence[int], slots: Sequence[int], run_seed: int) -> Batch:
        """A batch whose seeds are hashes of (run seed, class name, slot)."""
        seeds = image_seeds(run_seed, class_names, labels, slots)
        return Batch(tuple(class_names), tuple(labels), tuple(slots), tuple(seeds))


def ancestral(backbone: Backbone, steps: int = STEPS) -> Any:
    """Respaced ancestral DDPM sampling as the DiT lineage does it, on diffusers' `DDPMScheduler`.

    Linear spacing of `steps` timesteps from T − 1 to 0, no clipping, and the learned-range variance of Nichol & Dhariwal
    (2021) where the backbone predicts one.

    Raises:
        DapError: steps is not between 2 and T.
    """
    from diffusers import DDPMScheduler

    abar = backbone.alphas_cumprod.double()
    if not 2 <= steps <= len(abar):
        raise DapError(f"steps must be between 2 and {len(abar)}, not {steps}.")
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scheduler = DDPMScheduler(
        num_train_timesteps=len(abar),
        trained_betas=betas.float().numpy(),
        variance_type="learned_range" if backbone.learned_variance else "fixed_small",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def sample(
    model: ClassifierFree,
    guidance: Guidance | None,
    batch: Batch,
    *,
    steps: int = STEPS,
) -> Iterator[State]:
    """Sample a batch and yield every state; `next` of the last one holds the finished latents.

    Args:
        model: the backbone in its classifier-free wrapper.
        guidance: None or `Nothing()` for vanilla sampling.
        batch: what to sample.
        steps: reverse steps.

    Raises:
        DapError: unknown class or layer before the first step; a non-finite sample, with the step it appeared at.
    """
    guidance = guidance or Nothing()
    backbone = model.backbone
    if guidance.layer is not None:
        backbone.check_layer(guidance.layer)
    scheduler = ancestral(backbone, steps)
    condition = backbone.condition([batch.class_names[label] for label in batch.labels])
    labels, slots = torch.tensor(batch.labels), torch.tensor(batch.slots)
    gens = generators(batch.seeds)
    like = torch.empty(0, device=backbone.device)
    guidance.begin(sorted(set(batch.labels)))
    x, state = normal(backbone.latent_shape, gens, like), None
    for index, timestep in enumerate(scheduler.timesteps):
        t = int(timestep)
        active = guidance.active(index, steps)
        through = guidance.grad_through if active else "nothing"
        x = x.detach().requires_grad_(through != "nothing")
        prediction = model.predict(
            x,
            t,
            condition,
            layer=guidance.layer if active else None,
            branch=guidance.branch if active else "cond",
            grad_through=through,
        )
        eps, variance = prediction.eps, prediction.variance
        alpha, sigma = backbone.alphas_cumprod[t].sqrt().item(), (1 - backbone.alphas_cumprod[t]).sqrt().item()
        with torch.no_grad():
            output = eps if variance is None else torch.cat([eps, variance], dim=1)
            proposal = scheduler.step(output, timestep, x, generator=gens).prev_sample
        state = State(
            x=x,
            proposal=proposal,
            x0_hat=((x if through == "denoiser" else x.detach()) - sigma * eps) / alpha,
            eps=eps,
            features=prediction.features,
            t=t,
            index=index,
            steps=steps,
            alpha=alpha,
            sigma=sigma,
            labels=labels,
            slots=slots,
        )
        after = proposal + guidance(state) if active else proposal
        if not torch.isfinite(after).all():
            raise DapError(
                f"Sampling left the finite numbers at t = {t} (step {index + 1} of {steps}); "
                "lower the guidance scale, or use --dtype float32."
            )
        x = after.detach()
        state = replace(state, x=state.x.detach(), x0_hat=state.x0_hat.detach(), features=None, next=x)
        yield state
    assert state is not None
    guidance.finish(state)


def latents(model: ClassifierFree, guidance: Guidance | None, batch: Batch, *, steps: int = STEPS) -> Tensor:
    """The finished latents (B, C, *spatial) of `sample`."""
    result = None
    for state in sample(model, guidance, batch, steps=steps):
        result = state.next
    assert result is not None
    return result


def images(
    model: ClassifierFree, guidance: Guidance | None, batch: Batch, *, steps: int = STEPS
) -> Float[Tensor, "b 3 h w"]:
    """The decoded images (B, 3, h, w) of `sample`, in [0, 1]."""
    return model.backbone.decode(latents(model, guidance, batch, steps=steps))
