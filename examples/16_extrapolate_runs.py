"""
Extrapolate my training runs
============================

Six trainings with some epochs behind them: where is each heading, how sure is that, and which can stop? Everything here
is also one command, ``bayesvision curves runs.csv --horizon 50``.
"""

# %%
# The runs: accuracies of small networks on scikit-learn's digits, epoch by epoch.

import argparse

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="fewer epochs")
horizon = 30 if parser.parse_args().smoke else 50

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
train, valid = order[:600], order[600:1200]


def training(rate: float) -> list[float]:
    net = MLPClassifier((32,), learning_rate_init=rate, random_state=0)
    scores = []
    for _ in range(horizon):
        net.partial_fit(images[train] / 16, labels[train], classes=range(10))
        scores.append(float(net.score(images[valid] / 16, labels[valid])))
    return scores


rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
runs = {f"rate {rate:g}": training(rate) for rate in rates}

# %%
# A third of each run is shown to the network that comes with the package, which forecasts the rest.

seen, epochs = horizon // 3, np.arange(1, horizon + 1)
start = bv.pretrained("lcpfn").with_metric(horizon)
figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout="constrained", sharex=True, sharey=True)
for ax, (name, scores) in zip(axes.flatten(), runs.items(), strict=True):
    post = start.condition(epochs[:seen], scores[:seen])
    bv.plots.predictive_band(post.predict(epochs[seen:]), epochs[seen:], ax=ax)
    ax.plot(epochs[seen:], scores[seen:], color="#D55E00", label="what came")
    ax.plot(epochs[:seen], scores[:seen], "o", color="#262626", markersize=3, label="seen")
    ax.set(title=name, xlabel="", ylabel="")
    ax.get_legend().remove()
axes[1, 2].legend(loc="lower right", fontsize=8)
plt.show()

# %%
# The same as a decision: epoch by epoch, all runs side by side, each stopped once it is unlikely to beat the best.

rule = bv.StoppingRule(horizon=horizon)
stopped: dict[str, int] = {}
for epoch in range(horizon):
    for name, scores in runs.items():
        if name not in stopped and rule.update(name, step=epoch + 1, value=scores[epoch]).stop:
            stopped[name] = epoch + 1
spent = sum(stopped.get(name, horizon) for name in runs)
print(f"stopped: {stopped}")
print(f"{spent} of {horizon * len(runs)} epochs spent")
best = max(runs, key=lambda name: max(runs[name]))
print(f"the best run, {best}, was {'stopped' if best in stopped else 'kept'}")
