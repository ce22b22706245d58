"""The contract of a `Guidance` or an `Energy`. It is tried on an exact Gaussian mixture, unless a backbone is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dap import solvers
from dap.backbones.base import Backbone, Prediction
from dap.backbones.guided import ClassifierFree
from dap.backbones.mixture import Mixture
from dap.backbones.schedules import Time
from dap.base.parsing import counted
from dap.guidance.base import Descend, Energy, GradThrough, Guidance, State
from dap.sampling import Batch, latents
from dap.testing.findings import Finding, Verdicts, difference, draw, kind_of, run, warn, wrong

LABELS, SLOTS, STEPS = (0, 1, 0), (0, 0, 1), 4
SEQUENCE = (1, 0, 2)
"""The rows in the order of their classes, and of their slots within a class. The class with two slots comes last, so that a
guidance still remembers its slots afterwards."""


class Stage(Mixture):
    """A mixture of two classes with two modes each, over latents (3, 4, 4).

    Args:
        layer: one more name for the features "x0", so that a guidance for a layer of another backbone can be tried.
    """

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(draw((2, 2, 3, 4, 4), 3), std=0.4)
        if layer is not None and layer not in self.layers:
            self.layers = (*self.layers, layer)

    def predict(
        self, x: Tensor, t: Time, condition: Tensor, *, layer: str | None = None, grad_through: GradThrough = "nothing"
    ) -> Prediction:
        known = layer if layer in (None, "x", "x0") else "x0"
        return super().predict(x, t, condition, layer=known, grad_through=grad_through)


class Watch(Guidance):
    """Wraps a guidance and records its pushes and faults. A push of the wrong shape, or not finite, is not added."""

    def __init__(self, inner: Guidance) -> None:
        self.inner, self.shapes, self.faults = inner, list[str](), dict[str, str]()
        self.layer, self.branch, self.joint = inner.layer, inner.branch, inner.joint
        self.grad_through, self.sequential = inner.grad_through, inner.sequential

    def begin(self, labels: Sequence[int]) -> None:
        self.inner.begin(labels)

    def finish(self, state: State) -> None:
        self.inner.finish(state)

    def active(self, index: int, steps: int) -> bool:
        return self.inner.active(index, steps)

    def __call__(self, state: State) -> Tensor:
        seen = {name: getattr(state, name) for name in ("x", "proposal", "eps", "x0_hat")}
        before = {name: value.detach().clone() for name, value in seen.items()}
        push: Any = self.inner(state)
        for name, value in seen.items():
            if not torch.equal(value.detach(), before[name]):
                self.faults[name] = f"it changes state.{name} in place; work on a copy."
        self.shapes.append(kind_of(push))
        if not isinstance(push, Tensor) or push.shape != state.proposal.shape:
            wanted = tuple(state.proposal.shape)
            self.faults["shape"] = f"the push is {kind_of(push)}; make it {wanted}, the shape of state.proposal."
            return torch.zeros_like(state.proposal)
        if not torch.isfinite(push).all():
            self.faults["finite"] = f"the push is not finite at t = {state.t:g}."
            return torch.zeros_like(state.proposal)
        if push.requires_grad:
            self.faults["graph"] = "the push carries a graph; detach it."
        return push.detach().to(state.proposal)


class Probe:
    """A guidance, or an energy under `Descend`, and the backbone on which it is tried."""

    def __init__(self, thing: Guidance | Energy, backbone: Backbone | None = None) -> None:
        self.thing = thing
        self.energy = thing if isinstance(thing, Energy) else None
        self.backbone = backbone or Stage(thing.layer if isinstance(thing.layer, str) else None)

    @cached_property
    def guidance(self) -> Guidance:
        return self.thing if isinstance(self.thing, Guidance) else Descend(self.thing, 0.1, "step")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.backbone.class_names[:2]) or ("dress", "bag")

    def latents(self, guidance: Guidance | None, rows: Sequence[int] = (0, 1, 2)) -> Tensor:
        """The samples of some rows of `LABELS` and `SLOTS`. A sequential guidance samples them one by one, class after class."""
        if guidance is not None and guidance.sequential and len(rows) > 1:
            found = {row: self.latents(guidance, [row]) for row in SEQUENCE if row in rows}
            return torch.cat([found[row] for row in rows])
        batch = Batch.of(self.names, [LABELS[i] for i in rows], [SLOTS[i] for i in rows], 0)
        return latents(ClassifierFree(self.backbone, 1.0), guidance, batch, steps=STEPS)

    def state(self, x: Tensor) -> State:
        """The state of a step in the middle of the run, from x (3, C, *spatial), with the graph that the energy asks for."""
        thing, b = self.thing, self.backbone
        solver = solvers.make(b, None, STEPS)
        index = STEPS // 2
        t, (alpha, sigma) = solver.timesteps[index], solver.levels[index]
        names = [self.names[label] for label in LABELS]
        condition = b.null(len(LABELS)) if thing.branch == "null" else b.condition(names)
        got = b.predict(x, t, condition, layer=thing.layer, grad_through=thing.grad_through)
        at = x if thing.grad_through == "denoiser" else x.detach()
        return State(
            x=x,
            proposal=draw(tuple(x.shape), 8, x.device),
            x0_hat=b.schedule.eps_to_x0(at, t, got.eps) if got.x0 is None else got.x0,
            eps=got.eps,
            features=got.features,
            t=t,
            index=index,
            steps=STEPS,
            alpha=alpha,
            sigma=sigma,
            labels=torch.tensor(LABELS),
            slots=torch.tensor(SLOTS),
            step_std=solver.std(index, got.variance),
        )

    @property
    def x(self) -> Tensor:
        return draw((len(LABELS), *self.backbone.latent_shape), 7, self.backbone.device)


def description(p: Probe) -> Verdicts:
    thing = p.thing
    if thing.layer is not None and thing.layer not in p.backbone.layers:
        yield wrong(f"layer is {thing.layer!r}; name a layer of the backbone ({', '.join(p.backbone.layers)}) or None.")
    if thing.grad_through not in get_args(GradThrough):
        yield wrong(f"grad_through is {thing.grad_through!r}; make it one of {', '.join(get_args(GradThrough))}.")
    if thing.branch not in ("cond", "null"):
        yield wrong(f"branch is {thing.branch!r}; make it 'cond' or 'null'.")
    for name, other in (("joint", "other"), ("sequential", "earlier")):
        if not isinstance(value := getattr(thing, name), bool):
            yield wrong(f"{name} is {value!r}; make it True if an image depends on the {other} slots of its class.")
    if p.energy is not None and thing.grad_through == "nothing":
        yield wrong("grad_through is 'nothing', so the energy has no gradient; make it 'features' or 'denoiser'.")
    how = "joint" if thing.joint else "one after another" if thing.sequential else "image by image"
    return f"layer {thing.layer!r}, gradient through {thing.grad_through}, {how}"


def active(p: Probe) -> Verdicts:
    said = [p.guidance.active(index, STEPS) for index in range(STEPS)]
    if not all(isinstance(value, bool) for value in said):
        yield wrong(f"active(index, steps) returns {said[0]!r}; return True or False.")
    elif not any(said):
        yield warn(f"the guidance is active at none of {STEPS} steps, so nothing below was really tried.")
    return f"the guidance is active at {sum(said)} of {STEPS} steps"


def push(p: Probe) -> Verdicts:
    watch = Watch(p.guidance)
    made = p.latents(watch)
    for fault in watch.faults.values():
        yield wrong(fault)
    if watch.shapes and not watch.faults and torch.equal(made, p.latents(None)):
        yield warn("the pushes are all zero: the sample is the vanilla one.")
    return f"{watch.shapes[0]}, finite at each step" if watch.shapes else "no push was asked for"


def scale_zero(p: Probe) -> Verdicts:
    gap = difference(p.latents(0.0 * p.guidance), p.latents(None))
    if gap:
        yield wrong(f"scaled by 0 the sample differs from vanilla by {gap:.1e} (relative); begin() may change nothing.")
    return "scaled by 0 the sample is vanilla bit for bit"


def random_state(p: Probe) -> Verdicts:
    """The global generators do not move, and the same seeds give the same images."""

    def now() -> list[str]:
        return [str(torch.get_rng_state().tolist()), str([np.asarray(part).tolist() for part in np.random.get_state()])]

    before, first, after = now(), p.latents(p.guidance), now()
    for name, old, new in zip(("torch", "numpy"), before, after, strict=True):
        if old != new:
            yield wrong(
                f"it draws from the global generator of {name}; use dap.base.seeding.generators of its own seeds."
            )
    gap = difference(p.latents(p.guidance), first)
    # A GPU may add in another order the second time.
    if gap > (0.0 if p.backbone.device.type == "cpu" else 0.01):
        yield wrong(f"the same seeds give another image the second time (by {gap:.1e}); keep no state between runs.")
    return "no global generator moves, and the same seeds give the same images"


def batch_mates(p: Probe) -> Verdicts:
    if p.guidance.joint:
        return "joint: an image may depend on the other slots of its class"
    if p.guidance.sequential:
        first = p.latents(p.guidance)[:2]
        gap = max(difference(p.latents(p.guidance, [i]), first[i : i + 1]) for i in (0, 1))
        if gap:
            yield wrong(
                f"the first slot changes by {gap:.1e} (relative) with later ones; it may know earlier ones alone."
            )
        return "sequential: an image may depend on the earlier slots of its class, and does on no later one"
    together = p.latents(p.guidance)
    gap = max(difference(p.latents(p.guidance, [i]), together[i : i + 1]) for i in range(len(LABELS)))
    if gap > 1e-3:
        yield wrong(
            f"an image changes by {gap:.1e} (relative) with what shares its batch; take sums and norms image by image, "
            "or set joint = True (sequential, if it looks at finished ones)."
        )
    return f"an image is the same alone and in a batch, to {gap:.0e}"


def energy(p: Probe) -> Verdicts:
    assert p.energy is not None
    p.energy.begin(sorted(set(LABELS)))
    with torch.enable_grad():
        value: Any = p.energy(p.state(p.x.requires_grad_()))
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(LABELS),):
        yield wrong(
            f"the energy of {counted(len(LABELS), 'image')} is {kind_of(value)}; make it ({len(LABELS)},), one an image."
        )
        return ""
    if not torch.isfinite(value).all():
        yield wrong("the energy is not finite.")
    if not value.requires_grad:
        yield wrong("the energy carries no graph to state.x; is something detached, or grad_through too narrow?")
    return f"one number for each image, ({len(LABELS)},), with a graph to x"


def gradient(p: Probe) -> Verdicts:
    """The energy's gradient against finite differences of each image's energy, and of their sum if the energy is joint."""
    found = p.energy
    assert found is not None
    if found.sequential:
        p.latents(p.guidance)  # so that there are earlier slots
    found.begin(sorted(set(LABELS)))
    x, h = p.x, 5e-3
    with torch.enable_grad():
        push = Descend(found, 1.0)(p.state(x.clone().requires_grad_()))

    def value(at: Tensor) -> Tensor:
        with torch.enable_grad():  # an energy may itself take a gradient
            return found(p.state(at.clone().requires_grad_())).detach().double()

    by_graph, own, whole, noise = [], [], [], 0.0
    for k in range(3):
        for i in range(len(x)):
            direction = torch.zeros_like(x)
            direction[i] = draw(tuple(x.shape[1:]), 50 + k, x.device)
            up, down = value(x + h * direction), value(x - h * direction)
            by_graph.append(-(push * direction).sum().item())
            own.append(((up - down)[i] / (2 * h)).item())
            whole.append(((up - down).sum() / (2 * h)).item())
            noise = max(noise, up.abs().max().item() * 2e-7 / h)
    graph, sides = torch.tensor(by_graph), [torch.tensor(own)] + ([torch.tensor(whole)] if p.thing.joint else [])
    gaps = [(graph - side).norm().item() for side in sides]
    size = max(side.norm().item() for side in sides)
    if min(gaps) > 0.05 * size + 3 * noise:
        yield wrong(
            f"the gradient along a random direction is {graph[0]:.4g}, a finite difference {own[0]:.4g}: a part of the "
            "energy is detached from state.x, or needs grad_through = 'denoiser' (eps and x0_hat do)."
        )
    elif size <= 3 * noise:
        yield warn("the energy does not change with x here, so it guides nothing.")
    return f"equals a finite difference, to {min(gaps) / max(size, 1e-30):.0e}"


CHECKS: dict[str, Callable[[Probe], Verdicts]] = {
    "description": description,
    "active": active,
    "push": push,
    "scale zero": scale_zero,
    "random state": random_state,
    "batch mates": batch_mates,
}


def findings(thing: Guidance | Energy, backbone: Backbone | None = None) -> Iterator[Finding]:
    """The findings of all checks. Each finding comes as soon as it is made."""
    own = {"energy": energy, "gradient": gradient} if isinstance(thing, Energy) else {}
    return run(own | CHECKS, Probe(thing, backbone))
