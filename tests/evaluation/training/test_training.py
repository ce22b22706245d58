"""Training: a trial is exactly what its protocol and seed say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.store import Checkpoint
from dap.evaluation.training import evaluate as training
from dap.evaluation.training import fitting
from dap.evaluation.training.batches import Images, accuracy, confusion, prepare
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.steps import CenterCrop, Normalize, Resize
from dap.evaluation.training.transforms import run, size_after, split
from dap.evaluation.training.trials import Trial
from trainings import AUGMENTED, EXPLODING, LINEAR, Linear, stripes, tiny, trained


def test_a_trial_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    train, test = stripes(20, noise=0.9), stripes(40, seed=1, noise=0.9)
    for changes in (
        {},
        {"train": [{"op": "resize"}, {"op": "normalize"}, {"op": "dsa"}]},
        AUGMENTED,
        {"norm": "batch", "batch": 8},
    ):
        protocol = tiny(looks=6, **changes)
        before = torch.get_rng_state()
        one, again, other = (next(evaluate(train, test, protocol, [seed], classes=2)) for seed in (5, 5, 6))
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(3)
        (late,) = [t for t in evaluate(train, test, protocol, [1, 5], classes=2) if t.seed == 5]
        assert one.curve == again.curve == late.curve
        nets = [trained(train, protocol, seed) for seed in (5, 5, 6)]
        weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
        assert torch.equal(weights[0], weights[1])
        assert not torch.allclose(weights[0], weights[2])
        assert other.seed == 6


def test_a_separable_set_is_learnt_and_the_trial_says_so():
    train, test = stripes(20), stripes(60, seed=1)
    protocol = tiny(epochs=20, looks=4, score="best")
    trials = list(evaluate(train, test, protocol, [0, 1], classes=2))
    assert [t.seed for t in trials] == [0, 1]
    for trial in trials:
        assert (trial.last, trial.best, trial.train_last) == (1.0, 1.0, 1.0)
        assert [epoch for epoch, _ in trial.curve] == [5, 10, 15, 20]
        assert (trial.protocol, trial.network, trial.epochs, trial.device) == ("tiny", "convnet2", 20, "cpu")
        assert (trial.n_train, trial.n_test, trial.headline) == (20, 60, "best")
        assert trial.seconds > 0


def test_best_is_the_best_look_and_last_the_last():
    train, test = stripes(12, noise=1.0), stripes(50, seed=1, noise=1.0)  # nothing to learn: accuracy wanders
    trials = list(evaluate(train, test, tiny(epochs=8, looks=8, lr=0.3), range(4), classes=2))
    for trial in trials:
        values = [value for _, value in trial.curve]
        assert (trial.best, trial.last, trial.accuracy) == (max(values), values[-1], values[-1])
    assert any(trial.best > trial.last for trial in trials)


def test_the_extra_epoch_is_run_and_told():
    told: list[tuple[int, int, int]] = []
    for extra, count in ((False, 6), (True, 7)):
        protocol = tiny(extra_epoch=extra, batch=5)
        told.clear()
        (trial,) = evaluate(
            stripes(12), stripes(4), protocol, [3], classes=2, progress=lambda *three: told.append(three)
        )
        assert told == [(3, k, count) for k in range(1, count + 1)]
        assert [epoch for epoch, _ in trial.curve] == [2, 4, 6]


@pytest.mark.parametrize("restarts", [True, False])
def test_training_is_the_plain_loop(restarts):
    """E + 1 epochs; at the end of number E // 2 + 1 the rate falls and, if asked, the momentum is gone."""
    protocol = tiny(extra_epoch=True, decay_at=["half+1"], decay_factor=0.1, decay_restarts=restarts, network=LINEAR)
    images, labels = stripes(12)
    net = trained((images, labels), protocol, 0)

    weight = Linear(3, 2, 8).map.weight.detach().clone()
    bias, x, lr = torch.zeros(2), ((images - 0.5) / 0.25).flatten(1), 0.05
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(7):
        error = (x @ weight.T + bias).softmax(1) - F.one_hot(labels, 2)
        gradients = [error.T @ x / len(x), error.mean(0)]
        for k, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            speeds[k] = 0.9 * speeds[k] + gradient + 0.0005 * value
            value -= lr * speeds[k]
        if epoch == 4:
            lr *= 0.1
            if restarts:
                speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for found, expected in zip(net.parameters(), (weight, bias), strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-6)


