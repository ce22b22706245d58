"""Protocols: the published recipes, number by number, what overrides and cases do, and docs/protocols.md held to them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dap.base.errors import DapError
from dap.evaluation.training.networks import KNOWN, build, n_parameters
from dap.evaluation.training.protocol import Protocol, known_protocols, load_protocol
from dap.evaluation.training.transforms import MIXINGS, STEPS, run
from trainings import TINY, tiny


def test_small_hard_is_the_published_recipe():
    protocol = load_protocol("small-hard")
    recipe = protocol.model_dump(exclude={"source", "mean", "std"}, exclude_defaults=True)
    steps = ({"op": "resize"}, {"op": "normalize"})
    assert recipe == {
        "name": "small-hard", "network": "convnet3", "size": 32, "epochs": 300, "extra_epoch": True, "batch": 256,
        "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005, "decay_at": ("half+1",), "decay_restarts": True,
        "train": steps, "test": steps, "score": "last", "looks": 3,
    }  # fmt: skip
    assert protocol.first_epoch == 0
    assert protocol.decay_epochs == (151,)
    assert protocol.look_epochs == (100, 200, 300)


def test_small_hard_dsa_differs_only_in_epochs_and_augmentation():
    plain, dsa = load_protocol("small-hard"), load_protocol("small-hard-dsa")
    different = {key for key, value in plain if getattr(dsa, key) != value}
    assert different == {"name", "source", "epochs", "train"}
    assert (dsa.epochs, dsa.decay_epochs) == (1000, (501,))
    assert [step.op for step in dsa.train_steps] == ["resize", "normalize", "dsa"]


@pytest.mark.parametrize(
    ("ipc", "classes", "epochs"),
    [
        (1, 10, 3000), (10, 10, 2000), (20, 10, 1500), (50, 10, 1500), (70, 10, 1000), (100, 10, 1000), (200, 10, 1000),
        (500, 10, 500), (1300, 10, 300), (10, 100, 1300), (20, 100, 1000), (50, 100, 1000), (100, 100, 600),
        (10, 1000, 2000),
    ],
)  # fmt: skip
def test_minimax_hard_trains_as_long_as_published(ipc, classes, epochs):
    protocol = load_protocol("minimax-hard").settled(ipc=ipc, classes=classes)
    assert (protocol.epochs, protocol.decay_epochs) == (epochs, (epochs * 2 // 3, epochs * 5 // 6))
    assert len(protocol.look_epochs) == 100 and protocol.look_epochs[-1] == epochs
    many = classes > 100
    rates = (protocol.lr, protocol.weight_decay, protocol.batch)
    assert rates == ((0.1, 1e-4, 128) if many else (0.01, 5e-4, 64))
    assert protocol.lr_at(epochs) == pytest.approx(rates[0] * 0.04) and protocol.lr_at(1) == rates[0]
    assert protocol.lr_at(epochs * 2 // 3) == rates[0] > protocol.lr_at(epochs * 2 // 3 + 1)


@pytest.mark.parametrize(
    ("ipc", "classes", "batch"),
    [(1, 10, 10), (10, 10, 50), (50, 10, 100), (10, 100, 100), (10, 1000, 100), (50, 1000, 200), (10, 200, 100)],
)
def test_rded_soft_takes_the_published_batches(ipc, classes, batch):
    assert load_protocol("rded-soft").settled(ipc=ipc, classes=classes).batch == batch


def test_rded_soft_is_half_a_cosine_with_a_rate_for_each_network():
    protocol = load_protocol("rded-soft")
    rates = {
        "resnet18": 1e-3, "resnet101": 1e-3, "efficientnet_b0": 2e-3, "mobilenet_v2": 2.5e-3, "swin_t": 1e-4,
        "torchvision:mobilenet_v2": 2.5e-3, "torchvision:swin_v2_t": 1e-4, "torchvision:alexnet": 1e-4,
    }  # fmt: skip
    for network, rate in rates.items():
        settled = protocol.settled(ipc=10, classes=1000, network=network)
        assert settled.network == network and settled.lr_at(1) == rate
        assert settled.lr_at(301) == pytest.approx(rate / 2) and settled.size == 224
    assert protocol.look_epochs == (250, 260, 270, 280, 290, 300)
    assert [step.side for step in protocol.test_steps if step.op == "resize"] == [256]
    small = protocol.settled(ipc=10, classes=10, network="convnet5")
    assert small.size == 128 and [step.side for step in small.test_steps if step.op == "resize"] == [144]
    stored = load_protocol("fkd-soft")
    assert stored.lr_at(301) == pytest.approx(0) and stored.weight_decay_on == "matrices"


def test_cases_apply_in_order_and_yield_to_what_the_user_says(tmp_path):
    cases = [
        {"when": {"ipc": "1-9"}, "set": {"epochs": 20, "lr": 0.5}},
        {"when": {"ipc": "5-"}, "set": {"epochs": 30}},
        {"when": {"networks": ["convnet*"], "classes": "3"}, "set": {"size": 16}},
    ]
    protocol = tiny(cases=cases)
    assert [protocol.settled(ipc=ipc, classes=2).epochs for ipc in (1, 5, 10)] == [20, 30, 30]
    assert protocol.settled(ipc=5, classes=2).lr == 0.5 and protocol.settled(ipc=10, classes=2).lr == 0.05
    settled = protocol.settled(ipc=10, classes=3)
    assert settled.size == 16 and settled.test_steps[0].side == 16 and settled.cases == ()
    assert protocol.settled(ipc=10, classes=3, network="resnet18").size == 8
    (tmp_path / "p.yaml").write_text(json.dumps({**TINY, "cases": cases}))
    mine = load_protocol(tmp_path / "p.yaml", epochs=6)  # the same as without a case, and still what is asked for
    assert mine.name == "tiny+epochs=6" and mine.settled(ipc=5, classes=2).epochs == 6
    assert mine.settled(ipc=5, classes=2).lr == 0.5


def test_sizes_and_means_reach_every_step():
    protocol = load_protocol("minimax-hard", size=64, mean=[0.1], std=[0.2])
    assert [step.size for step in protocol.train_steps if step.op == "random_resized_crop"] == [64]
    images = torch.rand(2, 3, 80, 80)
    found, settled = run(protocol.test_steps, images), protocol.settled(ipc=1, classes=2)
    assert found.shape == (2, 3, 64, 64) and torch.equal(found, run(settled.test_steps, images))
    assert (found * 0.2 + 0.1).min() >= -1e-6
    assert Protocol.model_validate_json(settled.model_dump_json()) == settled


@pytest.mark.parametrize("name", known_protocols())
def test_every_shipped_protocol_loads_under_its_own_name(name):
    assert load_protocol(name).name == name


def test_fractions_of_the_epochs_are_rounded_down():
    assert tiny(epochs=2000, decay_at=["2/3", "5/6"]).decay_epochs == (1333, 1666)
    assert tiny(epochs=3, decay_at=["1/6"]).decay_epochs == (1,)
    assert tiny(epochs=10, looks=4).look_epochs == (2, 5, 8, 10)


def test_overrides_are_checked_and_show_in_the_name(tmp_path):
    changed = load_protocol("small-hard", epochs=30, mean=(0.4, 0.4, 0.4), looks=3)
    assert (changed.epochs, changed.mean, changed.decay_epochs) == (30, (0.4, 0.4, 0.4), (16,))
    assert changed.name == "small-hard+mean=0.4,0.4,0.4+epochs=30"
    assert load_protocol("small-hard", lr=0.01).name == "small-hard"
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(TINY))
    assert load_protocol(file) == tiny()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 5}, r"The protocol small-hard: unknown key 'epoch'. Did you mean 'epochs'\?"),
        ({"epochs": 0}, "epochs: the value should be greater than 0"),
        ({"score": "first"}, "score: the value should be 'last' or 'best'"),
        (
            {"train": [{"op": "dsa", "operations": ["flop"]}]},
            r"step 1 \(dsa\): operations.0: the value should be .* .given: 'flop'",
        ),
        ({"train": [{"op": "flop"}]}, "unknown op 'flop'. Did you mean 'flip'"),
        ({"test": [{"op": "flip"}]}, "test has the random step 'flip'"),
        ({"test": [{"op": "resize", "side": "half"}]}, "the side 'half' should be a number of pixels, or a fraction"),
        ({"mix": {"op": "cutmix", "beta": 1}}, "cutmix.*unknown key 'beta'"),
        ({"labels": "soft"}, "labels.soft.temperature|'labels.soft.temperature' is missing"),
        ({"look_from": "half"}, "look_from 'half' should be"),
        ({"cases": [{"when": {"ipc": "few"}, "set": {}}]}, "the range 'few' should look like"),
        ({"cases": [{"when": {}, "set": {"epoch": 3}}]}, "cases set the unknown key 'epoch'"),
        ({"mean": [0.5]}, "mean has 1 values and std 3"),
        ({"decay_at": ["late"]}, "decay_at 'late' should be an epoch, a fraction"),
        ({"decay_at": [301]}, r"decay_at 301 is epoch 301, outside 0 ... 300"),
        ({"std": [0.0, 1.0, 1.0]}, "std.0: the value should be greater than 0"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(DapError, match=message):
        load_protocol("small-hard", **changes)


def test_a_wrong_protocol_is_named(tmp_path):
    with pytest.raises(DapError, match=r"Unknown protocol 'small-had'. Did you mean 'small-hard'\?"):
        load_protocol("small-had")
    with pytest.raises(DapError, match=r"No protocol file nowhere.yaml. Shipped protocols: .*small-hard"):
        load_protocol("nowhere.yaml")
    file = tmp_path / "p.yaml"
    wrong = {"a: [": "line 1: .* so this is not YAML", "3": "should be a mapping", "name: x": "'source' is missing"}
    for text, message in wrong.items():
        file.write_text(text)
        with pytest.raises(DapError, match=message):
            load_protocol(file)


def test_igd_hard_is_minimax_hard_with_igd_s_optimiser():
    minimax, igd = load_protocol("minimax-hard"), load_protocol("igd-hard")
    different = {key for key, value in minimax if getattr(igd, key) != value}
    assert different == {"name", "source", "optimiser", "lr", "momentum", "weight_decay", "cases"}
    for ipc, classes in ((1, 10), (10, 10), (50, 100), (100, 1000)):
        ours, theirs = igd.settled(ipc=ipc, classes=classes), minimax.settled(ipc=ipc, classes=classes)
        rates = (ours.optimiser, ours.lr, ours.weight_decay, ours.weight_decay_on, ours.betas)
        assert rates == ("adamw", 1e-3, 0.01, "all", (0.9, 0.999)), "whatever the number of classes"
        assert (ours.epochs, ours.batch, ours.look_epochs) == (theirs.epochs, theirs.batch, theirs.look_epochs)
        last = ours.epochs
        assert ours.lr_at(last) == pytest.approx(1e-3 * 0.2**2) and ours.decay_epochs == (last * 2 // 3, last * 5 // 6)
    assert "IGD by igd-hard" in minimax.source and "seeds 0 to 4" in igd.source


DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text()
TABLES = [
    [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines() if set(line) - set("|- ")]
    for block in re.findall(r"(?:^\|.*\n)+", DOCUMENT, re.MULTILINE)
]
"""The document's tables: rows of cells, the first row a heading."""


