"""
Classification
==============

The same method with ``classes`` set: the prior draws class labels, and ``predict`` returns a ``Categorical``.
"""

# %%
import argparse

import matplotlib.pyplot as plt
import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from priors import RandomNetwork

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="train for seconds")
smoke = parser.parse_args().smoke

# %%
# The prior draws a random network with two inputs for every data set, and labels from the softmax of its three outputs.

prior = RandomNetwork(features=2, classes=3)
train = bv.Train(steps=400 if smoke else 8_000, batch=16, lr=4e-3 if smoke else 1e-3)
if smoke:
    pfn = bv.PFN(features=2, classes=3, context=40, width=32, layers=2, heads=2, train=train)
else:
    pfn = bv.PFN(features=2, classes=3, context=100, train=train)
trained = pfn.fit(prior)

# %%
# One fresh data set: 40 rows to learn from, 1,000 to be judged on.

task = prior.sample(1, 1_040, generator=generator("cpu", 5))
x, y = task.x[0], task.y[0]
posterior = trained.condition(x[:40], y[:40])
for name, predictive in (("before", trained.predict(x[40:])), ("after", posterior.predict(x[40:]))):
    nll, brier = bv.metrics.nll(predictive, y[40:]), bv.metrics.brier(predictive, y[40:])
    print(f"{name} the 40 rows: nll {nll:.3f}, Brier score {brier:.3f}")
print(f"accuracy after them: {bv.metrics.accuracy(predictive, y[40:]):.3f}")

# %%
# The probability of every class over the square, with the 40 rows on top: filled where the row has that class.

ticks = torch.linspace(0, 1, 60)
square = torch.cartesian_prod(ticks, ticks)
probs = posterior.predict(square).class_probs.reshape(60, 60, 3)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for k, ax in enumerate(axes):
    image = ax.pcolormesh(
        ticks, ticks, probs[..., k].T, vmin=0, vmax=1, cmap="Blues", shading="gouraud", rasterized=True
    )
    for member, face in ((y[:40] == k, "#D55E00"), (y[:40] != k, "none")):
        ax.scatter(*x[:40][member].T, s=24, facecolor=face, edgecolor="#262626", linewidth=0.7)
    ax.set(title=f"P(class {k})", xlabel="x₀", aspect="equal", xlim=(0, 1), ylim=(0, 1))
axes[0].set_ylabel("x₁")
figure.colorbar(image, ax=axes, shrink=0.9)
plt.show()
