r"""Features of samples beside features of real images, and the noise in both.

phi(x_t, t) sees the content of x_t = alpha x0_hat + sigma eps, and its noise. A real image that is noised with a noise of its own
differs from the sample in both. Over N real images their noises average out, so a mean distance to them falls fastest along
-eps, whatever the class. The noise of the two must be equal before only content is compared. With z_j a clean latent:

    fixed, fresh, shared    phi(x_t)                                  with phi(alpha z_j + sigma eps_j)
    own                     phi(x_t)                                  with phi(alpha z_j + sigma eps)
    common                  phi(alpha x0_hat + sigma eta)             with phi(alpha z_j + sigma eta)

eps is the predicted noise of the sample and eta one noise for each class and step. In both, eps counts as a constant when the
energy is differentiated: d x0_hat / d x_t = 1 / alpha. The compared point is then x_t plus a constant, x_t + sigma (eta - eps),
and nothing is divided by alpha, which is 0 where a flow begins. docs/method.md derives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.base import Energy, Guidance, settled
from dap.guidance.state import State

OfClass = Callable[[Tensor, int, Tensor, Tensor], Tensor]
"""The energies (n,) of the images of one class, from their features (n, D), the label, their slots, and real features (m, D)."""

PASSES = 64
"""How many images go through the network at once where real images get the noise of samples."""


@runtime_checkable
class RealFeatures(Protocol):
    """The source of real features; `dap.data.bank.FeatureBank` is one."""

    @property
    def layer(self) -> str:
        """The backbone layer that the features come from."""
        ...

    @property
    def branch(self) -> Literal["cond", "null"]:
        """The half of classifier-free guidance that the features come from."""
        ...

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare the real features of these labels."""
        ...

    def at(self, label: int, t: int | float) -> Float[Tensor, "n d"]:
        """φ(x_t^{(j)}, t) of the label's N real images at time t, after `transform`."""
        ...

    def shares(self, label: int) -> Float[Tensor, "slots n"] | None:
        """For each slot the weights of the real images that pull it; each row sums to 1. None: all images pull evenly."""
        ...

    def transform(self, features: Float[Tensor, "b tokens width"], label: int, t: int | float) -> Float[Tensor, "b d"]:
        """Treat features of a layer as the real features of a label at time t were treated: pool and normalise them."""
        ...


@runtime_checkable
class Matching(RealFeatures, Protocol):
    """Real features that can be compared under equal noise. `by_class` asks for nothing of this where `matched` is None."""

    @property
    def matched(self) -> Literal["own", "common"] | None:
        """Which noise the samples and the real images share. None: the real images have noises of their own."""
        ...

    def clean(self, label: int, t: int | float) -> Float[Tensor, "n c *spatial"]:
        """The clean latents of the label's N real images at time t."""
        ...

    def noise(self, label: int, t: int | float) -> Float[Tensor, "c *spatial"]:
        """The one noise of the label at time t, under which `at` has the real images if the noise is matched."""
        ...

    def tap(self, x: Float[Tensor, "b c *spatial"], label: int, t: int | float) -> Float[Tensor, "b tokens width"]:
        """The features of x_t as images of the label. They are differentiable in x if x requires grad."""
        ...


def matched(reals: RealFeatures) -> Literal["own", "common"] | None:
    """Which noise the samples share with the real images. None: none."""
    return reals.matched if isinstance(reals, Matching) else None


@dataclass(frozen=True)
class ToReals(Energy):
    """An energy in features that are compared with real ones. Layer and branch are those of the real features.

    Under `noise: common` the layer is None: the features of the step itself are not looked at, so none are kept.

    Args:
        reals: the real features.
    """

    reals: RealFeatures

    @property
    def layer(self) -> str | None:
        return None if matched(self.reals) == "common" else self.reals.layer

    @property
    def branch(self) -> Literal["cond", "null"]:
        return self.reals.branch

    def begin(self, labels: Sequence[int]) -> None:
        self.reals.begin(labels)


def check_classes(parts: Iterable[Guidance | Energy], class_names: Sequence[str], labels: Sequence[int]) -> None:
    """Check that labels mean the same classes in the real images of guidances as in what is sampled.

    A label is a position in a list of class names. Real images of other classes, or in another order, would pull an image
    towards another class.

    Args:
        parts: guidances and energies. Whatever they hold that is told of labels (`begin`) and has a source of real images counts.
        class_names: the classes of what is sampled, in label order.
        labels: the labels in it.

    Raises:
        DapError: a label is another class there, or none.
    """
    for part in parts:
        for theirs in _sources(part, set()):
            for label in labels:
                name = theirs[label] if label < len(theirs) else None
                if name != class_names[label]:
                    other = "no class" if name is None else f"the class {name!r}"
                    raise DapError(
                        f"{class_names[label]!r} has the label {label} in what is sampled, but in the real images of the "
                        f"guidance {type(part).__name__} this label is {other}. Open these images with the same classes in the "
                        "same order: "
                        f"classes={list(class_names)[:10]}{' and so on' * (len(class_names) > 10)}."
                    )


