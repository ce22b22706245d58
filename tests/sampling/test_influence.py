"""The two guidances of IGD: values and gradients against plain implementations, on networks and latents of a few numbers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dap.backbones import Mixture
from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError
from dap.guidance import Descend, Deviation, Guidance, Influence, State, Window
from dap.guidance.influence import Moment, Trajectory
from dap.sampling import Batch, latents, sample
from dap.testing import check_guidance

SHAPE = (3, 4, 4)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Tiny:
    """Two checkpoints of a smooth network of two classes, whose images are half the latents."""

    def __init__(self, dtype=torch.float32):
        self.begun, self.nets = [], []
        for seed in (0, 1):
            net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
            for k, parameter in enumerate(net.parameters()):
                parameter.data = draw(*parameter.shape, seed=10 * seed + k, dtype=dtype)
            self.nets.append(net)
        self.p = sum(parameter.numel() for parameter in self.nets[0].parameters())
        self.reals = draw(2, 2, self.p, seed=99, dtype=dtype)

    def begin(self, labels):
        self.begun.append(list(labels))

    def images(self, latents):
        return latents / 2 + 0.5

    def moments(self, label):
        def of(net):
            return lambda images: F.cross_entropy(net(images), torch.full((len(images),), label))

        return [Moment(tuple(net.parameters()), of(net), self.reals[label, k]) for k, net in enumerate(self.nets)]

    def by_hand(self, x0, label):
        """G_I of one x_0 (3, 4, 4)."""
        apart = 0.0
        for net, real in zip(self.nets, self.reals[label], strict=True):
            net.zero_grad()
            F.cross_entropy(net(x0[None] / 2 + 0.5), torch.tensor([label])).backward()
            mine = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
            apart += 1 - (mine @ real / mine.norm() / real.norm()).item()
        return apart / 2


def state(x, x0, labels=(0, 1), slots=(0, 0), after=None):
    return State(
        x=x, proposal=x.detach() * 0.9, x0_hat=x0, eps=x.detach() + 1, features=None, t=500, index=1, steps=4,
        alpha=0.6, sigma=0.8, labels=torch.tensor(labels), slots=torch.tensor(slots), next=after,
    )  # fmt: skip


def test_influence_by_hand_and_its_gradient_by_finite_differences():
    tiny = Tiny(torch.float64)
    assert isinstance(tiny, Trajectory)
    x = draw(2, *SHAPE, seed=5, dtype=torch.float64).requires_grad_()
    energy = Influence(tiny)
    at = state(x, x.tanh() * 1.5)
    found = energy(at)
    expected = [tiny.by_hand(at.x0_hat.detach()[i], label) for i, label in enumerate((0, 1))]
    assert found.tolist() == pytest.approx(expected)
    push = Descend(energy, 2.0)(at)
    h, direction = 1e-5, draw(2, *SHAPE, seed=6, dtype=torch.float64)

    def value(i, sign):
        moved = (x.detach() + sign * h * direction)[i].tanh() * 1.5
        return tiny.by_hand(moved, i)

    for i in range(2):
        slope = (value(i, 1) - value(i, -1)) / (2 * h)
        assert (push[i] * direction[i]).sum().item() == pytest.approx(-2.0 * slope, rel=1e-6)
    assert all(parameter.grad is None or parameter.requires_grad for net in tiny.nets for parameter in net.parameters())


def test_in_units_of_noise_the_push_is_rho_of_the_paper():
    tiny, x = Tiny(), draw(2, *SHAPE, seed=5).requires_grad_()
    at = state(x, 1.5 * x.tanh())
    gradient = -Descend(Influence(tiny), 1.0)(at)
    push = Descend(Influence(tiny), 5.0, "noise")(at)
    for i in range(2):
        rho = 5.0 * 0.8 * at.eps[i].norm() / gradient[i].norm()
        torch.testing.assert_close(push[i], -rho * gradient[i])


@pytest.mark.parametrize("energy", [Influence(Tiny(), "x0"), Deviation(of="x0")])
def test_through_x0_leaves_the_denoiser_out(energy):
    whole = Influence(energy.trajectory) if isinstance(energy, Influence) else Deviation(of="denoiser")
    x, x0 = draw(2, *SHAPE, seed=5).requires_grad_(), draw(2, *SHAPE, seed=7)
    for deviation in (energy, whole):
        if isinstance(deviation, Deviation):
            deviation.finish(state(x, x0, slots=(0, 0), after=draw(2, *SHAPE, seed=8)))
    short = Descend(energy, 1.0)(state(x, x0, slots=(1, 1)))
    leaf = x0.clone().requires_grad_()
    torch.testing.assert_close(short, Descend(whole, 1.0)(state(leaf, leaf * 1, slots=(1, 1))))
    assert short.abs().amax() > 0 and energy.grad_through == "features" and energy.layer is None


def test_deviation_is_the_largest_cosine_to_what_came_before():
    kept = [draw(1, *SHAPE, seed=20 + i) for i in range(4)]
    energy, x = Deviation(memory=2), draw(1, *SHAPE, seed=1).requires_grad_()
    assert energy.grad_through == "features", "of x_t itself, so no graph goes through the denoiser"
    energy.begin([0])

    def cosine(i):
        a, b = x.detach().flatten(), kept[i].flatten()
        return (a @ b / a.norm() / b.norm()).item()

    def now(slot, label=0):
        return state(x, draw(1, *SHAPE, seed=2), (label,), (slot,))

    first = now(0)
    assert energy(first).item() == 0 and not Descend(energy, 120.0)(first).any()
    for slot in range(4):
        energy.finish(state(x, x, (0,), (slot,), after=kept[slot]))
        energy.begin([0])
        wanted = max(cosine(i) for i in range(max(0, slot - 1), slot + 1))
        assert energy(now(slot + 1)).item() == pytest.approx(wanted, abs=1e-6)
    assert energy(now(2)).item() == pytest.approx(max(cosine(0), cosine(1)), abs=1e-6), "later slots are not before it"
    near = max((2, 3), key=cosine)
    unit, other = x.detach().flatten() / x.detach().norm(), kept[near].flatten() / kept[near].norm()
    expected = -(other - (unit @ other) * unit) / x.detach().norm()
    torch.testing.assert_close(Descend(energy, 1.0)(now(4)).flatten(), expected)
    assert energy(now(4, label=1)).item() == 0
    energy.begin([1])
    energy.begin([0])
    assert energy(now(4)).item() == 0, "another class forgets"
    with pytest.raises(DapError, match="memory"):
        Deviation(0)


def test_both_compose_with_windows_and_each_other():
    backbone = Mixture(draw(2, 2, *SHAPE, seed=3), std=0.4)
    tiny = Tiny()
    both: Guidance = Descend(Influence(tiny), 0.3, "noise") + Descend(Deviation(), 2.0)
    assert both.sequential and both.grad_through == "denoiser" and not both.joint
    model, run = ClassifierFree(backbone, 1.0), {"steps": 6}
    pushed = []

    def image(guidance, slot):
        batch = Batch.of(backbone.class_names, [1], [slot], 0)
        return latents(model, guidance, batch, **run)

    guided = Window(both, 0.2, 0.8)
    plain = [image(None, slot) for slot in range(2)]
    for slot in range(2):
        assert torch.equal(image(0.0 * guided, slot), plain[slot])
        assert torch.equal(image(Window(both, 0.5, 0.5), slot), plain[slot])
        states = list(sample(model, guided, Batch.of(backbone.class_names, [1], [slot], 0), **run))
        pushed.append([not torch.equal(s.next, s.proposal) for s in states])
    assert pushed == [[False, False, True, True, True, False]] * 2
    alone = Window(Descend(Influence(tiny), 0.3, "noise"), 0.2, 0.8)
    made = [image(guided, slot) for slot in range(2)]
    assert torch.equal(made[0], image(alone, 0)), "the first image has nothing to keep apart from"
    assert not torch.equal(made[1], image(alone, 1))
    assert tiny.begun and all(labels == [1] for labels in tiny.begun)


class Token:
    """Lives as long as the graph in which it was put."""


class Decode(torch.autograd.Function):
    """The images of `Tiny`, with a token in the graph."""

    @staticmethod
    def forward(ctx, latents, token):
        ctx.token = token
        return latents / 2 + 0.5

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2, None


@pytest.mark.parametrize("through", ["denoiser", "x0"])
def test_the_graph_of_second_order_is_free_after_each_step(through):
    """Neither energy nor the sampler keeps a graph until the next prediction; the garbage collector does not help."""
    alive: weakref.WeakSet[Token] = weakref.WeakSet()
    before, made = [], []

    class Marked(Tiny):
        def images(self, latents):
            token = Token()
            alive.add(token)
            made.append(1)
            return Decode.apply(latents, token)

    class Watched(ClassifierFree):
        def predict(self, *args, **options):
            before.append(len(alive))
            return super().predict(*args, **options)

    backbone, batch = Mixture(draw(2, 2, *SHAPE, seed=3), std=0.4), Batch.of(("0", "1"), [1], [0], 0)
    both = Descend(Influence(Marked(), through), 0.3, "noise") + Descend(Deviation(of=through), 2.0)
    gc.disable()
    try:
        list(sample(Watched(backbone, 1.0), both, batch, steps=4))
    finally:
        gc.enable()
    assert before == [0] * 4 and len(made) == 4
    plain = Descend(Influence(Tiny(), through), 0.3, "noise") + Descend(Deviation(of=through), 2.0)
    marked = latents(ClassifierFree(backbone, 1.0), both, batch, steps=4)
    assert torch.equal(latents(ClassifierFree(backbone, 1.0), plain, batch, steps=4), marked)


def test_influence_keeps_the_contract():
    findings = check_guidance(Influence(Tiny()))
    assert [f.level for f in findings] == ["ok"] * len(findings), "\n".join(map(str, findings))
