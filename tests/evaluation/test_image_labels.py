"""Labels and weights of single images: a training on them against trainings that must come out the same, and their files."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.image_labels import how_made, image_labels, open_image_labels, write_image_labels
from dap.evaluation.training.batches import Images
from dap.evaluation.training.evaluate import train_and_test
from dap.evaluation.training.labels import ImageLabels, hard_loss, mixed_weights, soft_loss
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.stored_labels import Labelling, open_labels, write_labels
from dap.evaluation.training.transforms import split
from trainings import AUGMENTED, LINEAR, stripes, tiny, trained

SOFT = {"kind": "soft", "temperature": 2}
PLAIN = {"network": LINEAR, "epochs": 4, "batch": 64}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(n: int, seed: int = 0, scale: float = 1.0) -> ImageLabels:
    return image_labels("mine", ("a", "b"), scale * random(n, 2, seed=seed))


class Recogniser:
    """A teacher that knows each image by its pixels, and says what `labels` say of it."""

    name = fingerprint = "recogniser"

    def __init__(self, images: Tensor, labels: ImageLabels) -> None:
        self.images, self.labels = images, labels

    def logits(self, images: Tensor) -> Tensor:
        return self.labels.values[torch.cdist(images.flatten(1), self.images.flatten(1)).argmin(1)]

    features = logits


def weights_of(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_without_augmentation_labels_of_images_are_those_of_a_teacher():
    train, labels = stripes(12), labels_of(12)
    protocol = tiny(**PLAIN | {"batch": 5}, labels=SOFT)
    by_teacher = trained(train, protocol, 3, teacher=Recogniser(train[0], labels))
    by_labels = trained(train, protocol, 3, teacher=labels)
    assert torch.equal(weights_of(by_labels), weights_of(by_teacher))
    assert not torch.equal(weights_of(by_labels), weights_of(trained(train, protocol, 3, teacher=labels_of(12, 1))))


@pytest.mark.parametrize("mix", [None, "cutmix", "mixup"])
def test_labels_that_are_sure_of_the_class_train_as_hard_labels_do(mix):
    """KL divergence from one class, or from a mixture of two, has the gradient of their cross-entropy."""
    train = stripes(16)
    sure = image_labels("sure", ("a", "b"), 60.0 * F.one_hot(train[1], 2))
    how = {**AUGMENTED, "network": LINEAR, "epochs": 3, "mix": mix and {"op": mix}}
    hard = trained(train, tiny(**how), 1)
    soft = trained(train, tiny(**how, labels={"kind": "soft", "temperature": 1}), 1, teacher=sure)
    torch.testing.assert_close(weights_of(soft), weights_of(hard), rtol=1e-4, atol=1e-6)


def test_the_label_of_a_mixed_image_is_the_mixture_of_both():
    labels, chosen, partner = labels_of(6), torch.tensor([4, 0, 3]), torch.tensor([2, 0, 1])
    p = labels.values.softmax(1)
    for share in (1.0, 0.7, 0.0):
        found = labels.logits(chosen, partner, share).softmax(1)
        for k in range(3):
            own, other = p[chosen[k]], p[chosen[partner[k]]]
            torch.testing.assert_close(found[k], share * own + (1 - share) * other)
    assert torch.equal(labels.logits(chosen), labels.values[chosen])


@pytest.mark.parametrize("labels", ["hard", SOFT])
def test_an_image_of_weight_four_counts_as_four_images(labels):
    """A batch of the whole set, and weights of mean 1, against the set with the image four times."""
    images, y = stripes(3)
    values = labels_of(3).values
    fourfold = [0, 0, 0, 0, 1, 2]
    protocol = tiny(**PLAIN, labels=labels)
    given: dict = {} if labels == "hard" else {"teacher": image_labels("a", ("a", "b"), values)}
    weighed = trained((images, y), protocol, 1, weights=torch.tensor([2.0, 0.5, 0.5]), **given)
    given = {} if labels == "hard" else {"teacher": image_labels("a", ("a", "b"), values[fourfold])}
    copied = trained((images[fourfold], y[fourfold]), protocol, 1, **given)
    torch.testing.assert_close(weights_of(weighed), weights_of(copied), rtol=1e-4, atol=1e-6)
    given = {} if labels == "hard" else {"teacher": image_labels("a", ("a", "b"), values)}
    even = trained((images, y), protocol, 1, weights=torch.ones(3), **given)
    plain = trained((images, y), protocol, 1, **given)
    torch.testing.assert_close(weights_of(even), weights_of(plain), rtol=1e-5, atol=1e-7)
    assert (weights_of(weighed) - weights_of(plain)).abs().max() > 1e-4


def test_weights_of_mixed_images_by_plain_loops():
    weights, chosen, partner, share = (
        torch.tensor([0.5, 2.0, 1.0, 3.0]),
        torch.tensor([3, 0, 1]),
        torch.tensor([1, 2, 0]),
        0.3,
    )
    found = mixed_weights(weights, chosen, partner, share)
    wanted = [share * weights[chosen[k]] + (1 - share) * weights[chosen[partner[k]]] for k in range(3)]
    torch.testing.assert_close(found, torch.stack(wanted))
    logits, said, y = random(3, 4), random(3, 4, seed=1), torch.tensor([0, 3, 1])
    other, part = y[partner], slice(1, 3)
    hard = sum(
        wanted[k] * -(share * logits[k].log_softmax(0)[y[k]] + (1 - share) * logits[k].log_softmax(0)[other[k]])
        for k in (1, 2)
    )
    torch.testing.assert_close(hard_loss(y, other, share, found)(logits[part], part), hard)
    soft = torch.zeros(())
    for k in (1, 2):
        p, q = (said[k] / 2).softmax(0), (logits[k] / 2).softmax(0)
        soft = soft + wanted[k] * (p * (p / q).log()).sum()
    torch.testing.assert_close(soft_loss(said, 2.0, found)(logits[part], part), soft)


def test_stored_labels_of_images_are_replayed_with_their_mixture_and_weights(tmp_path):
    train, labels = stripes(10), labels_of(10)
    protocol = tiny(**AUGMENTED, epochs=2, labels={"kind": "stored", "temperature": 2}, weights="manifest")
    how = Labelling(protocol.train_steps, protocol.mix, protocol.batch, 2)
    hashes = [f"{k:064x}" for k in range(10)]
    write_labels(tmp_path / "l", train[0], hashes, how, labels, protocol="tiny")
    stored = open_labels(tmp_path / "l", hashes, ("a", "b"), how)
    ready = Images(train, split(protocol.train_steps)[0], torch.device("cpu"))
    weights, out = torch.linspace(0.2, 1.8, 10), random(8, 2, seed=5)
    replayed = list(stored.replay(ready, 2.0, weights)(1))
    for batch, (x, loss) in zip(stored.epoch(1), replayed, strict=True):
        partner, share = batch.mix["partner"], float(batch.mix["share"])
        wanted = labels.logits(batch.indices, partner, share)
        torch.testing.assert_close(batch.logits.float(), wanted, rtol=1e-2, atol=1e-2)
        m, w = len(x), share * weights[batch.indices] + (1 - share) * weights[batch.indices[partner]]
        losses = F.kl_div((out[:m] / 2).log_softmax(1), (batch.logits.float() / 2).softmax(1), reduction="none").sum(1)
        torch.testing.assert_close(loss(out[:m], slice(0, m)), (losses * w).sum())
    _, trial = train_and_test(train, stripes(8, 1), protocol, 0, classes=2, stored=stored, weights=weights)
    _, other = train_and_test(train, stripes(8, 1), protocol, 0, classes=2, stored=stored, weights=torch.ones(10))
    assert trial.labels == "mine" and trial.curve != () and trial.n_train == other.n_train == 10


def test_protocols_without_weights_are_what_they_were():
    """Their facts decide which recorded trials still count."""
    for name in ("small-hard", "fkd-soft"):
        protocol = load_protocol(name)
        assert protocol.facts() == {k: v for k, v in protocol.model_dump(mode="json").items() if k != "weights"}
        assert load_protocol(name, weights="manifest").facts()["weights"] == "manifest"


def test_labels_and_weights_that_do_not_fit_are_refused():
    train, test = stripes(6), stripes(4, 1)
    soft, weighed = tiny(labels=SOFT), tiny(weights="manifest")
    for protocol, plan, says in (
        (soft, {"teacher": labels_of(5)}, "labels of 5 images, and the set has 6"),
        (weighed, {}, "has weights: manifest"),
        (tiny(), {"weights": torch.ones(6)}, "has weights: none"),
        (weighed, {"weights": torch.ones(5)}, r"weights \(5,\) for 6 images"),
    ):
        with pytest.raises(DapError, match=says):
            train_and_test(train, test, protocol, 0, classes=2, **plan)


def test_labels_in_a_folder_are_matched_by_image_and_class(tmp_path):
    values, hashes = random(4, 3), [f"{k:064x}" for k in range(4)]
    labels = image_labels("backbone:x", ("a", "b", "c"), values, 0.5)
    write_image_labels(tmp_path / "l", labels, hashes, {"temperature": 0.1})
    again = open_image_labels(tmp_path / "l", hashes, ("a", "b", "c"))
    assert torch.equal(again.values, values) and (again.name, again.accuracy) == ("backbone:x", 0.5)
    assert again.fingerprint == labels.fingerprint and how_made(tmp_path / "l") == {"temperature": 0.1}
    turned = open_image_labels(tmp_path / "l", hashes[2:0:-1], ("c", "a", "b"))
    assert torch.equal(turned.values, values[[2, 1]][:, [2, 0, 1]]) and turned.fingerprint != labels.fingerprint
    write_image_labels(tmp_path / "l", labels, hashes, {})
    for hashed, names, says in (
        (["f" * 64], ("a", "b", "c"), "other images: 1 of 1 have none"),
        (hashes, ("a", "b"), "of other classes"),
    ):
        with pytest.raises(DapError, match=says):
            open_image_labels(tmp_path / "l", hashed, names)
    file = tmp_path / "l" / "labels.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DapError, match="missing or damaged"):
        open_image_labels(tmp_path / "l", hashes, ("a", "b", "c"))
    with pytest.raises(DapError, match="holds no labels of images"):
        open_image_labels(tmp_path, hashes, ("a", "b", "c"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(DapError, match="holds no labels of images; choose a new folder"):
        write_image_labels(tmp_path / "other", labels, hashes, {})
    with pytest.raises(DapError, match="not finite"):
        write_image_labels(tmp_path / "n", image_labels("n", ("a",), torch.tensor([[torch.nan]])), hashes[:1], {})


def test_labels_of_several_sets_have_one_origin_if_they_were_made_alike(tmp_path):
    """Labels of a backbone at other noise levels had the same name, and nothing told them apart."""
    hashes, base = (
        ["0" * 64],
        {"backbone": "x", "weights": "w", "times": 2, "reals": 8, "data": "d", "temperature": 0.1},
    )

    def origin(how: dict) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_image_labels(folder, image_labels("x", ("a",), torch.zeros(1, 1)), hashes, how)
        return open_image_labels(folder, hashes, ("a",)).origin

    known = origin(base)
    of_a_set = {"temperature": 0.2, "seconds": 3.0, "accuracy": 0.5, "log_likelihood": -1.0, "backbone": "elsewhere/x"}
    assert known and all(origin(base | {name: value}) == known for name, value in of_a_set.items())
    assert len({known, *(origin(base | one) for one in ({"times": 3}, {"weights": "v"}, {"data": "e"}))}) == 4
    assert origin({"classifier": "mark"}) == "mark" and origin({}) == origin({"source": "a file"}) == ""


def test_other_labels_are_not_written_over(tmp_path):
    """Whatever tells labels apart does so, and what an older folder does not say is no difference."""
    hashes, names = [f"{k:064x}" for k in range(4)], ("a", "b")
    known = {"weights": "w", "times": 2, "reals": 8, "temperature": 0.1, "seconds": 3.0, "backbone": "x"}
    folder = tmp_path / "l"

    def write(hashes=hashes, name="x", names=names, how=known, seed=0) -> None:
        labels = image_labels(name, names, random(len(hashes), len(names), seed=seed))
        write_image_labels(folder, labels, hashes, how)

    def held() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    write()
    for changes, says in (
        ({"hashes": [*hashes[:3], "f" * 64]}, "images: 4 -> 4, 3 of them the same"),
        ({"hashes": hashes[:3]}, "images: 4 -> 3"),
        ({"hashes": hashes[::-1]}, "in another order"),
        ({"names": ("b", "a")}, "classes: "),
        ({"names": ("a", "c")}, "classes: "),
        ({"how": known | {"times": 3}}, "times: 2 -> 3"),
        ({"how": known | {"weights": "v"}}, "other weights of this name"),
        ({"how": known | {"weights": "v"}, "name": "y"}, 'teacher: "x" -> "y"'),
        ({"how": {"classifier": "c"}, "name": "y"}, 'teacher: "x" -> "y"'),
    ):
        before = held()
        with pytest.raises(DapError, match="holds other labels.*choose another folder") as error:
            write(**changes)
        assert says in str(error.value) and held() == before
    for changes in (
        {},
        {"how": known | {"temperature": 0.2, "seconds": 1.0}},
        {"name": "moved/x"},  # the same weights under another name
        {"how": {name: known[name] for name in ("weights", "reals")}},
        {"how": known | {"more": 1}},
        {"how": {}},
        {"how": known},
    ):
        write(**changes, seed=1)
    (folder / "index.json").write_text("{")
    with pytest.raises(DapError, match="index.json"):
        write()


def judged(made, colours, capsys, *more: object) -> tuple[int, str]:
    small = ["--set", "size=16", "--set", "width=4", "--networks", "convnet2", "--epochs", "1"]
    status = main([str(a) for a in ("evaluate", made, "--data", colours, *small, *more)])
    return status, capsys.readouterr().err


def test_a_set_with_weights_is_judged_by_them_and_one_without_is_refused(colours, tmp_path, capsys):
    assert (
        main(["distill", "--method", "random", "--data", str(colours), "--ipc", "2", "--out", str(tmp_path / "a")]) == 0
    )
    made, weighed = tmp_path / "a", ["--protocol", "quick-hard", "--set", "weights=manifest"]
    status, err = judged(made, colours, capsys, *weighed)
    assert status == 1 and "6 of 6 images of" in err and "leave out weights: manifest" in err
    lines = [json.loads(line) for line in (made / "manifest.jsonl").read_text().splitlines()]
    text = [json.dumps({**line, "weight": 1.5 - line["slot"]}) + "\n" for line in lines]
    (made / "manifest.jsonl").write_text("".join(text))
    assert [line["weight"] for line in DistilledSet.open(made).records] == [1.5, 0.5] * 3
    assert judged(made, colours, capsys, *weighed)[0] == 0
    (trial,) = [json.loads(line) for line in (made / "trials.jsonl").read_text().splitlines()]
    assert "weights=manifest" in trial["protocol"]
    (made / "manifest.jsonl").write_text("".join(line.replace("1.5", "1.25") for line in text))
    assert judged(made, colours, capsys, *weighed)[0] == 0
    (again,) = [json.loads(line) for line in (made / "trials.jsonl").read_text().splitlines()]
    assert again["by"] != trial["by"], "other weights are another training"
    (made / "manifest.jsonl").write_text("".join(line.replace("1.5", "-1.5") for line in text))
    assert len(DistilledSet.open(made).records) == 3, "a weight is above 0"
