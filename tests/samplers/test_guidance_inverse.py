"""Linear inverse problems on Gaussian data, where the posterior is known, and the operators by their defining equations."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from samplers import Condition, Context, Heun, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, sample
from samplers.analytic import predict_as
from samplers.guidance import ClassifierFree, Posterior, Universal
from samplers.guidance.inverse import conjugate_gradients
from samplers.guidance.operators import Composed, LinearOperator, blur, check_adjoint, downsample, grey, keep

VE, VP, FLOW = VarianceExploding(0.002, 40.0), VariancePreserving.linear(), RectifiedFlow()
PATHS = pytest.mark.parametrize("path", [VE, VP, FLOW], ids=["VE", "VP", "flow"])


def eye(size):
    return torch.eye(size, dtype=torch.float64)


G = torch.Generator().manual_seed(3)
ROOT = torch.randn(4, 4, generator=G, dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T / 4 + 0.1 * eye(4)
MEAN = torch.tensor([0.5, -1.0, 0.2, 0.8], dtype=torch.float64)
A = torch.randn(2, 4, generator=G, dtype=torch.float64)
Y, NOISE = torch.tensor([[1.2, -0.7]], dtype=torch.float64), 0.3
MATRIX = LinearOperator(lambda x: x @ A.T, lambda y: y @ A, "matrix")


@dataclass(frozen=True)
class Correlated:
    """The exact denoiser of N(MEAN, COVARIANCE) data (B, 4), or of what is left of it given the measurement."""

    path: object
    kind: str = "x0"
    mean: torch.Tensor = MEAN
    covariance: torch.Tensor = COVARIANCE

    def __call__(self, x, level, condition, context):
        context.count(len(x))
        total = level.alpha**2 * self.covariance + level.sigma**2 * eye(4)
        off = torch.linalg.solve(total, (x - level.alpha * self.mean).T).T
        return predict_as(self.kind, self.path, x, level, self.mean + level.alpha * off @ self.covariance, level.sigma * off)


def posterior(operator=A, noise=NOISE, y=Y, prior=COVARIANCE):
    """(mean, covariance)."""
    gain = prior @ operator.T @ torch.linalg.inv(operator @ prior @ operator.T + noise**2 * eye(len(operator)))
    return MEAN + (y[0] - operator @ MEAN) @ gain.T, prior - gain @ operator @ prior


def points(count, seed=0):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@PATHS
@pytest.mark.parametrize("kind", ["x0", "v"])
def test_the_exact_form_is_the_denoiser_of_the_posterior(path, kind):
    mean, covariance = posterior()
    for logsnr in (-2.5, -0.5, 0.7, 3.0):
        level = path.at_logsnr(logsnr)
        x = math.hypot(level.alpha, level.sigma) * points(5)
        context = Context()
        ours = Posterior(Correlated(path, kind), MATRIX, Y, NOISE, "exact")(x, level, Condition(), context)
        exact = Correlated(path, mean=mean, covariance=covariance)(x, level, Condition(), Context())
        assert (ours.x0 - exact.x0).abs().max() < 1e-9 and context.evaluations == 5
        assert not ours.x0.requires_grad


def errors(field, expected, count=20_000, steps=40):
    """(mean error in posterior deviations, relative error of the covariance) of a run of the probability-flow ODE."""
    levels = get_grid("karras", VE, steps)
    with torch.no_grad():
        ends = sample(field, Heun(), levels[0].sigma * points(count), levels)
    mean, covariance = expected
    return ((ends.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max().item(), relative(ends.T.cov(), covariance)


def test_samples_of_the_exact_form_have_the_posterior_covariance_and_those_of_dps_do_not():
    """Both directions: the exact score within 0.1, DPS (the likelihood at D(x)) beyond 0.3 however fine the run."""
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior, noise, y = ROOT @ ROOT.T / 8 + 0.4 * eye(4), 0.5, torch.tensor([[1.2, -0.7, 0.4, 0.1]], dtype=torch.float64)
    operator, expected = LinearOperator(lambda x: x @ matrix.T, lambda v: v @ matrix), posterior(matrix, noise, y, prior)
    exact, pigdm = (Posterior(Correlated(VE, covariance=prior), operator, y, noise, kind) for kind in ("exact", "pigdm"))
    mean_error, covariance_error = errors(exact, expected)
    assert mean_error < 0.1 and covariance_error < 0.1
    dps = Universal(exact.denoiser, exact.log_likelihood)
    for steps in (40, 160):
        assert errors(dps, expected, 4000, steps)[1] > 0.3
    assert errors(exact, expected, 4000)[1] < 0.1 and errors(pigdm, expected, 4000)[1] < 0.1
    assert errors(exact, expected)[0] < errors(pigdm, expected)[0] < 0.5 < errors(dps, expected)[0]


@pytest.mark.parametrize("kind", ["pigdm", "exact"])
def test_white_data_make_pigdm_exact(kind):
    """For data of one standard deviation in all directions, C is r^2: both kinds are the posterior's denoiser."""
    s = 0.7
    white = Correlated(VP, covariance=s**2 * eye(4))
    gain = s**2 * A.T @ torch.linalg.inv(s**2 * A @ A.T + NOISE**2 * eye(2))
    exact = Correlated(VP, mean=MEAN + (Y[0] - A @ MEAN) @ gain.T, covariance=s**2 * eye(4) - s**2 * gain @ A)
    for logsnr in (-2.0, 1.0):
        level, x = VP.at_logsnr(logsnr), points(3)
        ours = Posterior(white, MATRIX, Y, NOISE, kind, spread=s)(x, level, Condition(), Context()).x0
        assert (ours - exact(x, level, Condition(), Context()).x0).abs().max() < 1e-10
        # there projection, which takes C to be r^2 outside too, agrees as well
        cheap = Posterior(white, MATRIX, Y, NOISE, "projection", spread=s)(x, level, Condition(), Context()).x0
        assert (cheap - ours).abs().max() < 1e-10


