"""What a guidance of one's own can get wrong is said in a sentence: labels of other classes, and shapes that would broadcast."""

from __future__ import annotations

import itertools

import pytest
import torch

from dap.backbones import ClassifierFree
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.sources import open_source
from dap.guidance import Descend, Energy, Guidance, Representative, Scaled, Sum, Window
from dap.refining import Descent, refine
from dap.sampling import Batch, latents


class Holding(Energy):
    """An energy of one's own that holds a bank somewhere."""

    grad_through = "denoiser"

    def __init__(self, bank):
        self._by_name = {"reals": [Reals(bank)]}

    def __call__(self, state):
        return state.x0_hat.flatten(1).sum(1)


class Reals:
    """Real features of one's own around a bank."""

    def __init__(self, bank):
        self.bank = bank

    def begin(self, labels):
        self.bank.begin(labels)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda bank: Descend(Representative(bank), 0.1),
        lambda bank: Window(Scaled(Sum((Descend(Representative(bank), 0.1),)), 2.0), 0.5),
        lambda bank: Descend(Holding(bank), 0.1),
    ],
)
def test_labels_mean_the_same_classes_in_the_bank_and_in_the_batch(backbone, colours, wrap):
    """Bare numbers would pull an image of one class towards real images of another one."""
    model, names = ClassifierFree(backbone, 1.0), ("blue", "green", "red")
    for mine, theirs in itertools.product((("green", "red"), ("red", "blue")), ((*names,), ("red",), ("red", "blue"))):
        source = open_source(colours, "train", size=8, classes=list(theirs))
        guidance = wrap(FeatureBank(source, backbone, BankOptions(reals=2), ipc=1))
        for labels in ([0], [1], [0, 1]):
            batch = Batch.of(mine, labels, [0] * len(labels), 0)
            if all(label < len(theirs) and theirs[label] == mine[label] for label in labels):
                assert latents(model, guidance, batch, steps=2).isfinite().all()
                continue
            with pytest.raises(
                DapError, match=r"in the real images of the guidance .* Open these images with the same classes"
            ):
                latents(model, guidance, batch, steps=2)


def test_a_refinement_asks_the_same(backbone, source):
    energy = Representative(FeatureBank(source, backbone, BankOptions(reals=2), ipc=1))
    batch = Batch.of(("red", "blue"), [0], [0], 0)
    with pytest.raises(DapError, match="'red' has the label 0 in what is sampled, but"):
        refine(backbone, [energy], batch, torch.zeros(1, *backbone.latent_shape), Descent(1))


class Given(Energy):
    """An energy that gives what a function makes of the right one."""

    grad_through = "denoiser"

    def __init__(self, change):
        self.change = change

    def __call__(self, state):
        return self.change(state.x0_hat.square().flatten(1).sum(1))


class Pushing(Guidance):
    def __init__(self, change):
        self.change = change

    def __call__(self, state):
        return self.change(torch.zeros_like(state.proposal))


WRONG_ENERGIES = [torch.sum, lambda e: e[:, None], lambda e: e[:1], lambda e: e.sum().item(), lambda e: None, list]
WRONG_PUSHES = [torch.sum, lambda p: p[:1], lambda p: p[:, :1], lambda p: p[0], lambda p: 0.1, lambda p: None]


@pytest.mark.parametrize("change", WRONG_ENERGIES)
def test_an_energy_is_one_number_an_image(backbone, change):
    """A scalar has the gradient of the sum, but a unit, a report of it and a refinement would read something else."""
    batch = Batch.of(("red", "blue"), [0, 1], [0, 0], 0)
    with pytest.raises(DapError, match=r"The energy Given gives a .* for 2 images; .* shape \(2,\)"):
        latents(ClassifierFree(backbone, 1.0), Descend(Given(change), 0.1), batch, steps=2)


@pytest.mark.parametrize("change", WRONG_PUSHES)
@pytest.mark.parametrize(
    "wrap", [lambda g: g, lambda g: g + Descend(Given(torch.clone), 0.1), lambda g: Window(g, 0.0)]
)
def test_a_push_has_the_shape_of_the_sample(backbone, change, wrap):
    batch = Batch.of(("red", "blue"), [0, 1], [0, 0], 0)
    with pytest.raises(DapError, match=r"The guidance \w+ gives a .* has the shape of the sample, \(2, 4, 4, 4\)"):
        latents(ClassifierFree(backbone, 1.0), wrap(Pushing(change)), batch, steps=2)


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_real_images_of_a_bank_have_the_backbone_s_size(backbone, colours, pool):
    for size in (4, 16):
        with pytest.raises(DapError, match=f"have {size} × {size} px, and .* makes 8 × 8 px. Open them with size=8"):
            FeatureBank(open_source(colours, "train", size=size), backbone, BankOptions(pool=pool), ipc=1)


