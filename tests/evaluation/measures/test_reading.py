"""How many real images are compared and searched."""

from __future__ import annotations

import pytest

from dap.evaluation.measures import reading
from dap.evaluation.measures.reading import Reading, even_limit


@pytest.mark.parametrize(
    ("counts", "most", "limit"),
    [
        ([5, 5, 5], 100, 5),
        ([10, 10], 10, 5),
        ([1, 1, 20], 12, 10),
        ([20, 1, 1], 12, 10),
        ([3, 7, 7], 11, 4),
        ([4], 2, 2),
    ],
)
def test_what_small_classes_leave_goes_to_large_ones(counts, most, limit):
    assert even_limit(counts, most) == limit
    assert sum(min(count, limit) for count in counts) <= most
    assert max(counts) == limit or sum(min(count, limit + 1) for count in counts) > most


def test_a_large_class_beside_small_ones_is_searched_whole():
    """Before, each of ten classes had a share of 10,000, so half of the large class was left out."""
    found = Reading([20_000, *[100] * 9])
    assert found.searched == 20_000 and found.marks, "what was searched before is measured anew"


@pytest.mark.parametrize(
    ("classes", "each", "compared", "searched"),
    [(10, 6000, 500, 6000), (10, 60_000, 500, 10_000), (1000, 1300, 100, 100), (5000, 50, 100, 100)],
)
def test_numbers_of_docs_measures(classes, each, compared, searched):
    found = Reading([each] * classes)
    assert (found.compared, found.searched) == (compared, searched)
    assert not found.marks, "equal classes are searched as by earlier versions, so their measures stay valid"


def test_frames_of_clips_are_pictures(monkeypatch):
    monkeypatch.setattr(reading, "SEARCHED_IN_ALL", 8000)
    assert Reading([3000, 500], frames=8).searched == 500 and Reading([3000, 500]).searched == 3000
