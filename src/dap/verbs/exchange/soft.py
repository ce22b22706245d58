"""Soft labels that go with the images of an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dap.data.sets.distilled import DistilledSet
from dap.evaluation.image_labels import open_image_labels
from dap.evaluation.labelling import image_hashes


def logits_of(made: DistilledSet, folder: str | Path) -> np.ndarray:
    """The soft labels (n, classes) of the images of a set before the softmax, for `export(…, logits=)`.

    Args:
        made: the set.
        folder: what `dap export --layout labels` wrote for this set, or the folder `soft-labels` of an imported set.

    Raises:
        DapError: there are no soft labels, they are damaged, or they are of other images or classes.
    """
    return open_image_labels(folder, image_hashes(made), made.class_names).values.cpu().numpy()
