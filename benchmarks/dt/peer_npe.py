"""Posterior draws of neural posterior estimation by `sbi` 0.27; run by simulators.py in an environment that holds it.

Reads an npz with theta [n, d] and x [n, m], low and high of a uniform prior or nothing for a normal one, and
observations [k, m]; writes draws [k, 10000, d] and the seconds of training and sampling.
"""

import sys
import time

import numpy as np
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform


def main(source: str, target: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = np.load(source)
    theta, x = (torch.as_tensor(data[name]).float() for name in ("theta", "x"))
    if len(data["low"]):
        prior = BoxUniform(torch.as_tensor(data["low"]).float(), torch.as_tensor(data["high"]).float())
    else:
        scale = torch.as_tensor(data["scale"]).float()
        prior = torch.distributions.MultivariateNormal(torch.zeros_like(scale), torch.diag(scale.square()))
    start = time.perf_counter()
    inference = NPE(prior)
    inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()
    training = time.perf_counter() - start
    start = time.perf_counter()
    draws = [
        posterior.sample((10_000,), x=torch.as_tensor(y).float(), show_progress_bars=False).numpy()
        for y in data["observations"]
    ]
    seconds = time.perf_counter() - start
    np.savez(target, draws=np.stack(draws), training=training, sampling=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
