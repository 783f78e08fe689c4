"""`dt-sensor` as a filter: a moving target over 200 steps of range and bearing, beside a particle filter, EKF and UKF.

The task of arXiv 2502.02463, section 4.4: outliers of the rangefinder, a wrapped bearing. Every trajectory has a prior
of its own, N(start, diag(1, 1, 0.2^2, 0.2^2)). NLL is that of the true state under the belief after a reading, in nats;
the particle filter's belief is the density p(reading | theta) sum_i N(theta; F theta_i, Q), which its draws before the
reading give. Where filterpy is installed its EKF and UKF run too, the noise of the rangefinder taken for normal.
"""

import argparse
import math
import time
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributions as td

import bayesvision as bv
from bayesvision.distributions import GaussianMixture
from bayesvision.io.checkpoints import find
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import SensorFusion
from priors.draws import Draws

F, Q = SensorFusion.transition, SensorFusion.noise
START = torch.diag(torch.tensor([1.0, 1.0, 0.04, 0.04], dtype=torch.float64))
AT = (1, 10, 50, 100, 200)  # steps that are shown


def trajectories(count: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of the priors [count, 4], states [steps, count, 4] and readings [steps, count, 2]."""
    rng, family = generator("cpu", 2026, seed), SensorFusion()
    draws = Draws(count, rng)
    angle, radius = draws.uniform(high=2 * math.pi).double(), draws.uniform(low=3.0, high=10.0).double()
    start = torch.stack([radius * angle.cos(), radius * angle.sin(), 0 * angle, 0 * angle], -1)
    state = start + draws.normal(4).double() @ START.sqrt()
    states, readings = [], []
    for _ in range(steps):
        state = state @ F.mT + draws.normal(4).double() @ Q.sqrt()
        states.append(state)
        readings.append(family.observed(state, family.reading).sample(generator=rng).double())
    return start, torch.stack(states), torch.stack(readings)


class Tracked:
    """What a filter says after every step: log density of the state, distance of the mean, and levels."""

    def __init__(self) -> None:
        self.nll: list[torch.Tensor] = []
        self.off: list[torch.Tensor] = []
        self.inside: list[torch.Tensor] = []
        self.seconds = 0.0

    def note(self, nll: torch.Tensor, mean: torch.Tensor, ends: Any, truth: torch.Tensor) -> None:
        self.nll.append(nll)
        self.off.append((mean - truth)[:, :2].norm(dim=-1))
        self.inside.append(((truth > ends[0]) & (truth < ends[1])).double().mean(-1))


def priors_of(start: torch.Tensor) -> GaussianMixture:
    one = torch.zeros(len(start), 1, dtype=torch.float64)
    return GaussianMixture(one, start.unsqueeze(1), torch.linalg.cholesky(START).expand(len(start), 1, 4, 4))


def network(posterior: Any, start: torch.Tensor, states: torch.Tensor, readings: torch.Tensor) -> Tracked:
    found, belief = Tracked(), posterior.with_prior(priors_of(start))
    for truth, reading in zip(states, readings, strict=True):
        began = time.perf_counter()
        belief = belief.move(F, Q).condition(y=reading)
        found.seconds += time.perf_counter() - began
        latent = belief.latent
        found.note(-latent.log_prob(truth), latent.mean, latent.interval(0.9), truth)
    return found


def particles(count: int, start: torch.Tensor, states: torch.Tensor, readings: torch.Tensor, seed: int = 0) -> Tracked:
    family, found = SensorFusion(), Tracked()
    belief = bv.ParticleFilter(count, seed).fit(family).with_prior(priors_of(start))
    noise = td.MultivariateNormal(torch.zeros(4, dtype=torch.float64), Q)
    for truth, reading in zip(states, readings, strict=True):
        began = time.perf_counter()
        before = belief.latent
        after = belief.move(F, Q).condition(y=reading)
        found.seconds += time.perf_counter() - began
        said = family.log_likelihood(truth, family.reading, reading).sum(-1)
        evidence = after.log_weights.logsumexp(-1) - math.log(count)
        apart = truth.unsqueeze(-2) - before.values @ F.mT
        ahead = (noise.log_prob(apart) + before.weights.log()).logsumexp(-1)
        found.note(-(ahead + said - evidence), after.latent.mean, after.latent.interval(0.9), truth)
        belief = after
    return found


def kalman(kind: str, start: torch.Tensor, states: torch.Tensor, readings: torch.Tensor) -> Tracked:
    """filterpy's extended or unscented filter, one trajectory at a time."""
    from filterpy.kalman import ExtendedKalmanFilter, MerweScaledSigmaPoints, UnscentedKalmanFilter

    def expected(x: np.ndarray) -> np.ndarray:
        return np.array([np.hypot(x[0], x[1]), np.arctan2(x[1], x[0])])

    def slopes(x: np.ndarray) -> np.ndarray:
        r = max(float(np.hypot(x[0], x[1])), 1e-3)
        return np.array([[x[0] / r, x[1] / r, 0, 0], [-x[1] / r**2, x[0] / r**2, 0, 0]])

    def residual(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        off = np.subtract(a, b)
        off[1] = (off[1] + np.pi) % (2 * np.pi) - np.pi
        return off

    steps, count = states.shape[:2]
    mean, covariance = np.zeros((steps, count, 4)), np.zeros((steps, count, 4, 4))
    found = Tracked()
    for j in range(count):
        if kind == "EKF":
            f: Any = ExtendedKalmanFilter(4, 2)
        else:
            points = MerweScaledSigmaPoints(4, 0.5, 2.0, -1.0)
            f = UnscentedKalmanFilter(4, 2, 1.0, expected, lambda x, dt: F.numpy() @ x, points, residual_z=residual)
        f.x, f.P, f.F, f.Q = start[j].numpy().copy(), START.numpy().copy(), F.numpy(), Q.numpy()
        began = time.perf_counter()
        for t in range(steps):
            f.predict()
            f.R = np.diag([(0.1 * (np.hypot(f.x[0], f.x[1]) + 1)) ** 2, 0.01])
            if kind == "EKF":
                f.update(readings[t, j].numpy(), slopes, expected, residual=residual)
            else:
                f.update(readings[t, j].numpy())
            mean[t, j], covariance[t, j] = f.x, f.P
        found.seconds += time.perf_counter() - began
    for t in range(steps):
        m, c = torch.as_tensor(mean[t]), torch.as_tensor(covariance[t])
        c = (c + c.mT) / 2 + 1e-9 * torch.eye(4, dtype=torch.float64)
        law = td.MultivariateNormal(m, c)
        half = 1.6449 * c.diagonal(dim1=-2, dim2=-1).sqrt()
        found.note(-law.log_prob(states[t]), m, (m - half, m + half), states[t])
    return found


def lines_of(name: str, found: Tracked, steps: int, count: int) -> dict[str, Any]:
    """Averages over all steps, with standard errors over trajectories."""
    nll, off = torch.stack(found.nll), torch.stack(found.off)
    line: dict[str, Any] = {"method": name}
    line["NLL"], line["NLL error"] = mean_and_error(nll.mean(0))
    line["median NLL"] = round(float(nll.median()), 4)
    line["position RMSE"] = round(float(off.square().mean().sqrt()), 4)
    line["coverage 90 %"] = round(float(torch.stack(found.inside).mean()), 4)
    line["ms / step, one by one or batched"] = float(f"{1e3 * found.seconds / steps / count:.3g}")
    return line


def growth(found: dict[str, Tracked], reference: str) -> list[dict[str, Any]]:
    """Position error of each filter at single steps, in units of the reference's, with standard errors."""
    lines = []
    for name, one in found.items():
        line: dict[str, Any] = {"method": name}
        for step in AT:
            window = slice(max(0, step - 5), step + 4)
            mine = torch.stack(one.off)[window].square().mean(0).numpy()
            theirs = torch.stack(found[reference].off)[window].square().mean(0).numpy()
            rng = np.random.default_rng(0)
            picks = rng.integers(len(mine), size=(500, len(mine)))
            ratios = np.sqrt(mine[picks].mean(1) / theirs[picks].mean(1))
            line[f"step {step}"] = round(float(np.sqrt(mine.mean() / theirs.mean())), 4)
            line[f"error {step}"] = round(float(ratios.std()), 4)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dt-sensor", help="A shipped name or a file.")
    parser.add_argument("--trajectories", type=int, default=200)
    parser.add_argument("--steps", type=int, default=204)
    parser.add_argument("--particles", type=int, default=10_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    problem = trajectories(a.trajectories, a.steps, 0)
    found = {"dt-sensor": network(find(a.model), *problem)}
    print(lines_of("dt-sensor", found["dt-sensor"], a.steps, a.trajectories), flush=True)
    reference = f"particle filter, {a.particles:,}"
    for name, work in {
        reference: lambda: particles(a.particles, *problem),
        "particle filter, 1,000": lambda: particles(1_000, *problem, seed=1),
        "EKF": lambda: kalman("EKF", *problem),
        "UKF": lambda: kalman("UKF", *problem),
    }.items():
        try:
            found[name] = work()
        except ModuleNotFoundError as error:
            print(f"{name}: {error}; pip install filterpy", flush=True)
            continue
        print(lines_of(name, found[name], a.steps, a.trajectories), flush=True)
    lines = [lines_of(name, one, a.steps, a.trajectories) for name, one in found.items()]
    print(*growth(found, reference), sep="\n")
    single = network(find(a.model), *(v[:1] if v.ndim == 2 else v[:, :1] for v in problem))
    lines[0]["ms / step, alone"] = round(1e3 * single.seconds / a.steps, 2)
    write("dt/sensor_fusion", {"filters": lines, "position error over the particle filter's": growth(found, reference)})


if __name__ == "__main__":
    main()
