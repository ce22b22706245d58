"""The one sampling loop: the steps of a solver, and after each the guidance's push.

x_{t−1} = x̃_{t−1} + push(x_t),     push = γ g_t for DAP (Eq. 8, Algorithm 1)

A multistep solver gets the same push through eps (see `dap.solvers`), so that its history sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import ClassifierFree
from dap.base.errors import DapError
from dap.base.seeding import generators, image_seeds, normal
from dap.guidance.base import Guidance, Nothing, State
from dap.solvers import make

STEPS = 50


@dataclass(frozen=True)
class Batch:
    """Images that are sampled together.

    Attributes:
        class_names: of the data, in label order.
        labels: label of each image, in the data's label space.
        slots: which of the ipc images of its label each one is.
        seeds: one for each image; all its noise comes from it.
        prompts: a text for each image in place of its class, for text-conditioned backbones; None: the class.
    """

    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    slots: tuple[int, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...] | None = None

    @staticmethod
    def of(class_names: Sequence[str], labels: Sequence[int], slots: Sequence[int], run_seed: int) -> Batch:
        """A batch whose seeds are hashes of (run seed, class name, slot)."""
        seeds = image_seeds(run_seed, class_names, labels, slots)
        return Batch(tuple(class_names), tuple(labels), tuple(slots), tuple(seeds))


@dataclass(frozen=True)
class Start:
    """Where a run begins when it is not pure noise: images, noised to some level, or latents of that level.

    Attributes:
        latents: (B, C, *spatial).
        index: the first step that is done, 0 … steps − 1; the ones before are left out.
        noised: whether the latents are x_t of that step already. If not they are x_0, and each gets its own image's noise.
    """

    latents: Tensor
    index: int
    noised: bool = False

    @staticmethod
    def at(latents: Tensor, strength: float, steps: int) -> Start:
        """Image-to-image from x_0: the last `strength` of the run, at least one step, as diffusers counts them."""
        return Start(latents, steps - max(1, min(int(steps * strength), steps)))


def sample(
    model: ClassifierFree,
    guidance: Guidance | None,
    batch: Batch,
    *,
    steps: int = STEPS,
    solver: str | None = None,
    eta: float | None = None,
    push_into: Literal["x", "eps"] | None = None,
    start: Start | None = None,
) -> Iterator[State]:
    """Sample a batch and yield every state; `next` of the last one holds the finished latents.

    Args:
        model: the backbone in its classifier-free wrapper.
        guidance: None or `Nothing()` for vanilla sampling.
        batch: what to sample.
        steps: reverse steps.
        solver: see `dap.solvers`; None is ancestral sampling ("ddpm"), on a flow the probability-flow ODE ("ddim").
        eta: of the solver "ddim".
        push_into: where the push goes: "x" adds it to x_{t−1}; "eps" moves the prediction so that a first-order step would
            move by it. None: "eps" for solvers with a history, else "x"; without a history they are the same step.
        start: None begins at pure noise.

    Raises:
        DapError: unknown class, layer or solver before the first step; a non-finite sample, with the step it appeared at.
    """
    guidance = guidance or Nothing()
    backbone = model.backbone
    if guidance.layer is not None:
        backbone.check_layer(guidance.layer)
    run = make(backbone, solver, steps, eta)
    into = push_into or ("eps" if run.multistep else "x")
    if into == "eps" and run.levels[0][0] == 0:
        raise DapError(
            "push_into='eps' has no meaning on a flow: its first x_t is pure noise, whatever eps says of x_0."
        )
    if batch.prompts is None:
        condition = backbone.condition([batch.class_names[label] for label in batch.labels])
    else:
        condition = backbone.prompt(batch.prompts)
    labels, slots = torch.tensor(batch.labels), torch.tensor(batch.slots)
    gens = generators(batch.seeds)
    like = torch.empty(0, device=backbone.device)
    guidance.begin(sorted(set(batch.labels)))
    x, state = normal(backbone.latent_shape, gens, like), None
    first = 0
    if start is not None:
        if not 0 <= start.index < steps:
            raise DapError(f"A run of {steps} steps can begin at step 0 to {steps - 1}, not at {start.index}.")
        first, given = start.index, start.latents.to(x)
        alpha, sigma = run.levels[first]
        x = given if start.noised else alpha * given + sigma * x
    for index, t in list(enumerate(run.timesteps))[first:]:
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
        at = x if through == "denoiser" else x.detach()
        x0 = backbone.schedule.eps_to_x0(at, t, eps) if prediction.x0 is None else prediction.x0
        alpha, sigma = run.levels[index]
        with torch.no_grad():
            step = run.preview if active and into == "eps" else run.step
            proposal = step(index, x, eps, x0, variance, gens)
            step_std = run.std(index, variance)
        state = State(
            x=x,
            proposal=proposal,
            x0_hat=x0,
            eps=eps,
            features=prediction.features,
            t=t,
            index=index,
            steps=steps,
            alpha=alpha,
            sigma=sigma,
            labels=labels,
            slots=slots,
            step_std=step_std,
        )
        after = proposal
        if active:
            push = guidance(state)
            if into == "x":
                after = proposal + push
            else:
                with torch.no_grad():
                    more = push / run.per_eps(index)
                    after = run.step(index, x, eps + more, x0 - sigma / alpha * more, variance, gens)
        if not torch.isfinite(after).all():
            raise DapError(
                f"Sampling left the finite numbers at t = {t} (step {index + 1} of {steps}); "
                "lower the guidance scale, or use --dtype float32."
            )
        x = after.detach()
        plain = {"x": state.x.detach(), "x0_hat": state.x0_hat.detach(), "eps": eps.detach()}
        state = replace(state, **plain, features=None, next=x)
        yield state
    assert state is not None
    guidance.finish(state)


def latents(model: ClassifierFree, guidance: Guidance | None, batch: Batch, **run: Any) -> Tensor:
    """The finished latents (B, C, *spatial) of `sample`, which says what `run` may hold."""
    result = None
    for state in sample(model, guidance, batch, **run):
        result = state.next
    assert result is not None
    return result


def images(model: ClassifierFree, guidance: Guidance | None, batch: Batch, **run: Any) -> Float[Tensor, "b 3 *size"]:
    """The decoded images (B, 3, h, w) of `sample`, in [0, 1]."""
    return model.backbone.decode(latents(model, guidance, batch, **run))
