"""A car's GPS track: a Distribution Transformer as a filter beside Kalman's, held-out fixes scored by NLL.

Position and velocity (east, north) with white acceleration, fixes about ten times a second, every fifth held out and
predicted. Both filters take the same noises, chosen by the Kalman filter on the first quarter of the track
(which is not scored). The problem is linear, so Kalman's is exact: the network has to stay with it over 1,600 steps.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributions as td

import bayesvision as bv
from benchmarks.common import DATA, mean_and_error, write
from priors import LinearGaussian
from priors.families import MixtureParameters

DESIGN = torch.eye(4, dtype=torch.float64)[:2]  # east and north


def track(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Times [n] and positions [n, 2] of the fixes, in metres."""
    stored = np.load(data / "timeseries" / "car_gps_imu.npz")
    fix = stored["gps_fix"]
    place = np.stack([stored["east_m"][fix], stored["north_m"][fix]], -1)
    return torch.as_tensor(stored["t"][fix]).double(), torch.as_tensor(place).double()


def motion(step: float, acceleration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """F and Q of white acceleration (Bar-Shalom et al. 2001, eq. 6.2.2-12)."""
    eye = torch.eye(2, dtype=torch.float64)
    f = torch.tensor([[1.0, step], [0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[step**3 / 3, step**2 / 2], [step**2 / 2, step]], dtype=torch.float64)
    return torch.kron(f, eye), acceleration**2 * torch.kron(q + 1e-9 * eye, eye)


class Kalman:
    """The exact belief, one normal, as a filter of the same words."""

    def __init__(self, family: LinearGaussian, loc: torch.Tensor, covariance: torch.Tensor) -> None:
        self.family, self.loc, self.covariance = family, loc, covariance

    def move(self, f: torch.Tensor, q: torch.Tensor) -> "Kalman":
        return Kalman(self.family, f @ self.loc, f @ self.covariance @ f.mT + q)

    def condition(self, x: torch.Tensor, y: torch.Tensor) -> "Kalman":
        tril = torch.linalg.cholesky(self.covariance)
        prior = MixtureParameters(self.loc.new_zeros(1), self.loc.unsqueeze(0), tril.unsqueeze(0))
        after = self.family.posterior(prior, x, y)
        return Kalman(self.family, after.loc[0], (after.scale_tril @ after.scale_tril.mT)[0])

    def predict(self, x: torch.Tensor) -> td.Normal:
        variance = (x @ self.covariance @ x.mT).diagonal() + self.family.noise
        return td.Normal(x @ self.loc, variance.sqrt())


def run(belief: Any, times: torch.Tensor, places: torch.Tensor, acceleration: float, skip: int) -> Any:
    """NLL of the held-out fixes after the first `skip`, their distances, and seconds."""
    losses, off, start = [], [], time.perf_counter()
    for k in range(1, len(times)):
        belief = belief.move(*motion(float(times[k] - times[k - 1]), acceleration))
        if k % 5:
            belief = belief.condition(DESIGN, places[k])
        elif k >= skip:
            law = belief.predict(DESIGN)
            losses.append(-law.log_prob(places[k]).sum())
            off.append((law.mean - places[k]).norm())
    return torch.stack(losses), torch.stack(off), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="The folder that holds timeseries/.")
    parser.add_argument("--steps", type=int, default=2_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    times, places = track(a.data)
    first = len(times) // 4
    wide = torch.diag(torch.tensor([25.0, 25.0, 100.0, 100.0], dtype=torch.float64))
    at = torch.cat([places[0], places.new_zeros(2)])

    def chosen(noise: float, acceleration: float) -> float:
        kalman = Kalman(LinearGaussian(4, 1, noise**2), at, wide)
        return float(run(kalman, times[:first], places[:first], acceleration, 25)[0].mean())

    grid = [(r, q) for r in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) for q in (0.2, 0.5, 1.0, 2.0, 4.0)]
    noise, acceleration = min(grid, key=lambda pair: chosen(*pair))
    family = LinearGaussian(4, 3, noise**2, spread=2.0)
    train = bv.Train(steps=a.steps, batch=128, lr=6e-3, optimizer="muon", execution=bv.Execution(device="cpu"))
    method = bv.DistributionTransformer(components=3, width=32, layers=3, heads=4, observations=4, train=train)
    network = method.fit(family).with_prior(td.MultivariateNormal(at, wide))
    lines, losses = [], {}
    for name, belief in {"Kalman filter": Kalman(family, at, wide), "Distribution Transformer": network}.items():
        losses[name], off, seconds = run(belief, times, places, acceleration, first)
        line: dict[str, Any] = {"filter": name, "held-out fixes": len(off)}
        line["NLL"], line["NLL error"] = mean_and_error(losses[name])
        line["above Kalman"], line["above Kalman error"] = mean_and_error(losses[name] - losses["Kalman filter"])
        line["RMSE, m"] = round(float(off.square().mean().sqrt()), 4)
        lines.append(line | {"ms / step": round(1e3 * seconds / len(times), 2)})
        print(lines[-1], flush=True)
    chosen_noises = [{"noise of a fix, m": noise, "acceleration, m/s^2/sqrt(Hz)": acceleration}]
    write("dt/car", {"filters": lines, "noises": chosen_noises})


if __name__ == "__main__":
    main()
