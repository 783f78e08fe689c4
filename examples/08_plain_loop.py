"""
Early stopping in a loop of your own
====================================

``StoppingRule`` is a plain object: tell it the value of a run at a step, and it says whether to stop. This is what the
adapters to Optuna, Ray, Lightning and others ask as well.
"""

# %%
import argparse
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="a few short runs")
smoke = parser.parse_args().smoke
epochs = 12 if smoke else 60
rates = (1e-2, 1e-4, 3e-3) if smoke else (1e-2, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 3e-2, 1e-1)
torch.set_num_threads(1)

# %%
# A loss is no metric in [0, 1]: it is never below 0, mostly below 2.5, and smaller is better. With ``mode="min"`` and
# no scale the rule would learn the range from the first runs.

rule = bv.StoppingRule(horizon=epochs, scale=bv.MetricScale(lower=0, soft_lower=0, soft_upper=2.5, minimize=True))

# %%
# A search over learning rates on the digits of scikit-learn. The only line that is new in the loop is
# ``rule.update``.

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])

for lr in rates:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(net(x[1200:]), y[1200:]).item()
        decision = rule.update(f"lr {lr:g}", epoch, loss)
        if decision.stop:
            break
    print(f"lr {lr:g}: loss {loss:.3f} after {epoch} epochs, {decision.reason}")

# %%
# What the rule did. Some runs go on although it would stop them, so that it can tell what stopping costs: ``audited``
# counts them, and ``regret`` is what they gained after all.

print(rule.report())

# %%
# The fan behind a decision.

rule.explain(f"lr {rates[1]:g}")
plt.show()

# %%
# A search that is interrupted goes on from its state, which is plain JSON.

again = bv.StoppingRule(horizon=epochs, scale=rule.scale)
again.load_state_dict(json.loads(json.dumps(rule.state_dict())))
print(f"best loss so far: {again.best:.3f}")
