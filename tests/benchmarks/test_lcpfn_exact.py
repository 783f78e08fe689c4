"""The sampler behind the exact reference, against a law in closed form."""

import math

import torch

from bayesvision.training.seeds import generator
from benchmarks.lcpfn.lcpfn_exact import APART, from_normal, reference, sample, to_normal
from priors.curves import LearningCurves


def test_the_sampler_finds_a_law_that_is_known() -> None:
    """z ~ N(0, I) cut to z_1 > 0, one reading y = z_1 + z_2 + 0.1 e: evidence, and moments by a fine grid."""
    y, noise = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.1

    def loglik(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gap = (y[:, None] - z[..., 0] - z[..., 1]) / noise
        return -gap.square() / 2 - math.log(noise * math.sqrt(2 * math.pi)), z[..., 0] > 0

    start = torch.randn(2, 4000, 3, generator=generator("cpu", 1), dtype=torch.float64)
    start[..., 0] = start[..., 0].abs()
    z, notes = sample(start, loglik, moves=12, seed=2)
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    a, b = grid[600:, None], grid[None]
    prior = 2 * torch.exp(-(a**2 + b**2) / 2) / (2 * math.pi) * (grid[1] - grid[0]) ** 2
    for k in range(2):
        like = torch.exp(-(((y[k] - a - b) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
        weight = prior * like
        evidence = weight.sum()
        mean = (weight * a).sum() / evidence
        spread = ((weight * a**2).sum() / evidence - mean**2).sqrt()
        assert abs(float(notes["evidence"][k] - evidence.log())) < 0.15
        assert abs(float(z[k, :, 0].mean() - mean)) < 0.06 and abs(float(z[k, :, 0].std() / spread) - 1) < 0.1
        assert abs(float(z[k, :, 2].mean())) < 0.1 and abs(float(z[k, :, 2].std()) - 1) < 0.1  # never looked at
    assert (z[..., 0] > 0).all()


def test_parameters_go_to_normals_and_back() -> None:
    theta, _ = LearningCurves().accepted(50, generator("cpu", 3))
    back = from_normal(to_normal(theta))
    assert all(torch.allclose(back[name], theta[name].double(), rtol=1e-4, atol=1e-6) for name in theta)


def test_two_samplers_agree_on_a_curve_that_says_much() -> None:
    prior = LearningCurves(30)
    y = prior.sample(4, 30, generator=generator("cpu", 4)).y.double()[:1]
    found = reference(prior, y, 20, 500, 40, 5)
    assert abs(float(found["one"] - found["two"])) < 10 * APART and float(found["both"]) > -5
