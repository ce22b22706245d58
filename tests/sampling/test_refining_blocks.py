"""Refinement in blocks beside finished images, apart by a repulsion, stopped by held-out real images, and resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from dap.backbones import Mixture
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.guidance import LogDet, MeanMatching, Representative, SinkhornDivergence, SquaredMMD
from dap.guidance.set_level import SetEnergy
from dap.refining import Descent, Finished, refine, time_of
from dap.refining import seen as seeing
from dap.sampling import Batch
from energies import Reals, random, state

ENERGIES = {
    "mean": MeanMatching,
    "mmd": SquaredMMD,
    "distance": lambda reals: Representative(reals, repulsion=1.0),
    "sinkhorn": SinkhornDivergence,
    "logdet": LogDet,
}


@pytest.fixture(scope="module")
def mixture():
    """Two classes of two modes each, in latents of two channels."""
    return Mixture(random(2, 2, 2, 2, 2, seed=5), std=0.3, class_names=("a", "b"))


def reals(shift=0.0, seed=3):
    return Reals({label: shift + random(20, 8, seed=seed + label) for label in (0, 1)}, "x0")


def batch(slots, label=0):
    return Batch.of(("a", "b"), [label] * len(slots), slots, 0)


def features(mixture, z, t, noise=0.0):
    alpha, sigma = mixture.schedule.level(t)
    return mixture.features(alpha * z + sigma * noise, t, mixture.condition(["a"] * len(z)), ["x0"])["x0"]


@pytest.mark.parametrize("kind", ENERGIES)
def test_the_first_step_of_a_block_is_that_of_the_whole_set_without_the_finished_ones(mixture, kind, monkeypatch):
    """The gradient is that of the energy of all seven images in the three that move; in one chunk and in several."""
    old, new = random(4, 2, 2, 2), random(3, 2, 2, 2, seed=1)
    energy, seen = ENERGIES[kind](reals(1.0)), []
    parts = {}
    for chunk in (64, 2):
        monkeypatch.setattr(seeing, "CHUNK", chunk)
        whole = seeing.Seen(mixture, batch(range(7)), None, [energy])
        some = seeing.Seen(mixture, batch(range(4, 7)), Finished(batch(range(4)), old), [energy])
        noise = random(3, 2, 2, 2, seed=2)
        for t in (30, 150, 30):
            parts[chunk, t] = some.gradient(new, t, noise, [(energy, 1.0)])
            _, other, _ = some._finished(t)
            wanted = whole.gradient(torch.cat([old, new]), t, torch.cat([other, noise]), [(energy, 1.0)])
            torch.testing.assert_close(parts[chunk, t], wanted[4:], rtol=1e-3, atol=1e-6)
            seen.append(other)
        assert all(torch.equal(other, seen[0]) for other in seen)  # the finished ones have one noise
    assert parts[64, 30].abs().max() > 1e-4
    torch.testing.assert_close(parts[64, 30], parts[2, 30], rtol=1e-3, atol=1e-6)


def test_finished_images_are_looked_at_as_if_nothing_were_kept(mixture, monkeypatch):
    old = Finished(batch(range(4)), random(4, 2, 2, 2))
    z, energy, descent = random(3, 2, 2, 2, seed=1), MeanMatching(reals(1.0)), Descent(6, 0.1)
    kept = refine(mixture, [energy], batch(range(4, 7)), z, descent, finished=old)
    monkeypatch.setattr(seeing, "HELD_BYTES", 0)
    assert torch.equal(refine(mixture, [energy], batch(range(4, 7)), z, descent, finished=old), kept)
    assert not torch.equal(refine(mixture, [energy], batch(range(4, 7)), z, descent), kept)


def test_after_every_block_the_set_so_far_is_like_the_real_images(mixture):
    """The energy distance of the set so far, written out, is near that of as many images that move together.

    Blocks that do not see each other all go to the same middle, and end far above it.
    """
    real = torch.cat([0.3 * random(15, 8, seed=k) + centre for k, centre in enumerate((-0.5, 0.5))])
    start, energy = 0.2 * random(8, 2, 2, 2), Representative(Reals({0: real}, "x0"), repulsion=1.0)

    def block(slots, old):
        finished = Finished(batch(range(len(old))), old) if len(old) else None
        descent = Descent(30, 0.15, (0.02,))
        return refine(mixture, [energy], batch(slots), start[slots.start : slots.stop], descent, finished=finished)

    def distance(z):
        x = features(mixture, z, 20).flatten(1)
        apart = torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
        return (2 * torch.cdist(x, real).mean() - apart - torch.pdist(real).mean()).item()

    found, blind = start[:0], start[:0]
    for k in range(4):
        slots = range(2 * k, 2 * k + 2)
        blind = torch.cat([blind, block(slots, start[:0])])
        found = torch.cat([found, block(slots, found)])
        together = block(range(2 * k + 2), start[:0])
        assert distance(found) < distance(together) + 0.25 * (distance(start[: 2 * k + 2]) - distance(together))
    assert distance(found) < 0.5 * distance(blind)


def test_a_repulsion_keeps_images_apart_and_fades(mixture):
    """The log-determinant ends lower than without it, and lower still with more; images alone are not pushed."""
    z, energy, own = 0.1 * random(5, 2, 2, 2) + 0.3, MeanMatching(reals(0.2)), LogDet(reals())

    def end(strength, steps=30):
        after = refine(mixture, [energy], batch(range(5)), z, Descent(steps, 0.05, repel=strength), repulsions=[own])
        return own(state(features(mixture, after, 20), [0] * 5)).sum().item()

    values = [end(strength) for strength in (0.0, 0.3, 3.0)]
    assert values[0] > values[1] > values[2]
    one = [
        refine(mixture, [energy], batch([0]), z[:1], Descent(5, repel=r), repulsions=[own] if r else [])
        for r in (0.0, 2.0)
    ]
    assert torch.equal(*one)


def test_the_strength_of_a_repulsion_is_measured_at_the_first_step(mixture):
    """In units of the energy's gradient, so a factor on the energy of the repulsion says nothing."""

    @dataclass(frozen=True)
    class Tenfold(LogDet):
        def shared(self, mine, real):
            return 10 * super().shared(mine, real)

    z, energy = random(4, 2, 2, 2), MeanMatching(reals(0.2))
    found = [
        refine(mixture, [energy], batch(range(4)), z, Descent(8, repel=1.0), repulsions=[kind(reals())])
        for kind in (LogDet, Tenfold)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], refine(mixture, [energy], batch(range(4)), z, Descent(8)))


