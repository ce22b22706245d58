"""Properties that hold for every kernel: Theorems 3.1 and 3.2 of the paper among them."""

from __future__ import annotations

import pytest
import torch

from dap.base.errors import DapError
from dap.kernels import Kernel, Linear, parse

TEXTS = [
    "linear",
    "polynomial",
    "polynomial(degree=3, offset=0.5)",
    "cosine",
    "rbf",
    "rbf(bandwidth=0.7)",
    "laplacian",
    "rational-quadratic",
    "rational-quadratic(alpha=0.5, bandwidth=2)",
    "linear + rbf",
    "0.5 * linear + rbf * laplacian",
    "rbf(bandwidth=2) * polynomial",
    "3 * cosine",
]


@pytest.fixture(params=TEXTS)
def kernel(request, points) -> Kernel:
    return parse(request.param).fit(points)


@pytest.fixture(scope="module")
def points():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x


def test_symmetric_and_positive_semi_definite(kernel, points):
    gram = kernel(points, points)
    torch.testing.assert_close(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-9


def test_diagonal(kernel, points):
    torch.testing.assert_close(kernel.diag(points), kernel(points, points).diagonal())


def test_squared_distance_is_the_expansion(kernel, points):
    x, y = points[:7], points[5:]
    expanded = kernel.diag(x)[:, None] + kernel.diag(y)[None] - 2 * kernel(x, y)
    torch.testing.assert_close(kernel.squared_distance(x, y), expanded.clamp_min(0), atol=1e-10, rtol=1e-8)


def test_distance_is_a_metric(kernel, points):
    """Theorem 3.1, on the image of the feature map: symmetric, zero on the diagonal, triangle inequality."""
    d = kernel.squared_distance(points, points).sqrt()
    torch.testing.assert_close(d, d.T)
    assert d.diagonal().abs().max() < 1e-6
    assert (d >= 0).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-9).all()


def test_distance_is_a_norm_of_features(kernel, points):
    """Theorem 3.2: D_K = d ∘ (φ × φ), with φ recovered from the eigen-decomposition of the Gram matrix (Mercer)."""
    values, vectors = torch.linalg.eigh(kernel(points, points))
    phi = vectors * values.clamp_min(0).sqrt()
    hilbert = (phi[:, None] - phi[None]).norm(dim=2)
    torch.testing.assert_close(kernel.squared_distance(points, points).sqrt(), hilbert, atol=1e-5, rtol=1e-5)


def test_gradient_is_finite_differences(kernel, points):
    x, y = points[:2].clone().requires_grad_(), points[4:7]
    torch.autograd.gradcheck(lambda v: kernel.distance(v, y), (x,), eps=1e-6, atol=1e-6)


def test_gradient_is_finite_at_the_same_point(kernel, points):
    x = points[:3].float().requires_grad_()
    (gradient,) = torch.autograd.grad(kernel.distance(x, x.detach()).sum(), x)
    assert torch.isfinite(gradient).all()


def test_close_points_in_float32_keep_their_distance():
    """x·x + y·y − 2x·y returns 0 here; the norm of the difference does not."""
    x = torch.full((1, 20_000), 3.0)
    y = x + 1e-3
    naive = (x @ x.T + y @ y.T - 2 * x @ y.T).clamp_min(0).sqrt().item()
    true = 1e-3 * 20_000**0.5
    assert abs(naive - true) > 0.05 * true
    assert Linear().distance(x, y).item() == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("text", ["rbf", "polynomial(degree=3)", "rbf * linear", "cosine"])
def test_close_points_beyond_the_linear_kernel(text):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 500, generator=generator)
    y = x + 1e-4 * torch.randn(4, 500, generator=generator)
    kernel = parse(text).fit(x)
    exact = kernel.distance(x.double(), y.double()).diagonal()
    torch.testing.assert_close(kernel.distance(x, y).diagonal().double(), exact, rtol=5e-3, atol=1e-6)


def test_a_kernel_of_two_methods_works(points):
    class Mine(Kernel):
        def __call__(self, x, y):
            return (x @ y.T).exp()

        def diag(self, x):
            return x.square().sum(1).exp()

    x = points * 0.1
    d = Mine().distance(x, x)
    assert d.shape == (12, 12)
    assert d.diagonal().max() < 1e-5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rfb", "Did you mean 'rbf'"),
        ("rbf(width=2)", "bandwidth"),
        ("linear - rbf", "only names, numbers"),
        ("3", "is a number"),
        ("linear + 3", "only names"),
        ("rbf(bandwidth=-1)", "positive"),
        ("0 * linear", "positive number"),
        ("linear +", "is not an expression"),
        ("__import__('os')", "only names"),
        ("polynomial(degree=0)", "degree >= 1"),
    ],
)
def test_mistakes_are_explained(text, says):
    with pytest.raises(DapError, match=says.replace("(", r"\(")):
        parse(text)


def test_open_bandwidth_asks_for_a_fit():
    with pytest.raises(DapError, match="fit"):
        parse("rbf")(torch.zeros(1, 2), torch.zeros(1, 2))


def test_median_heuristic(points):
    fitted = parse("rbf").fit(points)
    assert fitted.bandwidth == pytest.approx(torch.pdist(points.float()).median().item())
    assert parse("rbf(bandwidth=2)").fit(points).bandwidth == 2


def test_kernel_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dap.kernels import Kernel\n"
        "class Twice(Kernel):\n"
        "    def __call__(self, x, y): return 2 * x @ y.T\n"
        "    def diag(self, x): return 2 * x.square().sum(1)\n"
    )
    x = torch.ones(1, 3)
    assert parse(f"{file}:Twice")(x, x).item() == 6
    with pytest.raises(DapError, match="Twice"):
        parse(f"{file}:Twcie")
    with pytest.raises(DapError, match="No file"):
        parse(f"{tmp_path}/none.py:Twice")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1e999 * linear", "character 1, '1e999': a number is at most"),
        ("linear + 1e13 * rbf", "character 10, '1e13'"),
        ("-1 * linear", "character 1, '-1': only names"),
        ("linear / 2", "write 0.5 \\* linear for linear / 2"),
        ("rbf(bandwidth=1e999)", "character 15"),
        ("rbf(bandwidth=-3)", "must be positive"),
        ("polynomial(degree=1e300)", "character 19"),
        ("polynomial(degree=True)", "a parameter is a number"),
        ("polynomial(degree='2')", "a parameter is a number"),
        ("0 * linear", "only be scaled by a positive number"),
        ("(" * 10_000, "more than 1000 characters"),
        ("(" * 300 + "linear" + ")" * 300, "is not an expression"),
        (" + ".join(["linear"] * 60), "combines more than 40 parts"),
        ("linear\0", "is not an expression"),
        ("\ud800", "is not an expression"),
        ("__import__('os')", "only names"),
        ("nan * linear", "Unknown kernel 'nan'"),
        ("9" * 900, "a number is at most"),
    ],
)
def test_an_expression_that_is_no_kernel_is_a_sentence_that_points_at_the_place(text, says):
    with pytest.raises(DapError, match=says) as caught:
        parse(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_an_open_bandwidth_may_be_said():
    assert parse("rbf(bandwidth=None)") == parse("rbf") and parse("2 * rbf(bandwidth=+3)").a.bandwidth == 3