def titled(start: str) -> list[list[list[str]]]:
    found = [table for table in TABLES if table[0][0].startswith(start)]
    for heading, *rows in found:
        assert rows and all(len(row) == len(heading) and all(row) for row in rows), heading
    return found


def said(cell: str) -> Any:
    assert cell[0] == cell[-1] == "`", cell
    return yaml.safe_load(cell[1:-1])


def test_the_document_has_every_value_of_every_shipped_protocol():
    fields = [name for name in Protocol.model_fields if name not in ("name", "source", "cases")]
    documented = {}
    for heading, *rows in titled("field"):
        for column in [k for k, title in enumerate(heading) if title.strip("`") in known_protocols()]:
            assert heading[-1] == "source" and [said(row[0]) for row in rows] == fields
            documented[said(heading[column])] = {said(row[0]): said(row[column]) for row in rows}
    assert set(documented) == set(known_protocols())
    for name, values in documented.items():
        shipped = load_protocol(name).model_dump(mode="json", include=set(fields))
        assert {key: value for key, value in values.items() if value != shipped[key]} == {}, name


def test_the_document_has_every_case_in_its_order():
    documented = {}
    for heading, *rows in titled("case of"):
        name = heading[0].split("`")[1]
        documented[name] = [(said(when), said(set_)) for when, set_, _ in rows]
    shipped = {}
    for name in known_protocols():
        cases = load_protocol(name).model_dump(mode="json", exclude_none=True)["cases"]
        shipped[name] = [(case["when"], case["set"]) for case in cases]
    assert documented == {name: cases for name, cases in shipped.items() if cases}


