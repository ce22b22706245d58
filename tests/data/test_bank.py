"""Real features: every option the paper leaves open does what it says, and nothing else changes."""

from __future__ import annotations

import copy
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.clusters import balanced_kmeans
from dap.data.real.sources import open_source
from dap.guidance import Representative, State
from dap.kernels import parse


def bank(source, backbone, ipc=4, **options):
    values = {"reals": 6, **options}
    made = FeatureBank(source, backbone, BankOptions(**values), ipc=ipc, run_seed=1)
    made.begin([0, 1])
    return made


def test_features_are_those_of_the_noised_latents(source, backbone):
    """φ(x_t^{(j)}, t) recomputed by hand: encode, diffuse with one noise an image, run the network to the layer."""
    made = bank(source, backbone)
    latents = made._ready[1][0]
    assert latents.shape == (6, 4, 4, 4)
    at = {t: made.at(1, t) for t in (900, 100)}
    abar = backbone.schedule.alphas_cumprod
    labels = torch.ones(6, dtype=torch.long)
    # Solve for the noise at one level; the same noise must explain the other: "fixed" is one trajectory an image.
    from dap.base.seeding import generators, normal, seed_of

    gens = generators([seed_of(1, "green", "noise", j) for j in range(6)])
    eps = normal((4, 4, 4), gens, latents)
    for t, features in at.items():
        x = abar[t].sqrt() * latents + (1 - abar[t]).sqrt() * eps
        expected = backbone.predict(x, t, labels, layer="1").features.flatten(1)
        torch.testing.assert_close(features, expected)


def test_draws_are_real_images_of_the_class_without_replacement(source, backbone):
    made = bank(source, backbone, reals=12)
    latents = made._ready[2 - 1][0]
    everything = backbone.encode(source.images(1, range(12)))
    distance = torch.cdist(latents.flatten(1), everything.flatten(1))
    assert sorted(distance.argmin(1).tolist()) == list(range(12))
    assert distance.min(1).values.max() < 1e-3


@pytest.mark.parametrize(
    ("options", "same_over_steps"),
    [({}, True), ({"noise": "fresh"}, False), ({"refresh": "step"}, False), ({"noise": "shared"}, True)],
)
def test_noise_and_refresh(source, backbone, options, same_over_steps):
    """The noise of the real images, read off what the network is given."""

    class Spy:
        def __init__(self):
            self.seen = {}

        def __getattr__(self, name):
            return getattr(backbone, name)

        def tap(self, x, t, condition, layer):
            self.seen[t] = x
            return backbone.tap(x, t, condition, layer)

    spy = Spy()
    made = bank(source, backbone, **options)
    made.backbone = spy
    made.at(0, 900)
    made.at(0, 100)
    abar = backbone.schedule.alphas_cumprod
    latents = made._ready[0][0]
    noise = {t: (x - abar[t].sqrt() * latents) / (1 - abar[t]).sqrt() for t, x in spy.seen.items()}
    assert torch.allclose(noise[900], noise[100], atol=1e-4) == same_over_steps
    alike = torch.allclose(noise[900][0], noise[900][1], atol=1e-4)
    assert alike == (options.get("noise") == "shared")


def test_clean_features_are_those_at_t_zero(source, backbone):
    made = bank(source, backbone, noise="none")
    torch.testing.assert_close(made.at(0, 900), made.at(0, 100))
    labels = backbone.condition(["blue"] * 6)  # the data sorts its folders, the backbone has red first
    expected = backbone.tap(made._ready[0][0], 0, labels, "1").flatten(1)
    torch.testing.assert_close(made.at(0, 900), expected)


def test_a_grid_of_cells_pools_the_tokens_of_each(source, backbone):
    full = bank(source, backbone).at(0, 500).unflatten(1, (2, 2, 16))  # 4 tokens in a square
    assert torch.equal(bank(source, backbone, pool="4x4").at(0, 500), full.flatten(1))
    bigger = bank(source, backbone, pool="2x2")
    tokens = torch.randn(3, 16, 5)
    cells = bigger.transform(tokens, 0, 500).unflatten(1, (2, 2, 5))
    grid = tokens.unflatten(1, (4, 4))
    torch.testing.assert_close(cells[:, 1, 0], grid[:, 2:, :2].mean((1, 2)))
    with pytest.raises(DapError, match="needs tokens in a square; layer .* has 6 tokens"):
        bigger.transform(torch.randn(3, 6, 5), 0, 500)


