"""torchvision's and timm's networks: published parameter counts, stems, norms, features, and what cannot be built."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dap.base.errors import DapError
from dap.evaluation.training.networks import InstanceNorm, Network, build, n_parameters

PUBLISHED = {  # of torchvision's weights for ImageNet's thousand classes
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "swin_t": 28_288_354,
    "swin_v2_t": 28_351_570,
}
NORMS = {"resnet18": 20, "resnet50": 53, "resnet101": 104, "mobilenet_v2": 52, "efficientnet_b0": 49}
FEATURES = {"resnet18": 512, "mobilenet_v2": 1280, "efficientnet_b0": 1280, "swin_t": 768, "swin_v2_t": 768}
SMALL = sorted(FEATURES)
"""Those of which a few are quickly made; ResNet-50 and -101 share ResNet-18's code."""


def seeded(name: str, **settings) -> Network:
    torch.manual_seed(0)
    network = build(name, **settings)
    assert isinstance(network, Network)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_at_224_are_those_torchvision_publishes(name):
    with torch.device("meta"):
        for norm in ("batch", "instance"):  # an instance norm has as many parameters
            assert n_parameters(build(name, classes=1000, size=224, norm=norm)) == PUBLISHED[name]
            assert n_parameters(build(f"torchvision:{name}", classes=1000, size=224, norm=norm)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_channels_change_only_the_first_convolution(name):
    with torch.device("meta"):
        coloured, grey = (build(name, channels=channels, classes=7, size=64, norm="batch") for channels in (3, 1))
    first = next(part for part in grey.modules() if isinstance(part, nn.Conv2d))
    assert first.in_channels == 1
    assert n_parameters(coloured) - n_parameters(grey) == 2 * first.out_channels * first.weight[0, 0].numel()


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet50", {16: 2, 64: 8, 65: 5, 128: 8, 129: 5}),
        ("mobilenet_v2", {16: 2, 64: 8, 65: 5, 128: 8, 129: 5}),
        ("efficientnet_b0", {16: 2, 64: 8, 65: 5, 128: 8, 129: 5}),
        ("swin_t", {16: 1, 64: 4, 128: 8, 129: 4, 224: 7}),
        ("swin_v2_t", {28: 2, 128: 8, 224: 7}),
    ],
)
def test_the_last_map_keeps_its_pixels_at_every_size(name, sides):
    last = {"resnet50": "layer4", "swin_t": "permute", "swin_v2_t": "permute"}.get(name, "features")
    for size, side in sides.items():
        with torch.device("meta"):
            network, image = build(name, classes=2, size=size), torch.empty(1, 3, size, size)
        assert isinstance(network, Network)
        shapes = []
        stage = network.body.get_submodule(last)
        stage.register_forward_hook(lambda part, inputs, output: shapes.append(tuple(output.shape[2:])))  # noqa: B023
        network(image)
        assert shapes == [(side, side)], size


def test_windows_of_swin_are_small_for_small_images():
    with torch.device("meta"):
        windows = {
            (name, size): {
                tuple(part.window_size) for part in build(name, classes=2, size=size).modules() if hasattr(part, "qkv")
            }
            for name in ("swin_t", "swin_v2_t")
            for size in (64, 128)
        }
    assert windows == {
        ("swin_t", 64): {(4, 4)},
        ("swin_t", 128): {(7, 7)},
        ("swin_v2_t", 64): {(4, 4)},
        ("swin_v2_t", 128): {(8, 8)},
    }


@pytest.mark.parametrize("name", NORMS)
def test_norm_leaves_no_batch_norm_or_only_batch_norms(name):
    with torch.device("meta"):
        instance, batch = (build(name, classes=2, size=32, norm=norm) for norm in ("instance", "batch"))
    assert isinstance(instance, Network) and isinstance(batch, Network)
    assert sum(isinstance(part, InstanceNorm) for part in instance.modules()) == NORMS[name]
    assert sum(isinstance(part, nn.BatchNorm2d) for part in batch.modules()) == NORMS[name]
    assert not any(isinstance(part, _BatchNorm) for part in instance.modules())
    assert not any(isinstance(part, nn.GroupNorm) for part in batch.modules())
    assert instance.per_image and not batch.per_image