def _sources(held: object, seen: set[int], depth: int = 8) -> Iterator[Sequence[str]]:
    """The class names of the sources of real images that a guidance, or what it holds, is told labels of."""
    if id(held) in seen or not depth:
        return
    seen.add(id(held))
    if isinstance(held, (list, tuple, Mapping)):
        inside: Iterable[object] = held.values() if isinstance(held, Mapping) else held
    elif isinstance(held, (Guidance, Energy)):
        inside = vars(held).values()
    elif callable(getattr(held, "begin", None)):
        source = getattr(held, "source", None) or getattr(getattr(held, "task", None), "source", None)
        if (names := getattr(source, "class_names", None)) is not None:
            yield names
            return
        inside = getattr(held, "__dict__", {}).values()
    else:
        return
    for one in inside:
        yield from _sources(one, seen, depth - 1)


def by_class(
    state: State, reals: RealFeatures, of_class: OfClass, *, together: bool = True, weighted: bool = False
) -> Float[Tensor, " b"]:
    """The energy of each image of a batch, from a function that sees one class at a time.

    Under `noise: own` the function is called once for each image, and sees the whole class in the noise of this image.

    Args:
        state: the batch, with its features.
        reals: the real features.
        of_class: gets the features (n, D) of the images of a class, the label, the slots of these images, and the real
            features (m, D). It returns the energy of each image, (n,).
        together: whether the energy of an image depends on the other images of its class. False saves their passes under
            `noise: own`.
        weighted: whether `of_class` weighs the real images by `RealFeatures.shares`. Under `noise: own`, real images of
            weight 0 are then not passed for each image.
    """
    device, found, energies = state.x.device, list[Tensor](), list[Tensor]()
    how = matched(reals)
    for label in state.labels.unique().tolist():
        rows = (state.labels == label).nonzero()[:, 0].to(device)
        found.append(rows)
        if how is not None and state.alpha == 0:  # a flow begins at pure noise, in which there is no content to compare
            energies.append((0 * state.x[rows]).flatten(1).sum(1))
        elif how == "own":
            assert isinstance(reals, Matching)
            energies.append(_own(state, reals, of_class, label, rows, together, weighted))
        else:
            real = reals.at(label, state.t)  # before `transform`, which may measure by these
            features = reals.transform(_compared(state, reals, label, rows), label, state.t)
            energies.append(of_class(features, label, state.slots.to(device)[rows], real.to(features)))
    return torch.cat(energies)[torch.cat(found).argsort()]


def _compared(state: State, reals: RealFeatures, label: int, rows: Int[Tensor, " n"]) -> Tensor:
    """The features of images of one class that are compared with `reals.at`: those of the step, or those under common noise."""
    if isinstance(reals, Matching) and reals.matched == "common":
        eta = reals.noise(label, state.t)
        return reals.tap(state.x[rows] + state.sigma * (eta - state.eps[rows].detach()), label, state.t)
    assert state.features is not None
    return state.features[rows]


def _own(
    state: State,
    reals: Matching,
    of_class: OfClass,
    label: int,
    rows: Int[Tensor, " n"],
    together: bool,
    weighted: bool,
) -> Float[Tensor, " n"]:
    """The energies of the images of one class, for each of which all others are noised with its own predicted noise."""
    assert state.features is not None
    t, slots, clean = state.t, state.slots.to(rows.device)[rows], reals.clean(label, state.t)
    shares = reals.shares(label) if weighted else None
    used = [torch.arange(len(clean)) if shares is None else shares[slot].nonzero()[:, 0] for slot in slots.tolist()]
    mates = [rows[rows != row] if together else rows[:0] for row in rows]
    x, eps = state.x.detach(), state.eps.detach()

    def noised(k: int) -> Tensor:
        """The real images that pull an image, and the other images of its class, in the noise of this image."""
        own, others = eps[rows[k]], mates[k]
        real = state.alpha * clean[used[k].to(clean.device)] + state.sigma * own
        return torch.cat([real, x[others] + state.sigma * (own - eps[others])])

    everywhere = None if shares is None else reals.at(label, t)  # for real images of weight 0, which say what is usual
    mine = reals.transform(state.features[rows], label, t)
    energies = []
    for k, features in _passed(noised, len(rows), lambda x: reals.tap(x, label, t)):
        other = reals.transform(features, label, t).to(mine)
        real, beside = other[: len(used[k])], other[len(used[k]) :]
        if everywhere is not None:
            real = everywhere.to(mine).index_copy(0, used[k].to(mine.device), real)
        row = k if together else 0

        def of_all(leaf: Tensor, row: int = row, real: Tensor = real, beside: Tensor = beside, k: int = k) -> Tensor:
            everyone = torch.cat([beside[:row], leaf, beside[row:]])
            return of_class(everyone, label, slots if together else slots[k : k + 1], real)

        energies.append(settled(of_all, mine[k : k + 1], row))
    return torch.stack(energies)


def _passed(
    noised: Callable[[int], Tensor], n: int, tap: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Float[Tensor, "b tokens width"]]]:
    """The features of `noised(k)` for k = 0 … n − 1. As many of them go through the network at once as fit in `PASSES`."""
    waiting: dict[int, Tensor] = {}
    for k in range(n):
        waiting[k] = noised(k)
        if k + 1 < n and sum(map(len, waiting.values())) + len(waiting[k]) <= PASSES:
            continue
        sizes = [len(x) for x in waiting.values()]
        parts = torch.cat([tap(part) for part in torch.cat(list(waiting.values())).split(PASSES)]).split(sizes)
        yield from zip(waiting, parts, strict=True)
        waiting = {}