def test_an_exact_measurement_is_met():
    level = FLOW.at_logsnr(0.5)
    for kind in ("exact", "projection"):
        x0 = Posterior(Correlated(FLOW), MATRIX, Y, 0.0, kind)(points(6), level, Condition(), Context()).x0
        assert (x0 @ A.T - Y).abs().max() < 1e-5


def test_a_projection_keeps_what_the_mask_does_not_see():
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    level, x, y = VP.at_logsnr(0.0), points(4), torch.tensor([[3.0, 0.0, -2.0, 0.0]], dtype=torch.float64)
    plain = Correlated(VP)(x, level, Condition(), Context()).x0
    x0 = Posterior(Correlated(VP), keep(mask), y, 0.0, "projection")(x, level, Condition(), Context()).x0
    assert torch.equal(x0[:, 1::2], plain[:, 1::2]) and (x0[:, ::2] - y[:, ::2]).abs().max() < 1e-6


def test_where_nothing_is_to_be_done_the_denoiser_is_left_alone():
    denoiser = Correlated(FLOW, "v")
    for field, level in (
        (Posterior(denoiser, MATRIX, Y, weight=0.0), FLOW(0.4)),
        (Posterior(denoiser, MATRIX, Y, interval=(0.0, 9.0)), FLOW(0.9)),
        (Posterior(denoiser, MATRIX, Y), FLOW(1.0)),
        (Posterior(denoiser, MATRIX, Y), FLOW(0.0)),
    ):
        assert torch.equal(field(points(2), level, Condition(), Context()).raw, denoiser(points(2), level, None, Context()).raw)


PICTURE = torch.randn(2, 3, 8, 12, generator=G, dtype=torch.float64)


@pytest.mark.parametrize(
    "operator",
    [blur(0.8), blur(6.0), downsample(2), downsample(4), grey(), keep((PICTURE[:1, :1] > 0).double())],
    ids=["blur", "wide blur", "downsample", "by 4", "grey", "keep"],
)
def test_operators_are_linear_with_their_adjoint(operator):
    linear = operator.near(PICTURE)
    u, v = torch.randn_like(PICTURE), torch.randn_like(linear.value)
    assert (operator(2 * PICTURE - u) - 2 * operator(PICTURE) + operator(u)).abs().max() < 1e-12
    assert ((linear.apply(u) * v).sum() - (u * linear.adjoint(v)).sum()).abs() < 1e-10
    check_adjoint(linear, PICTURE, "operator")  # float64
    check_adjoint(operator.near(PICTURE.float()), PICTURE.float(), "operator")


def test_a_blur_is_a_convolution_and_keeps_brightness():
    radius, reach = 0.9, 3
    weights = torch.tensor([math.exp(-(i**2) / (2 * radius**2)) for i in range(-reach, reach + 1)], dtype=torch.float64)
    weights /= weights.sum()
    kernel = torch.outer(weights, weights).expand(3, 1, -1, -1)
    image = PICTURE[:, :, :, :8]
    symmetric = torch.cat([image[:, :, :reach].flip(2), image, image[:, :, -reach:].flip(2)], 2)
    symmetric = torch.cat([symmetric[..., :reach].flip(3), symmetric, symmetric[..., -reach:].flip(3)], 3)
    assert (blur(radius)(image) - F.conv2d(symmetric, kernel, groups=3)).abs().max() < 1e-12
    assert (blur(40.0)(torch.ones_like(PICTURE)) - 1).abs().max() < 1e-12


