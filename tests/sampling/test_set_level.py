"""The Sinkhorn divergence against a plain loop, the log-determinant against its eigenvalues, and the contract of every energy."""

from __future__ import annotations

import builtins
import math

import pytest
import torch

from dap.base.errors import DapError
from dap.guidance import EnergyDistance, LogDet, MeanMatching, Representative, SinkhornDivergence, SquaredMMD
from dap.guidance.transport import spread
from dap.kernels import Linear, parse
from dap.testing.guidance import findings
from energies import Reals, random, state

KERNELS = ["linear", "rbf(bandwidth=4)", "laplacian(bandwidth=20)", "polynomial", "linear + rbf"]


def entropic(cost, eps, rounds=1200):
    """OT_ε of two uniform sets and its plan, by the plain loop over the two potentials."""
    n, m = cost.shape
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    for _ in range(rounds):
        f = -eps * (((g[None] - cost) / eps).logsumexp(1) - math.log(m))
        g = -eps * (((f[:, None] - cost) / eps).logsumexp(0) - math.log(n))
    plan = ((f[:, None] + g[None] - cost) / eps).exp() / (n * m)
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n).double(), rtol=1e-6, atol=1e-9)
    return (plan * cost).sum() + eps * (plan * (plan * n * m).log()).sum(), plan


@pytest.mark.parametrize("expression", KERNELS)
def test_the_sinkhorn_divergence_is_that_of_the_plain_loop(expression):
    """Value and gradient, up to the term of the real images: of the converged plan, in 64 dimensions and two classes."""
    reals = {0: random(20, 64, seed=1).double(), 2: 0.5 + random(9, 64, seed=2).double()}
    mine, labels = (0.7 * random(6, 16, 4)).double().requires_grad_(True), [0, 2, 0, 0, 2, 0]
    found = SinkhornDivergence(Reals(reals), parse(expression))(state(mine, labels))
    for label, rows in ((0, [0, 2, 3, 5]), (2, [1, 4])):
        real, flat = reals[label], mine.flatten(1)[rows]
        kernel = parse(expression).fit(real)
        eps = (0.2 * spread(kernel, real)) ** 2
        cost, own = (kernel.squared_distance(flat, other) / 2 for other in (real, flat.detach()))
        (across, plan), (within, inner) = (entropic(c.detach(), eps) for c in (cost, own))
        torch.testing.assert_close(found[rows].sum(), across - within / 2, rtol=2e-3, atol=1e-5)
        # By the envelope theorem the plan stays as it is; the images stand on both sides of the second cost.
        wanted = torch.autograd.grad((plan * cost).sum() - (inner * own).sum(), mine, retain_graph=True)[0]
        (gradient,) = torch.autograd.grad(found[rows].sum(), mine, retain_graph=True)
        assert (gradient - wanted).norm() < 0.02 * wanted.norm()


def test_it_is_the_divergence_of_geomloss_without_the_term_of_the_real_images():
    """Half the squared distance, the same ε, and OT(R, R)/2 left out."""
    from geomloss import SamplesLoss

    real, mine = random(12, 32, seed=1).double(), random(5, 8, 4).double()
    blur = 0.5 * spread(Linear(), real)
    other = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.97)(mine.flatten(1), real)
    alone = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.97, debias=False)(real, real) / 2
    ours = SinkhornDivergence(Reals({0: real}), blur=0.5)(state(mine, [0] * 5)).sum()
    torch.testing.assert_close(ours - alone, other, rtol=1e-3, atol=1e-6)


def test_its_gradient_is_that_of_finite_differences():
    real, mine = random(30, 48, seed=1).double(), random(6, 12, 4).double().requires_grad_(True)
    energy = SinkhornDivergence(Reals({0: real}))
    (gradient,) = torch.autograd.grad(energy(state(mine, [0] * 6)).sum(), mine)
    found, wanted = [], []
    for k in range(6):
        direction = random(6, 12, 4, seed=k).double()
        up, down = (energy(state(mine.detach() + h * direction, [0] * 6)).sum() for h in (1e-3, -1e-3))
        wanted.append((up - down) / 2e-3)
        found.append((gradient * direction).sum())
    found, wanted = torch.stack(found), torch.stack(wanted)
    assert (found - wanted).norm() < 0.03 * wanted.norm()


def test_a_large_blur_leaves_half_the_squared_mmd():
    """As ε grows: ‖mean S − mean R‖²/2 under the linear kernel, up to the term of the real images."""
    real, mine = random(12, 32, seed=1).double(), random(5, 8, 4).double().requires_grad_(True)
    wide = SinkhornDivergence(Reals({0: real}), blur=100.0)(state(mine, [0] * 5)).sum()
    mmd = SquaredMMD(Reals({0: real}))(state(mine, [0] * 5)).sum() / 2
    torch.testing.assert_close(*(torch.autograd.grad(e, mine)[0] for e in (wide, mmd)), rtol=1e-3, atol=1e-6)


def test_the_spread_is_the_variance_of_the_features_and_never_zero():
    real = random(40, 6).double()
    torch.testing.assert_close(spread(Linear(), real) ** 2, real.var(0).sum().item())
    assert spread(Linear(), real[:1]) == spread(Linear(), real[:1].expand(3, 6)) == 1
    alike = Reals({0: real[:1].expand(4, 6)})
    assert SinkhornDivergence(alike)(state(real[:3, None], [0] * 3)).isfinite().all()