def test_a_channel_counts_by_its_spread(source, backbone, tmp_path):
    """Over the real images each channel has mean square 1; the set's features are measured by the same numbers."""
    full = bank(source, backbone).at(0, 500).unflatten(1, (4, 16))
    made = bank(source, backbone, normalise="channel")
    found = made.at(0, 500).unflatten(1, (4, 16))
    std = full.flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(found, (full - full.mean(0)) / std)
    torch.testing.assert_close(made.transform(full, 0, 500), found.flatten(1))
    for _ in "ab":  # computed, and from the cache
        kept = FeatureBank(
            source, backbone, BankOptions(reals=6, normalise="channel"), ipc=4, run_seed=1, cache=tmp_path
        )
        kept.begin([0])
        assert torch.equal(kept.at(0, 500), made.at(0, 500))


def test_pooling_normalising_and_branch(source, backbone):
    full = bank(source, backbone).at(0, 500)
    pooled = bank(source, backbone, pool="mean").at(0, 500)
    torch.testing.assert_close(pooled, full.unflatten(1, (4, 16)).mean(1))
    unit = bank(source, backbone, normalise="l2").at(0, 500)
    torch.testing.assert_close(unit, full / full.norm(dim=1, keepdim=True))
    null = bank(source, backbone, branch="null").at(0, 500)
    assert not torch.allclose(null, full)


def test_a_smaller_class_gives_all_it_has(source, backbone):
    assert bank(source, backbone, reals=500).at(0, 500).shape[0] == 12


def test_seed_of_the_draw(source, backbone):
    default = bank(source, backbone).at(0, 500)
    torch.testing.assert_close(bank(source, backbone, seed=1).at(0, 500), default)
    assert not torch.allclose(bank(source, backbone, seed=2).at(0, 500), default)


def test_shares_are_balanced_and_cover_the_reals(source, backbone):
    made = bank(source, backbone, ipc=3, reals=6, targets="slot", clustered=12)
    shares = made.shares(0)
    assert shares.shape == (3, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    assert ((shares > 0).sum(0) == 1).all() and ((shares > 0).sum(1) == 2).all()
    assert bank(source, backbone).shares(0) is None


def test_too_few_reals_for_slots_and_contradictions(source, backbone):
    with pytest.raises(DapError, match="has 12 real images, too few for 20 targets"):
        bank(source, backbone, ipc=20, targets="slot", clustered=256)
    with pytest.raises(DapError, match="refresh: fixed"):
        bank(source, backbone, targets="slot", refresh="step")
    with pytest.raises(DapError, match="no layer '17'"):
        bank(source, backbone, layer="17")


def test_disk_cache_gives_the_same_bytes_and_survives_a_torn_file(source, backbone, tmp_path):
    def cached():
        made = FeatureBank(source, backbone, BankOptions(reals=6), ipc=4, cache=tmp_path)
        made.begin([0])
        return made.at(0, 500)

    first = cached()
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2 and not list(tmp_path.rglob("*.tmp"))
    assert torch.equal(first, cached())
    for file in files:
        file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(first, cached())
    plain = FeatureBank(source, backbone, BankOptions(reals=6), ipc=4)
    plain.begin([0])
    assert torch.equal(first, plain.at(0, 500))


@pytest.mark.parametrize("options", [{}, {"refresh": "step"}, {"noise": "none"}, {"targets": "slot", "clustered": 12}])
def test_what_the_cache_gives_is_what_is_computed(source, backbone, tmp_path, options):
    """Every choice has a key of its own in one folder, and neither memory nor disk holds more than `keep` says."""

    def features(cache, **other):
        made = FeatureBank(source, backbone, BankOptions(reals=6, **options, **other), ipc=2, cache=cache, keep=False)
        made.begin([0, 1])
        found = [made.at(label, t) for label in (0, 1) for t in (900, 100)]
        assert not made._features and not any(store._held for store in made._stores.values())
        made.begin([1])
        assert set(made._stores) <= {1} and set(made._ready) == {1}
        return found

    for other in ({}, {"seed": 5}, {"pool": "mean"}):
        plain = features(None, **other)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(plain, features(tmp_path, **other), strict=True))


