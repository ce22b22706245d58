"""DM, DC and DSA: losses by hand, one step against a plain loop, and runs that are killed and go on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.store import Store
from dap.data.real.stored.budget import Budget
from dap.data.real.stored.streams import Decoding, Packed
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.augment import dsa
from dap.evaluation.training.networks import build
from dap.methods import find
from dap.methods.matching import mtt
from dap.methods.matching.base import ALL, RealPixels, Run
from dap.methods.matching.dc import Dc, DcOptions, gradient_distance, gradient_of, loops
from dap.methods.matching.dm import Dm, DmOptions, augmented
from dap.methods.matching.mtt import Mtt, MttOptions, flat, train_expert, unrolled
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop

TINY = {"network": "convnet2", "width": 4, "real_batch": 8, "iterations": 2}


def recipe(method, ipc=2, seed=0, data=None, **options):
    chosen = {"path": "fashion-mnist", "classes": ["Trouser", "Bag"], "size": 32} if data is None else data
    return Recipe.parse(
        {"method": method, "ipc": ipc, "seed": seed, "data": chosen, "options": {**TINY, **options}, "backbone": None}
    )


@pytest.fixture(scope="module")
def coloured(colours):
    return {"path": str(colours), "size": 8}


def a_run(coloured, method, **options):
    _, task = Workshop("cpu").task(recipe(method, data=coloured, **options))
    return Run(task, task.options)


def test_distance_of_gradients_by_hand():
    one = (torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.ones(2))
    other = (torch.tensor([[4.0, 3.0], [0.0, 2.0]]), -torch.ones(2))
    assert float(gradient_distance(one, other)) == pytest.approx((1 - 24 / 25) + 1)
    kernel = torch.randn(4, 3, 2, 2)
    assert float(gradient_distance((kernel,), (kernel * 7,))) == pytest.approx(0, abs=1e-6)
    assert float(gradient_distance((kernel,), (-kernel,))) == pytest.approx(8)


def test_rows_with_small_gradients_pull_less_as_in_the_authors_code():
    """1 - <g, s> / (|g| |s| + 1e-6), with the number beside the product of the norms and not a floor of each norm."""
    g, s = torch.tensor([[3e-3, 4e-3], [0.0, 0.0]]), torch.tensor([[4e-4, 3e-4], [1.0, 0.0]], requires_grad=True)
    found = gradient_distance((g,), (s,))
    assert found.item() == pytest.approx((1 - 2.4e-6 / (2.5e-6 + 1e-6)) + 1)
    (slope,) = torch.autograd.grad(found, s)
    assert slope.isfinite().all() and (slope[1] == 0).all()


def test_a_gradient_in_slices_is_that_of_all_images_at_once():
    network = build("convnet2", channels=1, classes=3, size=32, width=4)
    images, parameters = torch.randn(37, 1, 32, 32), list(network.parameters())
    whole = torch.autograd.grad(F.cross_entropy(network(images), torch.full((37,), 2)), parameters)
    for keep in (False, True):
        found = gradient_of(network, images, 2, parameters, keep=keep)
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-4)
        assert found[0].requires_grad == keep


def test_loops_are_the_published_ones():
    assert [loops(ipc, DcOptions()) for ipc in (1, 9, 10, 25, 50, 100)] == [
        (1, 1), (1, 1), (10, 50), (20, 25), (50, 10), (50, 10),
    ]  # fmt: skip
    assert loops(10, DcOptions(outer=2, inner=0)) == (2, 0)


def test_a_step_of_dm_is_the_gradient_of_the_embedding_distance(coloured):
    run = a_run(coloured, "dm", momentum=0.0, lr_images=0.01)
    before, network = run.pixels.clone(), run.network(5)
    list(Dm().step(run, 5))
    pixels = before.clone().requires_grad_()
    loss = torch.zeros(())
    from dap.base.seeding import seed_of

    for label, name in enumerate(run.task.source.class_names):
        real = run.reals.draw(label, 8, run.generator("real", 5, name))
        seed = seed_of(0, "augment", 5, name)
        together = augmented(torch.cat([real, pixels[label * 2 : label * 2 + 2]]), seed, ALL)
        embedded = network.body(together).flatten(1)
        loss = loss + (embedded[:8].mean(0) - embedded[8:].mean(0)).pow(2).sum()
    loss.backward()
    expected = run.clamped(before - 0.01 * pixels.grad)
    torch.testing.assert_close(run.pixels, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(run.pixels, before)


def test_a_step_of_dc_is_the_gradient_of_the_gradient_distance(coloured):
    run = a_run(coloured, "dc", momentum=0.0, lr_images=0.05, outer=1)
    before, network = run.pixels.clone(), run.network(0)
    list(Dc().step(run, 0))
    pixels = before.clone().requires_grad_()
    loss = torch.zeros(())
    for label, name in enumerate(run.task.source.class_names):
        real = run.reals.draw(label, 8, run.generator("real", 0, 0, name))
        sides = []
        for images in (real, pixels[label * 2 : label * 2 + 2]):
            found = F.cross_entropy(network(images), torch.full((len(images),), label))
            sides.append(torch.autograd.grad(found, list(network.parameters()), create_graph=True))
        for a, b in zip(*sides, strict=True):
            if a.ndim > 1:
                rows = [(p.flatten(), q.flatten()) for p, q in zip(a.detach(), b, strict=True)]
                loss = loss + sum(1 - (p @ q) / (p.norm() * q.norm() + 1e-6) for p, q in rows)
    loss.backward()
    torch.testing.assert_close(run.pixels, run.clamped(before - 0.05 * pixels.grad), atol=1e-5, rtol=1e-3)


def test_the_network_trains_between_steps_and_pixels_stay_images(coloured):
    run = a_run(coloured, "dsa", outer=3, inner=2, lr_images=50.0)
    assert sum(1 for _ in Dc().step(run, 0)) == 3
    images = run.images()
    assert images.min() >= 0 and images.max() <= 1 and (images == 0).any()
    low, high = run.reals.normalise(torch.zeros(1, 3, 1, 1)), run.reals.normalise(torch.ones(1, 3, 1, 1))
    assert (run.pixels >= low).all() and (run.pixels <= high).all()


def test_both_sides_are_augmented_alike():
    images = torch.randn(6, 1, 16, 16)
    for seed in range(20):
        both = augmented(images, seed, ALL)
        torch.testing.assert_close(both[:2], augmented(images[:2], seed, ALL), atol=1e-6, rtol=0)
    assert torch.equal(augmented(images, 3, ()), images)
    assert not torch.equal(dsa(images, torch.Generator().manual_seed(3)), images)


@pytest.mark.parametrize("method", ["dm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dc", "dsa"))])
def test_grey_images_stay_grey_and_a_killed_run_goes_on_with_the_same_bytes(method, tmp_path, monkeypatch):
    wanted = recipe(method, outer=2, inner=1, iterations=4) if method != "dm" else recipe(method, iterations=4)
    whole = distill(wanted, tmp_path / "whole", workshop=Workshop("cpu"))
    images, _ = whole.tensors()
    assert images.shape == (4, 3, 32, 32) and torch.equal(images[:, 0], images[:, 2])
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    kind = Dm if method == "dm" else Dc
    plain, seen = kind.step, []

    def killed(self, run, iteration):
        seen.append(iteration)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return plain(self, run, iteration)

    monkeypatch.setattr(kind, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(wanted, tmp_path / "part", workshop=Workshop("cpu"))
    again = distill(wanted, tmp_path / "part", workshop=Workshop("cpu"))
    assert seen == [0, 1, 2, 3, 3], "what was done before is not done again"
    assert [r["sha256"] for r in again.records] == [r["sha256"] for r in whole.records]
    assert not (tmp_path / "part" / ".work").exists()
    cost = again.noted("cost.json")
    assert cost["needs"] == ["training"] and set(cost["prepared"]) == {"images"}


def test_without_a_step_the_images_are_real_ones(tmp_path):
    """The neutral setting: the seeded real images that the optimisation begins from."""
    made = distill(recipe("dm", iterations=0), tmp_path / "a", workshop=Workshop("cpu"))
    source = Workshop("cpu").source(recipe("dm").data)
    real = {(source.images(0, [i])[0, 0] * 255).round().byte().numpy().tobytes() for i in range(source.count(0))}
    images, labels = DistilledSet.open(tmp_path / "a").tensors()
    for image in images[labels == 0]:
        assert (image[0] * 255).round().byte().numpy().tobytes() in real
    other = distill(recipe("dm", iterations=0, seed=1), tmp_path / "b", workshop=Workshop("cpu"))
    assert {r["sha256"] for r in made.records}.isdisjoint(r["sha256"] for r in other.records)


def test_colours_are_kept_and_noise_is_within_range(coloured, tmp_path):
    images, _ = distill(recipe("dc", data=coloured, iterations=1), tmp_path / "a", workshop=Workshop("cpu")).tensors()
    assert not torch.equal(images[:, 0], images[:, 1])
    greyed, _ = distill(
        recipe("dc", data=coloured, iterations=0, grey="yes"), tmp_path / "b", workshop=Workshop("cpu")
    ).tensors()
    assert torch.equal(greyed[:, 0], greyed[:, 1])


def test_mistakes_are_said_before_any_work(coloured, tmp_path):
    with pytest.raises(DapError, match="has 12 images, too few to begin 50 from; give --option init=noise"):
        distill(recipe("dm", ipc=50, data=coloured), tmp_path / "a", workshop=Workshop("cpu"))
    with pytest.raises(DapError, match="Unknown key 'iteration'. Did you mean 'iterations'"):
        distill(recipe("dm", iteration=3), tmp_path / "a", workshop=Workshop("cpu"))
    with pytest.raises(DapError, match="convnet8 halves the image"):
        distill(recipe("dsa", network="convnet8"), tmp_path / "a", workshop=Workshop("cpu"))
    with pytest.raises(DapError, match="'convnet2' with norm 'batch' is none; convnet3 with norm instance is"):
        distill(recipe("dm", norm="batch"), tmp_path / "a", workshop=Workshop("cpu"))
    assert not (tmp_path / "a").exists()
    assert DmOptions().iterations == 20_000 and DcOptions().iterations == 1000


def test_broken_images_neither_end_a_run_nor_shift_the_labels(colours, tmp_path):
    shutil.copytree(colours / "train", tmp_path / "data" / "train")
    for name in ("0.png", "5.png"):
        (tmp_path / "data" / "train" / "blue" / name).write_bytes(b"torn")
    data = {"path": str(tmp_path / "data"), "size": 8, "max_bad_fraction": 1.0}
    made = distill(recipe("dm", data=data, ipc=10, iterations=0), tmp_path / "a", workshop=Workshop("cpu"))
    source = Workshop("cpu").source(recipe("dm", data=data).data)
    images, labels = made.tensors()
    for label in range(3):
        _, reals = source.readable(label, range(source.count(label)))
        real = {(image * 255).round().byte().numpy().tobytes() for image in reals}
        assert {(image * 255).round().byte().numpy().tobytes() for image in images[labels == label]} <= real
    with pytest.raises(DapError, match="'blue' .* has only 10 decodable images of 12 .*, and 11 are needed"):
        distill(recipe("dm", data=data, ipc=11, iterations=0), tmp_path / "b", workshop=Workshop("cpu"))
    for file in (tmp_path / "data" / "train" / "blue").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(DapError, match="all images of class 'blue' .* are broken"):
        distill(recipe("dm", data=data, init="noise"), tmp_path / "c", workshop=Workshop("cpu"))


def test_one_coloured_image_makes_colour_and_grey_is_the_mean_of_the_channels(tmp_path):
    """However far back among the grey ones it is: its other channels are not dropped."""
    for name, n in (("a", 90), ("b", 2)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for k in range(n):
            Image.new("L", (8, 8), 40 + k).save(tmp_path / "train" / name / f"{k:02}.png")
    data = {"path": str(tmp_path), "size": 8}
    assert a_run(data, "dm").reals.channels == 1
    Image.new("RGB", (8, 8), (200, 20, 50)).save(tmp_path / "train" / "a" / "47.png")
    run = a_run(data, "dm")
    assert run.reals.channels == 3 and run.pixels.shape[1] == 3
    assert run.reals.taken(torch.tensor([47]))[0, :, 0, 0].tolist() == [200, 20, 50]
    reals = a_run(data, "dm", grey="yes").reals
    greyed = reals.taken(reals.rows(0))
    assert greyed.shape == (90, 1, 8, 8)
    assert greyed[46:48, 0, 0, 0].tolist() == [86, 90]


@pytest.mark.parametrize("grey", ["auto", "yes"])
@pytest.mark.parametrize("disk", [2**30, 0])
def test_real_images_beyond_the_budget_lie_in_a_file_and_change_no_byte(coloured, tmp_path, disk, grey):
    wanted = a_run(coloured, "dm", grey=grey).reals
    _, task = Workshop("cpu").task(recipe("dm", data=coloured, grey=grey))
    beyond = RealPixels(replace(task, budget=Budget(100, disk, tmp_path)), task.options)
    assert isinstance(wanted._kept[0], torch.Tensor) and isinstance(beyond._kept[0], Packed if disk else Decoding)
    assert beyond.channels == wanted.channels and all(map(torch.equal, beyond.statistics, wanted.statistics))
    for label in range(3):
        one, other = (reals.draw(label, 8, torch.Generator().manual_seed(label)) for reals in (beyond, wanted))
        assert torch.equal(one, other)


def test_experts_learn_the_same_from_images_in_a_file(coloured, tmp_path):
    options = {"expert_epochs": 2, "start": 0, "ahead": 1}
    plain, beyond = (a_run(coloured, "mtt", **options) for _ in range(2))
    beyond.reals.task = replace(beyond.task, budget=Budget(100, 2**30, tmp_path))
    del beyond.reals._kept
    paths = [train_expert(run, run.options, 0, Store().checkpoint("x", {})) for run in (plain, beyond)]
    assert torch.equal(*paths) and isinstance(beyond.reals._kept[0], Packed)


@pytest.mark.parametrize("method", ["dm", "igd"])
def test_a_width_that_the_network_ignores_is_refused(method):
    with pytest.raises(
        DapError, match="a width does nothing in resnet18. Leave it out, or take a network that has one: convnet1"
    ):
        find(method).parse({"network": "resnet18", "width": 16}, method)
    assert find(method).parse({"network": "resnet18", "width": 128}, method).network == "resnet18"


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_clamped_at_the_end_pixels_are_those_of_plain_sgd_with_momentum(coloured, method):
    run = a_run(coloured, method, clamp="end", init="noise", lr_images=3.0, momentum=0.5)
    assert (run.images() == 0).any() and run.pixels.min() < run.reals.normalise(torch.zeros(1, 3, 1, 1)).min()
    free = run.pixels.clone().requires_grad_()
    optimiser = torch.optim.SGD([free], lr=3.0, momentum=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        free.grad = torch.randn(free.shape, generator=generator)
        optimiser.step()
        run.descend(free.grad)
    torch.testing.assert_close(run.pixels, free.detach(), atol=1e-5, rtol=1e-5)
    mean, std = run.reals.statistics
    torch.testing.assert_close(run.images(), (free.detach() * std + mean).clamp(0, 1), atol=1e-6, rtol=0)
    assert not torch.equal(
        a_run(coloured, method, init="noise").pixels, a_run(coloured, method, clamp="end", init="noise").pixels
    )


def test_sets_begun_before_there_was_a_choice_of_clamping_are_still_of_their_recipe():
    assert "clamp" not in DmOptions(clamp="step").model_dump(mode="json")
    assert DmOptions(clamp="end").model_dump(mode="json")["clamp"] == "end"
    assert DmOptions.model_validate(DmOptions(clamp="end").model_dump()).clamp == "end"


def test_a_changed_network_of_one_s_own_is_another_set(coloured, tmp_path):
    file = tmp_path / "mine.py"
    text = (
        "from dap.evaluation.training.networks import build\n\ndef net(**shape):\n"
        "    return build('convnet2', **{**shape, 'width': 4})\n"
    )
    file.write_text(text)
    wanted = recipe("dm", data=coloured, network=f"{file}:net", iterations=1)
    _, task = Workshop("cpu").task(wanted)
    distill(wanted, tmp_path / "a", workshop=Workshop("cpu"))
    file.write_text(text.replace("'width': 4", "'width': 5"))
    assert Workshop("cpu").task(wanted)[1].store.inputs != task.store.inputs
    with pytest.raises(DapError, match="made by another recipe"):
        distill(wanted, tmp_path / "a", workshop=Workshop("cpu"))


def test_sets_of_one_seed_share_what_was_optimised(coloured, tmp_path):
    _, task = Workshop("cpu").task(recipe("dm", data=coloured))
    store = Store(tmp_path, task.store.inputs)
    first = Dm().prepare(replace(task, store=store))
    from dap.methods import Unit

    made = first(Unit(1, (0, 1)))
    assert made.images.shape == (2, 3, 8, 8) and store.used["images"]["made"]
    again = Dm().prepare(replace(task, store=Store(tmp_path, task.store.inputs)))
    assert torch.equal(again(Unit(1, (1,))).images[0], made.images[1])


MTT = {"experts": 2, "expert_epochs": 3, "expert_images": 20, "start": 1, "ahead": 2, "steps": 2, "lr_images": 10.0}


def test_the_unrolled_loss_of_mtt_and_its_gradients_against_finite_differences(coloured):
    run = a_run(coloured, "mtt", **{**MTT, "augment": [], "width": 2})
    options = run.options
    network = run.network("shape").double()
    first = flat(network)
    target = first + 0.1 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels, lr = run.pixels.double().requires_grad_(), torch.tensor(0.05, dtype=torch.float64).requires_grad_()

    def loss(x, rate):
        return unrolled(network, first, target, x, run.labels, rate, options, run, 0)

    student = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(2):
        network.load_state_dict(student)
        found = torch.autograd.grad(F.cross_entropy(network(pixels.detach()), run.labels), list(network.parameters()))
        student = {name: p - 0.05 * g for (name, p), g in zip(student.items(), found, strict=True)}
    moved = torch.cat([p.flatten() for p in student.values()])
    assert loss(pixels, lr).item() == pytest.approx(
        ((moved - target).square().sum() / (first - target).square().sum()).item()
    )
    by_pixels, by_lr = torch.autograd.grad(loss(pixels, lr), (pixels, lr))
    way = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = pixels + step * way, pixels - step * way
    slope = (loss(ahead.requires_grad_(), lr) - loss(behind.requires_grad_(), lr)) / (2 * step)
    assert slope.item() == pytest.approx((by_pixels * way).sum().item(), rel=1e-4)
    slope = (loss(pixels, lr + step) - loss(pixels, lr - step)) / (2 * step)
    assert slope.item() == pytest.approx(by_lr.item(), rel=1e-4)


def test_mtt_trains_experts_once_for_all_sets_and_goes_on_when_killed(tmp_path, monkeypatch):
    shop = Workshop("cpu", cache=tmp_path / "cache")
    first = distill(recipe("mtt", **MTT, batch=3), tmp_path / "a", workshop=shop)
    assert {"expert 0", "expert 1"} & set(first.noted("cost.json")["prepared"])
    before = {file.name for file in (tmp_path / "cache").glob("expert*")}
    second = distill(recipe("mtt", seed=1, **MTT, batch=3), tmp_path / "b", workshop=shop)
    used = {name: part for name, part in second.noted("cost.json")["prepared"].items() if name.startswith("expert")}
    assert before <= {file.name for file in (tmp_path / "cache").glob("expert*")} and used
    assert {r["sha256"] for r in first.records}.isdisjoint(r["sha256"] for r in second.records)
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    plain, seen = Mtt.step, []

    def killed(self, run, iteration):
        seen.append(iteration)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return plain(self, run, iteration)

    monkeypatch.setattr(Mtt, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe("mtt", **MTT, batch=3), tmp_path / "c", workshop=Workshop("cpu"))
    again = distill(recipe("mtt", **MTT, batch=3), tmp_path / "c", workshop=Workshop("cpu"))
    assert seen == [0, 1, 1] and [r["sha256"] for r in again.records] == [r["sha256"] for r in first.records]


def test_a_match_beyond_the_experts_is_refused(tmp_path):
    with pytest.raises(DapError, match="needs experts of 22 epochs, not 5"):
        distill(recipe("mtt", expert_epochs=5), tmp_path / "a", workshop=Workshop("cpu"))


def test_small_batches_of_a_student_see_every_image_equally_often(coloured, monkeypatch):
    run = a_run(coloured, "mtt", **{**MTT, "augment": [], "steps": 7, "batch": 2})
    network, seen = run.network("shape"), []
    pixels, lr = run.pixels.clone().requires_grad_(), torch.tensor(0.01).requires_grad_()
    plain = mtt.functional_call

    def watched(module, parameters, arguments):
        seen.append([next(i for i, one in enumerate(pixels) if torch.equal(one, image)) for image in arguments[0]])
        return plain(module, parameters, arguments)

    monkeypatch.setattr(mtt, "functional_call", watched)
    first = flat(network)
    unrolled(network, first, first + 0.1, pixels, run.labels, lr, run.options, run, 0)
    assert [len(batch) for batch in seen] == [2] * 7
    assert all(sorted(chain(*seen[at : at + 3])) == list(range(6)) for at in (0, 3))
    assert seen[:3] != seen[3:6]
    seen.clear()
    unequal = run.options.model_copy(update={"batch": 4, "steps": 4})
    unrolled(network, first, first + 0.1, pixels, run.labels, lr, unequal, run, 0)
    assert [len(batch) for batch in seen] == [2, 4, 2, 4], "the last batch of a shuffle first, as in the authors' code"
    order = torch.randperm(6, generator=run.generator("student", 0, 0)).tolist()
    assert seen[:2] == [order[4:], order[:4]]


def test_a_match_of_mtt_begins_at_one_of_the_first_twenty_epochs_of_an_expert(coloured, monkeypatch):
    """The authors draw the first epoch below --max_start_epoch, which is 20 in their README."""
    run = a_run(coloured, "mtt", **MTT | {"expert_epochs": 22, "start": MttOptions().start, "experts": 1})
    begun = set()
    network = run.network("shape")
    path = torch.arange(23.0)[:, None] + flat(network)
    monkeypatch.setattr(mtt, "trajectory", lambda *given: path)
    pixels = run.pixels

    def watched(network, first, target, pixels, labels, lr, *given):
        begun.add(round(float(first[0] - path[0][0])))
        return pixels.sum() + lr

    monkeypatch.setattr(mtt, "unrolled", watched)
    for iteration in range(300):
        list(Mtt().step(run, iteration))
    assert begun == set(range(20)) and pixels.shape == run.pixels.shape


def test_an_expert_goes_on_from_its_last_epoch(coloured, tmp_path, monkeypatch):
    def trained(folder, stop=None):
        _, task = Workshop("cpu").task(recipe("mtt", data=coloured, **MTT))
        told = []

        def tell(what, done, total):
            told.append(done)
            if done == stop and len(told) > 1:
                raise KeyboardInterrupt

        store = Store(tmp_path / folder, task.store.inputs, every=0.0)
        run = Run(replace(task, store=store, tell=tell), task.options)
        found = [mtt.trajectory(run, task.options, 0) for _ in range(2)]
        assert torch.equal(*found) and store.used["expert 0"]["made"]
        assert not list((tmp_path / folder).glob("*.pt"))
        return found[0], told

    whole, told = trained("whole")
    assert told == [1, 2, 3] and whole.shape[0] == 4
    assert all(not torch.equal(a, b) for a, b in pairwise(whole))
    with pytest.raises(KeyboardInterrupt):
        trained("part", stop=2)
    again, told = trained("part")
    assert told == [2, 3] and torch.equal(again, whole)
