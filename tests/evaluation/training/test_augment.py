"""DSA's operations: shapes, gradients, and limits as published."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dap.evaluation.training import augment


def normalised(n: int = 16, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_an_operation_keeps_the_shape_differs_by_image_and_lets_gradients_through(name):
    apply = augment.APPLY[name]
    images = normalised(1).expand(16, -1, -1, -1).clone().requires_grad_()
    out = apply(images, generator(), len(images))
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert len(out.detach().flatten(1).unique(dim=0)) > 1
    assert torch.equal(out, apply(images, generator(), 16))
    assert not torch.equal(out, apply(images, generator(1), 16))
    (gradient,) = torch.autograd.grad(out.square().sum(), images)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert torch.autograd.gradcheck(lambda x: apply(x, generator(), 2), normalised(2, 5).double().requires_grad_())


def test_flip_mirrors_about_half_of_the_images():
    images = normalised(200, 4)
    out = augment.flip(images, generator(), len(images))
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_crop_shifts_by_up_to_an_eighth_and_fills_with_zeros():
    images = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(300, 3, -1, -1)
    out = augment.crop(images, generator(), len(images))
    shifts = set()
    for image in out:
        row, column = divmod(int(image[0, 8, 8]) - 1, 16)
        shifts.add((row - 8, column - 8))
        expected = F.pad(images[0], (2, 2, 2, 2))[:, row - 6 : row + 10, column - 6 : column + 10]
        assert torch.equal(image, expected)
    assert shifts == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_cutout_removes_one_square_of_half_the_side():
    out = augment.cutout(torch.ones(300, 3, 16, 16), generator(), 300)
    rows, columns = (1 - out[:, 0]).amax(2), (1 - out[:, 0]).amax(1)
    assert torch.equal(out, (1 - rows[:, :, None] * columns[:, None, :])[:, None].expand_as(out))
    for covered in (rows.sum(1), columns.sum(1)):
        assert covered.max() == 8
        assert covered.min() == 4
    for edge in (0, -1):  # centred on the border, half of it lies outside
        assert rows[rows[:, edge] == 1].sum(1).min() == columns[columns[:, edge] == 1].sum(1).min() == 4


def test_geometry_stays_within_its_limits():
    size = 64
    line = torch.linspace(-1, 1, size + 1)[:-1] + 1 / size
    coordinates = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(100, 2, -1, -1)
    centre = (..., slice(24, 40), slice(24, 40))
    for operation in (augment.scale, augment.rotate):
        out = operation(coordinates, generator(), 100)[centre]
        y_by_y, y_by_x = out[:, 0].diff(dim=1).mean((1, 2)) * size / 2, out[:, 0].diff(dim=2).mean((1, 2)) * size / 2
        if operation is augment.scale:
            assert 1 / 1.2 - 1e-3 < y_by_y.min() < 0.87
            assert 1.15 < y_by_y.max() < 1.2 + 1e-3
            torch.testing.assert_close(y_by_x, torch.zeros(100), atol=1e-4, rtol=0)
        else:
            angles = torch.rad2deg(torch.atan2(y_by_x, y_by_y))
            assert -15.01 < angles.min() < -13
            assert 13 < angles.max() < 15.01


def test_color_moves_each_image_by_half_at_most_and_stretches_it_within_its_limits():
    images = normalised(300, 4)
    out = augment.color(images, generator(), len(images))
    moved = (out - images).mean((1, 2, 3))
    assert -0.5 <= moved.min() < -0.45
    assert 0.45 < moved.max() <= 0.5
    grey = images.mean(1).flatten(1).std(1), out.mean(1).flatten(1).std(1)  # saturation leaves it alone
    contrast = grey[1] / grey[0]
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5
    tint = [(x - x.mean(1, keepdim=True)).flatten(1).std(1) for x in (images, out)]
    saturation = tint[1] / tint[0] / contrast
    assert saturation.min() < 0.1
    assert 1.9 < saturation.max() <= 2.0 + 1e-4


def test_dsa_draws_one_operation_for_the_whole_batch():
    images, seen = normalised(4, 4), []
    originals = dict(augment.APPLY)
    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setitem(augment.APPLY, name, lambda x, g, n, name=name: seen.append(name) or x)
        source = generator()
        for _ in range(200):
            augment.dsa(images, source)
        assert {name: seen.count(name) > 10 for name in seen} == dict.fromkeys(augment.OPERATIONS, True)
        assert len(seen) == 200
        seen.clear()
        for _ in range(50):
            augment.dsa(images, source, ("crop", "scale"))
        assert set(seen) == {"crop", "scale"}


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_siamese_augmentation_is_the_same_for_batches_of_any_size(name):
    images = normalised(8)
    many = augment.dsa(images, generator(5), (name,), siamese=True)
    few = augment.dsa(images[:3], generator(5), (name,), siamese=True)
    torch.testing.assert_close(many[:3], few, rtol=0, atol=1e-6)
    one = torch.cat([augment.dsa(image[None], generator(5), (name,), siamese=True) for image in images])
    torch.testing.assert_close(many, one, rtol=0, atol=1e-6)
