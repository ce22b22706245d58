"""IGD as a method: the surrogate and its checkpoints, what is shared between sets, and whole runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from dap.backbones import load
from dap.backbones.base import Backbone
from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError
from dap.base.store import Store
from dap.data import bank
from dap.data.real.stored.budget import GIB, Budget
from dap.data.real.stored.streams import Packed
from dap.evaluation.training.fitting import Training
from dap.evaluation.training.protocol import load_protocol
from dap.guidance import Descend, Deviation, Nothing, State
from dap.methods.base import Task
from dap.methods.diffusion import surrogate as surrogates
from dap.methods.diffusion.igd import Igd
from dap.methods.diffusion.surrogate import IgdOptions, Surrogate, _protocol
from dap.recipe import Recipe
from dap.sampling import Batch
from dap.verbs.distill import distill, open_workshop
from dap.verbs.options import Machine
from dap.workshop import Workshop

TINY = {"network": "convnet1", "width": 4, "images": 6, "epochs": 3, "batch": 4, "compared": 3, "gradients": 5}
WINDOW = {"start": 0.0, "stop": 1.0}


def recipe(pipeline, colours, ipc=2, seed=0, method="igd", steps=3, block=None, **options):
    own = {} if method == "vanilla" else {**TINY, **WINDOW, **options}
    values = {"method": method, "ipc": ipc, "seed": seed, "block": block, "options": own}
    values |= {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline)}, "sampling": {"steps": steps}}
    return Recipe.parse(values)


@pytest.fixture
def make(pipeline_folder, colours):
    return lambda **values: recipe(pipeline_folder, colours, **values)


def surrogate(wanted, labels=(0, 1, 2)):
    _, task = Workshop("cpu").task(wanted)
    found = Surrogate(task, task.options)
    found.begin(list(labels))
    return found


def mean_gradient(network, images, label):
    """Of normalised images, by backward."""
    network.zero_grad()
    F.cross_entropy(network(images), torch.full((len(images),), label)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def shown(found, label, n):
    """What the network is shown of the class's first n real images."""
    return (found._reals(label, n).float() / 255 - 0.5) / 0.5


def test_a_checkpoint_is_kept_where_the_gradient_has_turned(make):
    every = surrogate(make(threshold=1.0))
    assert len(every._networks) == 4, "before the training, and after each of three epochs"
    found = {
        at: [mean_gradient(net, shown(every, label, 3), label) for label in range(3)]
        for at, net in enumerate(every._networks)
    }

    def alike(a, b):
        return sum(F.cosine_similarity(p, q, dim=0).item() for p, q in zip(found[a], found[b], strict=True)) / 3

    steps = sorted(alike(a, b) for a in range(4) for b in range(a + 1, 4))
    for threshold in [-1.0, *((low + high) / 2 for low, high in pairwise(steps))]:
        wanted = [0]
        for epoch in (1, 2, 3):
            if alike(wanted[-1], epoch) < threshold:
                wanted.append(epoch)
        few = surrogate(make(threshold=threshold))
        assert len(few._networks) == len(wanted)
        for net, epoch in zip(few._networks, wanted, strict=True):
            for one, other in zip(net.parameters(), every._networks[epoch].parameters(), strict=True):
                assert torch.equal(one, other)


def test_within_the_smallest_memory_the_surrogate_and_its_gradients_are_the_same(make, tmp_path, monkeypatch):
    """A thousand classes: images in a file, gradients taken again where they do not fit, and none kept on disk."""
    plain = surrogate(make(threshold=0.9))
    monkeypatch.setattr(Task, "allowed", Budget(1, 2**30, tmp_path))
    monkeypatch.setattr(surrogates, "STORED", 0)
    seen = []
    really = surrogates.gathered
    monkeypatch.setattr(surrogates, "gathered", lambda *a, **k: seen.append(really(*a, **k)) or seen[-1])
    small = surrogate(make(threshold=0.9))
    assert isinstance(seen[0].images, Packed) and not [name for name in small.task.store.used if "gradients" in name]
    assert len(small._networks) == len(plain._networks) > 1
    for one, other in zip(small._networks, plain._networks, strict=True):
        assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(small._real[label].equal(plain._real[label]) for label in range(3))