def test_slices_of_a_batch_add_up_to_the_batch(monkeypatch):
    protocol, (images, labels) = tiny(batch=10), stripes(25)
    weights = []
    for size in (3, 100):
        monkeypatch.setattr(fitting, "slice_size", lambda *where, size=size: size)
        net = trained((images, labels), protocol, 0)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_batch_is_never_cut_where_its_images_depend_on_each_other(monkeypatch):
    images, labels = stripes(12)
    weights = []
    for size in (3, 100):
        monkeypatch.setattr(fitting, "slice_size", lambda *where, size=size: size)
        protocol = tiny(norm="batch")
        net = trained((images, labels), protocol, 0)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*weights)


def test_images_of_another_size_are_resized_in_one_place():
    protocol = tiny()
    images, labels = stripes(6, size=16)
    resized = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(prepare(images, protocol.test_steps), (resized - 0.5) / 0.25)
    assert prepare(images, protocol.test_steps).is_contiguous(memory_format=torch.channels_last)
    (trial,) = evaluate((images, labels), stripes(6, size=12), protocol, [0], classes=2)
    assert trial.n_test == 6


FIXED = st.sampled_from([Resize(side=5), Resize(side=8), Resize(side=12), CenterCrop(size=4), CenterCrop(size=5)])


@given(
    st.lists(FIXED, max_size=4), st.booleans(), st.sampled_from([(8, 8), (8, 11), (5, 5)]), st.sampled_from([0, 2**40])
)
def test_images_are_what_all_fixed_steps_make_of_them_also_where_the_last_size_is_the_first(steps, normal, size, keep):
    steps = [*steps, *([Normalize(mean=(0.5,), std=(0.25,))] if normal else [])]
    pixels = torch.randint(256, (3, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    try:
        size_after(steps, *size)
    except DapError:
        reject()  # a crop that is larger than the image
    ready = Images((pixels, torch.zeros(3, dtype=torch.int64)), steps, torch.device("cpu"), keep=keep)
    seen = ready.take(torch.tensor([2, 0, 1]))
    assert torch.equal(seen, run(steps, pixels[[2, 0, 1]].float() / 255)) and seen.shape[2:] == ready.size


def test_accuracy_is_the_fraction_of_right_labels():
    net = Linear(1, 2, 1)
    net.map.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
    labels = torch.tensor([0, 1, 0, 0])
    images = Images((torch.tensor([-1.0, 2.0, 3.0, -4.0]).view(4, 1, 1, 1), labels), (), torch.device("cpu"))
    counts = confusion(net, images, 2)
    assert counts.tolist() == [[2, 1], [0, 1]] and accuracy(counts) == 0.75


@pytest.mark.parametrize(
    ("train", "classes", "message"),
    [
        ((torch.rand(0, 3, 8, 8), torch.zeros(0).long()), 2, "The training set is empty"),
        ((torch.rand(2, 3, 8, 8), torch.tensor([0, 2])), 2, "labels 0 to 2, but 2 classes allow 0 to 1"),
        ((torch.rand(2, 3, 8, 8), torch.tensor([-1, 1])), 2, "labels -1 to 1"),
        ((torch.rand(2, 3, 8, 8), torch.tensor([0, 0])), 1, "at least 2 classes, not 1"),
        ((torch.rand(2, 3, 8, 8), torch.tensor([0])), 2, "2 images, but labels torch.int64"),
        ((torch.rand(2, 3, 8, 8), torch.tensor([0.0, 1.0])), 2, "labels torch.float32"),
        ((torch.full((2, 3, 8, 8), 200.0), torch.tensor([0, 1])), 2, "should be in .0, 1., but go from 200 to 200"),
        ((torch.full((2, 3, 8, 8), math.nan), torch.tensor([0, 1])), 2, "should be in .0, 1., but go from nan"),
        ((torch.ones(2, 3, 8, 8).int(), torch.tensor([0, 1])), 2, "should be float or uint8"),
        ((torch.rand(2, 1, 8, 8), torch.tensor([0, 1])), 2, "1 channels and the test images 3"),
    ],
)
def test_a_bad_set_is_refused_before_any_training(train, classes, message):
    with pytest.raises(DapError, match=message):
        evaluate(train, stripes(4), tiny(), [0], classes=classes)


def test_a_bad_network_or_mean_is_refused_before_any_training():
    with pytest.raises(DapError, match="Unknown network 'convnet99'"):
        evaluate(stripes(4), stripes(4), tiny(), [0], classes=2, network="convnet99")
    with pytest.raises(DapError, match="has 2 means, but the images have 3 channels"):
        evaluate(stripes(4), stripes(4), tiny(mean=[0.1, 0.2], std=[1, 1]), [0], classes=2)


def test_a_loss_that_explodes_stops_the_trial_by_name():
    trials = evaluate(stripes(8), stripes(4), tiny(network=EXPLODING), [4], classes=2)
    with pytest.raises(DapError, match=r"The loss became (nan|inf) in epoch \d of seed 4 .*tiny.*lower lr"):
        next(trials)


def test_a_trial_survives_json():
    (trial,) = evaluate(stripes(6), stripes(6), tiny(), [0], classes=2)
    line = trial.to_json()
    assert Trial.from_json(line) == trial
    assert "\n" not in line
    assert list(json.loads(line)) == [
        "protocol", "network", "seed", "epochs", "n_train", "n_test", "last", "best", "headline", "curve", "train_last",
        "seconds", "device", "torch", "tested_on", "labels", "confusion",
    ]  # fmt: skip
    for damaged, message in {
        "{": "not JSON",
        "3": "Not a trial",
        line.replace('"seed"', '"sead"'): "unknown fields sead, seed",
    }.items():
        with pytest.raises(DapError, match=message):
            Trial.from_json(damaged)


def test_bfloat16_learns_as_much_and_leaves_weights_in_float32():
    two = stripes(20), stripes(60, seed=1)
    curves = []
    for precision in ("float32", "bfloat16"):
        protocol = tiny(epochs=20, looks=4, precision=precision)
        trials = list(evaluate(*two, protocol, [0, 1], classes=2))
        assert [t.last for t in trials] == [1.0, 1.0]
        ready = Images(stripes(13, noise=0.9), training.split(protocol.train_steps)[0], torch.device("cpu"))
        one = fitting.Training(ready, protocol, 0, network=protocol.network, channels=3, classes=2)
        net = one.epochs()
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert all(v.dtype == torch.float32 for s in one.optimiser.state.values() for v in s.values())
        curves.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert not torch.equal(*curves)


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    train, test = stripes(12, noise=0.9), stripes(40, seed=1, noise=0.9)
    protocol = tiny(**AUGMENTED, epochs=5, looks=5)
    options: dict[str, Any] = {"classes": 2}
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
    assert told[3:] == [3, 4, 5, 1, 2, 3, 4, 5]
    assert [(t.curve, t.confusion) for t in again] == [(t.curve, t.confusion) for t in whole]


def test_a_training_that_goes_on_elsewhere_names_both_devices(tmp_path):
    data = stripes(12), stripes(8, seed=1), tiny(epochs=3, looks=1), [0]

    def killed(seed: int, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(evaluate(*data, classes=2, checkpoints=tmp_path, every=0.0, progress=lambda *at: at[1] < 2 or killed(*at)))
    (file,) = tmp_path.glob("*.pt")
    checkpoint = Checkpoint(file, file.stem)
    state = checkpoint.read()
    assert state is not None and state["notes"]["devices"] == ["cpu"]
    checkpoint.write(state | {"notes": state["notes"] | {"devices": ["cuda:1"]}})
    (trial,) = evaluate(*data, classes=2, checkpoints=tmp_path)
    assert trial.device == "cuda:1, cpu"


@pytest.mark.parametrize("part", ["network", "optimiser", "order", "epoch"])
def test_a_checkpoint_of_another_form_is_a_sentence(tmp_path, part):
    """Found by fuzzing: what a checkpoint with a right checksum holds was not checked."""
    protocol = tiny(epochs=2).settled(ipc=6, classes=2)
    train = Images(stripes(12), split(protocol.train_steps)[0], torch.device("cpu"))
    begun = fitting.Training(train, protocol, 0, network="convnet1", channels=3, classes=2)
    state = begun.state()
    state.pop(part)
    checkpoint = Checkpoint(tmp_path / "x.pt", "k")
    checkpoint.write({"training": state, "notes": {}})
    with pytest.raises(DapError, match="x.pt does not hold this training .*Delete it"):
        fitting.run_with_checkpoint(begun, checkpoint, lambda epoch, net: None, {})


def test_a_recorded_trial_without_a_confusion_is_read_and_one_of_another_kind_is_a_sentence():
    """Found by fuzzing: TypeError when an evaluation was taken up again, for a line that the report reads."""
    (trial,) = evaluate(stripes(12), stripes(8, seed=1), tiny(epochs=1, looks=1), [0], classes=2)
    line = json.loads(trial.to_json())
    assert Trial.from_record(line | {"confusion": None}).confusion == ()
    for wrong in ({"confusion": 3}, {"curve": [1, 2]}):
        with pytest.raises(DapError, match="no table"):
            Trial.from_record(line | wrong)
