"""Classifiers: files that come back bit for bit, torchvision's published weights, your own; classes are matched by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dap import imagenet
from dap.base.errors import DapError
from dap.base.permission import allow_code
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.evaluation.training.loading import load_classifier, load_trained, save_classifier
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.trained import train_classifier, train_on_tensors

NAMES = ("red", "green", "blue")
SCALED = {"mode": "bilinear", "antialias": True}
OWN = """
from torch import nn

def net(*, channels, classes, size, **others):
    first = nn.Linear(channels * size * size, channels * size * size)
    tied = nn.Linear(channels * size * size, channels * size * size)
    tied.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(channels * size * size), tied,
                         nn.Linear(channels * size * size, classes))

def teach(class_names):
    return lambda images: images.mean((2, 3))[:, :len(class_names)]

def wide(class_names):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(7))

def broken(class_names):
    return len(class_names)

def refuses():
    return 1
"""


def images(n: int = 5, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(OWN)
    return str(file)


def tiny(**changes: object):
    fields = {"epochs": 2, "looks": 1, "size": 8, "width": 4, "network": "convnet2", "mean": [0.5], "std": [0.5]}
    return load_protocol("reference", **{**fields, **changes})


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory) -> Path:
    train, test = (open_source(colours, split, size=8, classes=NAMES) for split in ("train", "test"))
    reference, trial = train_classifier(train, test, tiny(epochs=8, batch=8))
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_classifier(reference, file)
    assert trial.last == reference.accuracy > 0.9
    return file


@pytest.mark.parametrize("network", ["convnet2", "own"])
def test_a_network_of_any_name_comes_back_bit_for_bit(network, own, tmp_path):
    protocol = tiny(network=f"{own}:net" if network == "own" else network, norm="batch")
    labels = torch.arange(9) % 3
    made, _ = train_on_tensors((images(9), labels), (images(9), labels), protocol, 3, class_names=NAMES)
    save_classifier(made, tmp_path / "net.safetensors")
    if network == "own":  # a file is not a place from which code is run
        with pytest.raises(DapError, match=r"net.safetensors names the code .*mine.py:net, .*so it is not run"):
            load_trained(tmp_path / "net.safetensors")
    with allow_code():
        again = load_trained(tmp_path / "net.safetensors")
    assert again.class_names == NAMES and again.protocol == made.protocol
    before, after = made.network.state_dict(), again.network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again.predict(images()), made.predict(images()))
    assert torch.equal(again.features(images()), made.features(images()))


def test_a_trained_teacher_says_what_its_network_says(trained):
    teacher, reference = load_classifier(trained, NAMES), load_trained(trained)
    x = images()
    expected = reference.network((x - 0.5) / 0.5)
    assert torch.equal(teacher.logits(x), expected)
    assert (teacher.name, teacher.accuracy, teacher.class_names) == ("teacher.safetensors", reference.accuracy, NAMES)
    student = torch.zeros(5, 3, requires_grad=True)  # a target made in inference mode would fail here
    F.kl_div(student.log_softmax(1), teacher.logits(x).softmax(1), reduction="sum").backward()
    larger = images(2, 16)
    scaled = F.interpolate(larger, (8, 8), **SCALED)
    assert torch.equal(teacher.logits(larger), teacher.logits(scaled))


def test_case_37_a_teacher_is_in_evaluation_mode_and_learns_nothing(tmp_path):
    """With batch norm, an image gets the same logits alone and in a batch, and no statistics move."""
    labels = torch.arange(9) % 3
    made, _ = train_on_tensors((images(9), labels), (images(9), labels), tiny(norm="batch"), 3, class_names=NAMES)
    save_classifier(made, tmp_path / "net.safetensors")
    teacher = load_classifier(tmp_path / "net.safetensors", NAMES)
    x = images(6)
    together = teacher.logits(x)
    assert together.std() > 0
    for i in range(6):
        torch.testing.assert_close(teacher.logits(x[i : i + 1])[0], together[i], atol=1e-6, rtol=1e-5)
    assert torch.equal(teacher.logits(x), together)
    assert teacher.fingerprint == load_classifier(tmp_path / "net.safetensors", NAMES).fingerprint
    assert isinstance(teacher.network, torch.nn.Module) and not any(part.training for part in teacher.network.modules())
    before, after = load_trained(tmp_path / "net.safetensors").network.state_dict(), teacher.network.state_dict()
    assert before.keys() == after.keys() and any(name.endswith("running_mean") for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_columns_follow_the_names_asked_for(trained):
    whole = load_classifier(trained, NAMES).logits(images())
    assert torch.equal(load_classifier(trained, ("blue", "red", "green")).logits(images()), whole[:, [2, 0, 1]])
    assert torch.equal(load_classifier(trained, ("green", "red")).logits(images()), whole[:, [1, 0]])
    with pytest.raises(
        DapError, match=r"unknown class 'yellow' in the classifier teacher.safetensors; known classes: red, green, blue"
    ):
        load_classifier(trained, ("red", "yellow"))


def test_what_is_no_teacher_is_named(trained, tmp_path):
    with pytest.raises(
        DapError, match=r"No classifier nowhere: neither a file .* nor torchvision:NAME, nor file.py:build"
    ):
        load_classifier("nowhere", NAMES)
    file = tmp_path / "torn.safetensors"
    file.write_bytes(trained.read_bytes()[:-100])
    with pytest.raises(DapError, match=r"torn.safetensors is not a classifier of dap train-teacher, or is damaged"):
        load_classifier(file, NAMES)
    reference = load_trained(trained)
    save_classifier(replace(reference, class_names=()), file)
    with pytest.raises(DapError, match="does not say which classes it knows"):
        load_classifier(file, NAMES)
    save_classifier(replace(reference, protocol=tiny(network="gone.py:net")), file)
    with allow_code(), pytest.raises(DapError, match=r"No file gone.py"):
        load_classifier(file, NAMES)


def test_your_own_teacher_is_told_the_classes_and_held_to_them(own):
    teacher = load_classifier(f"{own}:teach", NAMES)
    assert torch.allclose(teacher.logits(images()), images().mean((2, 3)))
    assert teacher.accuracy is None and len(teacher.fingerprint) == 32
    with pytest.raises(DapError, match=r"gives \(5, 3\) logits for 5 images of 4 classes"):
        load_classifier(f"{own}:teach", ("a", "b", "c", "d")).logits(images())
    with pytest.raises(DapError, match="should give a module or a function from images to logits, not a int"):
        load_classifier(f"{own}:broken", NAMES)
    with pytest.raises(DapError, match="could not be called with the class names: TypeError"):
        load_classifier(f"{own}:refuses", NAMES)
    with pytest.raises(DapError, match="has no 'teech' to use as classifier. Did you mean 'teach'"):
        load_classifier(f"{own}:teech", NAMES)


FUNCTIONS = """
import functools, pathlib, torch
from torch import nn