def test_downsample_averages_and_grey_weighs():
    assert (downsample(2)(PICTURE)[1, 2, 3, 1] - PICTURE[1, 2, 6:8, 2:4].mean()).abs() < 1e-14
    red, green, blue = PICTURE.unbind(1)
    assert (grey()(PICTURE)[:, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() < 1e-14


def test_a_wrong_adjoint_is_found_at_the_first_use():
    wrong = LinearOperator(lambda x: x @ A.T, lambda y: 1.01 * y @ A, "mine")
    with pytest.raises(ValueError, match="The adjoint of mine is not one"):
        Posterior(Correlated(VP), wrong, Y)(points(2), VP.at_logsnr(0.0), Condition(), Context())
    with pytest.raises(ValueError, match="it must give back \\(2, 4\\)"):
        LinearOperator(lambda x: x @ A.T, lambda y: y, "mine").near(points(2))
    counted = []
    right = LinearOperator(lambda x: counted.append(1) or x @ A.T, lambda y: y @ A)
    for _ in range(3):
        right.near(points(2))
    assert len(counted) == 4  # three values and one test


def test_an_adjoint_left_out_is_made():
    made = LinearOperator(lambda x: x @ A.T).near(points(2))
    y = torch.randn(2, 2, dtype=torch.float64)
    assert (made.adjoint(y) - y @ A).abs().max() < 1e-14


def test_an_operator_behind_a_decoder_is_linearised():
    """Against the Jacobian of the whole, by autograd in one piece."""

    def decoder(z):
        return (z @ ROOT).tanh() + 0.1 * z**3

    z, operator = points(1), Composed(MATRIX, decoder)
    linear = operator.near(z)
    jacobian = torch.autograd.functional.jacobian(lambda v: operator(v[None])[0], z[0])
    u, v = points(1, 5), torch.randn(1, 2, dtype=torch.float64)
    assert (linear.value - decoder(z) @ A.T).abs().max() < 1e-14
    assert (linear.apply(u) - u @ jacobian.T).abs().max() < 1e-12
    assert (linear.adjoint(v) - v @ jacobian).abs().max() < 1e-12
    # one Gauss-Newton step of the projection: z + r^2 J^T (r^2 J J^T + s^2)^-1 (y - A dec z)
    level = VP.at_logsnr(0.3)
    x0 = Correlated(VP)(z, level, Condition(), Context()).x0
    jacobian = torch.autograd.functional.jacobian(lambda v: operator(v[None])[0], x0[0])
    gain = level.sigma**2 * jacobian.T @ torch.linalg.inv(level.sigma**2 * jacobian @ jacobian.T + NOISE**2 * eye(2))
    expected = x0 + (Y - operator(x0)) @ gain.T
    ours = Posterior(Correlated(VP), operator, Y, NOISE, "projection")(z, level, Condition(), Context()).x0
    assert (ours - expected).abs().max() < 1e-10


def test_conjugate_gradients_solve_every_row_on_its_own():
    matrices = torch.randn(3, 5, 5, generator=G, dtype=torch.float64)
    matrices = matrices @ matrices.mT + torch.tensor([1.0, 1e-3, 10.0])[:, None, None] * eye(5)
    right = torch.randn(3, 5, generator=G, dtype=torch.float64)
    right[2] = 0

    def system(u):
        return (matrices @ u[..., None])[..., 0]

    solution = conjugate_gradients(system, right, 60)
    assert (system(solution) - right).abs().max() < 1e-9 and torch.equal(solution[2], torch.zeros(5, dtype=torch.float64))
    assert torch.equal(conjugate_gradients(lambda u: -u, right, 5), torch.zeros_like(right))  # not positive: stays


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "best"}, "exact, pigdm, projection"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"spread": 0.0}, "above 0"),
        ({"iterations": 0}, "iterations=0"),
        ({"measurement": Y * math.nan}, "finite floats"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Posterior(Correlated(VP), MATRIX, **{"measurement": Y, **options})


def test_a_measurement_of_another_shape_is_refused():
    field = Posterior(Correlated(VP), MATRIX, points(1))
    with pytest.raises(ValueError, match="has shape \\(1, 4\\), but the operator makes \\(2, 2\\)"):
        field(points(2), VP.at_logsnr(0.0), Condition(), Context())
    with pytest.raises(ValueError, match="not divisible by the factor 5"):
        downsample(5)(PICTURE)
    for make in (lambda: downsample(0), lambda: blur(0.0), lambda: blur(math.nan)):
        with pytest.raises(ValueError, match="got the"):
            make()


@dataclass(frozen=True)
class Labelled:
    """`Correlated` data with a label, broad ones about 0 without."""

    path: object = VP

    def __call__(self, x, level, condition, context):
        found = [Correlated(VP)(x, level, condition, context).x0, 4 * level.alpha * x / (4 * level.alpha**2 + level.sigma**2)]
        x0 = torch.where((condition.label >= 0)[:, None], *found)
        return predict_as("x0", VP, x, level, x0, (x - level.alpha * x0) / level.sigma)


def test_under_guidance_the_covariance_is_the_conditional_one():
    level, x, labels = VP.at_logsnr(-1.0), points(3), Condition(label=torch.zeros(3, dtype=torch.long))
    field = ClassifierFree(Labelled(), 3.0)
    found = Posterior(field, MATRIX, Y, NOISE, "exact")(x, level, labels, Context()).x0
    total = level.alpha**2 * COVARIANCE + level.sigma**2 * eye(4)
    left = COVARIANCE - level.alpha**2 * COVARIANCE @ torch.linalg.solve(total, COVARIANCE)  # of x0 given x_t
    gain = left @ A.T @ torch.linalg.inv(A @ left @ A.T + NOISE**2 * eye(2))
    guided = field(x, level, labels, Context()).x0
    torch.testing.assert_close(found, guided + (Y - guided @ A.T) @ gain.T, rtol=0, atol=1e-10)
