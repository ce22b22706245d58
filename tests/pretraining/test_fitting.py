"""One stage of a training: it goes on after a kill with the same bytes, and ends when the held-out loss turns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dap.base.errors import DapError
from dap.base.store import Checkpoint
from dap.pretraining.fitting import PATIENCE, Averaged, Fitting, fit, learning_rate


class Killed(BaseException):
    """As a process that ends here."""


def line(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 1)


def loss_of(module):
    def loss(generator):
        x = torch.randn(8, 3, generator=generator)
        return (module(x)[:, 0] - x.sum(1)).square().mean()

    return loss


def kept(folder, key: str = "a") -> Checkpoint:
    return Checkpoint(folder / "stage.pt", key, every=0.0)


HOW = Fitting("stage", steps=40, peak=0.05, seed=3, decay=0.9, looks=10)


def test_a_killed_stage_goes_on_with_the_same_bytes(tmp_path):
    whole = line()
    one = fit(whole, loss_of(whole), HOW, checkpoint=kept(tmp_path / "a"), held_out=lambda: 1.0)
    seen: set[int] = set()

    def tell(done, total):
        if done in (7, 8, 21) and done not in seen:
            seen.add(done)
            raise Killed

    for number in range(4):
        # The network of a new process has other values than the one that was killed, until it reads the checkpoint.
        parted = line(0 if number == 0 else number)
        try:
            two = fit(parted, loss_of(parted), HOW, checkpoint=kept(tmp_path / "b"), held_out=lambda: 1.0, tell=tell)
        except Killed:
            continue
    assert seen == {7, 8, 21}
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))
    assert (one.steps, one.best, one.history, one.turned) == (two.steps, two.best, two.history, two.turned)
    assert not torch.equal(line().weight, whole.weight)


def test_it_learns_and_keeps_the_averaged_weights(tmp_path):
    module = line()
    found = fit(module, loss_of(module), HOW, checkpoint=kept(tmp_path))
    assert found.steps == found.best == 40 and not found.turned and len(found.history) == 10
    assert found.history[-1][1] < found.history[0][1] / 4 and found.history[0][2] is None
    before = (line().weight - 1).abs().sum()
    assert (module.weight - 1).abs().sum() < before / 3


def test_it_ends_when_the_held_out_loss_turns_and_keeps_the_best_weights(tmp_path):
    """The loss falls at three looks and rises afterwards; the result is the average of the third look."""
    losses, module = iter([3.0, 2.0, 1.0, *map(float, range(2, 40))]), line()
    seen = []

    def held_out():
        seen.append(module.weight.detach().clone())
        return next(losses)

    found = fit(module, loss_of(module), HOW, checkpoint=kept(tmp_path), held_out=held_out)
    assert found.turned and found.best == 3 * HOW.every and found.steps == (3 + PATIENCE) * HOW.every
    assert torch.equal(module.weight, seen[2]) and not torch.equal(module.weight, seen[-1])
    again = line()
    repeated = fit(again, loss_of(again), HOW, checkpoint=kept(tmp_path), held_out=lambda: 0.0)
    assert (repeated.steps, repeated.best) == (found.steps, found.best), "what is done is not done again"
    assert torch.equal(again.weight, module.weight)


def test_a_loss_that_is_no_number_is_said(tmp_path):
    module = line()
    with pytest.raises(DapError, match="stage is nan at step 4 of 40, so the training diverged"):
        fit(module, lambda generator: module.weight.sum() * float("nan"), HOW, checkpoint=kept(tmp_path))


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_the_average_is_used_only_inside_its_block():
    module = line()
    average = Averaged(module, 0.5)
    first = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    with average.used():
        assert torch.equal(module.weight, first)
    assert torch.equal(module.weight, first + 1)
