"""docs/extending.md: a backbone of one's own runs as it stands there; and what `ModuleBackbone` does by default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dap.backbones import Card, Flow, ModuleBackbone, VariancePreserving, load
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.cli.main import main
from dap.data.sets.looks import advice_for

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    section = PAGE.read_text(encoding="utf-8").split("## A backbone\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    file = tmp_path_factory.mktemp("mine") / "my_backbone.py"
    file.write_text(code)
    return file


def test_the_example_is_short(mine):
    assert len([line for line in mine.read_text().splitlines() if line.strip()]) <= 40


def test_the_example_keeps_its_contract(mine, capsys):
    assert main(["check", f"{mine}:Mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ", 1 warning, " in lines[-1] and "keeps its contract" in lines[-1]
    assert [line for line in lines if line.startswith("warn") and "look untrained" in line]


def test_the_example_makes_images(mine, tmp_path):
    common = ["--backbone", f"{mine}:Mine", "--classes", "Trouser", "Bag", "--ipc", "2", "--steps", "4"]
    sets = {}
    for method, more in (("vanilla", []), ("dap", ["--reals", "4"])):
        out = tmp_path / method
        assert main(["distill", "--method", method, *common, *more, "--out", str(out)]) == 0
        sets[method] = [file.read_bytes() for file in sorted(out.rglob("*.png"))]
    assert len(sets["dap"]) == 4 and sets["dap"] != sets["vanilla"]


def test_edited_code_is_another_backbone(mine, tmp_path):
    """The weights are the same, but features in a shared cache, and labels by the backbone, are of other predictions."""
    file = tmp_path / mine.name
    file.write_text(mine.read_text())
    before = load(f"{file}:Mine").weights_hash()
    assert before == load(f"{mine}:Mine").weights_hash(), "a copy is the same backbone"
    file.write_text(f"{mine.read_text()}\n# edited\n")
    assert load(f"{file}:Mine").weights_hash() == before, "a comment runs nothing"
    text = mine.read_text()
    file.write_text(text.replace("self.labels(label) +", "self.labels(label) -"))
    assert file.read_text() != text and load(f"{file}:Mine").weights_hash() != before


BUILT = """
import torch
from torch import nn
from dap.backbones import Card, ModuleBackbone, VariancePreserving

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition):
        return x * {factor} + self.weight

def build():
    card = Card("built", "CC0-1.0", 4, 1.0, "all", "", 1.0, "step")
    schedule = VariancePreserving.from_betas(1e-4, 0.02, 1000)
    return ModuleBackbone(Net(), card=card, schedule=schedule, latent_shape=(3, 4, 4), layers=("",), class_names=("a",))
"""


def test_edited_code_of_a_network_in_a_class_of_this_library_is_another_backbone(tmp_path):
    file = tmp_path / "built.py"
    hashes = set()
    for factor in (1, 1, 2):
        file.write_text(BUILT.format(factor=factor))
        hashes.add(load(f"{file}:build").weights_hash())
    assert len(hashes) == 2


def test_the_graph_ends_at_the_layer(mine):
    backbone = load(f"{mine}:Mine")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    condition = backbone.condition(["Bag", "Dress"])
    assert condition.tolist() == [2, 1] and backbone.null(2).tolist() == [3, 3]
    cut = backbone.predict(x, 400, condition, layer="first", grad_through="features")
    whole = backbone.predict(x, 400, condition, layer="first", grad_through="denoiser")
    assert not cut.eps.requires_grad and whole.eps.requires_grad
    gradients = [torch.autograd.grad(p.features.square().sum(), x, retain_graph=True)[0] for p in (cut, whole)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0
    with pytest.raises(DapError, match="mine was not trained on 'Shirt'"):
        backbone.condition(["Shirt"])


class Exact(nn.Module):
    """Says what is wanted of x_t of one known image: its noise, its velocity or the image."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition):
        return self.answer + self.weight