def trained(classes):
    net = nn.Linear(3, classes)
    net.weight.data = torch.load(pathlib.Path(__file__).with_name("weights.pt"))
    return net

def closure(class_names):
    net = trained(len(class_names))
    return lambda images: net(images.mean((2, 3)))

def applied(net, images):
    return net(images.mean((2, 3)))

def partial(class_names):
    return functools.partial(applied, trained(len(class_names)))

class Called:
    def __init__(self, net):
        self.net = net

    def __call__(self, images):
        return self.net(images.mean((2, 3)))

def called(class_names):
    return Called(trained(len(class_names)))

def method(class_names):
    return called(class_names).__call__

def in_global(class_names):
    global NET
    NET = trained(len(class_names))
    return lambda images: NET(images.mean((2, 3)))

def session(class_names):
    import threading
    kept = threading.Lock()
    return lambda images: images.mean((2, 3))[:, :len(class_names)] if kept else None
"""


@pytest.mark.parametrize("name", ["closure", "partial", "called", "method", "in_global"])
def test_a_function_as_teacher_has_a_fingerprint_of_the_weights_that_it_holds(name, tmp_path):
    spec = f"{tmp_path / 'teachers.py'}:{name}"
    (tmp_path / "teachers.py").write_text(FUNCTIONS)

    def fingerprint(weight: float) -> str:
        torch.save(torch.full((3, 3), float(weight)), tmp_path / "weights.pt")
        torch.manual_seed(0)  # for the bias
        return load_classifier(spec, NAMES).fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_a_function_that_cannot_be_described_is_said_to_be_known_by_its_code_alone(tmp_path, caplog):
    (tmp_path / "teachers.py").write_text(FUNCTIONS)
    teacher = load_classifier(f"{tmp_path / 'teachers.py'}:session", NAMES)
    assert teacher.logits(images()).shape == (5, 3)
    assert "cannot describe the function of" in caplog.text and "change its file too" in caplog.text


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Path]:
    """Random weights where torch keeps those it has fetched."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    folder = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = squeezenet1_1().state_dict()
    place(weights, folder / "hub" / "checkpoints")
    published = SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    before, published.url = (
        published.url,
        f"https://nowhere.test/{next((folder / 'hub' / 'checkpoints').iterdir()).name}",
    )
    yield folder
    published.url = before