def test_memory_and_disk_of_the_machine_reach_the_surrogate_and_the_features(make, tmp_path, monkeypatch):
    """Of methods given by name and of objects alike; where nothing is said, the surrogate looks at what is free."""
    machine = Machine(device="cpu", cache=tmp_path / "cache", memory=0.001, disk=0.002)
    wanted = Budget(int(0.001 * GIB), int(0.002 * GIB), tmp_path / "cache")
    shop, rooms = open_workshop(machine), []
    really = bank._room
    monkeypatch.setattr(bank, "_room", lambda *a: rooms.append(really(*a)) or rooms[-1])
    for one in (shop, shop.with_method(Igd())):
        _, task = one.task(make())
        assert task.allowed == wanted
    distill(guided(make, block=1), tmp_path / "a", workshop=shop)
    assert set(rooms) == {wanted.memory // 2}
    _, task = open_workshop(Machine(device="cpu")).task(make())
    assert task.allowed.memory > wanted.memory


def guided(make, **more):
    """DAP, which keeps the features of a class with several blocks, on the data of `make`."""
    said = make(**more).model_dump(exclude_unset=True)
    return Recipe.parse({**said, "method": "dap", "options": {}, "guidance": {"reals": 3}})


def test_real_gradients_are_means_over_the_class(make):
    found = surrogate(make(threshold=1.0), labels=[1])
    images = shown(found, 1, 5)
    moments = found.moments(1)
    assert len(moments) == 4 and len(images) == 5
    for network, moment in zip(found._networks, moments, strict=True):
        torch.testing.assert_close(moment.real, mean_gradient(network, images, 1), atol=1e-6, rtol=1e-4)
        raw = images * 0.5 + 0.5
        assert moment.loss(raw).item() == pytest.approx(F.cross_entropy(network(images), torch.ones(5).long()).item())
        assert moment.parameters[0] is next(network.parameters())


def test_the_decoder_carries_a_gradient(backbone):
    z = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    images = backbone.decode_with_graph(z)
    assert torch.equal(images.clamp(0, 1), backbone.decode(z)) and not backbone.decode(z).requires_grad
    (gradient,) = torch.autograd.grad(images.sum(), z)
    h, direction = 1e-2, torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    up, down = (backbone.decode_with_graph(z.detach() + sign * h * direction).double().sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-2)


@pytest.mark.parametrize("folder", ["pipeline_folder", "sd_folder"])
def test_the_gradient_goes_through_both_halves_and_the_whole_denoiser(folder, request):
    """Of the deviation of x0_hat under classifier-free guidance, against finite differences of plain predictions."""
    backbone = load(str(request.getfixturevalue(folder)))
    model, generator = ClassifierFree(backbone, 3.0), torch.Generator().manual_seed(0)
    t, condition = 400, backbone.condition(["red"])
    alpha, sigma = backbone.schedule.level(t)
    x, kept, direction = (torch.randn(1, *backbone.latent_shape, generator=generator) for _ in range(3))

    def x0_hat(x):
        cond, null = (backbone.predict(x, t, of).eps for of in (condition, backbone.null(1)))
        return (x - sigma * (null + 3.0 * (cond - null))) / alpha

    def cosine(sign):
        return F.cosine_similarity(x0_hat(x + sign * 1e-2 * direction).double().flatten(), kept.double().flatten(), 0)

    energy, leaf = Deviation(of="denoiser"), x.clone().requires_grad_()
    prediction = model.predict(leaf, t, condition, grad_through=energy.grad_through)
    known = {"t": t, "index": 0, "steps": 4, "alpha": alpha, "sigma": sigma, "features": None, "proposal": x}
    at = State(
        x=leaf,
        x0_hat=backbone.schedule.eps_to_x0(leaf, t, prediction.eps),
        eps=prediction.eps,
        labels=torch.tensor([0]),
        slots=torch.tensor([1]),
        **known,
    )
    energy.finish(replace(at, slots=torch.tensor([0]), next=kept))
    push = Descend(energy, 2.0)(at)
    slope = ((cosine(1) - cosine(-1)) / 2e-2).item()
    assert (push * direction).sum().item() == pytest.approx(-2.0 * slope, rel=2e-2)
    assert not any(part.requires_grad for part in backbone.denoiser.parameters())


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
def test_other_solvers_and_a_u_net(make, sd_folder, solver, tmp_path):
    """Under a guidance of all channels, more images than there are real ones, and where it is off, vanilla."""
    sampling = {"solver": solver, "steps": 3, "cfg": 3.0}

    def run(name, **values):
        wanted = make(**values).model_dump(exclude_unset=True)
        wanted |= {"backbone": {"path": str(sd_folder)}, "sampling": sampling}
        wanted["data"] |= {"classes": ["red", "blue"]}
        made = distill(Recipe.parse(wanted), tmp_path / name, workshop=Workshop("cpu"))
        return [r["sha256"] for r in made.records]

    plain = run("plain", method="vanilla")
    assert run("off", influence=0, deviation=0) == plain
    pushed = run("on")
    assert not set(pushed) & set(plain) and len(set(pushed)) == 4
    assert run("deviation", influence=0)[::2] != pushed[::2]


def test_one_image_a_class_and_more_than_there_are_real_ones(make, tmp_path):
    one = distill(make(ipc=1, images=50, gradients=50), tmp_path / "one", workshop=Workshop("cpu"))
    many = distill(
        make(ipc=14, steps=2, memory=3, images=50, gradients=50), tmp_path / "many", workshop=Workshop("cpu")
    )
    assert len({r["sha256"] for r in one.records}) == 3 and len({r["sha256"] for r in many.records}) == 42


def test_without_guidance_it_is_vanilla_bit_for_bit(make, tmp_path):
    plain = distill(make(method="vanilla", ipc=3), tmp_path / "plain", workshop=Workshop("cpu"))
    for name, options in {
        "off": {"influence": 0, "deviation": 0},
        "never": {"start": 0.5, "stop": 0.5},
    }.items():
        made = distill(make(ipc=3, **options), tmp_path / name, workshop=Workshop("cpu"))
        assert [r["sha256"] for r in made.records] == [r["sha256"] for r in plain.records]
        assert not made.noted("cost.json")["prepared"], "nothing is trained for nothing"


def test_a_killed_run_goes_on_with_the_same_bytes(make, tmp_path, monkeypatch):
    wanted = make(ipc=3)
    whole = distill(wanted, tmp_path / "whole", workshop=Workshop("cpu"))
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    plain, seen = Training._epoch, []

    def killed(self, epoch):
        seen.append(epoch)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, epoch)

    monkeypatch.setattr(Training, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(wanted, tmp_path / "part", workshop=Workshop("cpu"))
    finish, done = Deviation.finish, []

    def killed_later(self, state):
        finish(self, state)
        done.append((int(state.labels), int(state.slots)))
        if len(done) == 5:  # in the middle of the second class
            raise KeyboardInterrupt

    monkeypatch.setattr(Deviation, "finish", killed_later)
    with pytest.raises(KeyboardInterrupt):
        distill(wanted, tmp_path / "part", workshop=Workshop("cpu"))
    assert seen == [1, 2, 3, 3], "epochs that were done are not done again"
    again = distill(wanted, tmp_path / "part", workshop=Workshop("cpu"))
    assert [r["sha256"] for r in again.records] == [r["sha256"] for r in whole.records]
    assert done[5:] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)], "a class is made as a whole"
    assert not (tmp_path / "part" / ".work").exists()
    assert again.noted("cost.json")["needs"] == ["backbone", "training"]


