"""
Pruning an Optuna study
=======================

``LCPFNPruner`` extrapolates the learning curve of every trial and prunes those that are unlikely to beat the best one.
Here Optuna searches the learning rate, the width and the dropout of a small network on the digits of scikit-learn.
"""

# %%
import argparse

import matplotlib.pyplot as plt
import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

from bayesvision.integrations.optuna import LCPFNPruner

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="a few short trials")
smoke = parser.parse_args().smoke
trials, epochs = (6, 8) if smoke else (40, 40)
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)

# %%
# The data: 1,797 images of 8 x 8 pixels, a third of them for validation.

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
train, valid = slice(0, 1200), slice(1200, None)

# %%
# An objective as it would be written for any pruner: report the validation accuracy after every epoch, and ask.


def objective(trial):
    torch.manual_seed(trial.number)
    width = trial.suggest_int("width", 8, 128, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for epoch in range(epochs):
        net.train()
        for rows in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (net.eval()(x[valid]).argmax(-1) == y[valid]).double().mean().item()
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


# %%
# The pruner is one argument. Without a horizon it takes that of the longest complete trial. In a study that several
# processes share, call ``bayesvision.integrations.optuna.attach(study, pruner)`` once where the study is created, and
# ``attach(optuna.load_study(...))`` in every worker: Optuna itself stores no pruner.

study = optuna.create_study(
    direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=LCPFNPruner(horizon=epochs)
)
study.optimize(objective, n_trials=trials)
spent = sum(trial.last_step + 1 for trial in study.trials)
print(f"best accuracy {study.best_value:.3f} with {study.best_params}")
print(f"{spent} epochs instead of {trials * epochs}")

# %%
# The curves, the pruned ones up to where they ended.

_, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for trial in study.trials:
    pruned = trial.state == optuna.trial.TrialState.PRUNED
    steps, values = np.array(sorted(trial.intermediate_values.items())).T
    ax.plot(steps + 1, values, color="#D55E00" if pruned else "#0072B2", linewidth=0.8, marker="x", markevery=[-1])
ax.set(xlabel="epoch", ylabel="validation accuracy", title="pruned trials in orange, complete ones in blue")
plt.show()

# %%
# Why was a trial pruned? ``decide`` gives the decision with its reason and its forecast.

ended = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED] or study.trials
print(study.pruner.decide(study, ended[-1]))
