"""Networks: the published parameter counts and shapes, the stems, and the hand-written instance norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dap.base.errors import DapError
from dap.evaluation.training.networks import KNOWN, WIDE, InstanceNorm, Network, build, check_width, n_parameters


@pytest.mark.parametrize(
    ("name", "size", "channels", "norm", "count"),
    [
        ("convnet6", 128, 3, "instance", 748_170),
        ("convnet6", 224, 3, "instance", 754_570),
        ("convnet6", 256, 3, "instance", 763_530),
        ("convnet3", 28, 1, "instance", 317_706),
        ("resnetap10", 32, 3, "instance", 4_903_242),
        ("resnetap10", 128, 3, "batch", 4_903_242),
        ("resnetap10", 129, 3, "instance", 4_910_922),
        ("resnetap10", 224, 3, "instance", 4_910_922),
        ("resnet18", 224, 3, "instance", 11_181_642),
        ("resnet18", 224, 3, "batch", 11_181_642),
    ],
)
def test_parameter_counts_are_those_of_the_published_networks(name, size, channels, norm, count):
    with torch.device("meta"):
        assert n_parameters(build(name, channels=channels, classes=10, size=size, norm=norm)) == count


@pytest.mark.parametrize(("depth", "size", "side"), [(3, 32, 4), (4, 32, 2), (5, 64, 2), (6, 128, 2), (6, 224, 3)])
def test_parameters_of_a_convnet_by_hand(depth, size, side):
    first, later = 128 * (3 * 9 + 1) + 2 * 128, 128 * (128 * 9 + 1) + 2 * 128
    with torch.device("meta"):
        network = build(f"convnet{depth}", classes=10, size=size)
    assert n_parameters(network) == first + (depth - 1) * later + 10 * (128 * side**2 + 1)


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (128, 3), (224, 7)])
def test_parameters_of_resnetap10_by_hand(size, kernel):
    def block(i: int, o: int) -> int:
        shortcut = 0 if i == o else i * o + 2 * o
        return 9 * i * o + 2 * o + 9 * o * o + 2 * o + shortcut

    with torch.device("meta"):
        network = build("resnetap10", classes=10, size=size)
    stem, head = 64 * 3 * kernel**2 + 2 * 64, 10 * (512 + 1)
    assert n_parameters(network) == stem + block(64, 64) + block(64, 128) + block(128, 256) + block(256, 512) + head


@pytest.mark.parametrize("size", [32, 64, 128, 224])
@pytest.mark.parametrize("name", ["convnet3", "convnet5", "resnetap10", "resnet18"])
def test_logits_are_a_linear_map_of_the_features(name, size):
    network = build(name, classes=7, size=size, width=8)
    assert isinstance(network, Network)
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        features = network.features(images)
        assert features.shape == (1, network.classifier.in_features)
        assert network(images).shape == (1, 7)
        torch.testing.assert_close(network.classifier(features), network(images))


@pytest.mark.parametrize(
    ("name", "last_stage", "sides"),
    [  # worked out by hand; average pooling rounds down, strides round up
        ("resnetap10", "7", {32: 4, 64: 8, 65: 4, 128: 8, 129: 4, 224: 7}),
        ("resnet18", "layer4", {32: 4, 64: 8, 65: 5, 128: 8, 129: 5, 224: 7}),
    ],
)
def test_the_stem_follows_the_image_size(name, last_stage, sides):
    for size, side in sides.items():
        network = build(name, channels=1, classes=2, size=size)
        assert isinstance(network, Network)
        shapes = []
        stage = network.body.get_submodule(last_stage)
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))  # noqa: B023
        with torch.inference_mode():
            network(torch.randn(1, 1, size, size))
        assert shapes == [(1, 512, side, side)], size


def test_a_grey_image_of_28_pixels_is_padded_to_32():
    network = build("convnet3", channels=1, classes=10, size=28)
    assert isinstance(network, Network)
    assert network.features(torch.randn(2, 1, 28, 28)).shape == (2, 128 * 4 * 4)
    coloured = build("convnet3", classes=10, size=28)
    assert isinstance(coloured, Network)
    assert coloured.features(torch.randn(2, 3, 28, 28)).shape == (2, 128 * 3 * 3)


@pytest.mark.parametrize("size", [32, 128, 224])
@pytest.mark.parametrize("name", ["resnetap10", "resnet18"])
def test_convolutions_of_resnets_start_normal_over_the_fan_out(name, size):
    torch.manual_seed(0)
    for conv in (m for m in build(name, classes=2, size=size).modules() if isinstance(m, nn.Conv2d)):
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(conv.weight.numel()))
        assert conv.bias is None


def test_norm_is_chosen_and_decides_whether_images_are_independent():
    kinds = {"instance": InstanceNorm, "batch": nn.BatchNorm2d}
    for name, norms in {"convnet2": 2, "resnetap10": 12, "resnet18": 20}.items():
        for norm, kind in kinds.items():
            network = build(name, classes=2, size=32, norm=norm, width=4)  # pyright: ignore[reportArgumentType]
            assert isinstance(network, Network)
            assert sum(isinstance(m, kind) for m in network.modules()) == norms
            assert network.per_image == (norm == "instance")
    plain = build("convnet2", classes=2, size=32, norm="none", width=4)
    assert not any(isinstance(m, (nn.GroupNorm, nn.BatchNorm2d)) for m in plain.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_group_norm_in_value_and_gradient(layout):
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5), nn.GroupNorm(5, 5)
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs.load_state_dict(ours.state_dict())
    images = (torch.randn(3, 5, 6, 4) * 2 + 1).contiguous(memory_format=layout)
    pull = torch.randn(3, 5, 6, 4).contiguous(memory_format=layout)
    found = []
    for norm in (ours, theirs):
        x = images.clone().requires_grad_()
        y = norm(x)
        (y * pull).sum().backward()
        found.append((y, x.grad, norm.weight.grad, norm.bias.grad))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_instance_norm_has_first_and_second_derivatives():
    torch.manual_seed(0)
    norm = InstanceNorm(2).double()
    x = torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True)

    def of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, torch.randn_like(norm.weight).requires_grad_(), torch.randn_like(norm.bias).requires_grad_())
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


def test_a_network_of_your_own_is_built_from_a_file_or_a_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def net(*, channels, classes, size, norm, width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))\n"
        "def wrong(**settings):\n"
        "    return 3\n"
    )
    assert build(f"{file}:net", classes=4, size=6)(torch.randn(2, 3, 6, 6)).shape == (2, 4)
    assert n_parameters(build("dap.evaluation.training.networks:resnetap10", classes=10, size=32)) == 4_903_242
    with pytest.raises(DapError, match=r"should be a torch.nn.Module, but is a int"):
        build(f"{file}:wrong", classes=4, size=6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("convnett3", {}, r"Unknown network 'convnett3'. Did you mean 'convnet3'\? Known: convnet3"),
        ("convnet3", {"norm": "layer"}, "Unknown norm 'layer'. Known: instance, batch, none"),
        ("convnet6", {}, "convnet6 halves the image 6 times and needs at least 64 px, not 32"),
        ("resnet18", {"size": 8}, "resnet18 needs images of at least 16 px, not 8"),
        ("resnetap10", {"size": 8}, "resnetap10 needs images of at least 16 px, not 8"),
        ("resnet18", {"norm": "none"}, "resnet18 has no form without normalisation"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(name, settings, message):
    with pytest.raises(DapError, match=message):
        build(name, **{"classes": 10, "size": 32, **settings})


def test_features_do_not_depend_on_the_other_images_of_the_batch():
    network = build("convnet3", classes=3, size=32, width=8)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_the_networks_that_have_a_width_are_known_and_a_width_of_others_is_refused():
    for name in KNOWN:
        clips = name in ("convnet3d", "small_convnet3d", "r3d18")
        of = {"channels": 48, "size": 64} if clips else {"channels": 3, "size": 256}
        with torch.device("meta"):
            found = {n_parameters(build(name, classes=3, width=width, **of)) for width in (8, 16)}
        assert (len(found) == 2) == (name in WIDE), name
    for names in (["resnet18"], ["timm:x", "resnetap10"]):
        with pytest.raises(
            DapError, match=f"A width does nothing in {', '.join(names)}. Leave it out, or .* convnet1, convnet2"
        ):
            check_width(names)
    for names in (["resnet18", "convnet3"], ["mine.py:Network"]):
        check_width(names)
