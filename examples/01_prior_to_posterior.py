"""
From a prior to its posterior
=============================

Train a small network on a Gaussian-process prior, give it a handful of rows, and compare what it then predicts with the
exact posterior, which this prior happens to have in closed form.
"""

# %%
# Settings. ``--smoke`` trains for seconds; without it this takes some minutes on one core.

import argparse

import matplotlib.pyplot as plt
import torch

import bayesvision as bv
from bayesvision.distributions import Normal
from bayesvision.training.seeds import generator
from priors import GaussianProcess

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="train for seconds")
smoke = parser.parse_args().smoke

# %%
# A prior is anything that can draw data sets. This one draws smooth functions on [0, 1], observed with noise.

prior = GaussianProcess(lengthscale=0.4, noise=0.03)
train = bv.Train(steps=400 if smoke else 8_000, batch=16, lr=4e-3 if smoke else 1e-3)
if smoke:
    pfn = bv.PFN(context=8, width=32, layers=3, heads=2, bars=100, train=train)
else:
    pfn = bv.PFN(context=30, train=train)
posterior = pfn.fit(prior)
print(f"{posterior.metadata['tasks']:,} data sets in {posterior.metadata['seconds']:.0f} s")

# %%
# ``fit`` has seen the prior but no data, so ``predict`` gives the prior predictive. ``condition`` returns a new
# posterior that has seen some rows as well; it takes one forward pass.

task = prior.sample(1, 7, generator=generator("cpu", 3))
x, y = task.x[0], task.y[0]
grid = torch.linspace(0, 1, 200)
before = posterior.predict(grid)
after = posterior.condition(x, y).predict(grid)


# %%
# The exact answers, for comparison: those of a Gaussian process with the prior's own hyper-parameters.


def exact(x, y):
    law = prior.posterior(x, y).predict(grid.unsqueeze(-1))
    return Normal(law.mean, law.stddev)


figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
bv.plots.prior_and_posterior(before, after, grid, bv.Data(x, y), ax=axes[0]).set_title("PFN")
bv.plots.prior_and_posterior(exact(x[:0], y[:0]), exact(x, y), grid, bv.Data(x, y), ax=axes[1]).set_title("exact")
axes[1].get_legend().remove()
axes[1].set_ylabel("")
plt.show()

# %%
# How far apart are the two on average? The mean gap in log density over fresh data sets estimates the
# Kullback-Leibler divergence from the exact posterior predictive; it cannot be negative but by chance.

fresh = prior.sample(500, 12, generator=generator("cpu", 4))
for rows in (0, 2, 6):
    x, y, new, truth = fresh.x[:, :rows], fresh.y[:, :rows], fresh.x[:, rows:], fresh.y[:, rows:]
    ours = (posterior.condition(x, y) if rows else posterior).predict(new)
    best = prior.posterior(x, y).predict(new)
    gap = (best.log_prob(truth.double()) - ours.log_prob(truth)).mean(-1)
    print(f"{rows} rows: {gap.mean():.3f} ± {gap.std() / len(gap) ** 0.5:.3f} nats")