def place(weights: object, folder: Path) -> Path:
    """A file whose name holds the first digits of its hash, as torchvision's files have it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "new.pth")
    digits = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    return (folder / "new.pth").rename(folder / f"squeezenet1_1-{digits}.pth")


def test_torchvisions_weights_speak_of_a_subset_in_its_order(hub, monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights, get_model

    monkeypatch.setenv("TORCH_HOME", str(hub))
    subset = imagenet.subset("imagewoof")
    teacher = load_classifier("torchvision:squeezenet1_1", subset, offline=True)
    net = get_model("squeezenet1_1", weights="IMAGENET1K_V1").eval()
    x = images(2, 224)
    expected = net(
        SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(F.pad(x, (16, 16, 16, 16)))
    )  # its crop undoes the pad
    labels = [imagenet.indices()[wnid] for wnid in subset]
    assert labels != sorted(labels)
    assert torch.allclose(teacher.logits(x), expected[:, labels], atol=1e-5)
    assert teacher.accuracy == pytest.approx(0.58178)
    by_name = load_classifier("torchvision:squeezenet1_1", [imagenet.name_of(w) for w in subset])
    assert by_name.columns == teacher.columns and by_name.fingerprint == teacher.fingerprint


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("torchvision:squeezenet1_1", NAMES, "knows ImageNet's thousand classes, and 'red' is none of them"),
        ("torchvision:squeezenet1_1", ["crane"], "'crane' does not name one class of ImageNet alone"),
        ("torchvision:squeezenet1_1", ["tench", "n01440764"], "'n01440764' does not name one class"),
        ("torchvision:squeeznet", ["tench"], "Unknown classifier torchvision:squeeznet. Did you mean 'squeezenet1_"),
        ("torchvision:vit_h_14", ["tench"], "torchvision has no IMAGENET1K_V1 weights of vit_h_14"),
    ],
)
def test_a_wrong_name_for_torchvision_is_told(name, classes, message):
    with pytest.raises(DapError, match=message):
        load_classifier(name, classes)


def test_weights_that_cannot_be_fetched_are_one_sentence(tmp_path, monkeypatch):
    from urllib.error import URLError

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DapError, match=r"are not here and --offline forbids .*squeezenet1_1-\w+.pth"):
        load_classifier("torchvision:squeezenet1_1", ["tench"], offline=True)

    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(DapError, match=r"could not be loaded \(URLError: .*no route.*connect to the network once"):
        load_classifier("torchvision:squeezenet1_1", ["tench"])


def test_the_verb_trains_writes_and_prints(colours, tmp_path, capsys):
    out, protocol = tmp_path / "deep" / "teacher.safetensors", tmp_path / "mine.yaml"
    protocol.write_text(json.dumps(tiny().model_dump(mode="json")))
    command = ["train-teacher", "--data", colours, "--classes", *NAMES, "--protocol", protocol, "--out", out]
    assert main([str(a) for a in [*command, "--network", "convnet1", "--epochs", 3, "--device", "cpu"]]) == 0
    assert "convnet1" in (printed := capsys.readouterr().out) and "of 18 test images" in printed
    reference = load_trained(out)
    assert (reference.class_names, reference.protocol.epochs) == (NAMES, 3)
    assert f"{reference.accuracy:.1%}" in printed
    assert [f.name for f in out.parent.iterdir()] == [out.name]
    assert main([str(a) for a in command]) == 1
    assert "is there already; choose another --out" in capsys.readouterr().err


def test_a_teacher_of_another_seed_has_other_weights(colours, tmp_path):
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(json.dumps(tiny(epochs=1).model_dump(mode="json")))
    common = ["train-teacher", "--data", str(colours), "--protocol", str(protocol), "--device", "cpu", "--seed"]
    for seed in ("0", "1"):
        assert main([*common, seed, "--out", str(tmp_path / seed)]) == 0
    assert load_classifier(tmp_path / "0", NAMES).fingerprint != load_classifier(tmp_path / "1", NAMES).fingerprint


def test_an_interrupted_training_goes_on_to_the_same_weights(colours, tmp_path, capsys, monkeypatch):
    from dap.evaluation.training import evaluate as training
    from dap.evaluation.training.fitting import Checkpoint

    protocol = tmp_path / "mine.yaml"
    protocol.write_text(json.dumps(tiny(epochs=4, looks=4).model_dump(mode="json")))
    common = ["train-teacher", "--data", str(colours), "--protocol", str(protocol), "--device", "cpu", "--out"]
    assert main([*common, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(training, "Checkpoint", lambda path, key, every: Checkpoint(path, key, 0))
    write = Checkpoint.write

    def killed(self: Checkpoint, state: dict[str, object]) -> None:
        write(self, state)
        if len(state["notes"]["curve"]) == 2:  # pyright: ignore[reportIndexIssue]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", killed)
        assert main([*common, str(tmp_path / "torn")]) == 130
    assert (tmp_path / "torn.partial").is_dir() and not (tmp_path / "torn").exists()
    assert main([*common, str(tmp_path / "torn")]) == 0
    torn, whole = (load_classifier(tmp_path / name, NAMES) for name in ("torn", "whole"))
    assert (torn.fingerprint, torn.accuracy) == (whole.fingerprint, whole.accuracy)
    assert not (tmp_path / "torn.partial").exists()
    capsys.readouterr()


def test_the_fingerprint_is_of_the_weights(trained, tmp_path):
    before = load_classifier(trained, NAMES).fingerprint
    reference = load_trained(trained)
    with torch.no_grad():
        next(reference.network.parameters()).flatten(0, 0)[0] += 1e-3
    save_classifier(reference, tmp_path / "other.safetensors")
    assert load_classifier(tmp_path / "other.safetensors", NAMES).fingerprint != before
    assert isinstance(reference.network, nn.Module) and len(before) == 16


def test_features_are_what_the_last_linear_layer_is_given(trained):
    teacher, reference = load_classifier(trained, ("blue", "red")), load_trained(trained)
    x = images(300)  # more than one slice
    found = teacher.features(x)
    assert torch.equal(found, reference(x)) and found.dtype == torch.float32 and not found.requires_grad
    (layer,) = (m for m in reference.network.modules() if isinstance(m, nn.Linear))
    assert found.shape == (300, layer.in_features)
    said = found @ layer.weight.T + layer.bias
    torch.testing.assert_close(said[:, [2, 0]], teacher.logits(x))
    torch.testing.assert_close(teacher.features(x[[7, 3]]), found[[7, 3]])
    larger = images(2, 16)
    assert torch.equal(teacher.features(larger), teacher.features(F.interpolate(larger, (8, 8), **SCALED)))
    assert not any(m._forward_pre_hooks for m in teacher.network.modules()), "it is left as it was"


def test_features_of_your_own_and_of_torchvisions_network(own, hub, monkeypatch):
    file = own.replace("mine.py", "layered.py")
    Path(file).write_text(
        "from torch import nn\n\ndef deep(names):\n    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 6),"
        " nn.ReLU(), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, len(names)))\n"
    )
    teacher = load_classifier(f"{file}:deep", NAMES)
    layers, x = list(teacher.network), images().double()
    expected = layers[2](layers[0](x.float()).flatten(1)).relu()
    torch.testing.assert_close(teacher.features(x), expected.detach())
    message = "has no linear layer whose input could serve as features; take another network"
    with pytest.raises(DapError, match=f"mine.py:teach {message}"):
        load_classifier(f"{own}:teach", NAMES).features(images())
    monkeypatch.setenv("TORCH_HOME", str(hub))
    with pytest.raises(DapError, match=f"torchvision:squeezenet1_1 {message}"):  # its classes come from a convolution
        load_classifier("torchvision:squeezenet1_1", ["tench"], offline=True).features(images())


def test_a_failure_on_the_way_leaves_no_hook(trained):
    teacher = load_classifier(trained, NAMES)
    with pytest.raises((RuntimeError, ValueError)):
        teacher.features(torch.rand(2, 5, 8, 8))
    assert not any(m._forward_pre_hooks for m in teacher.network.modules())


def test_labels_and_probabilities_are_of_the_classes_asked_for(trained):
    whole, x = load_trained(trained), images(40)
    few = whole.select(("blue", "red"))
    assert torch.equal(few.logits(x), whole.logits(x)[:, [2, 0]])
    assert torch.equal(few.select(("red",)).logits(x), whole.logits(x)[:, :1])
    assert torch.equal(few.predict(x), few.logits(x).argmax(1))
    assert torch.equal(few.probabilities(x), whole.logits(x)[:, [2, 0]].double().softmax(1))
    bytes_ = (x * 255).round().to(torch.uint8)
    assert torch.equal(whole.logits(bytes_), whole.logits(bytes_.float() / 255)), "bytes go from 0 to 255"


def test_what_cannot_be_saved_is_told(trained, own, tmp_path):
    with pytest.raises(DapError, match="the logits of some of its classes alone"):
        save_classifier(load_trained(trained).select(("blue", "red")), tmp_path / "few")
    with pytest.raises(DapError, match=r"mine.py:teach was not trained here"):
        save_classifier(load_classifier(f"{own}:teach", NAMES), tmp_path / "own")
    assert not list(tmp_path.iterdir())
