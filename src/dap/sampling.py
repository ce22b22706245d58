"""The one sampling loop: a solver takes its steps, and the guidance adds its push to each of them.

x_{t−1} = x̃_{t−1} + push(x_t),     push = γ g_t for DAP (Eq. 8, Algorithm 1)

A multistep solver looks back at earlier predictions. It gets the same push through eps (see `dap.solvers`), so that its
history contains the push.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError, NotFinite
from dap.base.parsing import check_one_of
from dap.base.seeding import generators, image_seeds, normal
from dap.guidance.base import Guidance, Nothing, State, check_is_guidance
from dap.guidance.contract import check_words, pushed
from dap.guidance.reals import check_classes
from dap.solvers import make

STEPS = 50


@dataclass(frozen=True)
class Batch:
    """Images that are sampled together.

    Attributes:
        class_names: the data's classes, in label order.
        labels: for each image its label, a position in `class_names`.
        slots: for each image its slot, that is, which of the ipc images of its class it is.
        seeds: for each image one seed; all noise of the image comes from it.
        prompts: for each image a text that takes the place of its class, for text-conditioned backbones. None: the class.

    Raises:
        DapError: a label is no position in `class_names`, a slot is below 0, or the lists differ in length.
    """

    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    slots: tuple[int, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_rows(self.class_names, self.labels, self.slots)
        for what, rows in (("seeds", self.seeds), ("prompts", self.prompts)):
            if rows is not None and len(rows) != len(self.labels):
                raise DapError(f"A batch of {len(self.labels)} labels needs as many {what}, not {len(rows)}.")

    @staticmethod
    def of(
        class_names: Sequence[str], labels: Iterable[int] | Tensor, slots: Iterable[int] | Tensor, run_seed: int
    ) -> Batch:
        """A batch in which each image's seed is a hash of (run seed, class name, slot).

        Raises:
            DapError: as for the class.
        """
        class_names = tuple(class_names)
        labels, slots = [int(label) for label in labels], [int(slot) for slot in slots]
        _check_rows(class_names, labels, slots)
        seeds = image_seeds(run_seed, class_names, labels, slots)
        return Batch(tuple(class_names), tuple(labels), tuple(slots), tuple(seeds))


def _check_rows(class_names: Sequence[str], labels: Sequence[int], slots: Sequence[int]) -> None:
    if not labels or len(labels) != len(slots):
        raise DapError(f"A batch has one label and one slot an image, not {len(labels)} labels and {len(slots)} slots.")
    if wrong := [label for label in labels if not 0 <= label < len(class_names)]:
        raise DapError(
            f"The label {wrong[0]} is none of the {len(class_names)} classes of the batch; labels run from 0 to "
            f"{len(class_names) - 1}, in the order of class_names."
        )
    if min(slots) < 0:
        raise DapError(f"The slot {min(slots)} is below 0; slots count the images of a class from 0 on.")


@dataclass(frozen=True)
class Start:
    """The start of a run that does not begin at pure noise.

    Attributes:
        latents: (B, C, *spatial).
        index: the first step that is taken, 0 … steps − 1. The steps before it are left out.
        noised: True: the latents are x_t at that step. False: they are x_0, and each is noised with its own image's seed.
    """

    latents: Tensor
    index: int
    noised: bool = False

    @staticmethod
    def at(latents: Tensor, strength: float, steps: int) -> Start:
        """Image-to-image from x_0: the last `strength` of the run.

        Args:
            latents: x_0, (B, C, *spatial).
            strength: the fraction of the run that is taken, 0 … 1. At least one step is taken; diffusers counts the same way.
            steps: the length of the whole run.
        """
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
    """Sample a batch and yield the state after every step; `next` of the last state holds the finished latents.

    Args:
        model: the backbone in its classifier-free wrapper.
        guidance: None or `Nothing()` for vanilla sampling.
        batch: what to sample.
        steps: the number of reverse steps.
        solver: a name of `dap.solvers`. None: ancestral sampling ("ddpm"), and on a flow the probability-flow ODE ("ddim").
        eta: of the solver "ddim", 0 … 1.
        push_into: where the push goes. "x" adds it to x_{t−1}. "eps" changes the prediction so that a first-order step moves
            by the push. None: "eps" for solvers with a history, else "x". Without a history both are the same step.
        start: None begins at pure noise.

    Raises:
        DapError: a class, layer, solver or `push_into` is unknown, the guidance is none, such as a bare energy, or it has real
            images of other classes under the same labels; this is raised before the first step. Or a sample is not finite;
            the message names the step.
    """
    guidance = Nothing() if guidance is None else guidance
    check_is_guidance(guidance)
    run = _Run(model, guidance, batch, steps, solver, eta, push_into)
    if start is not None and not 0 <= start.index < steps:
        raise DapError(f"A run of {steps} steps can begin at step 0 to {steps - 1}, not at {start.index}.")
    labels = sorted(set(batch.labels))
    check_classes([guidance], batch.class_names, labels)
    guidance.begin(labels)
    x = normal(model.backbone.latent_shape, run.gens, torch.empty(0, device=model.backbone.device))
    first = 0
    if start is not None:
        first, given = start.index, start.latents.to(x)
        alpha, sigma = run.solver.levels[first]
        x = given if start.noised else alpha * given + sigma * x
    state = None
    for index in range(first, steps):
        state = run.step(index, x)
        assert state.next is not None
        x = state.next
        yield state
    assert state is not None
    guidance.finish(state)


class _Run:
    """One batch on its way through a solver.

    Args: see `sample`.
    """

    def __init__(
        self,
        model: ClassifierFree,
        guidance: Guidance,
        batch: Batch,
        steps: int,
        solver: str | None,
        eta: float | None,
        push_into: Literal["x", "eps"] | None,
    ) -> None:
        backbone = model.backbone
        check_words(guidance)
        if guidance.layer is not None:
            backbone.check_layer(guidance.layer)
        self.model, self.guidance, self.steps = model, guidance, steps
        self.solver = make(backbone, solver, steps, eta)
        if push_into is not None:
            check_one_of(push_into, ("x", "eps"), "Sampling takes push_into")
        self.into = push_into or ("eps" if self.solver.multistep else "x")
        if self.into == "eps" and not self.solver.into_eps:
            raise DapError(
                f"push_into='eps' is not for the solver {solver!r}, which takes each step twice; leave it out."
            )
        if self.into == "eps" and self.solver.levels[0][0] == 0:
            raise DapError(
                f"push_into='eps' has no meaning for {backbone.card.name}: its first x_t is pure noise, whatever eps says of x_0."
            )
        if batch.prompts is None:
            self.condition = backbone.condition([batch.class_names[label] for label in batch.labels])
        else:
            self.condition = backbone.prompt(batch.prompts)
        self.labels, self.slots = torch.tensor(batch.labels), torch.tensor(batch.slots)
        self.gens = generators(batch.seeds)

    def step(self, index: int, x: Tensor) -> State:
        """The state of one step, without any graph; its `next` is x_{t−1}.

        Everything that carries a graph is a local variable of this function. So the graph of a step is free before the
        next step builds its own, and the memory of a run does not hold two of them.

        Args:
            index: the index of the step, 0 … steps − 1.
            x: x_t, (B, C, *spatial).
        """
        solver, guidance, t = self.solver, self.guidance, self.solver.timesteps[index]
        active = solver.pushed(index) and guidance.active(index, self.steps)
        through = guidance.grad_through if active else "nothing"
        x = x.detach().requires_grad_(through != "nothing")
        prediction = self.model.predict(
            x,
            t,
            self.condition,
            layer=guidance.layer if active else None,
            branch=guidance.branch if active else "cond",
            grad_through=through,
        )
        eps, variance, x0 = prediction.eps, prediction.variance, prediction.x0
        if x0 is None:
            x0 = self.model.backbone.schedule.eps_to_x0(x if through == "denoiser" else x.detach(), t, eps)
        alpha, sigma = solver.levels[index]
        with torch.no_grad():
            take = solver.preview if active and self.into == "eps" else solver.step
            proposal = take(index, x, eps, x0, variance, self.gens)
            step_std = solver.std(index, variance)
        state = State(
            x=x,
            proposal=proposal,
            x0_hat=x0,
            eps=eps,
            features=prediction.features,
            t=t,
            index=index,
            steps=self.steps,
            alpha=alpha,
            sigma=sigma,
            labels=self.labels,
            slots=self.slots,
            step_std=step_std,
            denoiser=lambda other: self.model.predict(other, t, self.condition).eps,
        )
        after = proposal
        if active:
            push = pushed(guidance, state)
            if self.into == "x":
                after = proposal + push
            else:
                with torch.no_grad():
                    more = push / solver.per_eps(index)
                    after = solver.step(index, x, eps + more, x0 - sigma / alpha * more, variance, self.gens)
        if not torch.isfinite(after).all():
            # Before the first push, and without any, the scale cannot be the cause.
            unpushed = isinstance(guidance, Nothing) or (index == 0 and not torch.isfinite(proposal).all())
            advice = "use --dtype float32, or look at the weights with dap check"
            if not unpushed:
                advice = "lower the guidance scale, or use --dtype float32"
            raise NotFinite(f"Sampling left the finite numbers at t = {t} (step {index + 1} of {self.steps})", advice)
        plain = {"x": x.detach(), "x0_hat": x0.detach(), "eps": eps.detach()}
        return replace(state, **plain, features=None, denoiser=None, next=after.detach())


def latents(model: ClassifierFree, guidance: Guidance | None, batch: Batch, **run: Any) -> Tensor:
    """The finished latents (B, C, *spatial) of `sample`; `run` holds further keywords of `sample`."""
    result = None
    for state in sample(model, guidance, batch, **run):
        result = state.next
    assert result is not None
    return result


def images(model: ClassifierFree, guidance: Guidance | None, batch: Batch, **run: Any) -> Float[Tensor, "b 3 *size"]:
    """The decoded images (B, 3, h, w) of `sample`, in [0, 1]."""
    return model.backbone.decode(latents(model, guidance, batch, **run))