@pytest.mark.parametrize("schedule", [VariancePreserving.from_betas(1e-4, 0.02, 1000), Flow(shift=2.0)])
@pytest.mark.parametrize("predicts", ["eps", "velocity", "x0"])
def test_all_predictions_mean_the_same_noise_and_image(schedule, predicts):
    """From the definitions: v = alpha eps − sigma x_0, and on a flow v = eps − x_0."""
    gens = generators([1, 2])
    clean, noise = normal((3, 4, 4), gens[:1], torch.empty(0)), normal((3, 4, 4), gens[1:], torch.empty(0))
    t = 700
    alpha, sigma = schedule.level(t)
    velocity = noise - clean if isinstance(schedule, Flow) else alpha * noise - sigma * clean
    answer = {"eps": noise, "velocity": velocity, "x0": clean}[predicts]
    backbone = ModuleBackbone(
        Exact(answer),
        card=Card("exact", "CC0-1.0", 4, 1.0, "all", "", 1.0, "step"),
        schedule=schedule,
        latent_shape=(3, 4, 4),
        layers=("",),
        class_names=("a",),
        predicts=predicts,
    )
    x = alpha * clean + sigma * noise
    got = backbone.predict(x, t, backbone.condition(["a"]))
    torch.testing.assert_close(got.eps, noise, rtol=1e-4, atol=1e-4)
    x0 = schedule.eps_to_x0(x, t, got.eps) if got.x0 is None else got.x0
    torch.testing.assert_close(x0, clean, rtol=1e-3, atol=1e-3)


def test_what_decides_a_prediction_besides_the_weights_is_in_the_hash():
    def made(predicts):
        card = Card("exact", "CC0-1.0", 4, 1.0, "all", "", 1.0, "step")
        schedule = VariancePreserving.from_betas(1e-4, 0.02, 1000)
        parts = {"latent_shape": (3, 4, 4), "layers": ("",), "class_names": ("a",)}
        return ModuleBackbone(Exact(torch.zeros(1)), card=card, schedule=schedule, predicts=predicts, **parts)

    assert len({made(predicts).weights_hash() for predicts in ("eps", "velocity", "x0")}) == 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("schedule", [VariancePreserving.from_betas(1e-4, 0.02, 1000), Flow()])
def test_what_a_network_predicts_has_our_words_and_those_of_diffusers_and_no_others(schedule):
    """A word that nobody knows once meant x_0, so that a denoiser of noise gave other images without a sentence."""
    x, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for ours, theirs in (("eps", "epsilon"), ("velocity", "v_prediction"), ("x0", "sample")):
        for one, other in zip(schedule.read(ours, x, 300, output), schedule.read(theirs, x, 300, output), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
        assert _of_words(schedule, theirs).predicts == ours
    for wrong in ("v", "X0", "noise", "eps ", ""):
        with pytest.raises(DapError, match="'eps', 'velocity' or 'x0'"):
            schedule.read(wrong, x, 300, output)
        with pytest.raises(DapError, match="cannot predict"):
            _of_words(schedule, wrong)


def _of_words(schedule, predicts):
    card = Card("mine", licence="MIT", size=4, cfg=1.0, cfg_channels="all", layer="0", scale=0.1, unit="step")
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    shape = {"latent_shape": (3, 4, 4), "layers": ("0",), "class_names": ("a",)}
    return ModuleBackbone(network, card=card, schedule=schedule, predicts=predicts, **shape)


@pytest.mark.usefixtures("unchecked")
def test_a_backbone_loads_by_path_and_by_the_types_of_torch(pipeline_folder):
    for path in (str(pipeline_folder), Path(pipeline_folder)):
        made = load(path, dtype=torch.bfloat16, device=torch.device("cpu"))
        assert next(made.denoiser.parameters()).dtype == torch.bfloat16
    assert (
        load(Path("starter"), device="cpu").weights_hash()
        == load("starter", dtype=torch.float32, device="cpu").weights_hash()
    )
    for wrong in (None, 3, made):
        with pytest.raises(DapError, match="loaded by its name, folder, file or hub id"):
            load(wrong)
    with pytest.raises(DapError, match="int8"):
        load("starter", dtype=torch.int8)


def test_advice_names_a_check_that_finds_the_backbone(tmp_path):
    """The card of an object has a name, and `dap check` finds nothing under it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in ("starter", str(folder), "owner/name", "mine.py:Mine"):
        assert advice_for({"backbone": {"path": path}}).endswith(f"with dap check {path}")
    assert advice_for({"backbone": {"path": "mine"}}).endswith("with dap.testing.check_backbone(backbone)")