def test_without_a_cache_nothing_is_written(source, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dap.data.bank.Store", lambda *args, **options: pytest.fail("no store is made"))
    bank(source, backbone).at(0, 500)
    assert not list(tmp_path.iterdir())


def test_two_processes_share_a_cache(source, backbone, tmp_path):
    """Two banks ask for the same at once: one computes, the other waits and reads."""
    taps = []

    def tap(x, t, condition, layer):
        taps.append(t)
        time.sleep(0.2)
        return backbone.tap(x, t, condition, layer)

    slow = copy.copy(backbone)
    slow.tap = tap

    def ask():
        made = FeatureBank(source, slow, BankOptions(reals=6), ipc=4, cache=tmp_path)
        made.begin([0])
        return made.at(0, 500)

    with ThreadPoolExecutor(2) as pool:  # a file lock holds between two objects of one process as well
        first, second = (job.result() for job in [pool.submit(ask), pool.submit(ask)])
    assert torch.equal(first, second) and taps == [500]


def test_balanced_kmeans_sizes_and_separation():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.cat([c + 0.1 * torch.randn(7, 2, generator=generator) for c in centres])
    labels = balanced_kmeans(points, 3, 0)
    assert all(len(part.unique()) == 1 for part in labels.split(7))
    for n, k in ((10, 3), (11, 4), (5, 5), (6, 1)):
        sizes = balanced_kmeans(torch.randn(n, 3, generator=generator), k, 1).bincount(minlength=k)
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(ValueError, match="2 points"):
        balanced_kmeans(torch.zeros(2, 2), 3, 0)


class FixedReals:
    """Real features given outright: 1-D numbers, so that everything can be done by hand."""

    layer, branch = "x", "cond"

    def __init__(self, values, shares=None):
        self.values, self._shares = values, shares

    def begin(self, labels):
        pass

    def at(self, label, t):
        return torch.tensor(self.values[label])[:, None]

    def shares(self, label):
        return self._shares

    def transform(self, features, label, t):
        return features.flatten(1)


def state(x, labels, slots):
    x = torch.tensor(x)[:, None].requires_grad_()
    return State(
        x=x, proposal=x.detach(), x0_hat=x, eps=x, features=x[:, None], t=1, index=0, steps=1, alpha=1.0, sigma=0.0,
        labels=torch.tensor(labels), slots=torch.tensor(slots),
    )  # fmt: skip


def test_energy_by_hand():
    """Mean |x − x_j| per class, on interleaved labels; its gradient is the mean of signs."""
    reals = FixedReals({0: [0.0, 1.0, 5.0], 1: [10.0]})
    at = state([2.0, 7.0, 4.0], [0, 1, 0], [0, 0, 1])
    energy = Representative(reals)(at)
    torch.testing.assert_close(energy, torch.tensor([(2 + 1 + 3) / 3, 3.0, (4 + 3 + 1) / 3]))
    (gradient,) = torch.autograd.grad(energy.sum(), at.x)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([1 / 3, -1.0, 1 / 3]))