def test_swin_has_its_own_norm_whichever_is_asked_for():
    networks = [seeded("swin_t", classes=2, size=32, norm=norm) for norm in ("instance", "batch")]
    assert all(network.per_image for network in networks)
    assert not any(isinstance(part, (_BatchNorm, nn.GroupNorm)) for part in networks[0].modules())
    weights, others = (network.state_dict() for network in networks)
    assert all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_repeats_from_its_seed_and_judges_every_image_on_its_own(name):
    network, again = (seeded(name, classes=5, size=16 if name == "swin_t" else 32) for _ in range(2))
    weights, others = network.state_dict(), again.state_dict()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    images = torch.randn(3, 3, 16, 16) if name == "swin_t" else torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        network.eval()
        features, logits = network.features(images), network(images)
        assert features.shape == (3, FEATURES[name])
        torch.testing.assert_close(network.classifier(features), logits)
        torch.testing.assert_close(network(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
        assert (logits[0] - logits[1]).abs().max() > 1e-4
    assert torch.equal(again.eval()(images), logits)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_has_a_finite_gradient_in_the_layout_of_training(name):
    network = seeded(name, classes=3, size=16).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    nn.functional.cross_entropy(network(images), torch.tensor([0, 2])).backward()
    gradients = {path: parameter.grad for path, parameter in network.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values()), gradients.keys()
    assert sum(gradient.abs().sum() for gradient in gradients.values() if gradient is not None) > 0


def test_images_of_a_batch_mix_under_batch_norm_only():
    images = torch.randn(4, 3, 32, 32)
    for norm in ("instance", "batch"):
        network = seeded("mobilenet_v2", classes=2, size=32, norm=norm)
        network.body.classifier.eval()  # else dropout would tell images apart
        with torch.no_grad():
            alone, among = network(images[:2]), network(images)[:2]
        assert torch.allclose(alone, among, rtol=1e-4, atol=1e-5) == network.per_image == (norm == "instance")


@pytest.mark.parametrize(
    ("name", "channels", "size", "norm", "dim"),
    [
        ("torchvision:shufflenet_v2_x0_5", 3, 64, "instance", 1024),
        ("torchvision:shufflenet_v2_x0_5", 1, 32, "batch", 1024),
        ("torchvision:mobilenet_v3_small", 2, 64, "instance", 1024),
        ("torchvision:googlenet", 3, 64, "batch", 1024),
        ("timm:test_resnet", 1, 64, "instance", 96),
        ("timm:test_resnet.r160_in1k", 3, 64, "batch", 96),
        ("timm:test_vit", 3, 48, "instance", 64),
        ("timm:test_efficientnet", 3, 64, "instance", 256),
    ],
)
def test_any_model_of_torchvision_and_timm(name, channels, size, norm, dim):
    network = seeded(name, channels=channels, classes=5, size=size, norm=norm)
    mixes = norm == "batch"
    assert network.per_image != mixes
    assert any(isinstance(part, _BatchNorm) for part in network.modules()) == mixes
    assert all(part.training for part in network.modules())  # as a fresh module is, though it was tried
    images = torch.randn(2, channels, size, size)
    network(images).square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    network.eval()
    features = network.features(images)
    assert features.shape == (2, dim)
    torch.testing.assert_close(network.classifier(features), network(images))


def test_a_model_of_timm_normalised_by_instances_keeps_its_activations():
    torch.manual_seed(0)
    norm = build("timm:test_efficientnet", classes=2, size=64).body.conv_stem.weight  # pyright: ignore
    network, batch = (seeded("timm:test_efficientnet", classes=2, size=64, norm=n) for n in ("instance", "batch"))
    assert torch.equal(norm, batch.body.conv_stem.weight)
    replaced, original = network.body.bn1, batch.body.bn1
    image = torch.randn(1, original.num_features, 5, 5)
    torch.testing.assert_close(replaced(image.clone()), original(image.clone()))  # of a single image the norms agree


def test_a_vision_transformer_of_torchvision_gets_the_positions_of_its_size():
    with torch.device("meta"):
        network = build("torchvision:vit_b_32", classes=2, size=64)
    assert network.body.encoder.pos_embedding.shape == (1, 5, 768)


def test_a_model_without_a_linear_head_comes_as_it_is():
    with torch.device("meta"):
        network = build("torchvision:squeezenet1_1", classes=4, size=64)
        assert not isinstance(network, Network)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet5", {}, r"Unknown network 'resnet5'. Did you mean 'resnet50'\?"),
        ("resnet50", {"size": 15}, "resnet50 needs images of at least 16 px, not 15"),
        ("mobilenet_v2", {"size": 8}, "mobilenet_v2 needs images of at least 16 px, not 8"),
        ("swin_t", {"size": 8}, "swin_t needs images of at least 16 px, not 8"),
        ("swin_v2_t", {"size": 8}, "swin_v2_t needs images of at least 16 px, not 8"),
        ("efficientnet_b0", {"norm": "none"}, "efficientnet_b0 has no form without normalisation"),
        ("swin_t", {"norm": "none"}, "swin_t has no form without normalisation"),
        ("torchvision:resnet5", {}, "torchvision has no classifier 'resnet5'. Close to it: resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no classifier 'fasterrcnn_resnet50_fpn'"),
        ("torchvision:alexnet", {"size": 16}, r"torchvision:alexnet does not take images \(3, 16, 16\): RuntimeError"),
        ("torchvision:vit_b_16", {"size": 40}, r"vit_b_16 does not take images \(3, 40, 40\): .*indivisible by patch"),
        ("torchvision:resnet18", {}, "torchvision:resnet18 at 32 px: instance normalisation of a single pixel erases it"),
        ("timm:resnet_19", {}, "timm has no model 'resnet_19'. Close to it: resnet"),
        ("timm:hf-hub:nobody/nothing", {}, "timm has no model 'hf-hub:nobody/nothing'"),
        ("timm:zzzz", {}, r"timm has no model 'zzzz'. Its \d+ names include "),
        ("timm:levit_128s", {"size": 64}, "levit_128s normalises by BatchNorm1d, which has no instance form here"),
        ("timm:test_resnet", {"norm": "none"}, "timm:test_resnet has no form without normalisation"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said_in_a_sentence(name, settings, message):
    with pytest.raises(DapError, match=message), torch.device("meta"):
        build(name, **{"classes": 10, "size": 32, **settings})


def test_timm_is_asked_for_only_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        DapError, match=r"timm:resnet18 needs the package timm; pip install 'diffusion-as-priors\[timm\]'"
    ):
        build("timm:resnet18", classes=2, size=32)
    assert n_parameters(build("resnetap10", classes=2, size=16)) > 0


def test_damaged_weights_in_torchs_cache_are_a_sentence(tmp_path):
    """Found by fuzzing: RuntimeError, OSError, EOFError and IndexError of torch."""
    from dap.evaluation.training.networks.zoo import _fetched

    file = tmp_path / "resnet.pth"  # a name without a hash, so that its contents are read
    torch.save({"conv.weight": torch.ones(4)}, file)
    whole, told = file.read_bytes(), set()
    assert torch.equal(_fetched("https://nowhere.test", file, "resnet")["conv.weight"], torch.ones(4))
    damaged = [b"", whole[:100], whole[:-30]]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 0x88]) + whole[at + 1 :] for at in range(len(whole) - 300, len(whole), 3)
    ]
    for data in damaged:
        file.write_bytes(data)
        try:
            _fetched("https://nowhere.test", file, "resnet")
        except DapError as error:
            told.add(str(error))
    assert len(told) > 3 and all("resnet.pth" in one and "Delete it" in one for one in told)
