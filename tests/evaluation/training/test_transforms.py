"""Batched transforms and mixing: torchvision's results for the same parameters, the parameters' laws, and their replay."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torchvision.transforms import RandomResizedCrop as Published
from torchvision.transforms.v2 import functional as tv

from dap.base.errors import DapError
from dap.evaluation.training import augment
from dap.evaluation.training.transforms import (
    CenterCrop,
    ColorJitter,
    CutMix,
    Dsa,
    Flip,
    Lighting,
    Mix,
    MixUp,
    Normalize,
    RandomResizedCrop,
    Resize,
    Steps,
    Tiles,
    apply_all,
    draw_all,
    parse,
    run,
    size_after,
    split,
)

JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
RANDOM = [
    Tiles(factor=2),
    Tiles(factor=3, order="free"),
    RandomResizedCrop(size=7, scale=(0.2, 1)),
    Flip(),
    JITTER,
    Lighting(std=0.1),
    Dsa(operations=("crop",)),
]
FIXED = [Resize(side=10), CenterCrop(size=9), Normalize(mean=(0.5,), std=(0.25,))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(n, 3, height, width, generator=generator(5))


@pytest.mark.parametrize(("height", "width"), [(12, 20), (21, 13), (8, 8)])
def test_resize_and_center_crop_are_torchvisions(height, width):
    x = images(2, height, width)
    resized = run([Resize(side=9)], x)
    assert torch.allclose(resized, tv.resize(x, [9], antialias=True), atol=1e-6)
    assert torch.equal(run([CenterCrop(size=6)], resized), tv.center_crop(resized, [6]))
    assert run([CenterCrop(size=8)], x).shape == (2, 3, 8, 8)


def test_an_image_of_the_right_size_is_not_resampled():
    x = images()
    assert run([Resize(side=12)], x) is x


@pytest.mark.parametrize("size", [5, 16, 40])
def test_random_resized_crop_is_torchvisions_for_the_same_rectangles(size):
    step, x = RandomResizedCrop(size=size, scale=(0.05, 1)), images(40, 23, 31)
    drawn = step.draw(40, 23, 31, generator())
    out = step.apply(x, drawn)
    expected = [tv.resized_crop(one, *box, [size, size]) for one, box in zip(x, drawn["box"].tolist(), strict=True)]
    assert (out - torch.stack(expected)).abs().max() < 1e-5
    assert out.dtype == x.dtype


def test_random_resized_crop_under_autocast_keeps_its_precision():
    step, x = RandomResizedCrop(size=8, scale=(0.5, 1)), images()
    with torch.autocast("cpu", torch.bfloat16):
        out = run([step], x, generator())
    assert torch.equal(out, run([step], x, generator()))


def test_rectangles_follow_torchvisions_law():
    step, n = RandomResizedCrop(size=8, scale=(0.2, 0.9)), 4000
    top, left, height, width = step.draw(n, 60, 40, generator())["box"].double().unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 60).all() and (left + width <= 40).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        of_theirs = [Published.get_params(torch.zeros(1, 60, 40), [0.2, 0.9], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(of_theirs).double().unbind(1)
    for mine, other in zip((top, left, height, width), theirs, strict=True):
        assert (mine.mean() - other.mean()).abs() < 5 * mine.std() * math.sqrt(2 / n)
        assert (mine.std() - other.std()).abs() < 0.06 * other.std()
        assert (mine.min() - other.min()).abs() <= 3 and (mine.max() - other.max()).abs() <= 3


@pytest.mark.parametrize(
    ("height", "width", "box"), [(4, 40, [0, 17, 4, 5]), (40, 4, [17, 0, 5, 4]), (8, 9, [0, 0, 8, 9])]
)
def test_a_rectangle_that_never_fits_becomes_the_largest_in_the_middle(height, width, box):
    step = RandomResizedCrop(size=8, scale=(4, 4))
    with torch.random.fork_rng():
        published = Published.get_params(torch.zeros(1, height, width), [4, 4], [3 / 4, 4 / 3])
    drawn = step.draw(3, height, width, generator())["box"]
    assert drawn.tolist() == [box] * 3 == [list(published)] * 3


def test_flip_mirrors_the_drawn_images_and_half_of_many():
    x = images(3)
    out = Flip().apply(x, {"flipped": torch.tensor([True, False, True])})
    assert torch.equal(out, torch.stack([x[0].flip(2), x[1], x[2].flip(2)]))
    assert 420 < Flip().draw(1000, 1, 1, generator())["flipped"].sum() < 580
    assert not Flip(p=0).draw(1000, 1, 1, generator())["flipped"].any()
    assert Flip(p=1).draw(1000, 1, 1, generator())["flipped"].all()


def test_color_jitter_with_clamp_is_torchvisions():
    step = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, luma=(0.2989, 0.587, 0.114), clamp=True)
    x = images(12)
    drawn = step.draw(12, 12, 12, generator())
    theirs = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for one, out, factors, order in zip(
        x, step.apply(x, drawn), drawn["factors"], drawn["order"].tolist(), strict=True
    ):
        for which in order:
            one = theirs[which](one, float(factors[which]))
        assert torch.allclose(out, one, atol=1e-6)


def test_color_jitter_by_hand_is_not_clamped():
    x = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 1, 2).clone()
    x[..., 1] = 1.0
    drawn = {"factors": torch.tensor([[2.0, 0.5, 0.0]]), "order": torch.tensor([[0, 2, 1]])}
    out = JITTER.apply(x, drawn)
    left, right = 2 * (0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6), 2.0  # twice as bright, then grey
    mean = (left + right) / 2
    expected = torch.tensor([mean + 0.5 * (left - mean), mean + 0.5 * (right - mean)])
    assert torch.allclose(out, expected.expand(1, 3, 1, 2))


def test_color_jitters_factors_and_orders_are_uniform():
    drawn = ColorJitter(brightness=0.4, contrast=0.2, saturation=0).draw(6000, 1, 1, generator())
    low, high = drawn["factors"].amin(0), drawn["factors"].amax(0)
    assert torch.allclose(low, torch.tensor([0.6, 0.8, 1.0]), atol=1e-3) and low.min() > 0.5999
    assert torch.allclose(high, torch.tensor([1.4, 1.2, 1.0]), atol=1e-3) and high.max() < 1.4001
    assert torch.allclose(drawn["factors"].mean(0), torch.ones(3), atol=0.015)
    orders, counts = drawn["order"].unique(dim=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 880 and counts.max() < 1120


def test_one_channel_has_brightness_and_contrast_and_other_numbers_are_refused():
    x = images()[:, :1]
    only = ColorJitter(brightness=0, contrast=0, saturation=1)
    assert torch.allclose(run([only], x, generator()), x, atol=1e-6)
    assert not torch.allclose(run([JITTER], x, generator()), x)
    with pytest.raises(DapError, match="1 or 3 channels, not 2"):
        run([JITTER], x.expand(-1, 2, -1, -1), generator())


def test_lighting_by_hand_and_its_spread():
    x = images(2)
    out = Lighting(std=0.1).apply(x, {"alpha": torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]])})
    first = torch.tensor([-0.5675, -0.5808, -0.5836]) * 0.2175
    second = 2 * torch.tensor([0.7192, -0.0045, -0.6948]) * 0.0188 - torch.tensor([0.4009, -0.8140, 0.4203]) * 0.0045
    assert torch.allclose(out - x, torch.stack([first, second])[:, :, None, None].expand_as(x), atol=1e-6)
    alpha = Lighting(std=0.1).draw(5000, 1, 1, generator())["alpha"]
    assert torch.allclose(alpha.std(0), torch.full((3,), 0.1), rtol=0.05) and (alpha.mean(0).abs() < 0.01).all()
    with pytest.raises(DapError, match="3 eigenvalues, but images 1 channels"):
        run([Lighting(std=0.1)], x[:, :1], generator())


def test_normalize_is_torchvisions_and_names_a_mismatch():
    x = images()
    step = Normalize(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    assert torch.allclose(run([step], x), tv.normalize(x, list(step.mean), list(step.std)))
    assert torch.allclose(run([Normalize(mean=(0.5,), std=(2,))], x), (x - 0.5) / 2)
    with pytest.raises(DapError, match="3 means, but the images have 1 channels"):
        run([step], x[:, :1])


def test_tiles_move_whole_columns_then_whole_rows_or_freely():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    out = Tiles(factor=2).apply(x, {"source": torch.tensor([[3, 2, 1, 0]])})
    assert torch.equal(out[0, 0], x[0, 0].roll((2, 2), (0, 1)))
    for order, number in (("lines", 4), ("free", 24)):
        seen = Tiles(factor=2, order=order).draw(2000, 4, 4, generator())["source"].unique(dim=0, return_counts=True)
        assert len(seen[0]) == number and seen[1].min() > 0.6 * 2000 / number
    lines = Tiles(factor=2).draw(100, 4, 4, generator())["source"].view(-1, 2, 2)
    assert ((lines[:, 0] - lines[:, 1]).abs() == 2).all() and ((lines[..., 0] - lines[..., 1]).abs() == 1).all()


def test_tiles_drop_what_is_beyond_a_multiple():
    x, step = images(2, 11, 13), Tiles(factor=3)
    out = run([step], x, generator())
    assert out.shape[2:] == step.size_after(11, 13) == (9, 12)
    assert torch.equal(out.flatten(2).sort(2)[0], x[:, :, :9, :12].flatten(2).sort(2)[0])


def test_dsa_is_that_of_its_seed():
    x, step = images(), Dsa(operations=("flip", "rotate"))
    drawn = step.draw(6, 12, 12, generator())
    expected = augment.dsa(x, generator(int(drawn["seed"])), ("flip", "rotate"))
    assert torch.equal(step.apply(x, drawn), expected)


@pytest.mark.parametrize("step", RANDOM, ids=lambda step: f"{step.op}-{getattr(step, 'order', '')}")
def test_a_random_step_repeats_from_its_seed_and_an_image_depends_on_itself_alone(step):
    x = images()
    drawn = step.draw(6, 12, 12, generator())
    assert all(torch.equal(value, drawn[key]) for key, value in step.draw(6, 12, 12, generator()).items())
    assert not all(torch.equal(value, drawn[key]) for key, value in step.draw(6, 12, 12, generator(1)).items())
    out = step.apply(x, drawn)
    assert out.shape[2:] == step.size_after(12, 12)
    assert torch.equal(out, step.apply(x, drawn))
    others = x.roll(1, 0)
    others[2] = x[2]
    assert torch.equal(step.apply(others, drawn)[2], out[2])
    assert step.random and not torch.equal(out, x)
    if step.op not in ("dsa", "random_resized_crop"):  # the first draws again, the second needs to know of autocast
        assert step.apply(x.to("meta"), drawn).device.type == "meta"  # else something was left behind on the CPU


@pytest.mark.parametrize("step", [*RANDOM, *FIXED, CutMix(), MixUp()], ids=lambda step: step.op)
def test_gradients_are_right(step):
    drawn = step.draw(2, 12, 12, generator(3))
    x = images(2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: step.apply(x, drawn), x, fast_mode=True)


def test_cutmix_pastes_the_partners_rectangle_and_tells_the_exact_area():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 10, 14)
    seen = []
    for seed in range(300):
        drawn = CutMix().draw(5, 10, 14, generator(seed))
        out, (top, left, height, width) = CutMix().apply(x, drawn), drawn["box"].tolist()
        inside = torch.zeros(10, 14, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        expected = torch.where(inside, drawn["partner"].view(5, 1, 1, 1).float(), x)
        assert torch.equal(out, expected)
        assert CutMix.share(drawn) == 1 - int(inside.sum()) / 140
        assert drawn["partner"].sort()[0].tolist() == list(range(5))
        assert height % 2 == 0 or top == 0 or top + height == 10
        seen.append(CutMix.share(drawn))
    assert torch.equal(x, torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 10, 14))
    assert 0.6 < sum(seen) / 300 < 0.75  # 1/2 but for what is cut off at the edges


def test_mixup_blends_by_its_share():
    x = images()
    drawn = MixUp(alpha=0.5).draw(6, 12, 12, generator())
    kept = MixUp.share(drawn)
    assert torch.allclose(MixUp().apply(x, drawn), kept * x + (1 - kept) * x[drawn["partner"]])


def test_shares_follow_beta_and_the_probability_of_mixing():
    for alpha in (0.3, 1, 4):
        shares = torch.tensor([MixUp.share(MixUp(alpha=alpha).draw(1, 1, 1, generator(s))) for s in range(1500)])
        assert (shares.mean() - 0.5).abs() < 0.05
        assert torch.isclose(shares.var(), torch.tensor(0.25 / (2 * alpha + 1)), rtol=0.15)
    unmixed = [MixUp.share(MixUp(p=0.3).draw(1, 1, 1, generator(s))) == 1 for s in range(1000)]
    assert 640 < sum(unmixed) < 760
    drawn = CutMix(p=0).draw(6, 12, 12, generator())
    assert torch.equal(CutMix().apply(images(), drawn), images()) and CutMix.share(drawn) == 1


def test_a_chain_is_split_at_the_first_random_step_and_replays():
    steps = [Resize(side=10), CenterCrop(size=10), *RANDOM[:1], JITTER, RandomResizedCrop(size=8, scale=(0.5, 1))]
    steps = [*steps, Flip(), Normalize(mean=(0.5,), std=(0.5,))]
    fixed, rest = split(steps)
    assert [s.op for s in fixed] == ["resize", "center_crop"] and [*fixed, *rest] == steps
    assert size_after(steps, 14, 12) == (8, 8)
    x = images(4, 14, 12)
    once = run(fixed, x)
    drawn = draw_all(rest, 4, 10, 10, generator())
    assert torch.equal(apply_all(rest, once, drawn), run(steps, x, generator()))
    half = [{key: value[2:] for key, value in parameters.items()} for parameters in drawn]
    assert torch.allclose(apply_all(rest, once[2:], half), run(steps, x, generator())[2:], atol=1e-6)


class Recipe(BaseModel):
    train: Steps = ()
    mix: Mix = None


def test_steps_are_read_from_mappings_and_written_back():
    entries = [{"op": "random_resized_crop", "size": 8, "scale": [0.5, 1]}, {"op": "flip", "p": 0.25}]
    recipe = Recipe.model_validate({"train": entries, "mix": {"op": "cutmix", "p": 0.5}})
    assert recipe.train == (RandomResizedCrop(size=8, scale=(0.5, 1)), Flip(p=0.25)) and recipe.mix == CutMix(p=0.5)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert parse(recipe.train) == recipe.train and Recipe().mix is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("flip", "a list of steps"),
        ([{"op": "flip"}, {"op": "centre_crop"}], "step 2: unknown op 'centre_crop'. Did you mean 'center_crop'"),
        ([{"p": 0.5}], "step 1 should be a mapping with an `op`"),
        ([{"op": "flip", "prob": 1}], r"step 1 \(flip\): unknown key 'prob'. Known: op, p"),
        ([{"op": "flip", "p": 2}], r"step 1 \(flip\): p: the value should be less than or equal to 1"),
        ([{"op": "resize"}], "the key 'side' is missing"),
        ([{"op": "random_resized_crop", "size": 8, "scale": [1, 0.5]}], "scale should be the smaller number"),
        ([{"op": "normalize", "mean": [0, 0], "std": [1]}], "mean has 2 values and std 1"),
        ([{"op": "lighting", "std": 0.1, "eigenvalues": [1]}], "1 rows as long as eigenvalues"),
        ([{"op": "dsa", "operations": ["spin"]}], "operations"),
    ],
)
def test_a_mistake_in_a_list_is_named(entries, message):
    with pytest.raises(DapError, match=message):
        parse(entries)
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"train": entries})


def test_a_mistake_in_a_mixing_is_named():
    with pytest.raises(ValidationError, match="the mixing: unknown op 'cutmixup'. Did you mean 'cutmix'"):
        Recipe.model_validate({"mix": {"op": "cutmixup"}})


def test_images_too_small_are_named_before_they_are_cut():
    with pytest.raises(DapError, match="center_crop of 9 px needs larger images than 8 x 12"):
        size_after([CenterCrop(size=9)], 8, 12)
    with pytest.raises(DapError, match="tiles of factor 4 need larger images than 3 x 9"):
        size_after([Tiles(factor=4)], 3, 9)