def test_targets_per_slot_by_hand():
    reals = FixedReals({0: [0.0, 4.0, 10.0]}, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    energy = Representative(reals)(state([1.0, 1.0], [0, 0], [0, 1]))
    torch.testing.assert_close(energy, torch.tensor([2.0, 9.0]))


def test_repulsion_is_the_gradient_of_the_energy_distance():
    """λ = 1: B times the gradient of E|x − y| − ½ E|x − x'| over the slots, for which the pairs i ≠ i' are averaged."""
    reals = FixedReals({0: [0.0, 3.0]})
    values = [1.0, 2.5, 7.0]
    at = state(values, [0, 0, 0], [0, 1, 2])
    (gradient,) = torch.autograd.grad(Representative(reals, repulsion=1.0)(at).sum(), at.x)
    x = torch.tensor(values, requires_grad=True)
    to_real = (x[:, None] - torch.tensor([0.0, 3.0])).abs().mean()
    pairs = (x[:, None] - x[None]).abs().sum() / (3 * 2)
    (expected,) = torch.autograd.grad(to_real - 0.5 * pairs, x)
    torch.testing.assert_close(gradient[:, 0], 3 * expected)


def test_repulsion_is_neutral_at_zero_and_for_a_single_slot():
    reals = FixedReals({0: [0.0, 3.0]})
    for given in (state([1.0, 2.5], [0, 0], [0, 1]), state([1.0], [0], [0])):
        plain = Representative(reals)(given)
        assert torch.equal(plain, Representative(reals, repulsion=0.0)(given))
    assert torch.equal(plain, Representative(reals, repulsion=2.0)(state([1.0], [0], [0])))
    with pytest.raises(DapError, match="repulsion"):
        Representative(reals, repulsion=-1.0)


def test_squared_and_other_kernels():
    reals = FixedReals({0: [0.0, 4.0]})
    squared = Representative(reals, squared=True)(state([1.0], [0], [0]))
    torch.testing.assert_close(squared, torch.tensor([(1 + 9) / 2.0]))
    rbf = Representative(reals, parse("rbf"))(state([1.0], [0], [0]))
    gaps = torch.tensor([1.0, 3.0])
    expected = (2 * (1 - (-gaps.square() / (2 * 16)).exp())).sqrt().mean()
    torch.testing.assert_close(rbf[0], expected)


@pytest.mark.parametrize("options", [{}, {"refresh": "step"}, {"targets": "slot", "clustered": 12}])
def test_a_broken_image_of_a_small_class_is_left_out(colours, backbone, options, tmp_path, caplog):
    """A class with no more images than are asked for gives those that can be decoded."""
    shutil.copytree(colours, tmp_path / "data")
    (tmp_path / "data" / "train" / "green" / "3.png").write_bytes(b"no image")
    source = open_source(str(tmp_path / "data"), size=8, max_bad_fraction=0.5)
    made = bank(source, backbone, reals=12, **options)
    reals = 11 if options.get("targets") != "slot" else len(made._ready[1][0])
    assert made.at(1, 500).shape[0] == reals <= 11 and "3.png" in caplog.text
    with pytest.raises(DapError, match="only 11 decodable images of 12, but 12 are asked for"):
        bank(source, backbone, ipc=12, targets="slot", reals=12)


def test_features_that_the_cache_has_no_room_for_are_computed_anew(source, backbone, tmp_path, monkeypatch, caplog):
    """A thousand classes at fifty steps would be 1.9 TB: the cache keeps the latents, and says so once."""
    plain = bank(source, backbone)
    times = (900, 500, 100)
    expected = [plain.at(label, t) for label in (0, 1) for t in times]
    nbytes = expected[0].nbytes
    for fits in (True, False):
        room = nbytes * len(times) * len(source.class_names) * 2
        monkeypatch.setattr("dap.data.bank.limit", lambda room=room, fits=fits: room if fits else room - 2)
        cache = tmp_path / str(fits)
        caplog.clear()
        with caplog.at_level("INFO", "dap"):
            made = FeatureBank(
                source, backbone, BankOptions(reals=6), ipc=4, run_seed=1, cache=cache, steps=3, keep=False
            )
            made.begin([0, 1])
            found = [made.at(label, t) for label in (0, 1) for t in times]
        assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
        kinds = [file.name.split("-")[0] for file in cache.rglob("*.safetensors")]
        assert kinds.count("latents") == 2 and kinds.count("features") == (6 if fits else 1)
        assert len([line for line in caplog.messages if "would take" in line]) == (0 if fits else 1)
    again = FeatureBank(source, backbone, BankOptions(reals=6), ipc=4, run_seed=1, cache=tmp_path / "False", steps=3)
    monkeypatch.setattr(backbone, "encode", lambda images: pytest.fail("the latents lie in the cache"))
    again.begin([0, 1])


def test_features_stay_in_memory_as_far_as_there_is_room(source, backbone, monkeypatch):
    plain = bank(source, backbone)
    expected = [plain.at(0, t) for t in (900, 500, 100)]
    monkeypatch.setattr("dap.data.bank._room", lambda device, memory: 2 * expected[0].nbytes)
    made = bank(source, backbone)
    assert all(made.at(0, t).equal(one) for t, one in zip((900, 500, 100), expected, strict=True))
    assert list(made._features) == [(0, 900), (0, 500)] and made.at(0, 100).equal(expected[2])