@dataclass(frozen=True)
class Scripted(SetEnergy):
    """An energy whose values at the looks are given."""

    values: tuple[float, ...] = ()
    seen: tuple[list[int], ...] = ([],)

    def shared(self, mine, real):
        self.seen[0].append(0)
        return torch.full((len(mine),), self.values[len(self.seen[0]) - 1] / len(mine))


def looks(mixture, values, steps, patience):
    """The curve, the latents that are kept and those after each number of steps."""
    z, energy, curve, told = random(3, 2, 2, 2), MeanMatching(reals(1.0)), [], []
    after = refine(
        mixture,
        [energy],
        batch(range(3)),
        z,
        Descent(steps, 0.05, (0.05,), patience=patience),
        held_out=[Scripted(reals(), values, ([],))],
        looked=lambda step, value: curve.append((step, value)),
        told=lambda done, total: told.append((done, total)),
    )
    return curve, after, told


def test_the_latents_with_the_lowest_held_out_energy_are_kept(mixture):
    """They are those that as many steps of the same run give; the run stops when its patience is over."""
    curve, after, told = looks(mixture, (5.0, 3.0, 4.0, 3.5, 1.0), 60, 20)
    assert curve == [(0, 5.0), (10, 3.0), (20, 4.0), (30, 3.5)] and told[-1] == (60, 60)
    states = []
    refine(
        mixture,
        [MeanMatching(reals(1.0))],
        batch(range(3)),
        random(3, 2, 2, 2),
        Descent(60, 0.05, (0.05,), patience=100),
        held_out=[Recording(reals(), states)],
    )
    assert len(states) == 7
    energy, t = MeanMatching(reals()), time_of(mixture.schedule, 0.05)
    seen = seeing.Seen(mixture, batch(range(3)), None, [energy])
    noise = torch.stack(
        [
            torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(seed_of(seed, "held out")))
            for seed in batch(range(3)).seeds
        ]
    )
    assert seen.value([(energy, 1.0)], after, t, noise) == pytest.approx(states[1], rel=1e-6)
    assert seen.value([(energy, 1.0)], after, t, noise) != pytest.approx(states[2], rel=1e-4)


