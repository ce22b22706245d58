"""DAP: what the last push of Eq. 8 leaves in the images is said."""

from __future__ import annotations

import logging

import pytest
import torch

from dap.base.errors import DapError
from dap.guidance import Guidance, Nothing, State, Window
from dap.methods.diffusion.dap import Warned
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine


class Push(Nothing):
    def active(self, index, steps):
        return True


def last_state(push, index=4):
    """The last of five steps, whose finished latents (2, 1, 2, 2) have norm 2 each, of which the push has `push`."""
    after = torch.ones(2, 1, 2, 2)
    x = torch.zeros_like(after)
    labels = torch.tensor([0, 0])
    return State(
        x=x, proposal=after * (1 - push / 2), x0_hat=x, eps=x, features=None, t=0, index=index, steps=5, alpha=1.0,
        sigma=0.0, labels=labels, slots=labels, next=after,
    )  # fmt: skip


@pytest.mark.parametrize(("push", "said"), [(0.08, []), (0.5, ["25 %"]), (1.4, ["70 %"])])
def test_a_large_last_push_is_said_once_and_with_its_size(push, said, caplog):
    with caplog.at_level(logging.WARNING, "dap"):
        guidance = Warned(Push())
        guidance.finish(last_state(push))
        guidance.finish(last_state(push))
    assert len(caplog.messages) == len(said)
    assert all(size in message for size, message in zip(said, caplog.messages, strict=True))


@pytest.mark.parametrize("window", [{"last": False}, {"stop": 0.5}])
def test_a_window_without_the_last_step_says_nothing(window, caplog):
    with caplog.at_level(logging.WARNING, "dap"):
        Warned(Push(), **window).finish(last_state(1.4))
    assert not caplog.messages


def test_the_advice_is_followed_by_images_without_the_warning(colours, pipeline_folder, tmp_path, caplog):
    """The paper's form warns; with either advice the same run says nothing."""

    def messages(name, **guidance):
        values = {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 3}}
        chosen = {"method": "dap", "ipc": 2, "guidance": {"scale": 300.0, "unit": "paper", "reals": 4, **guidance}}
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dap"):
            distill(Recipe.parse({**values, **chosen}), tmp_path / name)
        return [message for message in caplog.messages if "last step" in message]

    (warning,) = messages("a")
    assert "--last-step false" in warning and "--unit step" in warning
    assert not messages("b", last_step=False)
    assert not messages("c", unit="step", scale=0.05)


class Still(Guidance):
    def __call__(self, state):
        return torch.zeros_like(state.x)


def test_a_window_in_which_no_step_lies_is_told(colours, pipeline_folder, tmp_path, caplog):
    """Where the recipe says the window it is refused, and where a guidance of one's own has it there is a warning."""

    def told(name, **asked):
        caplog.clear()
        how = {"source": colours, "backbone": pipeline_folder, "ipc": 1, "steps": 10, "machine": Machine(device="cpu")}
        distill(out=tmp_path / name, **how, **asked)
        return caplog.messages

    with pytest.raises(DapError, match="DAP's guidance would act in none of the 10 steps"):
        told("a", method="dap", start=0.95)
    assert not told("b", method="dap", start=0.95, scale=0.0)
    assert not told("c", method="dap", start=0.5)
    assert not told("d", method="vanilla", guidance=Window(Still(), start=0.5))
    (said,) = told("e", method="vanilla", guidance=Window(Still(), start=0.95))
    assert "None of the 10 steps lies in the part of the run" in said
