"""The judge: every protocol on sets of ours and of others, validation, resumed trainings, and nothing seen of the test."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.held import Part
from dap.data.real.sources import open_source
from dap.evaluation.current import hash_of
from dap.evaluation.judge import unsettled
from dap.evaluation.labelling import store_labels
from dap.evaluation.training import evaluate as training
from dap.evaluation.training import fitting
from dap.evaluation.training.evaluate import evaluate, train_and_test
from dap.evaluation.training.loading import load_trained
from dap.evaluation.training.transforms import apply_all, draw_all
from dap.evaluation.training.trials import Trial
from messages import apart_from_data
from trainings import AUGMENTED, LINEAR, Linear, stripes, tiny, trained

SMALL = ["--set", "size=16", "--set", "width=4", "--epochs", 2]


def call(capsys, *args: object) -> tuple[int, str]:
    status = main([str(a) for a in args])
    return status, capsys.readouterr().err


def trials(folder: Path) -> list[Trial]:
    return [Trial.from_record(json.loads(line)) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ours(colours, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ours") / "set"
    assert main(["distill", "--method", "random", "--data", str(colours), "--ipc", "3", "--out", str(out)]) == 0
    assert "no trials here" in (out / "report.html").read_text().lower()
    return out


@pytest.fixture(scope="module")
def theirs(colours, tmp_path_factory) -> Path:
    """A folder as MinimaxDiffusion's sampling leaves it: <class>/<n>.png, larger than the protocol's images."""
    out = tmp_path_factory.mktemp("theirs")
    for folder in (colours / "train").iterdir():
        (out / folder.name).mkdir()
        for i in range(3):
            Image.open(folder / f"{i}.png").resize((24, 24)).save(out / folder.name / f"{i}.png")
    return out


@pytest.fixture(scope="module")
def teacher(colours, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    small = ["--network", "convnet2", "--set", "size=8", "--set", "width=8", "--epochs", "20", "--set", "lr=0.1"]
    assert main(["train-teacher", "--data", str(colours), *small, "--out", str(file)]) == 0
    return file


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_all_protocols_judge_sets_of_ours_and_of_others(whose, request, colours, teacher, tmp_path, capsys):
    made = tmp_path / "set"
    shutil.copytree(request.getfixturevalue(whose), made)
    if whose == "theirs":
        assert main(["import", str(made), "--classes", "sorted", "--out", str(tmp_path / "imported")]) == 0
        made = tmp_path / "imported"
    labels = tmp_path / "labels"
    assert (
        main([str(a) for a in ("export", made, "--layout", "fkd", "--teacher", teacher, *SMALL, "--out", labels)]) == 0
    )
    runs = {
        "small-hard": ["--networks", "convnet2"],
        "minimax-hard": ["--networks", "convnet2,resnetap10"],
        "rded-soft": ["--networks", "resnet18,convnet2", "--teacher", teacher],
        "fkd-soft": ["--networks", "mobilenet_v2", "--labels", labels],
    }
    for protocol, options in runs.items():
        small = [*SMALL[:2], *SMALL[4:]] if protocol == "fkd-soft" else SMALL  # its network has no width
        status, err = call(capsys, "evaluate", made, "--data", colours, "--protocol", protocol, *small, *options)
        assert status == 0, err
    found = {(trial.protocol.split("+")[0], trial.network): trial for trial in trials(made)}
    assert len(found) == 6, "a protocol must not drop the trials of another"
    assert all(trial.epochs == 2 and trial.n_train == 9 and trial.n_test == 18 for trial in found.values())
    assert {p: t.headline for (p, _), t in found.items()} == {
        "small-hard": "last", "minimax-hard": "best", "rded-soft": "best", "fkd-soft": "last",
    }  # fmt: skip
    said = {p: t.labels for (p, _), t in found.items()}
    assert said == {p: "hard" if p.endswith("hard") else "teacher.safetensors" for p in runs}
    for trial in found.values():
        assert sum(map(sum, trial.confusion)) == 18 and trial.last <= trial.best
        assert sum(row[k] for k, row in enumerate(trial.confusion)) / 18 == trial.last
    written = json.loads((made / "protocols.json").read_text())
    by = {json.loads(line)["by"] for line in (made / "trials.jsonl").read_text().splitlines()}
    assert by == set(written) and all(one["cases"] == [] for one in written.values())
    mark, tests = load_trained(teacher).fingerprint, load_trained(teacher).tested
    assert {json.loads(line)["tested"] for line in (made / "trials.jsonl").read_text().splitlines()} == {tests}
    for key, facts in written.items():
        own = {name: facts["labels"].pop(name, None) for name in ("of", "origin")}
        assert own == dict(of=None, origin=None) if "hard" in facts["name"] else dict(of="views", origin=mark)
        assert len(facts.pop("unsettled")) == 16 and hash_of(facts) == key, "trials of earlier versions stay valid"
    assert not (made / "checkpoints").exists()
    page = (made / "report.html").read_text()
    assert all(name in page for name in runs) and "(best)" in page and "(last)" in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--protocol", "rded-soft", "--teacher", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--protocol", "small-hard", "--teacher", "x"], "has no use for a teacher"),
        (["--protocol", "small-hard", "--labels", "x"], "has no use for stored labels"),
        (["--protocol", "fkd-soft"], "trains on stored labels; make them with dap export"),
        (["--protocol", "fkd-soft", "--labels", "nowhere"], "are not there"),
        (["--on", "validation"], "No images are held out for validation; give --held-out"),
        (["--set", "sise=16"], "unknown key 'sise'. Did you mean 'size'"),
        (["--set", "size"], "--set takes FIELD=VALUE"),
        (["--set", "mean=[0.5"], "--set mean: '[0.5' is not valid YAML"),
        (["--protocol", "mine.yaml"], "No protocol file mine.yaml. Shipped protocols: clips-hard"),
        (["--protocol", "rded-soft"], "'blue' is none of them; dap train-teacher makes one that knows yours"),
        (["--networks", "resnet17"], "Unknown network 'resnet17'"),
    ],
)
def test_a_wrong_turn_is_one_sentence_before_any_training(ours, options, says, capsys):
    before = sorted(ours.rglob("*"))
    status, err = call(capsys, "evaluate", ours, *options)
    assert status in (1, 2) and says in err and "Traceback" not in err and len(apart_from_data(err)) <= 2
    assert sorted(ours.rglob("*")) == before


def test_a_choice_is_made_on_images_that_distillation_never_saw(colours, tmp_path, capsys):
    made = tmp_path / "set"
    options = ["--method", "random", "--data", colours, "--held-out", 0.25, "--ipc", 9, "--out", made]
    assert call(capsys, "distill", *options)[0] == 0
    status, err = call(capsys, "evaluate", made, "--on", "validation", "--networks", "convnet2", *SMALL)
    assert status == 0, err
    status, err = call(capsys, "evaluate", made, "--networks", "convnet2", *SMALL)
    assert status == 0, err
    assert "9 validation images" in (page := (made / "report.html").read_text()) and "18 test images" in page
    chosen, tested = sorted(trials(made), key=lambda trial: trial.n_test)
    assert (chosen.n_test, chosen.tested_on, tested.n_test, tested.tested_on) == (9, "validation", 18, "test")
    assert chosen.protocol == f"{tested.protocol} on validation"
    held = {p.read_bytes() for p in _held(colours)}
    pixels = {Image.open(p).convert("RGB").tobytes() for p in _held(colours)}
    used = {Image.open(p).convert("RGB").tobytes() for p in (made / "images").rglob("*.png")}
    assert len(held) == 9 and len(used) == 27 and not pixels & used


def _held(colours: Path) -> list[Path]:
    part = Part(open_source(colours, size=8), "validation", 0.25)
    return [
        next((colours / "train").glob(key)) for label in range(3) for key in part.keys(label, range(part.count(label)))
    ]


def test_the_two_parts_are_disjoint_and_whole(colours):
    whole = open_source(colours, size=8)
    parts = [Part(whole, which, 0.3) for which in ("train", "validation")]
    for label in range(3):
        train, held = (set(part.keys(label, range(part.count(label)))) for part in parts)
        assert not train & held and train | held == set(whole.keys(label, range(12))) and len(held) == 4
    assert len({one.fingerprint() for one in (whole, *parts)}) == 3
    with pytest.raises(DapError, match=r"held_out 0.95 leaves class .* with an empty part"):
        Part(whole, "train", 0.95)


class Watcher(nn.Module):
    """A linear network that notes what it is shown, and whether it could learn from it."""

    seen: list[tuple[bool, bool, torch.Tensor]] = []

    def __init__(self, channels: int, classes: int, size: int, **others: object) -> None:
        super().__init__()
        self.map = nn.Linear(channels * size * size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), images.detach().clone()))
        return self.map(images.flatten(1))


def test_training_never_sees_the_test_set():
    train = stripes(12)
    weights = []
    for seed in (1, 2):  # two test sets, with other images and other labels
        images, labels = stripes(20, seed=seed, noise=0.9)
        Watcher.seen.clear()
        network = f"{__file__}:Watcher"
        plan = {"classes": 2, "network": network}
        net, trial = train_and_test(train, (images, labels if seed == 1 else 1 - labels), tiny(looks=6), 0, **plan)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        shown = {(one * 0.25 + 0.5).round(decimals=4).numpy().tobytes() for one in images}
        tested = 0
        for learning, gradient, batch in sys.modules[type(net).__module__].Watcher.seen:
            for one in batch:
                test = min(float((one * 0.25 + 0.5 - image).abs().max()) for image in images) < 1e-5
                tested += test
                assert not (test and (learning or gradient)), "a test image in training mode or under a gradient"
        assert tested == 6 * len(images) and len(shown) == 20
        assert len(trial.curve) == 6
    assert torch.equal(*weights), "what is trained depends on the test set"


def test_a_resumed_training_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path):
    train, test = stripes(20, noise=0.8), stripes(30, seed=1, noise=0.8)
    for changes in (AUGMENTED, {"decay_at": [3], "decay_restarts": True}, {"optimiser": "adamw", "schedule": "cosine"}):
        protocol = tiny(epochs=8, looks=4, norm="batch", **changes)
        whole, expected = train_and_test(train, test, protocol, 3, classes=2)

        class Killed(Exception):
            pass

        def kill(seed: int, done: int, total: int) -> None:
            if done == 5:
                raise Killed

        plan = {"classes": 2, "checkpoints": tmp_path, "every": 0.0}
        with pytest.raises(Killed):
            train_and_test(train, test, protocol, 3, progress=kill, **plan)
        assert len(list(tmp_path.iterdir())) == 1
        epochs: list[int] = []
        resumed, trial = train_and_test(
            train, test, protocol, 3, progress=lambda s, e, n, to=epochs: to.append(e), **plan
        )
        assert epochs[0] >= 5 and epochs[-1] == 8
        assert (trial.curve, trial.confusion) == (expected.curve, expected.confusion)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        changed = tiny(epochs=8, looks=4, norm="batch", lr=0.04, **changes)
        told: list[int] = []
        train_and_test(train, test, changed, 3, progress=lambda s, e, n, to=told: to.append(e), **plan)
        assert told[0] == 1, "a checkpoint of another protocol is not gone on with"
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_a_damaged_checkpoint_is_not_used(tmp_path, caplog):
    train, test = stripes(10), stripes(10, seed=1)
    (expected,) = evaluate(train, test, tiny(), [0], classes=2, checkpoints=tmp_path, every=0.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    (trial,) = evaluate(train, test, tiny(), [0], classes=2, checkpoints=tmp_path)
    assert trial.curve == expected.curve and "starts anew" in caplog.text


def test_a_killed_evaluation_goes_on(ours, colours, tmp_path):
    """SIGKILL in the middle of the second training; the first one's trial is kept, the second goes on."""
    made = tmp_path / "set"
    shutil.copytree(ours, made)
    command = [sys.executable, "-m", "dap", "evaluate", made, "--trials", 2, "--networks", "convnet2", "--epochs", 60]
    command = [str(a) for a in [*command, "--set", "width=4", "--set", "size=16", "--set", "looks=60"]]
    environment = os.environ | {"DAP_CHECKPOINT_SECONDS": "0"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(made.glob("checkpoints/*/*-1.pt")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(trials(made)) == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    again, second = trials(made)
    assert (again.seed, second.seed) == (0, 1) and len(second.curve) == 60
    (other,) = [trial for trial in _evaluated(ours, tmp_path / "other", command) if trial.seed == 1]
    assert other.curve == second.curve


def _evaluated(ours: Path, to: Path, command: list[str]) -> list[Trial]:
    shutil.copytree(ours, to)
    command = [str(to) if i == 4 else word for i, word in enumerate(command)]
    assert main(command[3:]) == 0
    return trials(to)


def test_soft_labels_and_the_extra_pass_are_the_plain_loop(monkeypatch):
    """AdamW, half a cosine, KL at temperature T, CutMix, and a pass in training mode before each step."""

    class Teacher:
        name = fingerprint = "a line"

        def logits(self, images: torch.Tensor) -> torch.Tensor:
            assert images.min() > -0.5 and images.max() < 1.5  # in [0, 1], not normalised
            brightness = images.mean((1, 2, 3))
            return torch.stack([brightness, 1 - brightness], 1) * 5

    soft = {
        "labels": {"kind": "soft", "temperature": 3.0}, "optimiser": "adamw", "schedule": "cosine", "cosine_length": 2,
        "extra_forward": True, "mix": {"op": "cutmix"}, "batch": 8, "epochs": 4, "lr": 0.01, "weight_decay": 0.1,
        "weight_decay_on": "matrices",
    }  # fmt: skip
    protocol, (images, labels) = tiny(**soft, network=LINEAR), stripes(20, noise=0.8)
    found = trained((images, labels), protocol, 0, teacher=Teacher())
    batch = trained((images, labels), tiny(**soft, norm="batch"), 0, teacher=Teacher())
    assert batch.state_dict()["body.1.num_batches_tracked"] == 4 * 3 * 2

    streams = torch.Generator().manual_seed(0)
    _, of_order, of_augment = (int(s) for s in torch.randint(2**62, (3,), generator=streams))
    order, augment = torch.Generator().manual_seed(of_order), torch.Generator().manual_seed(of_augment)
    net = Linear(3, 2, 8)
    groups = [{"params": [net.map.weight], "weight_decay": 0.1}, {"params": [net.map.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.01)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda e: (1 + torch.cos(torch.tensor(e * torch.pi / 8))) / 2)
    x_all = (images - 0.5) / 0.25
    for _ in range(4):
        for chosen in torch.randperm(20, generator=order).split(8):
            drawn = protocol.mix.draw(len(chosen), 8, 8, augment)
            x = protocol.mix.apply(x_all[chosen], drawn)
            net(x)
            said = F.softmax(Teacher().logits(x * 0.25 + 0.5) / 3, 1)
            loss = F.kl_div(F.log_softmax(net(x) / 3, 1), said, reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        cosine.step()
    for value, expected in zip(found.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_mixed_hard_labels_are_the_two_entropies_by_area():
    protocol, train = tiny(mix={"op": "cutmix"}, batch=8, epochs=1), stripes(8)
    ready = training.Images(train, training.split(protocol.train_steps)[0], torch.device("cpu"))
    one = fitting.Training(ready, protocol, 0, network="convnet2", channels=3, classes=2)
    order, augment = one.order.get_state(), one.augment.get_state()
    ((x, loss_of),) = one._batches(1)
    generators = [torch.Generator().set_state(state) for state in (order, augment)]
    chosen = torch.randperm(8, generator=generators[0])
    drawn = protocol.mix.draw(8, 8, 8, generators[1])
    assert not draw_all((), 8, 8, 8, generators[1]) and torch.equal(apply_all((), x, []), x)
    y, share = train[1][chosen], float(drawn["share"])
    assert torch.equal(x, protocol.mix.apply((train[0][chosen] - 0.5) / 0.25, drawn))
    logits = torch.randn(8, 2)
    own, other = (F.cross_entropy(logits, labels, reduction="sum") for labels in (y, y[drawn["partner"]]))
    torch.testing.assert_close(loss_of(logits, slice(None)), share * own + (1 - share) * other)


def test_bytes_are_judged_as_floats_are():
    images, labels = stripes(12)
    as_bytes = (images * 255).round().byte()
    for changes in ({}, AUGMENTED):
        protocol = tiny(**changes)
        curves = [
            next(evaluate((one, labels), (one, labels), protocol, [0], classes=2)).curve
            for one in (as_bytes, as_bytes.float() / 255)
        ]
        assert curves[0] == curves[1]


def test_labels_are_stored_of_whole_sets_alone(ours, teacher, tmp_path):
    from dap.data.sets.distilled import DistilledSet
    from dap.evaluation.training.protocol import load_protocol

    broken = tmp_path / "set"
    shutil.copytree(ours, broken)
    next((broken / "images").rglob("*.png")).unlink()
    protocol = load_protocol("fkd-soft", size=8, epochs=1)
    with pytest.raises(DapError, match="is not whole"):
        store_labels(DistilledSet.open(broken), protocol, tmp_path / "labels", teacher=str(teacher))
    assert not (tmp_path / "labels").exists()


def test_storing_labels_ends_with_the_command_that_takes_them(ours, teacher, tmp_path, capsys):
    made = tmp_path / "set"
    shutil.copytree(ours, made)
    small: list[object] = ["--teacher", teacher, *SMALL, "--out", tmp_path / "labels"]
    assert main([str(a) for a in ("export", made, "--layout", "fkd", *small)]) == 0
    command = shlex.split(capsys.readouterr().out.rpartition("Next: ")[2])
    status, err = call(capsys, *command[1:], "--networks", "convnet2")
    assert status == 0, err
    assert [trial.protocol for trial in trials(made)] == ["fkd-soft+size=16+width=4+epochs=2"]


def test_methods_are_compared_over_networks_and_ipc(colours, pipeline_folder, tmp_path, capsys):
    common = ["--data", colours, "--backbone", pipeline_folder, "--steps", 3, "--sets", 1, "--out", tmp_path]
    options = ["--methods", "random,vanilla", "--ipc", "1,2", "--networks", "convnet1,convnet2", *SMALL]
    status, err = call(capsys, "compare", *common, *options)
    assert status == 0, err
    cells = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("*/*/trials.jsonl"))
    assert cells == [f"method={m}_ipc={k}/seed0" for m in ("random", "vanilla") for k in (1, 2)]
    assert all({t.network for t in trials(tmp_path / cell)} == {"convnet1", "convnet2"} for cell in cells)
    assert (tmp_path / "report-networks.csv").exists()
    again = (tmp_path / cells[0] / "trials.jsonl").stat().st_mtime_ns
    assert call(capsys, "compare", *common, *options)[0] == 0
    assert (tmp_path / cells[0] / "trials.jsonl").stat().st_mtime_ns == again


def test_dd_ranking_of_sets_on_disk(ours, tmp_path, capsys):
    other = tmp_path / "theirs"
    shutil.copytree(ours, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**recipe, "method": "mine"}))
    shutil.copytree(ours, tmp_path / "random")
    for made in (other, tmp_path / "random"):
        status, err = call(capsys, "evaluate", made, "--networks", "convnet2", *SMALL)
        assert status == 0, err
    (name,) = {trial.protocol for trial in trials(other)}
    status, err = call(capsys, "rank", tmp_path, "--network", "convnet2", "--hard", name, "--own", name, "--full", 1)
    assert status == 0, err
    found = json.loads((other / "ranking.json").read_text())
    assert found["ior"] == 0 and found["hlr"] == pytest.approx(1 - found["hard"]) and 0 <= found["lrs"] <= 1
    assert not (tmp_path / "random" / "ranking.json").exists()
    status, err = call(capsys, "rank", other, "--network", "convnet2", "--hard", name)
    assert status == 1 and "compares with random real images" in err
    status, err = call(capsys, "rank", tmp_path, "--network", "convnet2", "--hard", "big-hard")
    assert status == 1 and "No trial of convnet2 by 'big-hard'" in err


def test_the_hash_of_a_protocol_as_it_is_written_changes_with_what_decides_a_training():
    soft = {"labels": {"kind": "soft", "temperature": 20.0}}
    for base in (tiny(score="last"), tiny(score="best"), tiny(**soft)):
        known = unsettled(base)
        looks = {"looks": 9, "look_from": "1/2"}
        alike = [
            {"network": "resnet18"},
            {"name": "other"},
            {"source": "other"},
            *([looks] if base.score == "last" else []),
        ]
        assert all(unsettled(base.model_copy(update=change)) == known for change in alike)
        cases = tiny(cases=[{"when": {"ipc": "10"}, "set": {"lr": 0.5}}]).cases
        edits = [{"lr": 0.2}, {"weights": "manifest"}, {"cases": cases}, *([looks] if base.score == "best" else [])]
        assert len({known, *(unsettled(base.model_copy(update=change)) for change in edits)}) == len(edits) + 1
    named = {"labels": {**soft["labels"], "teacher": "t.pt"}}
    assert unsettled(tiny(**named)) == unsettled(tiny(**soft)) != unsettled(tiny())
