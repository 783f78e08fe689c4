"""Posteriors as BoTorch models, so that its acquisition functions and `optimize_acqf` run on them."""

from typing import Any, Self

import torch
from torch import Tensor

from bayesvision.core.roles import Amortized, Conditionable, Joint, Posterior
from bayesvision.distributions import Bar, Continuous, Mixture
from bayesvision.integrations import needs

with needs("botorch"):
    from botorch.acquisition import AnalyticAcquisitionFunction
    from botorch.acquisition.objective import PosteriorTransform, ScalarizedPosteriorTransform
    from botorch.models.model import Model
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors import Posterior as BotorchPosterior
    from botorch.sampling import IIDNormalSampler, SobolQMCNormalSampler
    from botorch.sampling.get_sampler import GetSampler
    from botorch.utils.transforms import t_batch_mode_transform
    from gpytorch.distributions import MultivariateNormal
    from torch.quasirandom import SobolEngine

__all__ = ["MarginalPosterior", "PredictiveLogEI", "PredictiveModel"]


class MarginalPosterior(BotorchPosterior):
    """Marginals of one output at points [*batch, q], as `predict` returns them, moved by offset + weight y.

    Draws at different points are independent given the data: base samples z are normal, and a draw is the quantile
    F^-1(Phi(z)) of its marginal, whose derivative is -dF / f wherever the families states it or not.

    Attributes:
        law: the marginals.
        weight, offset: of an affine objective, such as weight -1 to minimise.
    """

    def __init__(self, law: Continuous, weight: float = 1.0, offset: float = 0.0) -> None:
        self.law, self.weight, self.offset = law, weight, offset

    @property
    def device(self) -> torch.device:
        """Where the predictions are."""
        return self.law.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the predictions."""
        return self.law.mean.dtype

    @property
    def base_sample_shape(self) -> torch.Size:
        """[*batch, q, 1]."""
        return torch.Size((*self.law.batch_shape, 1))

    @property
    def batch_range(self) -> tuple[int, int]:
        """The batch axes of `base_sample_shape`, which share their base samples."""
        return (0, -2)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return sample_shape + self.base_sample_shape

    @property
    def mean(self) -> Tensor:  # [*batch, q, 1]
        return (self.offset + self.weight * self.law.mean).unsqueeze(-1)

    @property
    def variance(self) -> Tensor:  # [*batch, q, 1], noise included
        return (self.weight**2 * self.law.variance).unsqueeze(-1)

    def quantile(self, value: Tensor) -> Tensor:
        """Quantiles [*levels, *batch, q, 1]."""
        value = torch.as_tensor(value)
        found = self.law.quantile(value if self.weight > 0 else 1 - value)
        return (self.offset + self.weight * found).unsqueeze(-1)

    def density(self, value: Tensor) -> Tensor:
        """Densities at values that broadcast with [*batch, q, 1]."""
        y = (value.squeeze(-1) - self.offset) / self.weight
        return (self.law.log_prob(y).exp() / abs(self.weight)).unsqueeze(-1)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Draws [*sample_shape, *batch, q, 1] from standard normal base samples of that shape."""
        u = torch.special.ndtr(base_samples.squeeze(-1).double())
        u = u.clamp(torch.finfo(torch.float64).tiny, 1 - torch.finfo(torch.float64).eps)
        with torch.no_grad():
            y = self.law.icdf(u).to(self.dtype)
            density = self.law.log_prob(y).exp().clamp(min=torch.finfo(self.dtype).tiny)
        below = self.law.cdf(y)
        y = y - (below - below.detach()) / density  # implicit differentiation of F(y; parameters) = u
        return (self.offset + self.weight * y).unsqueeze(-1)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws [*sample_shape, *batch, q, 1], with gradients."""
        shape = self._extended_shape(torch.Size() if sample_shape is None else sample_shape)
        return self.rsample_from_base_samples(shape, torch.randn(shape, device=self.device, dtype=self.dtype))


@GetSampler.register(MarginalPosterior)
def _sampler(
    posterior: MarginalPosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> SobolQMCNormalSampler | IIDNormalSampler:
    """Sobol points as far as they go, as for BoTorch's own posteriors."""
    kind = SobolQMCNormalSampler if posterior.law.batch_shape[-1] <= SobolEngine.MAXDIM else IIDNormalSampler
    return kind(sample_shape, seed=seed)


