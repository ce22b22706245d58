"""Our formulas against torch-fidelity, torchmetrics and prdc, with feature extractors of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dap.base.errors import DapError
from dap.evaluation.measures import distributions, measures

DIM = 6


class Pictures(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Projected(nn.Module):
    """Images (n, 3, 4, 4) of bytes -> (n, DIM), float64 inside."""

    num_features = DIM

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(48, DIM, generator=torch.Generator().manual_seed(0)).double()

    def forward(self, images: Tensor) -> Tensor:
        return (images.double() / 255).flatten(1) @ self.matrix


def pictures(n: int, seed: int) -> Tensor:
    centre = 110 + 20 * seed
    noise = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (centre + 40 * noise).clamp(0, 255).round().byte()


@pytest.fixture(scope="module")
def both() -> tuple[Tensor, Tensor]:
    return pictures(40, seed=1), pictures(60, seed=0)


@pytest.fixture(scope="module")
def features(both) -> tuple[Tensor, Tensor]:
    return Projected()(both[0]), Projected()(both[1])


@pytest.mark.filterwarnings("ignore")
def test_torch_fidelity_agrees(both, features):
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **others: object) -> None:
            super().__init__(name, features_list)
            self.net = Projected()

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("all",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "all"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (self.net(images),)

    torch_fidelity.register_feature_extractor("projected", Extractor)
    options = {
        "feature_extractor": "projected",
        "cuda": False,
        "verbose": False,
        "cache": False,
        "save_cpu_ram": True,
        "batch_size": 64,
    }
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(both[0]), input2=Pictures(both[1]), fid=True, prc=True, prc_neighborhood=3, **options
    )
    mine = measures.prdc(*features, k=3)
    assert mine["precision"] == pytest.approx(found["precision"]) and 0 < mine["precision"] < 1
    assert mine["recall"] == pytest.approx(found["recall"]) and 0 < mine["recall"] < 1
    assert distributions.frechet(*features) == pytest.approx(found["frechet_inception_distance"], rel=1e-4)
    whole = torch_fidelity.calculate_metrics(
        input1=Pictures(both[0]), input2=Pictures(both[1][:40]), kid=True, kid_subsets=2, kid_subset_size=40, **options
    )
    expected = whole["kernel_inception_distance_mean"]
    assert distributions.kid(features[0], features[1][:40], subsets=2, subset_size=40)[0] == pytest.approx(expected)
    assert distributions.mmd2(features[0], features[1][:40]) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_agrees(both, features):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fid = FrechetInceptionDistance(feature=Projected(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Projected(), subsets=3, subset_size=40)
    for metric, reals in ((fid, both[1]), (kid, both[1][:40])):
        metric.update(reals, real=True)
        metric.update(both[0], real=False)
    assert distributions.frechet(*features) == pytest.approx(fid.compute().item(), rel=1e-6)
    mean, std = (value.item() for value in kid.compute())
    found = distributions.kid(features[0], features[1][:40], subsets=3, subset_size=40)
    assert found == pytest.approx((mean, std), rel=1e-5, abs=1e-6)


def test_prdc_of_its_authors_agrees(features, capsys):
    from prdc import compute_prdc

    synthetic, real = features
    expected = compute_prdc(real_features=real.numpy(), fake_features=synthetic.numpy(), nearest_k=4)
    assert measures.prdc(synthetic, real, k=4) == pytest.approx({name: float(v) for name, v in expected.items()})
    assert 0 < expected["coverage"] < 1


def test_kid_averages_over_subsets(features):
    mean, std = distributions.kid(*features, subsets=200, subset_size=20, seed=3)
    assert std > 0 and mean == pytest.approx(distributions.mmd2(*features), abs=4 * std / 200**0.5)
    assert distributions.kid(*features, subset_size=20) == distributions.kid(*features, subset_size=20)
    for size in (1, 41):
        with pytest.raises(DapError, match=f"subsets of 2 to 40 images here, not {size}"):
            distributions.kid(*features, subset_size=size)


def test_frechet_by_hand_and_where_it_refuses(features):
    from scipy.linalg import sqrtm

    s, r = (x.numpy() for x in features)
    a, b = np.cov(s.T), np.cov(r.T)
    expected = np.square(s.mean(0) - r.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert distributions.frechet(*features) == pytest.approx(expected)
    assert distributions.frechet(features[0], features[0]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DapError, match=f"over {DIM} features needs more than {DIM} synthetic images, not {DIM}"):
        distributions.frechet(features[0][:DIM], features[1])
    constant = torch.ones(20, DIM)
    assert distributions.frechet(constant, constant) == 0, "a singular covariance gives a number all the same"