def test_the_document_explains_every_field_and_step():
    (meanings,) = [table for table in titled("field") if table[0] == ["field", "meaning"]]
    assert [said(name) for name, _ in meanings[1:]] == list(Protocol.model_fields)
    ((_, *ops),) = titled("op")
    explained = {said(op): fields.split(", ") for op, fields, _ in ops}
    kinds = {kind.model_fields["op"].default: kind for kind in (*STEPS, *MIXINGS)}
    assert explained == {op: [f for f in kind.model_fields if f != "op"] for op, kind in kinds.items()}


def test_the_document_counts_every_network_right():
    ((_, *rows),) = titled("network")
    ((_, *of_clips),) = titled("clip network")
    documented = {said(row[0]) for row in (*rows, *of_clips)}
    assert documented >= {name for name in KNOWN if not name.startswith("convnet")}
    for name, size, parameters, _ in rows:
        network = build(said(name), classes=10, size=int(size), norm="batch")
        assert f"{n_parameters(network):,}" == parameters, name
    for name, size, frames, parameters, _ in of_clips:
        norm = "none" if said(name) == "convnet3d" else "batch"
        network = build(said(name), channels=3 * int(frames), classes=10, size=int(size), norm=norm)
        assert f"{n_parameters(network):,}" == parameters, name


