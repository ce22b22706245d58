"""Several seeds in one training come to what each comes to by itself."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from test_protocol import tiny
from test_training import AUGMENTED, stripes
from torch import Tensor, nn
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.evaluation.training import fitting
from dap.evaluation.training.batches import Images
from dap.evaluation.training.evaluate import evaluate, split
from dap.evaluation.training.fitting import Training
from dap.evaluation.training.networks import build
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.together import Together, why_alone


class Says:
    """A teacher whose logits are means of the image."""

    name, fingerprint = "means", "0"

    def logits(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images[:, 0].std((1, 2))], 1) * 4


class Dropping(nn.Module):
    """Draws random numbers in training."""

    def __init__(self, channels: int, classes: int, size: int, **others: object) -> None:
        super().__init__()
        self.map = nn.Linear(channels * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.map(images.flatten(1)), 0.5, self.training)


DROPPING = f"{__file__}:Dropping"
SOFT: dict[str, Any] = {"labels": {"kind": "soft", "temperature": 4.0}}
ADAM: dict[str, Any] = {"optimiser": "adamw", "lr": 1e-3, "weight_decay": 0.01, "weight_decay_on": "matrices"}
DECAYS: dict[str, Any] = {"decay_at": [1, 2], "decay_factor": 0.2}


def given(protocol: Protocol) -> tuple[Images, dict[str, Any]]:
    train = Images(stripes(13, noise=0.9), split(protocol.train_steps)[0], torch.device("cpu"))
    teacher = Says() if protocol.labels.kind == "soft" else None
    return train, {"network": protocol.network, "channels": 3, "classes": 2, "teacher": teacher}


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**DECAYS, "decay_restarts": True},
        {**DECAYS, "decay_restarts": False},
        {**AUGMENTED, "extra_forward": True},
        {**AUGMENTED, **SOFT, **ADAM},
        {**SOFT, "mix": {"op": "mixup"}, "extra_epoch": True, "batch": 5},
        {**ADAM, "norm": "none"},
        {"train": [{"op": "resize"}, {"op": "normalize"}, {"op": "dsa"}]},
    ],
)
def test_a_seed_comes_to_the_same_in_a_group_as_alone(changes):
    protocol = tiny(**{"epochs": 3, **changes})
    train, options = given(protocol)
    seeds = (4, 0, 7)
    nets = Together(train, protocol, seeds, **options).epochs()
    for seed, net in zip(seeds, nets, strict=True):
        fresh = Training(train, protocol, seed, **options)
        start = weights(fresh.net)
        alone = weights(fresh.epochs()[0])
        assert (alone - start).abs().max() > 3e-3
        said = [each.eval()(train.take(slice(None))) for each in (net, fresh.net)]
        torch.testing.assert_close(*said, rtol=1e-3, atol=1e-3)
        # Biases before a norm have no gradient, and Adam enlarges the rounding error that is left of it.
        if protocol.optimiser == "sgd" or protocol.norm == "none":
            torch.testing.assert_close(weights(net), alone, rtol=1e-4, atol=1e-4)


def test_a_residual_network_is_trained_together_in_slices_too(monkeypatch):
    monkeypatch.setattr(fitting, "slice_size", lambda *where: 4)
    protocol = tiny(network="resnetap10", size=16, epochs=1, batch=13, lr=1e-3)
    train, options = given(protocol)
    for seed, net in zip((1, 2), Together(train, protocol, (1, 2), **options).epochs(), strict=True):
        alone = Training(train, protocol, seed, **options).epochs()[0]
        torch.testing.assert_close(weights(net), weights(alone), rtol=1e-4, atol=1e-4)


def test_a_group_goes_on_from_its_state():
    protocol = tiny(**AUGMENTED, epochs=4)
    train, options = given(protocol)
    whole = Together(train, protocol, (1, 2), **options)
    kept = io.BytesIO()
    nets = whole.epochs(lambda epoch, nets: torch.save(whole.state(), kept) if epoch == 2 else None)
    kept.seek(0)
    again = Together(train, protocol, (1, 2), **options)
    again.restore(torch.load(kept, weights_only=True))
    for net, other in zip(nets, again.epochs(), strict=True):
        torch.testing.assert_close(weights(other), weights(net))


def test_trials_of_groups_come_in_order_each_with_its_own_curve(tmp_path):
    train, test = stripes(12, noise=0.9), stripes(40, seed=1, noise=0.9)
    protocol = tiny(epochs=4, looks=2, lr=0.01)
    alone = list(evaluate(train, test, protocol, [3, 1, 2], classes=2))
    told: list[tuple[int, int, int]] = []
    options: dict[str, Any] = {"checkpoints": tmp_path, "every": 0.0, "progress": lambda *three: told.append(three)}
    both = list(evaluate(train, test, protocol, [3, 1, 2], classes=2, together=2, **options))
    assert [t.seed for t in both] == [3, 1, 2]
    assert told == [(seed, epoch, 4) for seed in (3, 2) for epoch in (1, 2, 3, 4)]
    for one, other in zip(alone, both, strict=True):
        for (epoch, value), (same, near) in zip(one.curve, other.curve, strict=True):
            assert epoch == same and value == pytest.approx(
                near, abs=0.051
            )  # rounding may move one of 40 images, or two
        assert sum(map(sum, other.confusion)) == 40
        assert other.confusion[0][0] + other.confusion[1][1] == round(40 * other.last)
    assert len({t.confusion for t in both}) > 1
    assert both[0].seconds == both[1].seconds > 0
    told.clear()
    assert (
        list(evaluate(train, test, protocol, [3, 1, 2], classes=2, together=2, **options)) == both
    )  # from checkpoints
    assert told == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"norm": "batch"}, "statistics of a batch norm"), ({"network": DROPPING}, "draws random numbers")],
)
def test_networks_that_cannot_are_trained_one_after_another(changes, reason, caplog):
    protocol = tiny(epochs=2, looks=1, **changes)
    two = stripes(8), stripes(8, seed=1)
    found = list(evaluate(*two, protocol, [0, 1], classes=2, together=2))
    assert reason in caplog.text and "one seed after another" in caplog.text
    assert [t.curve for t in found] == [t.curve for t in evaluate(*two, protocol, [0, 1], classes=2)]
    train, options = given(protocol)
    with pytest.raises(DapError, match=f"cannot be trained several at once: .*{reason}"):
        Together(train, protocol, (0, 1), **options)


def test_it_is_known_which_networks_can():
    for name, norm, can in (
        ("convnet2", "instance", True),
        ("resnet18", "instance", True),
        ("resnet18", "batch", False),
        ("mobilenet_v2", "instance", False),
    ):
        net = build(name, classes=2, size=16, norm=norm, width=4)  # pyright: ignore[reportArgumentType]
        before = weights(net)
        assert (why_alone(net, 3, 16) is None) == can
        assert torch.equal(weights(net), before)


def test_a_loss_that_explodes_names_its_seed():
    protocol = tiny(lr=1e30)
    train, options = given(protocol)
    with pytest.raises(DapError, match=r"in epoch \d of seed 5 "):
        Together(train, protocol, (5, 6), **options).epochs()
    with pytest.raises(DapError, match="together counts networks"):
        evaluate(stripes(4), stripes(4), tiny(), [0], classes=2, together=0)


def test_bfloat16_learns_as_much_and_leaves_weights_in_float32():
    two = stripes(20), stripes(60, seed=1)
    curves = []
    for precision in ("float32", "bfloat16"):
        protocol = tiny(epochs=20, looks=4, precision=precision)
        trials = list(evaluate(*two, protocol, [0, 1], classes=2))
        assert [t.last for t in trials] == [1.0, 1.0]
        train, options = given(protocol)
        training = Training(train, protocol, 0, **options)
        (net,) = training.epochs()
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert all(v.dtype == torch.float32 for s in training.optimiser.state.values() for v in s.values())
        curves.append(weights(net))
    assert not torch.equal(*curves)
    protocol = tiny(epochs=20, looks=4, precision="bfloat16")
    assert [t.last for t in evaluate(*two, protocol, [0, 1], classes=2, together=2)] == [1.0, 1.0]


@pytest.mark.parametrize("together", [1, 2])
def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(together, tmp_path):
    train, test = stripes(12, noise=0.9), stripes(40, seed=1, noise=0.9)
    protocol = tiny(**AUGMENTED, epochs=5, looks=5)
    options: dict[str, Any] = {"classes": 2, "together": together}
    whole = list(evaluate(train, test, protocol, [0, 1], **options))
    told: list[int] = []

    def killed(seed: int, done: int, total: int) -> None:
        told.append(done)
        if told == [1, 2, 3]:
            raise KeyboardInterrupt

    options |= {"checkpoints": tmp_path, "every": 0.0, "progress": killed}
    with pytest.raises(KeyboardInterrupt):
        list(evaluate(train, test, protocol, [0, 1], **options))
    again = list(evaluate(train, test, protocol, [0, 1], **options))
    assert told[3:] == ([3, 4, 5] if together == 2 else [3, 4, 5, 1, 2, 3, 4, 5])
    assert [(t.curve, t.confusion) for t in again] == [(t.curve, t.confusion) for t in whole]