class PredictiveModel(Model):
    """Any posterior that predicts one number, as a BoTorch model.

    It predicts observations: noise is included, whatever `observation_noise` says, because no posterior but a
    Gaussian process's could take it out. Where the posterior is `Joint` (GP, DKM), q points are jointly normal;
    elsewhere (PFN and others) they are independent given the data, so of several candidates at once each is good by
    itself, and they may lie close together: condition on one before asking for the next. No gradient runs through
    what is conditioned on, so acquisition functions that look ahead (knowledge gradients) are not for it. BoTorch
    maximises: negate targets that are to be small.

    Example:
        >>> model = PredictiveModel(bv.pretrained("pfn-gp").condition(X, y))
        >>> optimize_acqf(PredictiveLogEI(model, best_f=y.max()), bounds, q=1, num_restarts=8, raw_samples=128)

    Args:
        posterior: conditioned on what was observed.

    Raises:
        TypeError: `posterior` is no posterior.
    """

    def __init__(self, posterior: Any) -> None:
        super().__init__()
        if not isinstance(posterior, Posterior):
            raise TypeError(
                f"posterior must be what fit or condition returned, got {type(posterior).__name__}; "
                "bv.GP().fit(bv.Data(X, y)), for example"
            )
        self.predictive = posterior
        seen: Any = posterior.x if isinstance(posterior, Amortized) and posterior.rows else None
        self._batch = torch.Size() if seen is None else seen.shape[:-2]

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of what it was conditioned on."""
        return self._batch

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
        **_: Any,
    ) -> Any:
        """Predictions at the points X [*batch, q, d], with gradients to them.

        Raises:
            ValueError: an output that is not there, classes in place of numbers, or what `predict` refuses.
        """
        if output_indices is not None and list(output_indices) != [0]:
            raise ValueError(f"output_indices must be [0], the model has one output, got {output_indices}")
        if isinstance(self.predictive, Joint):
            joint = self.predictive.joint(X)
            found: Any = GPyTorchPosterior(MultivariateNormal(joint.mean, joint.covariance_matrix))
            return found if posterior_transform is None else posterior_transform(found)
        found = MarginalPosterior(self._marginals(X))
        if isinstance(posterior_transform, ScalarizedPosteriorTransform):
            scale: Any = posterior_transform
            return MarginalPosterior(found.law, float(scale.weights), float(scale.offset))
        return found if posterior_transform is None else posterior_transform(found)

    def _marginals(self, X: Tensor) -> Continuous:
        """p(y | x) at every point; of one data set all points are asked at once, as its rows."""
        rows = X if self._batch else X.reshape(-1, X.shape[-1])
        law = self.predictive.predict(rows)
        if not isinstance(law, Continuous):
            raise ValueError(f"the posterior must predict numbers, got {type(law).__name__} of classes")
        if self._batch:
            return law
        return law[torch.arange(len(rows), device=X.device).reshape(X.shape[:-1])]

    def condition_on_observations(self, X: Tensor, Y: Tensor, **_: Any) -> Self:
        """The model that has also seen Y [*batch, n, 1] at X [*batch, n, d]; self is left as it was.

        Networks take a batch of data sets, each beside what was seen before; a `GP` or `DKM` takes one.

        Raises:
            TypeError: the posterior does not take in rows after `fit`.
            ValueError: what `condition` refuses, batches for a posterior of one data set among them.
        """
        if not isinstance(self.predictive, Conditionable):
            raise TypeError(
                f"{type(self.predictive).__name__} takes in no more rows; fit its method to all of them and wrap that"
            )
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        X, Y = X.expand(*batch, *X.shape[-2:]), Y.expand(*batch, *Y.shape[-2:])
        Y, before = Y.squeeze(-1), self.predictive
        if batch and isinstance(before, Amortized) and before.rows:
            old: Any = before
            lead = len(self._batch)
            x, y = (v.to(X).expand(*batch, *v.shape[lead:]) for v in (old.x, old.y))
            before, X, Y = old.unconditioned(), torch.cat([x, X], -2), torch.cat([y, Y], -1)
        return type(self)(before.condition(X, Y))


def _reflected(law: Any) -> Any:
    """The distribution of -y."""
    if isinstance(law, Bar):
        return law.affine(0.0, -1.0)
    if isinstance(law, Mixture):
        return Mixture.of(_reflected(law.component_distribution), law.mixture_distribution.logits)
    if "loc" not in law.arg_constraints:
        raise ValueError(f"maximize=False is not for {type(law).__name__}; negate the targets and maximise")
    parts = {name: getattr(law, name) for name in law.arg_constraints}
    return type(law)(**(parts | {"loc": -law.loc}), validate_args=False)


class PredictiveLogEI(AnalyticAcquisitionFunction):
    """log E max(y - best_f, 0) at one point, exact for the predicted distribution and not only for normal ones.

    BoTorch's LogExpectedImprovement takes mean and variance for those of a normal (Ament et al. 2023, arXiv 2310.20708,
    eq. 8).

    Args:
        model: a `PredictiveModel`.
        best_f: what is to be improved on.
        maximize: whether large y are good.

    Raises:
        TypeError: another model.
    """

    def __init__(self, model: Any, best_f: float | Tensor, maximize: bool = True) -> None:
        if not isinstance(model, PredictiveModel):
            raise TypeError(f"model must be a PredictiveModel, got {type(model).__name__}")
        super().__init__(model=model)
        self.register_buffer("best_f", torch.as_tensor(best_f))
        self.maximize = maximize

    @t_batch_mode_transform(expected_q=1)  # pyright: ignore[reportArgumentType] (it names the base class)
    def forward(self, X: Tensor) -> Tensor:
        """Values [*batch] at the points X [*batch, 1, d]."""
        model: Any = self.model
        law, best = model._marginals(X)[..., 0], torch.as_tensor(self.best_f).to(X)
        if self.maximize:
            return law.log_expected_improvement(best)
        return _reflected(law).log_expected_improvement(-best)