def test_the_documents_protocol_of_ones_own_loads(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "flowers.yaml").write_text(text)
    mine = load_protocol(tmp_path / "flowers.yaml")
    few, many = mine.settled(ipc=10, classes=5), mine.settled(ipc=50, classes=5, network="resnet18")
    assert (few.epochs, few.norm, few.decay_epochs) == (1000, "instance", (666, 833))
    assert (many.epochs, many.norm, many.look_epochs[0]) == (500, "batch", 50)
    assert run(many.test_steps, torch.rand(1, 3, 80, 90)).shape == (1, 3, 64, 64)
    overridden = load_protocol("small-hard", epochs=30, batch=64, mean=[0.5, 0.5, 0.5])
    assert f"`{overridden.name}`" in DOCUMENT


def test_a_file_extends_a_shipped_protocol_and_another_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "long.yaml").write_text(
        "extends: small-hard\nname: long\nepochs: 600\nmean: [0.5, 0.4, 0.3]\n"
    )
    (tmp_path / "wide.yaml").write_text("extends: deep/long.yaml\nname: wide\nwidth: 256\nsource: mine\n")
    base, long, wide = (
        load_protocol(p) for p in ("small-hard", tmp_path / "deep" / "long.yaml", tmp_path / "wide.yaml")
    )
    own = {"name": "long", "epochs": 600, "mean": (0.5, 0.4, 0.3), "source": "As small-hard, but for epochs, mean."}
    assert long == base.model_copy(update=own)
    assert wide == long.model_copy(update={"name": "wide", "width": 256, "source": "mine"})
    assert load_protocol(tmp_path / "wide.yaml", epochs=2).name == "wide+epochs=2"


def test_what_an_extending_file_says_holds_under_every_case(tmp_path):
    file = tmp_path / "mine.yaml"
    base = load_protocol("minimax-hard")
    field = next(iter(base.cases[0].set))
    value = base.model_dump(mode="json")[field]
    file.write_text(yaml.safe_dump({"extends": "minimax-hard", "name": "mine", field: value}))
    mine = load_protocol(file)
    assert not any(field in case.set for case in mine.cases) and len(mine.cases) == len(base.cases)
    for ipc in (1, 10, 50, 100):
        expected = base.settled(ipc=ipc, classes=10).model_copy(
            update={"name": "mine", "source": mine.source, field: getattr(base, field)}
        )
        assert mine.settled(ipc=ipc, classes=10) == expected
    file.write_text(yaml.safe_dump({"extends": "minimax-hard", "name": "mine", "cases": []}))
    assert load_protocol(file).cases == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: b.yaml\nname: a", "b": "extends: a.yaml\nname: b"}, r"circle: a.yaml -> b.yaml -> a.yaml"),
        ({"a": "extends: a.yaml\nname: a"}, r"circle: a.yaml -> a.yaml\. Remove `extends`"),
        (
            {"a": "extends: smal-hard\nname: a"},
            r"a.yaml extends smal-hard: Unknown protocol .*Did you mean 'small-hard'",
        ),
        ({"a": "extends: gone.yaml\nname: a"}, r"a.yaml extends .*gone.yaml: No protocol file .*gone.yaml"),
        ({"a": "extends: [x]\nname: a"}, r"extends should name one protocol, such as small-hard"),
        ({"a": "extends: small-hard\nepochs: 3"}, r"give it a name of its own"),
        ({"a": "extends: small-hard\nname: a\nepoch: 3"}, r"a.yaml, line 3: unknown key 'epoch'.*epochs"),
        ({"a": "extends: b.yaml\nname: a", "b": "name: [b"}, r"b.yaml, line 1: .* so this is not YAML"),
    ],
)
def test_a_wrong_extends_is_a_sentence(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(DapError, match=message):
        load_protocol(tmp_path / "a.yaml")