def test_sets_share_the_surrogate_but_not_their_images(make, tmp_path):
    workshop = Workshop("cpu", cache=tmp_path / "cache")
    first, second, third = (
        distill(make(seed=seed, surrogate_seed=own), tmp_path / f"{seed}{own}", workshop=workshop)
        for seed, own in ((0, 0), (1, 0), (0, 1))
    )
    prepared = [made.noted("cost.json")["prepared"] for made in (first, second, third)]
    assert [p["surrogate"]["made"] for p in prepared] == [True, False, True]
    for name in ("red", "green", "blue"):  # each in full, for a set's cost is their sum
        assert [p[f"gradients of {name}"]["made"] for p in prepared] == [True, False, True]
    images = [{r["sha256"] for r in made.records} for made in (first, second, third)]
    assert images[0].isdisjoint(images[1]) and images[0] != images[2]


def test_a_class_is_one_unit_and_its_first_image_stands_alone(make, tmp_path):
    assert Workshop("cpu").task(make(ipc=12))[1].recipe.block == 12
    apart = distill(make(ipc=3), tmp_path / "apart", workshop=Workshop("cpu"))
    alone = distill(make(ipc=3, deviation=0, block=1), tmp_path / "alone", workshop=Workshop("cpu"))
    same = [a["sha256"] == b["sha256"] for a, b in zip(apart.records, alone.records, strict=True)]
    assert same == [record["slot"] == 0 for record in apart.records]


