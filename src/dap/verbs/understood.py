"""What was understood of the real images is told, and checked, before any work."""

from __future__ import annotations

from pathlib import Path

from dap.base.errors import DapError
from dap.base.files import check_beside
from dap.choices import Data
from dap.data.real.finding.walking import is_hidden
from dap.data.real.sources import FolderSource
from dap.workshop import Workshop


def tell_of(workshop: Workshop, data: Data) -> None:
    """Tell what was understood of the training and the test images.

    Test images that cannot be opened are told too, and are no error: a set can be made without them.
    """
    workshop.whole(data)
    if workshop.objects.source is None:
        try:
            workshop.whole(data, "test")
        except DapError as error:
            workshop.tell(f"test: none ({error})")


def check_out(workshop: Workshop, data: Data, out: Path) -> None:
    """Check that a set does not go among the class folders that it is drawn from, where it would be read as one of them.

    Raises:
        DapError: it would.
    """
    source = workshop.whole(data)
    if isinstance(source, FolderSource) and source.root is not None:
        place = out.resolve()
        inner = place.relative_to(source.root).parts if place.is_relative_to(source.root) else ()
        if inner and not is_hidden(inner[0]) and (not data.classes or inner[0] in data.classes):
            check_beside(out, source.root, "would be read as one of its classes")


def check_apart(workshop: Workshop, data: Data) -> None:
    """Check that a set would not be judged on the images it was drawn from.

    Raises:
        DapError: the training and the test images are the same files, and the recipe does not say so with `split`.
    """
    if workshop.objects.source is not None or (data.split is not None and len(data.split.given()) > 1):
        return
    train, test = workshop.whole(data), workshop.whole(data, "test")
    if train.place is not None and train.place == test.place:
        raise DapError(
            f"The test images of {data.path} would be its training images: the folder is called as a test split and holds no "
            f"splits. Give other test images with --split test=FOLDER, a path relative to {data.path}; to test on the training "
            "images all the same, give --split train=.,test=."
        )
