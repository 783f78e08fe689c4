"""Peers on the features that the frozen network's last layer sees; run by bayescap.py where they are installed.

    python peer_last_layer.py FOLDER

Reads FOLDER/train.npz (features [rows, 64], targets and answers [rows, 3] of pixels), calibrate.npz and test.npz,
and FOLDER/last.npz (weight, bias of the 1 x 1 convolution); writes FOLDER/NAME.npz for each peer with the standard
deviation of every test pixel, or the half-width of its interval, and FOLDER/peers.json with seconds and versions.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def data(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(folder / f"{name}.npz").items()}


def laplace(folder: Path) -> tuple[torch.Tensor, float]:
    """Last-layer Laplace approximation with the noise and the prior precision of the greatest evidence."""
    from laplace import Laplace

    train, test, last = data(folder, "train"), data(folder, "test"), data(folder, "last")
    start = time.perf_counter()
    layer = nn.Linear(*last["weight"].shape[::-1])
    layer.weight.data, layer.bias.data = last["weight"], last["bias"]
    model = nn.Sequential(nn.Identity(), layer)
    posterior = Laplace(model, "regression", subset_of_weights="last_layer", hessian_structure="full")
    posterior.fit(DataLoader(TensorDataset(train["features"], train["targets"]), 8192))
    log_prior, log_sigma = torch.zeros(1, requires_grad=True), torch.full((1,), -3.0, requires_grad=True)
    solver = torch.optim.Adam([log_prior, log_sigma], lr=0.1)
    for _ in range(100):
        solver.zero_grad()
        evidence = posterior.log_marginal_likelihood(log_prior.exp(), log_sigma.exp())
        (-evidence).backward()
        solver.step()
    variances = []
    with torch.no_grad():
        for part in test["features"].split(8192):
            _, covariance = posterior(part)
            variances.append(covariance.diagonal(dim1=-2, dim2=-1) + posterior.sigma_noise.detach() ** 2)
    return torch.cat(variances).sqrt(), time.perf_counter() - start


def mapie(folder: Path) -> tuple[torch.Tensor, float]:
    """Split conformal interval of constant half-width, one for each channel."""
    from mapie.regression import SplitConformalRegressor
    from sklearn.base import BaseEstimator, RegressorMixin

    class Answers(RegressorMixin, BaseEstimator):
        """Says what the frozen network said, which is its only input."""

        def __init__(self) -> None:
            self.is_fitted_ = True

        def fit(self, x, y):
            return self

        def predict(self, x):
            return x[:, 0]

    calibrate, test, widths = data(folder, "calibrate"), data(folder, "test"), []
    start = time.perf_counter()
    for channel in range(3):
        model = SplitConformalRegressor(Answers(), confidence_level=0.9, prefit=True)
        answers, targets = (calibrate[name].double().numpy()[:, channel] for name in ("answers", "targets"))
        model.conformalize(answers[:, None], targets)
        _, interval = model.predict_interval(test["answers"].double().numpy()[:, channel : channel + 1])
        widths.append(torch.from_numpy(interval[:, 1, 0] - interval[:, 0, 0]) / 2)
    return torch.stack(widths, -1), time.perf_counter() - start


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name, package, peer in (("laplace", "laplace-torch", laplace), ("mapie", "mapie", mapie)):
        try:
            spread, seconds = peer(folder)
        except ImportError as error:
            found[name] = {"missing": str(error)}
            continue
        np.savez(folder / f"{name}.npz", spread=spread.float().numpy())
        found[name] = {"seconds": round(seconds, 1), "version": version(package)}
    (folder / "peers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
