"""Stored soft labels: the images come back bit for bit, the labels are the teacher's of just these, and nothing else fits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.evaluation.training import stored_labels
from dap.evaluation.training.batches import Images
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.fitting import fit
from dap.evaluation.training.labels import hard_loss
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.stored_labels import Labelling, open_labels, write_labels
from dap.evaluation.training.transforms import parse, split
from trainings import stripes, tiny, trained

NAMES = ("red", "green", "blue")
STEPS = parse(
    [
        {"op": "resize", "side": 12},
        {"op": "tiles", "factor": 2},
        {"op": "random_resized_crop", "size": 8, "scale": [0.08, 1]},
        {"op": "flip"},
        {"op": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
        {"op": "lighting", "std": 0.1},
        {"op": "normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
        {"op": "dsa", "operations": ["rotate", "crop"]},
    ]
)
MIX = load_protocol("fkd-soft").mix
HOW = Labelling(STEPS, MIX, batch=4, epochs=3, seed=7)


def images(n: int = 10) -> Tensor:
    return torch.rand(n, 3, 16, 14, generator=torch.Generator().manual_seed(1))


HASHES = [f"{k:064x}" for k in range(10)]


class Watched:
    """A teacher that remembers what it was shown."""

    def __init__(self, factor: float = 1.0) -> None:
        self.seen: list[Tensor] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(3 * 8 * 8, 3)
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.net(x.flatten(1)) * self.factor

    def teacher(self, fingerprint: str = "f") -> Classifier:
        return Classifier("watched", NAMES, self, fingerprint, torch.device("cpu"), 3, (0, 1, 2), 0.5)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def write(folder, watched: Watched, how: Labelling = HOW, **changes):
    given = {"images": images(), "hashes": HASHES, "protocol": "mine", **changes}
    return write_labels(folder, given["images"], given["hashes"], how, watched.teacher(), protocol=given["protocol"])


def ready(how: Labelling = HOW) -> Images:
    return Images((images(), torch.zeros(10, dtype=torch.int64)), split(how.steps)[0], torch.device("cpu"))


@pytest.mark.parametrize("mix", [None, "cutmix", "mixup"])
def test_a_replay_is_bitwise_what_the_teacher_saw_and_said(mix, watched, tmp_path):
    how = dataclasses.replace(HOW, mix=load_protocol("fkd-soft", mix=mix and {"op": mix}).mix)
    folder = write(tmp_path / "labels", watched, how)
    seen = iter(watched.seen)
    stored = open_labels(folder, HASHES, NAMES, how)
    assert stored.teacher == "watched" and stored.index["protocol"] == "mine"
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    epochs = []
    for number in range(3):
        batches = list(stored.epoch(number))
        assert [len(b.indices) for b in batches] == [4, 4, 2]
        assert torch.cat([b.indices for b in batches]).sort()[0].tolist() == list(range(10))
        for batch in batches:
            x = stored.seen(ready(how), batch)
            shown = next(seen)
            assert torch.equal(x * std + mean, shown)
            assert batch.logits.dtype == torch.float16
            assert torch.equal(batch.logits, watched.net(shown.flatten(1)).half())
        epochs.append(torch.cat([stored.seen(ready(how), b) for b in batches]))
    assert next(seen, None) is None
    assert not torch.equal(epochs[0], epochs[1])


def test_columns_follow_the_class_names(watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    first, turned = (
        next(open_labels(folder, HASHES, names, HOW).epoch(1)) for names in (NAMES, ("blue", "red", "green"))
    )
    assert torch.equal(turned.logits, first.logits[:, [2, 0, 1]])


def test_an_interrupted_labelling_keeps_its_epochs_and_ends_the_same(watched, tmp_path, monkeypatch):
    whole = write(tmp_path / "whole", watched)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise Stop

    torn, again = tmp_path / "torn", Watched()
    with pytest.raises(Stop):
        write_labels(torn, images(), HASHES, HOW, again.teacher(), protocol="mine", progress=stop)
    assert not (torn / "index.json").exists() and len(again.seen) == 6
    with pytest.raises(DapError, match=r"The labels in .*torn are not finished; make them with dap export"):
        open_labels(torn, HASHES, NAMES, HOW)
    damaged = torn / "epoch-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    write(torn, again)
    assert len(again.seen) == 6 + 3 + 3  # the damaged epoch and the missing one, and not the other
    files = sorted(f.name for f in whole.iterdir() if f.name != ".lock")
    assert files == [*(f"epoch-0000{k}.safetensors" for k in range(3)), "index.json"]
    assert files == sorted(f.name for f in torn.iterdir() if f.name != ".lock")
    assert all((torn / name).read_bytes() == (whole / name).read_bytes() for name in files)
    write(torn, again)
    assert len(again.seen) == 12


def test_more_epochs_are_added_and_fewer_are_enough(watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    before = (folder / "epoch-00001.safetensors").read_bytes()
    longer = dataclasses.replace(HOW, epochs=5)
    with pytest.raises(DapError, match=r"has labels for 3 epochs, and 5 are wanted; make more with dap export"):
        open_labels(folder, HASHES, NAMES, longer)
    write(folder, watched, longer)
    assert len(watched.seen) == 15 and (folder / "epoch-00001.safetensors").read_bytes() == before
    assert len(list(open_labels(folder, HASHES, NAMES, longer).epoch(4))) == 3
    write(folder, watched)
    assert open_labels(folder, HASHES, NAMES, HOW).index["epochs"] == 5
    with pytest.raises(DapError, match="has labels for epochs 0 to 4, not 5"):
        next(open_labels(folder, HASHES, NAMES, HOW).epoch(5))


def test_labels_whose_index_says_null_for_epochs_go_on(watched, tmp_path):
    """As if no epoch were finished; what is there is kept."""
    folder = write(tmp_path / "labels", watched)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "epochs": None}))
    write(folder, watched)
    assert json.loads((folder / "index.json").read_text()) == index and len(watched.seen) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hashes": ["0" * 64, *HASHES[1:-1], "e" * 64]}, r"\(images: 10 -> 10, 9 of them the same\)"),
        ({"hashes": HASHES[::-1]}, r"\(images: 10 -> 10, in another order\)"),
        ({"hashes": HASHES[:9]}, r"\(images: 10 -> 9, 9 of them the same\)"),
        ({"names": ("red", "green", "yellow")}, r"\(classes: \[.blue.*\] -> \[.*yellow.\]\)"),
        ({"batch": 5}, r"\(batch: 4 -> 5\)"),
        ({"mix": None}, r"\(mix: {.*cutmix.*} -> null\)"),
        ({"steps": STEPS[:-1]}, r"\(steps: .*dsa.*\)"),
    ],
)
def test_labels_of_another_set_or_protocol_are_refused(changes, message, watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    hashes, names = changes.pop("hashes", HASHES), changes.pop("names", NAMES)
    with pytest.raises(DapError, match="are of another set or protocol " + message):
        open_labels(folder, hashes, names, dataclasses.replace(HOW, **changes))


def test_a_folder_of_other_labels_is_not_written_into(watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    with pytest.raises(DapError, match=r"holds labels made otherwise \(seed: 7 -> 8\); choose another folder"):
        write(folder, watched, dataclasses.replace(HOW, seed=8))
    with pytest.raises(DapError, match=r"made otherwise \(teacher: .f. -> .g.\)"):
        write_labels(folder, images(), HASHES, HOW, watched.teacher("g"), protocol="mine")
    (folder / "index.json").unlink()  # and then nothing says whose they are but they themselves
    other = dataclasses.replace(HOW, seed=8)
    write(folder, watched, other)
    assert len(watched.seen) == 18


def test_what_cannot_be_labelled_is_said_before_or_at_once(watched, tmp_path, monkeypatch):
    with pytest.raises(DapError, match="There are 9 hashes for 10 images"):
        write(tmp_path / "a", watched, hashes=HASHES[:9])
    with pytest.raises(DapError, match=r"center_crop of 20 px needs larger images"):
        write(tmp_path / "b", watched, Labelling(parse([{"op": "center_crop", "size": 20}]), None, 4, 1))
    with pytest.raises(DapError, match="what half precision does not hold"):
        write(tmp_path / "c", Watched(1e9))
    with pytest.raises(DapError, match=r"are not there \(no index.json\)"):
        open_labels(tmp_path / "none", HASHES, NAMES, HOW)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(DapError, match=r"would need 0.0 GB for 3 epochs of 10 images, and 0.0 GB are free"):
        write(tmp_path / "d", watched)
    assert not watched.seen


def test_a_damaged_epoch_or_another_format_is_named(watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    stored = open_labels(folder, HASHES, NAMES, HOW)
    file = folder / "epoch-00002.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DapError, match=r"epoch-00002.safetensors is missing or damaged .*delete it and run"):
        next(stored.epoch(2))
    file.unlink()
    with pytest.raises(DapError, match=r"epoch-00002.safetensors is missing or damaged"):
        next(stored.epoch(2))
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "format": 9}))
    with pytest.raises(DapError, match=f"labels of format 9, and this version reads format {stored_labels.FORMAT}"):
        open_labels(folder, HASHES, NAMES, HOW)


def test_a_file_can_be_read_without_this_package(watched, tmp_path):
    folder = write(tmp_path / "labels", watched)
    with safe_open(str(folder / "epoch-00000.safetensors"), framework="pt") as file:
        assert file.get_tensor("indices").shape == (10,) and file.get_tensor("logits").shape == (10, 3)
        assert file.get_tensor("0/1.box").shape == (4, 4) and file.get_tensor("2/2.flipped").shape == (2,)
        assert file.get_tensor("1/mix.box").shape == (4,) and file.get_tensor("2/mix.partner").shape == (2,)


def test_a_training_replays_every_epoch_once_with_the_temperature_of_its_protocol(watched, tmp_path):
    changes = {"train": [{"op": "resize", "side": 8}, {"op": "center_crop"}, {"op": "flip"}, {"op": "normalize"}]}
    changes |= {"epochs": 3, "batch": 4, "looks": 1, "size": 8, "width": 4, "network": "convnet2"}
    protocol = load_protocol("fkd-soft", **changes).settled(ipc=4, classes=3)
    how = Labelling(protocol.train_steps, protocol.mix, protocol.batch, protocol.epochs)
    stored = open_labels(write(tmp_path / "labels", watched, how), HASHES, NAMES, how)
    asked: list[int] = []
    replay = stored.replay(ready(how), protocol.labels.temperature)

    def told(epoch: int):
        asked.append(epoch)
        return replay(epoch)

    net = fit(ready(how), protocol, 0, network="convnet2", channels=3, classes=3, replay=told)
    assert asked == [0, 1, 2]
    x, loss_of = next(replay(0))
    batch = next(stored.epoch(0))
    logits = net(x)
    wanted = (batch.logits.float() / 20).softmax(1)
    by_hand = (wanted * (wanted.log() - F.log_softmax(logits / 20, 1))).sum()
    assert torch.allclose(loss_of(logits, slice(0, 4)), by_hand, atol=1e-6)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("replayed", [False, True])
def test_the_extra_pass_is_run_whoever_gives_the_labels(extra, replayed):
    """With stored labels it was recorded and not run."""
    protocol = tiny(norm="batch", epochs=2, batch=4, extra_forward=extra)
    x, y = stripes(8)
    batches = [((x[part] - 0.5) / 0.25, hard_loss(y[part], None, 1.0)) for part in (slice(0, 4), slice(4, 8))]
    net = trained((x, y), protocol, 0, replay=(lambda epoch: iter(batches)) if replayed else None)
    assert net.state_dict()["body.1.num_batches_tracked"] == 2 * 2 * (2 if extra else 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 0}, "batch: the value should be greater than or equal to 1"),
        ({"classes": "ab"}, "classes: the value should be a list"),
        ({"epochs": True}, "epochs: the value should be a whole number"),
        ({"extra": 1}, "extra: there is no such key"),
        ({"teacher": None}, "teacher: the value should be a text"),
    ],
)
def test_an_index_that_a_stranger_wrote_is_a_sentence(tmp_path, changes, says):
    """First section, read through closed models: the index of stored labels."""
    from dap.base.errors import DapError
    from dap.evaluation.training.stored_labels import Labelling, open_labels

    whole = {"format": 1, "steps": [], "mix": None, "batch": 4, "seed": 0, "classes": ["a", "b"], "teacher": "t"}
    whole |= {"images": ["x"], "epochs": 1, "teacher_name": "t"}
    (tmp_path / "index.json").write_text(json.dumps({**whole, **changes}))
    with pytest.raises(DapError, match=r"index\.json, line 1: " + says):
        open_labels(tmp_path, ["x"], ["a", "b"], Labelling((), None, 4, 1))


def test_tensors_that_do_not_fit_the_index_are_a_sentence(tmp_path):
    from safetensors.torch import save_file

    from dap.base.errors import DapError
    from dap.evaluation.training.stored_labels import Labelling, open_labels

    index = {"format": 1, "steps": [], "mix": None, "batch": 4, "seed": 0, "classes": ["a", "b"], "teacher": "t"}
    (tmp_path / "index.json").write_text(json.dumps({**index, "images": ["x", "y"], "epochs": 1, "teacher_name": "t"}))
    labels = open_labels(tmp_path, ["x", "y"], ["a", "b"], Labelling((), None, 4, 1))
    good = {"indices": torch.tensor([1, 0]), "logits": torch.zeros(2, 2).half()}
    for bad in ({"indices": torch.tensor([1, 7])}, {"indices": torch.tensor([0, 0])}, {"logits": torch.zeros(2, 3)},
                {"logits": torch.full((2, 2), torch.inf)}, {"logits": torch.zeros(2, 2).long()}):  # fmt: skip
        save_file({**good, **bad}, tmp_path / "epoch-00000.safetensors")
        with pytest.raises(DapError, match="is missing or damaged"):
            list(labels.epoch(0))
    save_file(good, tmp_path / "epoch-00000.safetensors")
    assert next(iter(labels.epoch(0))).indices.tolist() == [1, 0]
