"""Images that are moved a little, their latents, and an autoencoder whose latents are standardised."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_vae
from dap.pretraining.autoencoders import decibels, error_of, standardise
from dap.pretraining.pictures import MOST_VERSIONS, Latents, Pictures, encoded, in_order, moved, versions_of

CPU = torch.device("cpu")


def some(n: int = 6, side: int = 8, flip: bool = True) -> Pictures:
    images = torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Pictures(images, torch.arange(n) % 3, flip=flip)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_are_taken_in_the_range_of_an_autoencoder():
    pictures = some()
    images = pictures.take(torch.tensor([1, 4]), CPU)
    assert torch.equal(images, pictures.images[[1, 4]].float() / 127.5 - 1)
    floats = Pictures(pictures.images.float() / 255, pictures.labels)
    assert torch.allclose(floats.take(torch.tensor([1, 4]), CPU), images, atol=1e-6)


def test_without_an_amount_images_are_mirrored_or_as_they_are():
    images = torch.rand(40, 3, 8, 8)
    found = moved(images, generator(), flip=True, amount=0.0)
    same = (found - images).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (found - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert (same | mirrored).all() and 8 < same.sum() < 32
    assert torch.allclose(moved(images, generator(), flip=False, amount=0.0), images, atol=1e-5)


def test_images_of_small_folders_are_shifted_by_whole_pixels_or_zoomed():
    """An image that is not zoomed has exactly its own pixels, some of them twice at the border."""
    images = torch.rand(60, 3, 32, 32)
    found = moved(images, generator(), flip=False, amount=1.0)
    whole = [
        max(
            (found[k, :, 4:-4, 4:-4] - images[k, :, 4 + y : 28 + y, 4 + x : 28 + x]).abs().max().item() < 1e-4
            for x in range(-2, 3)
            for y in range(-2, 3)
        )
        for k in range(60)
    ]
    assert 15 < sum(whole) < 45
    assert not torch.allclose(found, images), "nothing moved"
    assert torch.equal(found, moved(images, generator(), flip=False, amount=1.0)), "the generator decides everything"


def test_few_images_are_encoded_in_more_versions():
    assert versions_of(some(6)) == MOST_VERSIONS
    many = Pictures(torch.empty(0, 3, 8, 8), torch.zeros(30_000, dtype=torch.int64))
    assert versions_of(many) == 2
    assert versions_of(Pictures(many.images, many.labels, flip=False)) == 1


def test_latents_are_drawn_from_the_distributions_of_their_images():
    mean = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 4, 2, 2)
    latents = Latents(mean, torch.zeros_like(mean), torch.tensor([0, 1, 2]))
    drawn, labels = latents.drawn(200, generator())
    values = drawn[:, 0, 0, 0]
    assert set(values.tolist()) == set(range(6)) and torch.equal(values % 3, labels.float())


def test_standardised_latents_and_the_same_reconstructions():
    vae, pictures = tiny_vae(), some(12)
    before = error_of(vae, pictures, CPU)
    latents = standardise(vae, encoded(vae, pictures, CPU, seed=0, versions=2))
    assert error_of(vae, pictures, CPU) == pytest.approx(before, rel=1e-3)
    again = encoded(vae, pictures, CPU, seed=0, versions=2)
    assert torch.allclose(again.mean, latents.mean, atol=1e-4) and torch.allclose(again.std, latents.std, rtol=1e-3)
    spread = again.mean.var((0, 1, 3, 4), correction=0) + again.std.square().mean((0, 1, 3, 4))
    assert again.mean.mean((0, 1, 3, 4)).abs().max() < 1e-4 and torch.allclose(spread, torch.ones(4), atol=1e-3)


def film(n: int = 4, frames: int = 3, side: int = 8) -> tuple[torch.Tensor, Pictures]:
    """Clips (n, 3, frames, side, side), and the same as they are stored."""
    clips = torch.rand(n, 3, frames, side, side, generator=generator())
    return clips, Pictures(clips.flatten(1, 2), torch.arange(n) % 2, frames=frames)


def test_frames_of_clips_are_images():
    clips, pictures = film()
    taken = pictures.take(torch.tensor([2, 0]), CPU)
    assert torch.equal(pictures.stills(taken), (clips[[2, 0]] * 2 - 1).transpose(1, 2).reshape(6, 3, 8, 8))
    one = pictures.one_still(taken, generator())
    same = [[torch.equal(one[k], clips[clip, :, f] * 2 - 1) for f in range(3)] for k, clip in enumerate([2, 0])]
    assert [sum(row) for row in same] == [1, 1]
    seen = {int(pictures.one_still(taken, generator(k))[0].sub(clips[2, :, f] * 2 - 1).abs().max() == 0) * (f + 1)
            for k in range(20) for f in range(3)}  # fmt: skip
    assert seen == {0, 1, 2, 3}, "every frame is drawn some time"


def test_all_frames_of_a_clip_are_moved_alike():
    still = torch.rand(30, 3, 1, 32, 32, generator=generator()).expand(-1, -1, 4, -1, -1)
    found = moved(still.flatten(1, 2), generator(), flip=True, amount=1.0).unflatten(1, (3, 4))
    assert torch.equal(found, found[:, :, :1].expand_as(found)) and not torch.equal(found, still)
    assert torch.equal(found[:, :, 0], moved(still[:, :, 0], generator(), flip=True, amount=1.0))


def test_latents_of_clips_are_those_of_their_frames_and_are_standardised_by_channel():
    vae, (clips, pictures) = tiny_vae(), film()
    made = encoded(vae, pictures, CPU, seed=0, versions=2)
    assert made.mean.shape == made.std.shape == (2, 4, 4, 3, 4, 4)
    with torch.no_grad():
        for f in range(3):
            wanted = vae.encode(clips[:, :, f] * 2 - 1).latent_dist
            torch.testing.assert_close(made.mean[0][:, :, f], wanted.mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(made.std[0][:, :, f], wanted.std, atol=1e-5, rtol=0)
    drawn, labels = made.drawn(5, generator())
    assert drawn.shape == (5, 4, 3, 4, 4) and labels.shape == (5,)
    before, latents = error_of(vae, pictures, CPU), standardise(vae, made)
    assert error_of(vae, pictures, CPU) == pytest.approx(before, rel=1e-3)
    spread = latents.mean.var((0, 1, 3, 4, 5), correction=0) + latents.std.square().mean((0, 1, 3, 4, 5))
    torch.testing.assert_close(spread, torch.ones(4), atol=1e-3, rtol=0)
    again = encoded(vae, pictures, CPU, seed=0, versions=2)
    torch.testing.assert_close(again.mean, latents.mean, atol=1e-4, rtol=0)


def of_classes(n: int, **how) -> Pictures:
    """Images of three classes in the order of the classes: the first one is plain colours, the others are noise."""
    flat = torch.rand(n, 3, 1, 1, generator=generator()).expand(n, 3, 8, 8)
    images = torch.cat([flat, torch.rand(2 * n, 3, 8, 8, generator=generator(1))])
    return Pictures(images, torch.arange(3).repeat_interleave(n), **how)


@pytest.mark.parametrize("limit", [12, 30])
def test_a_part_of_the_images_is_drawn_out_of_all_classes(limit):
    """The held-out loss of the autoencoder saw the first class or two alone, and chose the weights by it."""
    pictures = of_classes(40)
    rows = torch.cat(list(in_order(pictures, limit)))
    counts = pictures.labels[rows].bincount(minlength=3)
    assert len(rows.unique()) == limit and counts.min() > 0.15 * limit, counts
    assert torch.equal(rows, torch.cat(list(in_order(pictures, limit)))), "each look sees the same ones"
    vae = tiny_vae()
    seen, other = error_of(vae, pictures, CPU, limit), pictures.images.clone()
    other[80:] = 0
    assert error_of(vae, Pictures(other, pictures.labels), CPU, limit) != seen


def test_all_images_and_images_in_a_random_order_are_taken_as_they_come():
    pictures, mixed = of_classes(4), of_classes(4, shuffled=True)
    for limit in (None, 12, 99):
        assert torch.equal(torch.cat(list(in_order(pictures, limit))), torch.arange(12))
    assert torch.equal(torch.cat(list(in_order(mixed, 5))), torch.arange(5))


def test_decibels_are_those_of_the_definition():
    assert decibels(0.01) == pytest.approx(20) and decibels(1) == 0