@pytest.mark.parametrize(
    ("labels", "slots", "says"),
    [
        ([-1], [0], "label -1 is none of the 2 classes"),
        ([0, 2], [0, 0], "label 2 is none of the 2 classes"),
        ([0], [-1], "slot -1 is below 0"),
        ([0, 1], [0], "not 2 labels and 1 slots"),
        ([], [], "not 0 labels"),
    ],
)
def test_rows_of_a_batch_are_of_its_classes(labels, slots, says):
    for make in (
        lambda: Batch.of(("a", "b"), labels, slots, 0),
        lambda: Batch(("a", "b"), (*labels,), (*slots,), (1,)),
    ):
        with pytest.raises(DapError, match=says):
            make()
    with pytest.raises(DapError, match="A batch of 1 labels needs as many seeds, not 2"):
        Batch(("a", "b"), (0,), (0,), (1, 2))
    assert Batch.of(("a", "b"), torch.tensor([0, 1]), torch.tensor([0, 0]), 3) == Batch.of(
        ("a", "b"), [0, 1], [0, 0], 3
    )


@pytest.mark.usefixtures("unchecked")
def test_an_energy_alone_is_no_guidance(backbone, bank_of_reds):
    """Each of these ended in a trace about `active`."""
    model, energy = ClassifierFree(backbone, 1.0), Representative(bank_of_reds)
    batch, guidance = Batch.of(("blue",), [0], [0], 0), Descend(energy, 0.1)
    for wrong in (
        lambda: latents(model, energy, batch, steps=2),
        lambda: guidance + energy,
        lambda: energy + guidance,
        lambda: energy + energy,
        lambda: 2 * energy,
        lambda: Sum((guidance, energy)),
        lambda: Window(energy, 0.5),
    ):
        with pytest.raises(
            DapError, match=r"Representative is an energy; .* Descend\(Representative\(\.\.\.\), scale\)"
        ):
            wrong()
    for wrong, says in (
        (lambda: latents(model, Pushing, batch, steps=2), "not the class Pushing"),
        (lambda: latents(model, 0.1, batch, steps=2), "not a float"),
        (lambda: Scaled(None, 1.0), "not a NoneType"),
        (lambda: Descend(guidance, 0.1), "Descend is a guidance"),
    ):
        with pytest.raises(DapError, match=says):
            wrong()


@pytest.fixture
def bank_of_reds(backbone, source):
    return FeatureBank(source, backbone, BankOptions(reals=2), ipc=1)


def test_a_bank_that_has_not_begun_says_so(bank_of_reds):
    for ask in (
        lambda: bank_of_reds.at(1, 500),
        lambda: bank_of_reds.latents(1),
        lambda: bank_of_reds.clean(1, 500),
        lambda: bank_of_reds.noise(1, 500),
        lambda: bank_of_reds.shares(1),
    ):
        with pytest.raises(DapError, match=r"call begin\(\[1\]\) first"):
            ask()
    for label in (-1, 3, 99):
        with pytest.raises(DapError, match=f"3 classes, and no label {label}"):
            bank_of_reds.begin([label])
    bank_of_reds.begin([1])
    assert len(bank_of_reds.at(1, 500)) == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["branch", "grad_through"])
@pytest.mark.parametrize(
    "wrap", [lambda g: g, lambda g: Window(Scaled(g, 2.0), 0.0), lambda g: g + Pushing(torch.clone)]
)
def test_a_misspelt_word_of_a_guidance_is_no_other_word(backbone, name, wrap):
    """Another half of classifier-free guidance, or no gradient at all, would be taken in its place."""
    wrong = Descend(Given(torch.clone), 0.1)
    wrong.energy.layer = backbone.layers[0]
    setattr(wrong.energy, name, "nul")
    with pytest.raises(DapError, match=f"takes {name} as .*, not 'nul'"):
        latents(ClassifierFree(backbone, 1.0), wrap(wrong), Batch.of(("red", "blue"), [0], [0], 0), steps=2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("channels", [0, -1, "al", True, 2.0, None])
def test_channels_that_are_mixed_are_a_number_or_all(backbone, channels):
    with pytest.raises(DapError, match="channels as a number from 1 on or 'all'"):
        ClassifierFree(backbone, 1.0, channels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -3},
        {"steps": 1.5},
        {"rate": -0.1},
        {"prior": "much"},
        {"repel": -1},
        {"patience": -1},
        {"times": ()},
        {"times": (50,)},
        {"times": 0.05},
        {"prior_times": (-0.1, 0.3)},
    ],
)
def test_numbers_of_a_descent_are_in_their_ranges(wrong):
    with pytest.raises(DapError, match=f"Descent takes {next(iter(wrong))} as"):
        Descent(**{"steps": 3, **wrong})
