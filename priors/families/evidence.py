"""Posterior densities of problems whose evidence has no closed form."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from priors.families.problem import MixtureParameters, Problem

__all__ = ["log_posterior_by_sampling"]


def log_posterior_by_sampling(
    family: Any, problem: Problem, draws: int = 1 << 15, seed: int = 0
) -> Float[Tensor, " batch"]:
    """log p(theta) p(y | theta) - log mean_i p(y | theta_i) of every problem at its theta, with theta_i of the prior.

    The mean over the draws is unbiased; its logarithm is too low by half the relative variance of the mean, about one
    in six hundred where a hundredth of the draws explain the observations. Of a problem with a Gaussian-mixture prior.
    """
    assert problem.mixture is not None
    generator = torch.Generator(problem.theta.device).manual_seed(seed)
    theta = problem.theta.double()
    found = problem.mixture.distribution().log_prob(theta)
    for k in range(len(theta)):
        x, y = problem.x[k].double(), problem.y[k].double()
        prior = MixtureParameters(*(value[k : k + 1] for value in problem.mixture))
        others = prior.draws(draws, generator)[0].double()
        evidence = family.log_likelihood(others, x, y).sum(-1).logsumexp(0) - math.log(draws)
        found[k] += family.log_likelihood(theta[k], x, y).sum(-1) - evidence
    return found