def test_gamma_grows_with_the_latents(backbone, make):
    """120 is for 4096 numbers; the tiny backbone's 4 x 4 x 4 have 64."""
    method, task = Workshop("cpu").task(make(influence=0))
    (descend,) = method.build(task).guidance.guidances
    assert descend.scale == pytest.approx(120 * 64 / 4096) and descend.unit == "paper"
    _, off = Workshop("cpu").task(make(influence=0, deviation=0))
    assert isinstance(method.build(off), Nothing)
    assert backbone.latent_shape == (4, 4, 4)


def test_k_is_counted_in_the_unit_of_the_authors_sampler(make):
    method, task = Workshop("cpu").task(make(influence=5, deviation=0))
    (descend,) = method.build(task).guidance.guidances
    assert descend.scale == pytest.approx(0.0075) and descend.unit == "noise"


def test_mistakes_are_said_before_any_work(make, tmp_path, monkeypatch):
    def refused(words, **values):
        with pytest.raises(DapError, match=words):
            distill(make(**values), tmp_path / "a", workshop=Workshop("cpu"))

    refused("Unknown key 'epoch'. Did you mean 'epochs'", epoch=3)
    refused("all slots of a class together: set block >= ipc", ipc=3, block=2)
    refused("start <= stop", start=0.5, stop=0.2)
    refused("convnet8 halves the image", network="convnet8")
    refused("through", through="pixels")
    with pytest.raises(DapError, match="at least 2 classes"):
        one = make()
        distill(one.model_copy(update={"data": one.data.model_copy(update={"classes": ("red",)})}), tmp_path / "a")
    monkeypatch.setattr("dap.backbones.modules.ModuleBackbone.decode_with_graph", Backbone.decode_with_graph)
    refused("cannot carry a gradient through its decoder", ipc=1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["starter", "starter-unet"])
def test_on_the_starter(name):
    """Two classes, two slots: images that are pushed, one after another, through the real decoder."""
    workshop = Workshop("cpu", offline=True)
    small = {"width": 8, "images": 16, "epochs": 1, "compared": 4, "gradients": 8, "threshold": 1.0}
    values = {"method": "igd", "ipc": 2, "sampling": {"steps": 4}, "options": {**small, "stop": 0.5}}
    values["backbone"] = {"path": name}
    values["data"] = {"path": "fashion-mnist", "classes": ["Trouser", "Bag"]}
    method, task = workshop.task(Recipe.parse(values))
    task = replace(task, store=Store(None, task.store.inputs))
    from dap.methods import Unit
    from dap.methods.diffusion.vanilla import Vanilla

    make, plain = method.prepare(task), Vanilla().prepare(task)
    made = make(Unit(1, (0, 1)))
    assert made.images.shape == (2, 3, 32, 32) and made.images.min() >= 0 and made.images.max() <= 1
    assert not torch.equal(made.images, plain(Unit(1, (0, 1))).images)
    assert torch.equal(make(Unit(1, (0, 1))).images, made.images), "made again, it is the same"
    assert [r["seed"] for r in made.records] == list(Batch.of(task.source.class_names, [1, 1], [0, 1], 0).seeds)
    assert task.options == IgdOptions(**small, stop=0.5) and Igd.together
    assert load("starter", device="cpu", offline=True).latent_shape == (4, 8, 8)


def test_the_surrogate_trains_at_a_constant_rate_with_minimax_s_augmentation_and_no_mixing():
    found = _protocol(IgdOptions(epochs=50), 224)
    published = load_protocol("minimax-hard")
    assert {found.lr_at(epoch) for epoch in range(1, 51)} == {0.01} and not found.decay_epochs
    assert found.mix is None and found.network == "convnet6" and found.labels.kind == "hard"
    assert found.train_steps[:-1] == published.train_steps[:-1], "all but the mean and deviation"
    straight = _protocol(IgdOptions(flip=False), 32)
    assert [step.op for step in straight.train_steps] == [step.op for step in found.train_steps if step.op != "flip"]
    assert [step.op for step in _protocol(IgdOptions(augment=False), 32).train_steps] == ["resize", "normalize"]
