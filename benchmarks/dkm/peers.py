"""Variational processes of gpytorch on standardised rows: SVGP, a deep one of two layers, deep kernel learning.

Each is trained by Adam with the learning rate lowered along a cosine, as `bv.Train` does.
"""

import math
from collections.abc import Callable
from typing import Any

import gpytorch
import scipy.cluster.vq
import torch
from torch import Tensor, nn

LEARNING_RATE = {"SVGP": 5e-2, "DeepGP": 2e-2, "deep kernel learning": 2e-2}
DRAWS = 3  # of the hidden layer in training


def centres(x: Tensor, count: int, seed: int) -> Tensor:
    found, _ = scipy.cluster.vq.kmeans2(x.double().numpy(), min(count, len(x)), minit="++", rng=seed, iter=5)
    return torch.from_numpy(found).to(x)


class Sparse(gpytorch.models.ApproximateGP):
    """A sparse variational process with an RBF kernel, on features of `net`."""

    def __init__(self, inducing: Tensor, net: nn.Module | None = None) -> None:
        law = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
        super().__init__(gpytorch.variational.VariationalStrategy(self, inducing, law, learn_inducing_locations=True))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=inducing.shape[1]))
        self.net = net

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(x if self.net is None else self.net(x), *args, **kwargs)

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Layer(gpytorch.models.deep_gps.DeepGPLayer):
    """A layer of a deep process."""

    def __init__(self, inducing: Tensor, outputs: int | None) -> None:
        batch = torch.Size([] if outputs is None else [outputs])
        law = gpytorch.variational.CholeskyVariationalDistribution(len(inducing), batch_shape=batch)
        where = inducing if outputs is None else inducing.expand(outputs, *inducing.shape).clone()
        strategy = gpytorch.variational.VariationalStrategy(self, where, law, learn_inducing_locations=True)
        super().__init__(strategy, inducing.shape[1], outputs)
        kernel = gpytorch.kernels.RBFKernel(batch_shape=batch, ard_num_dims=inducing.shape[1])
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel, batch_shape=batch)
        linear = outputs is not None
        self.mean_module = gpytorch.means.LinearMean(inducing.shape[1]) if linear else gpytorch.means.ConstantMean()

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Deep(gpytorch.models.deep_gps.DeepGP):
    """A deep process with one hidden layer (Salimbeni and Deisenroth 2017)."""

    def __init__(self, inducing: Tensor) -> None:
        super().__init__()
        hidden = inducing.shape[1]
        self.first, self.last = Layer(inducing, hidden), Layer(inducing.clone(), None)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x))


Predict = Callable[[Tensor], tuple[Tensor, Tensor]]


def train(model: Any, x: Tensor, y: Tensor, steps: int, batch: int, kind: str) -> Predict:
    """Train by the evidence bound, and return what predicts means and deviations [draws, rows]."""
    likelihood = gpytorch.likelihoods.GaussianLikelihood().to(x)
    deep = kind == "DeepGP"
    model, draws = model.to(x), DRAWS if deep else 1
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, len(x))
    bound = gpytorch.mlls.DeepApproximateMLL(bound) if deep else bound
    parameters = [*model.parameters(), *likelihood.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE[kind])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
    model.train()
    for _ in range(steps):
        rows = torch.randperm(len(x))[:batch]
        optimizer.zero_grad()
        with gpytorch.settings.num_likelihood_samples(draws):
            loss = -bound(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()

    @torch.no_grad()
    def predict(new: Tensor) -> tuple[Tensor, Tensor]:
        with gpytorch.settings.num_likelihood_samples(32 if deep else 1):
            parts = [likelihood(model(part)) for part in new.split(1_000)]
        mean, deviation = (torch.cat([getattr(p, key) for p in parts], -1) for key in ("mean", "stddev"))
        return mean.reshape(-1, len(new)), deviation.reshape(-1, len(new))

    return predict


def extractor(columns: int, seed: int) -> nn.Module:
    """Features for deep kernel learning (Wilson et al. 2016)."""
    torch.manual_seed(seed)
    hidden = [nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*hidden, nn.BatchNorm1d(4, affine=False))


def peer(kind: str, x: Tensor, y: Tensor, inducing: int, steps: int, batch: int, seed: int) -> Predict:
    """A trained peer: `SVGP`, `DeepGP` or `deep kernel learning`."""
    torch.manual_seed(seed)
    if kind == "SVGP":
        return train(Sparse(centres(x, inducing, seed)), x, y, steps, batch, kind)
    if kind == "DeepGP":
        return train(Deep(centres(x, min(inducing, 128), seed)), x, y, steps, min(batch, 500), kind)
    net = extractor(x.shape[1], seed).to(x)
    with torch.no_grad():
        start = centres(net(x), min(inducing, 128), seed)
    return train(Sparse(start, net), x, y, steps, batch, kind)
