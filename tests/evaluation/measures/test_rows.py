"""Features in a file are those in memory, and every measure is the same."""

import json

import pytest
import torch

from dap.base.errors import DapError
from dap.data.real.stored.budget import Budget
from dap.evaluation.measures import distributions
from dap.evaluation.measures.measures import compare
from dap.evaluation.measures.rows import Filling, Pools, Rows, rows_in

ROOMY, SMALL = Budget(2**30, 2**30), Budget(0, 2**30)


def filled(features, budget):
    filling = Filling(len(features) + 3, budget)  # some of the images may be broken
    for part in features.split(7):
        filling.add(part)
    return filling.table()


@pytest.fixture
def features():
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("budget", [ROOMY, SMALL])
def test_a_table_has_the_rows_that_were_added(features, budget):
    table = filled(features.double(), budget)
    assert isinstance(table, Rows) == (budget is SMALL)
    assert (len(table), tuple(table.shape)) == (60, (60, 5))
    chosen = torch.tensor([3, 59, 4, 3])
    assert torch.equal(table[chosen], features[chosen])
    assert torch.equal(table[features[:, 0] > 0], features[features[:, 0] > 0])
    assert torch.equal(table[10:20], features[10:20])
    assert torch.equal(torch.cat(list(table.split(9))), features)


@pytest.mark.parametrize("budget", [ROOMY, SMALL])
def test_pools_are_the_classes_of_a_table(features, budget):
    pools = Pools(filled(features, budget), [20, 0, 40])
    assert [len(pool) for pool in pools] == pools.counts == [20, 0, 40]
    assert torch.equal(pools[2], features[20:])
    assert pools.labels.tolist() == [0] * 20 + [2] * 40


def test_a_class_without_any_image_has_no_features():
    assert [len(pool) for pool in Pools(Filling(0, SMALL).table(), [0, 0])] == [0, 0]


def test_measures_do_not_depend_on_where_features_lie(features):
    labels = torch.arange(60) % 2
    real = torch.randn(80, 5, generator=torch.Generator().manual_seed(2)), torch.arange(80) // 40
    inside = compare((features, labels), real, 2)
    outside = compare((filled(features, SMALL), labels), (filled(real[0], SMALL), real[1]), 2)
    assert json.dumps([inside.values, inside.by_class]) == json.dumps([outside.values, outside.by_class])


def test_the_frechet_distance_in_parts_is_that_of_the_whole(features, monkeypatch):
    real = torch.randn(83, 5, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 6)
    whole = distributions.frechet(features, real)
    monkeypatch.setattr(distributions, "AT_ONCE", 8 * 5 * 9)  # nine rows
    assert rows_in(distributions.AT_ONCE, 5) == 9
    for budget in (ROOMY, SMALL):
        assert distributions.frechet(filled(features, budget), filled(real, budget)) == pytest.approx(whole, rel=1e-10)


def test_a_full_disk_is_told_of(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DapError, match="Features cannot be written to"):
        Filling(3, Budget(0, 2**30, tmp_path / "file")).add(torch.zeros(3, 2))
