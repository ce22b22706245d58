"""One stage of a training: steps of AdamW, averaged weights, a held-out loss that ends it, and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint

PATIENCE = 6
"""So many looks at the held-out loss in a row that are no better than the best one end a training."""

WARMUP = 200
"""Steps in which the learning rate rises; at most a tenth of the training."""


@dataclass(frozen=True)
class Fitting:
    """The choices for one stage.

    Attributes:
        name: the name of the stage, for people and for the seeds of its steps.
        steps: the number of steps.
        peak: the largest learning rate.
        seed: together with the name and the number of a step it decides what the step draws.
        decay: the largest decay of the moving average of the weights.
        looks: how often the held-out loss is taken in the whole training.
    """

    name: str
    steps: int
    peak: float
    seed: int
    decay: float
    looks: int = 30

    @property
    def every(self) -> int:
        """The number of steps between two looks at the held-out loss."""
        return max(1, self.steps // self.looks)


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Attributes:
        steps: the number of steps that were made.
        best: the step after which the averaged weights had the smallest held-out loss. These weights are the result.
        history: at each look (step, mean training loss since the look before, held-out loss); the last is None where no images
            are held out.
        turned: whether the training ended early, because the held-out loss had turned.
        seconds: the time of all processes that worked on the stage.
    """

    steps: int
    best: int
    history: list[tuple[int, float, float | None]]
    turned: bool
    seconds: float


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The learning rate at a step: a linear warm-up, then a cosine down to one hundredth of the peak."""
    warmup = min(WARMUP, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Averaged:
    """The moving average of a network's trained parameters, by the `EMAModel` of diffusers.

    Args:
        module: the network.
        decay: the largest decay. After step k the decay is min(`decay`, (1 + k) / (10 + k)).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.model: Any = EMAModel(self.parameters, decay=decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the network have the averaged weights while the block runs."""
        self.model.store(self.parameters)
        self.model.copy_to(self.parameters)
        try:
            yield
        finally:
            self.model.restore(self.parameters)

    def copied(self) -> list[Tensor]:
        """A copy of the averaged weights."""
        return [value.detach().clone() for value in self.model.shadow_params]


def fit(
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    how: Fitting,
    *,
    checkpoint: Checkpoint,
    held_out: Callable[[], float] | None = None,
    look: Callable[[Averaged], object] = lambda average: None,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Outcome:
    """Minimise a loss, and leave the best averaged weights in the network.

    The weights are those with the smallest held-out loss, or the last ones where nothing is held out. A run that was killed
    goes on from its checkpoint and gives the same bytes, because each step has its own generator.

    Args:
        module: the network. Its parameters that require gradients are trained.
        loss_of: the loss of a step, which draws from the given generator alone.
        how: the choices.
        checkpoint: keeps the state.
        held_out: the held-out loss of the network as it is.
        look: is called after every step, with the averaged weights.
        tell: is called with the number of steps that are done and of all steps.

    Raises:
        DapError: the loss is no finite number.
    """
    average = Averaged(module, how.decay)
    optimiser = torch.optim.AdamW(average.parameters, lr=how.peak, weight_decay=0.0, betas=(0.9, 0.99))
    state: dict[str, Any] = {"step": 0, "history": [], "best": None, "at": 0, "sum": 0.0, "count": 0, "turned": False}
    if (saved := checkpoint.read()) is not None:
        with torch.no_grad():
            for parameter, value in zip(average.parameters, saved.pop("values"), strict=True):
                parameter.copy_(value)
        optimiser.load_state_dict(saved.pop("optimiser"))
        average.model.load_state_dict(saved.pop("average"))
        average.model.to(average.parameters[0].device)
        state.update(saved)
    began = time.monotonic()

    def keep() -> None:
        parts = {"optimiser": optimiser.state_dict(), "average": average.model.state_dict()}
        checkpoint.write({**state, **parts, "values": [parameter.detach() for parameter in average.parameters]})

    tell(state["step"], how.steps)
    while state["step"] < how.steps and not state["turned"]:
        step = state["step"]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, how.steps, how.peak)
        loss = loss_of(torch.Generator().manual_seed(seed_of(how.seed, how.name, step)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(average.parameters, 1.0)
        optimiser.step()
        average.model.step(average.parameters)
        state["step"] = step + 1
        state["sum"], state["count"] = state["sum"] + loss.detach(), state["count"] + 1
        if state["step"] % how.every == 0 or state["step"] == how.steps:
            _look(state, how, average, held_out)
        tell(state["step"], how.steps)
        if checkpoint.due or state["turned"] or state["step"] == how.steps:
            keep()
        look(average)
    best = state["best"] if state["best"] is not None else average.copied()
    with torch.no_grad():
        for parameter, value in zip(average.parameters, best, strict=True):
            parameter.copy_(value)
    history = [(int(step), float(loss), held) for step, loss, held in state["history"]]
    seconds = checkpoint.carried + time.monotonic() - began
    return Outcome(state["step"], state["at"] or state["step"], history, state["turned"], round(seconds, 1))


def _look(state: dict[str, Any], how: Fitting, average: Averaged, held_out: Callable[[], float] | None) -> None:
    """Take down the losses, and note whether the held-out one has turned."""
    mean = float(state["sum"]) / state["count"]
    if not math.isfinite(mean):
        raise DapError(
            f"The loss of the {how.name} is {mean} at step {state['step']} of {how.steps}, so the training diverged. Give "
            "another --seed and another --out."
        )
    state["sum"], state["count"], found = 0.0, 0, None
    if held_out is not None:
        with average.used(), torch.no_grad():
            found = held_out()
        least = min((held for _, _, held in state["history"]), default=math.inf)
        if found < least:
            state["best"], state["at"] = average.copied(), state["step"]
    state["history"].append((state["step"], mean, found))
    if found is not None:
        state["turned"] = state["step"] - state["at"] >= PATIENCE * how.every
