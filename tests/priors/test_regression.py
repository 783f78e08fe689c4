"""Closed forms and statistics of the regression priors, designs, kernels and mixtures of priors."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.stats
import sklearn.gaussian_process.kernels as reference
import torch
from checks import rejected
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from priors import BayesianLinear, GaussianProcess, GaussianProcessMixture, PriorMixture, RandomNetwork, Task
from priors.checks import check_counts, check_positive
from priors.designs import choose, draw_inputs
from priors.kernels import correlation, gram, safe_cholesky, scaled_distance

DESIGNS = ("uniform", "gaussian", "clustered", "mixed")
KERNELS = ("rbf", "matern12", "matern32", "matern52")
FIXED = [
    BayesianLinear(2, 1.5, 0.5, 0.1),
    GaussianProcess(1, 0.3, 0.01, 2.0, "rbf"),
    GaussianProcess(2, (0.2, 0.6), 0.1, 0.5, "matern32", "clustered"),
]
ALL = [
    *FIXED,
    GaussianProcessMixture(3),
    GaussianProcessMixture((1, 4), "gamma", ("rbf", "matern12"), "gaussian"),
    RandomNetwork(2),
    RandomNetwork((1, 3), classes=4),
    RandomNetwork(2, classes=3, link="threshold"),
    PriorMixture((BayesianLinear(1), RandomNetwork(3))),
]


def source(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def tensor64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def uniform_pvalue(values: Tensor, law) -> float:
    return float(scipy.stats.kstest(values.flatten().double().numpy(), law.cdf).pvalue)


class TestEveryPrior:
    @pytest.mark.parametrize("prior", ALL, ids=repr)
    def test_the_same_generator_state_gives_the_same_bits_and_nothing_else_matters(self, prior):
        first, state = prior.sample(4, 6, generator=source()), torch.get_rng_state()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            second = prior.sample(4, 6, generator=source())
        finally:
            torch.set_default_dtype(before)
        assert torch.equal(torch.get_rng_state(), state)
        for a, b in ((first.x, second.x), (first.y, second.y)):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        other = prior.sample(4, 6, generator=source(1))
        assert first.x.shape != other.x.shape or not torch.equal(first.x, other.x)

    @pytest.mark.parametrize("prior", ALL, ids=repr)
    def test_shapes_and_values(self, prior):
        task = prior.sample(5, 7, generator=source())
        assert isinstance(task, Task)
        assert task.prior is prior
        assert task.x.shape[:2] == task.y.shape == (5, 7)
        assert task.x.dtype == torch.float32
        assert torch.isfinite(task.x).all()
        assert torch.isfinite(task.y).all()
        assert prior.sample(1, 1, generator=source()).y.shape == (1, 1)

    @pytest.mark.parametrize("prior", ALL, ids=repr)
    @pytest.mark.parametrize(("name", "value"), [("batch", 0), ("rows", -1), ("rows", 2.5), ("batch", True)])
    def test_bad_counts_are_rejected(self, prior, name, value):
        with rejected(f"{name} must be a positive integer"):
            prior.sample(**({"batch": 2, "rows": 3} | {name: value}), generator=source())

    def test_numpy_integers_are_counts(self):
        check_counts(batch=np.int64(2), rows=np.int32(3))
        check_positive(noise=np.float32(0.5))


def brute_force(prior, x: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Condition the joint normal of all noisy targets by the precision matrix, a route that shares no code."""
    both = torch.cat([x, query], -2)
    n, m = x.shape[-2], query.shape[-2]
    joint = prior.covariance(both, both) + prior.noise * torch.eye(n + m, dtype=x.dtype)
    precision = torch.linalg.inv(joint)
    covariance = torch.linalg.inv(precision[..., n:, n:])
    return -(covariance @ precision[..., n:, :n] @ y.unsqueeze(-1)).squeeze(-1), covariance


