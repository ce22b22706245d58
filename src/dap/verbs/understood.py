"""What was understood of the real images is told, and checked, before any work."""

from __future__ import annotations

from dap.base.errors import DapError
from dap.choices import Data
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