@dataclass(frozen=True)
class Recording(SetEnergy):
    """The mean matching, which remembers its values."""

    found: list[float] = None  # pyright: ignore

    def shared(self, mine, real):
        value = MeanMatching(self.reals).shared(mine, real)
        self.found.append(value.sum().item())
        return value


def test_looks_come_at_the_start_at_the_end_and_every_ten_steps_or_patience(mixture):
    falling = tuple(float(9 - k) for k in range(9))
    assert [step for step, _ in looks(mixture, falling, 25, 30)[0]] == [0, 10, 20, 25]
    assert [step for step, _ in looks(mixture, falling, 12, 4)[0]] == [0, 4, 8, 12]
    curve, after, _ = looks(mixture, (1.0, 2.0), 40, 10)
    assert [step for step, _ in curve] == [0, 10] and torch.equal(after, random(3, 2, 2, 2))


def test_looking_changes_no_step(mixture):
    z, energy = random(3, 2, 2, 2), MeanMatching(reals(1.0))
    plain = refine(mixture, [energy], batch(range(3)), z, Descent(12, 0.02))
    falling = Scripted(reals(), tuple(range(90, 0, -1)), ([],))
    looked = refine(mixture, [energy], batch(range(3)), z, Descent(12, 0.02, patience=5), held_out=[falling])
    assert torch.equal(plain, looked)


def test_patience_without_real_images_to_look_at_is_refused(mixture):
    with pytest.raises(DapError, match="needs energies against held-out real images"):
        refine(mixture, [MeanMatching(reals())], batch([0]), random(1, 2, 2, 2), Descent(3, patience=2))


@pytest.mark.parametrize("descent", [Descent(12, prior=1.0), Descent(12, 0.05, repel=1.0, patience=6)])
def test_a_killed_refinement_goes_on_with_the_same_bytes(mixture, descent, tmp_path):
    """Killed after the fifth step and again after the ninth, with everything that a refinement may hold."""
    z, curves, begun = random(13, 2, 2, 2), [], []

    def run(store, stop=None):
        curves.append([])

        def told(done, total):
            begun.append(done)
            if done == stop:
                raise KeyboardInterrupt

        return refine(
            mixture,
            [Representative(reals(0.3), repulsion=1.0)],
            batch(range(2, 15)),
            z,
            descent,
            usual=lambda label, t: 0.1,
            repulsions=[LogDet(reals())] if descent.repel else [],
            held_out=[MeanMatching(reals(seed=9))] if descent.patience else [],
            finished=Finished(batch(range(2)), random(2, 2, 2, 2, seed=8)),
            told=told,
            looked=lambda step, value: curves[-1].append((step, value)),
            checkpoint=None if store is None else store.checkpoint("refinement", {}),
        )

    whole = run(None)
    for stop in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            run(Store(tmp_path, every=0.0), stop)
    begun.clear()
    assert torch.equal(run(Store(tmp_path, every=0.0)), whole)
    assert begun[0] == 9  # the step that the kill came after is made again, as its state was not written
    assert curves[-1] == curves[0] and bool(curves[0]) is bool(descent.patience)


def test_another_number_of_steps_is_no_continuation(mixture):
    """The descent is what the caller's key holds; the curve of the rate depends on it."""
    z, energy = random(2, 2, 2, 2), MeanMatching(reals(1.0))
    short, long = (refine(mixture, [energy], batch([0, 1]), z, replace(Descent(4), steps=n)) for n in (4, 8))
    assert not torch.equal(short, long)