@pytest.mark.parametrize("prior", FIXED, ids=repr)
class TestFixedPriors:
    def test_sample_moments_equal_the_covariance(self, prior):
        # y = L z with K = L L^T given x: whitened, all targets are N(0, 1). 3 tests at a level of 1e-6
        task = prior.sample(2000, 6, generator=source())
        covariance = prior.covariance(task.x.double(), task.x.double()) + prior.noise * torch.eye(
            6, dtype=torch.float64
        )
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), task.y.double().unsqueeze(-1), upper=False
        ).squeeze(-1)
        law = scipy.stats.norm()
        assert uniform_pvalue(white, law) > 1e-6
        for wrong in (white / 2, white * 2, white + 0.5):
            assert uniform_pvalue(wrong, law) < 1e-6
        # 15 correlations of 2000 pairs at 6 standard errors: 3e-8
        correlations = torch.corrcoef(white.T) - torch.eye(6)
        assert correlations.abs().max() < 6 / math.sqrt(2000)
        raw = torch.corrcoef(task.y.double().T) - torch.eye(6)
        assert raw.abs().max() > 6 / math.sqrt(2000)  # unwhitened targets do hang together

    def test_variance_is_the_diagonal_of_the_covariance(self, prior):
        x = prior.sample(3, 5, generator=source()).x.double()
        torch.testing.assert_close(prior.variance(x), prior.covariance(x, x).diagonal(dim1=-2, dim2=-1))

    def test_posterior_is_the_conditioned_joint_normal(self, prior):
        task = prior.sample(3, 9, generator=source())
        x, y, query = task.x[:, :5].double(), task.y[:, :5].double(), task.x[:, 5:].double()
        mean, covariance = brute_force(prior, x, y, query)
        joint, marginal = prior.posterior(x, y).joint(query), prior.posterior(x, y).predict(query)
        torch.testing.assert_close(joint.mean, mean, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(joint.covariance_matrix, covariance, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(marginal.mean, mean, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(marginal.variance, covariance.diagonal(dim1=-2, dim2=-1), atol=1e-9, rtol=1e-7)

    def test_posterior_without_rows_is_the_prior(self, prior):
        x = prior.sample(3, 5, generator=source()).x.double()
        empty = prior.posterior(x[:, :0], x[:, :0, 0])
        expected = prior.covariance(x, x) + prior.noise * torch.eye(5, dtype=torch.float64)
        torch.testing.assert_close(empty.joint(x).covariance_matrix, expected)
        torch.testing.assert_close(empty.joint(x).mean, torch.zeros(3, 5, dtype=torch.float64))
        torch.testing.assert_close(empty.predict(x).variance, expected.diagonal(dim1=-2, dim2=-1))

    def test_posterior_of_one_data_set_predicts_batches_of_queries(self, prior):
        task = prior.sample(3, 6, generator=source())
        posterior = prior.posterior(task.x[0], task.y[0])
        batched = posterior.predict(task.x)
        for k in range(3):
            torch.testing.assert_close(batched.mean[k], posterior.predict(task.x[k]).mean)
            torch.testing.assert_close(posterior.joint(task.x).mean[k], posterior.joint(task.x[k]).mean)

    def test_posterior_is_calibrated_on_its_own_draws(self, prior):
        # 1 test at a level of 1e-6; a posterior with another noise fails it
        task = prior.sample(3000, 8, generator=source())
        marginal = prior.posterior(task.x[:, :7], task.y[:, :7]).predict(task.x[:, 7:])
        z = (task.y[:, 7:] - marginal.mean) / marginal.stddev
        assert uniform_pvalue(z, scipy.stats.norm()) > 1e-6
        assert uniform_pvalue(z / 2, scipy.stats.norm()) < 1e-6

    def test_posterior_needs_one_target_a_row(self, prior):
        task = prior.sample(3, 6, generator=source())
        for wrong in (task.y[:, :5], task.y.unsqueeze(-1), task.y[0]):
            with rejected("y must have one value for each row of x"):
                prior.posterior(task.x, wrong)


def test_linear_targets_are_the_line_plus_noise():
    prior = BayesianLinear(3, 2.0, 0.5, 0.04)
    task = prior.sample(4000, 5, generator=source())
    residual = (
        task.y - (task.x @ task.theta["weights"].unsqueeze(-1)).squeeze(-1) - task.theta["intercept"].unsqueeze(-1)
    )
    # 3 tests at a level of 1e-6 each
    assert uniform_pvalue(residual, scipy.stats.norm(0, 0.2)) > 1e-6
    assert uniform_pvalue(task.theta["weights"], scipy.stats.norm(0, math.sqrt(2))) > 1e-6
    assert uniform_pvalue(task.theta["intercept"], scipy.stats.norm(0, math.sqrt(0.5))) > 1e-6


class TestKernels:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("lengthscale", [(0.7,), (0.3, 1.1, 4.0)])
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_matches_scikit_learn(self, kernel, lengthscale, batch):
        features, nu = len(lengthscale), {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
        theirs = reference.RBF(lengthscale) if kernel == "rbf" else reference.Matern(lengthscale, nu=nu[kernel])
        a = torch.rand(*batch, 5, features, generator=source(), dtype=torch.float64)
        b = torch.rand(*batch, 4, features, generator=source(1), dtype=torch.float64)
        ours = gram(kernel, a, b, tensor64(lengthscale), 2.5)
        for place in itertools.product(*map(range, batch)):
            np.testing.assert_allclose(ours[place], 2.5 * theirs(a[place].numpy(), b[place].numpy()), rtol=1e-9)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_correlation_is_one_at_zero_with_a_finite_gradient(self, kernel):
        squared = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        value = correlation(kernel, squared)
        assert value.item() == pytest.approx(1)
        assert torch.isfinite(torch.autograd.grad(value.sum(), squared)[0]).all()

    def test_batched_and_unbatched_rows_mix(self):
        a = torch.rand(3, 5, 2, generator=source(), dtype=torch.float64)
        b = torch.rand(4, 2, generator=source(1), dtype=torch.float64)
        expected = torch.cdist(a, b.expand(3, 4, 2)).square()
        torch.testing.assert_close(scaled_distance(a, b, tensor64(1.0)), expected)
        torch.testing.assert_close(scaled_distance(b, a, tensor64(1.0)), expected.mT)
        torch.testing.assert_close(
            scaled_distance(a[:1], a, tensor64(1.0)), torch.cdist(a[:1].expand(3, 5, 2), a).square()
        )

    def test_an_irrelevant_feature_does_not_matter(self):
        prior = GaussianProcess(2, (0.3, 1e6))
        x = torch.rand(1, 5, 2, generator=source(), dtype=torch.float64)
        alone = GaussianProcess(1, 0.3).covariance(x[..., :1], x[..., :1])
        torch.testing.assert_close(prior.covariance(x, x), alone, atol=1e-9, rtol=1e-9)

    def test_safe_cholesky(self):
        good = torch.eye(3) + 0.5
        torch.testing.assert_close(safe_cholesky(good), torch.linalg.cholesky(good))
        singular = torch.ones(2, 3, 3)
        factor = safe_cholesky(singular)
        torch.testing.assert_close(factor @ factor.mT, singular, atol=1e-5, rtol=0)
        with rejected("1 of 2 covariance matrices are not positive definite"):
            safe_cholesky(torch.stack([torch.eye(3), -torch.eye(3)]))


class TestMixtureOfProcesses:
    # Every Kolmogorov-Smirnov test here runs at a level of 1e-6 on 5000 draws; 9 of them, failure rate 1e-5.

    @pytest.mark.parametrize("features", [1, 4])
    def test_botorch_recipe(self, features):
        draws = GaussianProcessMixture(features).hyperparameters(5000, features, source())
        assert draws["lengthscale"].shape == (5000, features)
        law = scipy.stats.lognorm(math.sqrt(3), scale=math.exp(math.sqrt(2) + math.log(features) / 2))
        assert uniform_pvalue(draws["lengthscale"], law) > 1e-6
        assert uniform_pvalue(draws["lengthscale"] * 1.5, law) < 1e-6
        assert draws["noise"].min() >= 1e-4
        assert uniform_pvalue(draws["noise"], scipy.stats.lognorm(1, scale=math.exp(-4))) > 1e-6
        assert (draws["variance"] == 1).all()

    def test_gamma_recipe(self):
        draws = GaussianProcessMixture(3, "gamma").hyperparameters(5000, 3, source())
        assert (draws["lengthscale"] == draws["lengthscale"][:, :1]).all()
        for name, shape, rate, least in (
            ("lengthscale", 3, 6, 1e-3),
            ("variance", 0.5, 0.15, 1e-4),
            ("noise", 1.1, 0.05, 1e-4),
        ):
            values = draws[name][:, 0]
            assert values.min() >= np.float32(least)
            law = scipy.stats.gamma(shape, scale=1 / rate)
            above = values > np.float32(least)  # what was raised to the floor has lost its place, so test the rest
            conditional = (law.cdf(values[above].double()) - law.cdf(least)) / law.sf(least)
            assert scipy.stats.kstest(conditional, "uniform").pvalue > 1e-6
            assert scipy.stats.kstest(conditional**1.3, "uniform").pvalue < 1e-6

    def test_every_kernel_comes_as_often(self):
        kernel = GaussianProcessMixture(kernels=KERNELS[:3]).hyperparameters(3000, 1, source())["kernel"]
        assert scipy.stats.chisquare(torch.bincount(kernel, minlength=3)).pvalue > 1e-6

    @pytest.mark.parametrize("recipe", ["botorch", "gamma"])
    @pytest.mark.parametrize("kernels", [("rbf",), KERNELS])
    def test_targets_given_the_hyperparameters(self, recipe, kernels):
        # whitened by their own covariance, targets are standard normal: 4 tests at a level of 1e-6
        task = GaussianProcessMixture(2, recipe, kernels).sample(2000, 5, generator=source())
        white = torch.empty(2000, 5, dtype=torch.float64)
        for b in range(2000):
            theta = {name: values[b].double() for name, values in task.theta.items()}
            x = task.x[b].double()
            k = gram(kernels[int(theta["kernel"])], x, x, theta["lengthscale"], theta["variance"].item())
            factor = torch.linalg.cholesky(k + theta["noise"] * torch.eye(5, dtype=torch.float64))
            white[b] = torch.linalg.solve_triangular(factor, task.y[b].double().unsqueeze(-1), upper=False).squeeze(-1)
        assert uniform_pvalue(white, scipy.stats.norm()) > 1e-6
        assert uniform_pvalue(white * 1.2, scipy.stats.norm()) < 1e-6

    def test_every_data_set_has_hyperparameters_of_its_own(self):
        theta = GaussianProcessMixture(2).sample(50, 3, generator=source()).theta
        assert len(theta["lengthscale"].unique()) == 100
        assert len(theta["noise"].unique()) > 45

    def test_feature_ranges_are_drawn_anew_for_each_batch(self):
        generator, prior = source(), GaussianProcessMixture((2, 4))
        widths = [prior.sample(1, 2, generator=generator).x.shape[-1] for _ in range(60)]
        assert set(widths) == {2, 3, 4}  # one is missed with probability 8e-11


class TestDesigns:
    # Tests at a level of 1e-6 each.

    def test_uniform(self):
        assert uniform_pvalue(draw_inputs("uniform", 20, 50, 3, source()), scipy.stats.uniform()) > 1e-6

    def test_gaussian(self):
        x = draw_inputs("gaussian", 20, 50, 3, source())
        assert uniform_pvalue(x, scipy.stats.norm(0.5, 0.25)) > 1e-6
        assert uniform_pvalue(x, scipy.stats.norm(0.5, 0.35)) < 1e-6

    def test_clustered(self):
        # rows crowd: nearest neighbours sit much closer than uniform ones
        x = draw_inputs("clustered", 300, 64, 4, source())
        near = torch.cdist(x, x) + 9 * torch.eye(64)
        even = draw_inputs("uniform", 300, 64, 4, source())
        assert near.amin(-1).median() < 0.6 * (torch.cdist(even, even) + 9 * torch.eye(64)).amin(-1).median()
        # all data sets differ in spread: the tightest tenth and the widest tenth lie as far apart as LogN(., 0.5) says
        spread = near.amin(-1).median(-1).values.log()
        assert 0.3 < spread.std() < 0.8

    def test_clustered_draws_two_to_six_clusters(self):
        # in 50 dimensions, clusters lie about 2.9 apart and the rows of the tighter ones within 1.2 of a neighbour
        counts = torch.zeros(8)
        for x in draw_inputs("clustered", 400, 64, 50, source()):
            near = (torch.cdist(x, x) + 9 * torch.eye(64)).amin(-1)
            if near.max() < 1.2:
                tree = scipy.cluster.hierarchy.linkage(x.numpy(), "single")
                counts[int(scipy.cluster.hierarchy.fcluster(tree, 1.9, "distance").max())] += 1
        assert counts.sum() > 200
        assert counts[2:7].sum() == counts.sum()
        assert scipy.stats.chisquare(counts[2:7]).pvalue > 1e-6

    def test_clustered_centres_fill_the_cube(self):
        x = draw_inputs("clustered", 2000, 1, 1, source())  # one row each: a uniform centre plus the spread
        assert x.mean().item() == pytest.approx(0.5, abs=6 * 0.31 / math.sqrt(2000))
        assert x.std().item() == pytest.approx(math.sqrt(1 / 12 + math.exp(-5 + 0.5)), abs=0.03)

    def test_mixed_draws_all_three(self):
        x = draw_inputs("mixed", 3000, 64, 1, source()).squeeze(-1)
        inside = ((x >= 0) & (x <= 1)).all(-1).double().mean().item()
        # of each third, all uniform data sets stay inside, 0.954^64 of the gaussian ones, some of the clustered ones
        clustered = draw_inputs("clustered", 3000, 64, 1, source(1)).squeeze(-1)
        share = ((clustered >= 0) & (clustered <= 1)).all(-1).double().mean().item()
        assert inside == pytest.approx((1 + share + 0.954**64) / 3, abs=6 * 0.5 / math.sqrt(3000) + 0.005)

    def test_choose(self):
        options = [torch.full((4, 2), float(k)) for k in range(3)]
        assert choose(options, torch.tensor([2, 0, 1, 2]))[:, 0].tolist() == [2, 0, 1, 2]


@dataclass(frozen=True)
class Constant:
    """Data sets whose targets are all `value`, in its dtype."""

    value: Tensor
    features: int = 1
    kind: torch.dtype = torch.float32

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        return Task(torch.ones(batch, rows, self.features, dtype=self.kind), self.value.expand(batch, rows))


class TestMixtureOf:
    def test_weights_are_honoured(self):
        # a chi-square test at a level of 1e-6
        prior = PriorMixture(tuple(Constant(torch.tensor(k)) for k in range(3)), (1.0, 0.0, 3.0))
        task = prior.sample(4000, 1, generator=source())
        counts = torch.bincount(task.y[:, 0], minlength=3).numpy()
        assert counts[1] == 0
        assert scipy.stats.chisquare(counts[[0, 2]], [1000, 3000]).pvalue > 1e-6
        assert scipy.stats.chisquare(counts[[0, 2]], [2000, 2000]).pvalue < 1e-6
        assert torch.equal(task.theta["member"], task.y[:, 0])

    def test_weights_are_equal_when_left_out(self):
        task = PriorMixture((Constant(torch.tensor(0)), Constant(torch.tensor(1)))).sample(4000, 1, generator=source())
        assert scipy.stats.chisquare(torch.bincount(task.y[:, 0])).pvalue > 1e-6

    def test_huge_weights_do_not_overflow(self):
        prior = PriorMixture((Constant(torch.tensor(0)), Constant(torch.tensor(1))), (1e300, 1e-300))
        assert (prior.sample(50, 1, generator=source()).y == 0).all()

    def test_narrower_priors_are_padded_with_zeros(self):
        prior = PriorMixture((Constant(torch.tensor(0.0), 1), Constant(torch.tensor(1.0), 3)))
        task = prior.sample(40, 2, generator=source())
        assert task.x.shape == (40, 2, 3)
        narrow = task.theta["member"] == 0
        assert (task.x[narrow] == torch.tensor([1.0, 0.0, 0.0])).all()
        assert (task.x[~narrow] == 1).all()

    def test_integer_targets_stay_integer(self):
        task = PriorMixture((RandomNetwork(1, classes=3), RandomNetwork(2, classes=2))).sample(
            20, 4, generator=source()
        )
        assert task.y.dtype == torch.int64

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_all_dtypes_are_promoted_wherever_they_stand(self, order):
        exact = 1 + 2.0**-40  # one in float32
        parts = [
            Constant(torch.tensor(7)),
            Constant(tensor64(exact), kind=torch.float64),
            Constant(torch.tensor(0.5)),
        ]
        task = PriorMixture(tuple(parts[k] for k in order)).sample(60, 2, generator=source())
        assert task.y.dtype == task.x.dtype == torch.float64
        assert set(task.y.flatten().tolist()) == {7.0, exact, 0.5}

    @pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0), (math.inf, 1.0), ("a", 1.0)])
    def test_bad_weights_are_rejected(self, weights):
        with rejected("weights must be"):
            PriorMixture((Constant(torch.tensor(0.0)), Constant(torch.tensor(1.0))), weights)

    def test_no_priors_are_rejected(self):
        with rejected("priors must hold at least one prior"):
            PriorMixture(())


NOT_POSITIVE = st.one_of(
    st.floats(max_value=0), st.just(math.nan), st.just(math.inf), st.just("1"), st.none(), st.booleans()
)
NOT_COUNTS = st.one_of(st.integers(max_value=0), st.floats(), st.booleans(), st.none(), st.just("2"))


class TestBadArguments:
    @settings(max_examples=60, deadline=None)
    @given(value=NOT_POSITIVE, choice=st.sampled_from(
        [(BayesianLinear, "weight_variance"), (BayesianLinear, "intercept_variance"), (BayesianLinear, "noise"),
         (GaussianProcess, "lengthscale"), (GaussianProcess, "noise"), (GaussianProcess, "variance_scale")]
    ))  # fmt: skip
    def test_values_that_are_not_positive(self, value, choice):
        make, name = choice
        with rejected(f"{name} must be positive and finite"):
            make(**{name: value})

    @settings(max_examples=60, deadline=None)
    @given(
        value=NOT_COUNTS, make=st.sampled_from([BayesianLinear, GaussianProcess, GaussianProcessMixture, RandomNetwork])
    )
    def test_features_that_are_not_counts(self, value, make):
        with rejected("features must be"):
            make(features=value)

    @pytest.mark.parametrize("make", [GaussianProcessMixture, RandomNetwork])
    @pytest.mark.parametrize("features", [(3, 2), (0, 2), (1, 2, 3), (1,), (1, 2.5), ()])
    def test_feature_ranges(self, make, features):
        with rejected("features must be"):
            make(features)

    @pytest.mark.parametrize("make", [BayesianLinear, GaussianProcess, GaussianProcessMixture, RandomNetwork])
    def test_designs(self, make):
        with rejected("design must be one of uniform, gaussian, clustered, mixed, got 'grid'"):
            make(design="grid")
        with rejected("design must be one of"):
            draw_inputs("grid", 1, 1, 1, source())

    def test_kernels_recipes_and_lengthscales(self):
        with rejected("kernel must be one of rbf"):
            GaussianProcess(kernel="cosine")
        with rejected("kernel must be one of rbf"):
            GaussianProcessMixture(kernels=("rbf", "cosine"))
        with rejected("kernels must name at least one"):
            GaussianProcessMixture(kernels=())
        with rejected("recipe must be"):
            GaussianProcessMixture(recipe="mine")
        for lengthscale in ((0.1, 0.2), ()):
            with rejected("lengthscale must be one number or 3 numbers"):
                GaussianProcess(3, lengthscale)

    def test_the_first_bad_one_is_named(self):
        with rejected("b must be a positive integer, got 0"):
            check_counts(a=1, b=0, c=0)
        with rejected("b must be positive and finite, got -1"):
            check_positive(a=1, b=-1)