def test_gradients_stay_switched_as_they_were():
    energy, mine = SinkhornDivergence(Reals({0: random(4, 8)})), random(3, 2, 4)
    for on in (False, True):
        with torch.set_grad_enabled(on):
            energy(state(mine, [0] * 3))
            assert torch.is_grad_enabled() is on


def test_what_the_sinkhorn_divergence_cannot_do_is_said(monkeypatch):
    with pytest.raises(DapError, match=r"blur must be from 0.001 to 1000"):
        SinkhornDivergence(Reals({}), blur=0.0)
    with pytest.raises(DapError, match=r"scaling between 0 and 1"):
        SinkhornDivergence(Reals({}), scaling=1.0)
    real_import = builtins.__import__

    def without(name, *rest):
        if name == "geomloss":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DapError, match=r"geomloss; pip install 'diffusion-as-priors\[transport\]'"):
        SinkhornDivergence(Reals({}))


@pytest.mark.parametrize("expression", KERNELS)
def test_the_log_determinant_is_that_of_the_eigenvalues(expression):
    """With the gradient of the formula written out, for two classes in one batch."""
    reals = {0: random(6, 12, seed=1).double(), 1: random(6, 12, seed=2).double()}
    mine, labels = random(7, 4, 3).double().requires_grad_(True), [0, 1, 0, 0, 1, 1, 0]
    found = LogDet(Reals(reals), parse(expression), ridge=0.3)(state(mine, labels))
    for label, rows in ((0, [0, 2, 3, 6]), (1, [1, 4, 5])):
        kernel, flat, n = parse(expression).fit(reals[label]), mine.flatten(1), len(rows)
        gram = torch.stack([torch.stack([kernel(flat[i : i + 1], flat[j : j + 1])[0, 0] for j in rows]) for i in rows])
        length = gram.diagonal().sqrt()
        wanted = -torch.linalg.eigvalsh((gram / length / length[:, None] + 0.3 * torch.eye(n)) / 1.3).log().sum() / n
        torch.testing.assert_close(found[rows].sum(), wanted, rtol=1e-6, atol=1e-9)
        gradients = [torch.autograd.grad(e, mine, retain_graph=True)[0] for e in (found[rows].sum(), wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_the_log_determinant_keeps_images_apart_and_bounds_itself():
    """0 for images with nothing in common, largest for images that are all alike, and the length of features says nothing."""
    energy = LogDet(Reals({0: random(4, 6)}))
    alike, between = random(1, 1, 6).expand(4, 1, 6), random(4, 1, 6)
    values = [energy(state(x, [0] * 4)).sum().item() for x in (torch.eye(6)[:4, None], between, alike)]
    assert abs(values[0]) < 1e-6 < values[1] < values[2]
    assert math.isclose(values[2], -(3 * math.log(0.1 / 1.1) + math.log(4.1 / 1.1)) / 4, rel_tol=1e-4)
    torch.testing.assert_close(energy(state(5 * between, [0] * 4)), energy(state(between, [0] * 4)))
    assert energy(state(between[:1], [0])).abs().sum() < 1e-6
    with pytest.raises(DapError, match="ridge must be positive"):
        LogDet(Reals({}), ridge=0.0)


def test_the_energy_distance_is_a_value_of_the_set_and_leads_where_the_paper_s_distance_does():
    """Written out over pairs of different images; the gradient is 2/n times that of `Representative` with repulsion 1."""
    real, mine = random(9, 12, seed=1).double(), random(4, 4, 3).double().requires_grad_(True)
    flat, reals = mine.flatten(1), Reals({0: real})
    across = torch.stack([(a - b).norm() for a in flat for b in real]).mean()
    within = torch.stack([(flat[i] - flat[j]).norm() for i in range(4) for j in range(4) if i != j]).mean()
    found = EnergyDistance(reals)(state(mine, [0] * 4)).sum()
    torch.testing.assert_close(found, 2 * across - within, rtol=1e-6, atol=1e-9)
    other = Representative(reals, repulsion=1.0)(state(mine, [0] * 4)).sum() * 2 / 4
    torch.testing.assert_close(*(torch.autograd.grad(e, mine)[0] for e in (found, other)), rtol=1e-6, atol=1e-9)
    alone = EnergyDistance(reals)(state(mine[:1], [0]))
    torch.testing.assert_close(alone, 2 * (flat[:1] - real).norm(dim=1).mean()[None], rtol=1e-6, atol=1e-9)


ENERGIES = {
    "mean": MeanMatching,
    "mmd": SquaredMMD,
    "energy": EnergyDistance,
    "logdet": LogDet,
    "sinkhorn": SinkhornDivergence,
    "distance": lambda reals: Representative(reals, repulsion=1.0),
}


@pytest.mark.parametrize("kind", ENERGIES)
def test_every_energy_of_a_set_keeps_the_contract(kind):
    """`dap check`: shapes, gradients, random state, scale 0."""
    reals = Reals({label: random(9, 48, seed=label) for label in (0, 1)}, layer="x0")
    found = list(findings(ENERGIES[kind](reals)))
    assert found and [(finding.check, finding.text) for finding in found if finding.level != "ok"] == []
