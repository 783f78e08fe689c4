"""
Freezing runs and thawing the best
==================================

``Thaw`` begins many runs, freezes each of them early, and goes on with those that promise most, from their checkpoints.
Here it searches a learning rate, a width and an optimiser for small networks on the digits of scikit-learn.
"""

# %%
import argparse
import io

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import bayesvision as bv
from bayesvision.plots.style import PALETTE

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="a short search")
smoke = parser.parse_args().smoke
epochs, budget = (9, 60) if smoke else (54, 540)

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
x_train, y_train, x_valid, y_valid = x[:500], y[:500], x[500:], y[500:]

# %%
# A run is a network, its optimiser, and the epoch that it has come to. Its checkpoint is what ``torch.save`` makes of
# them; a real search would write it to a file.


class Run:
    def __init__(self, number: int) -> None:
        source = np.random.default_rng(number)
        torch.manual_seed(number)
        self.width, self.lr = int(source.choice([8, 32, 128])), float(10 ** source.uniform(-5, 0.5))
        self.net = nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 10))
        kind = torch.optim.Adam if source.random() < 0.5 else torch.optim.SGD
        self.optimizer, self.epoch = kind(self.net.parameters(), self.lr), 0

    def train(self) -> float:
        """One epoch; the accuracy on the other images."""
        self.epoch += 1
        rows = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(self.epoch))
        for batch in rows.split(50):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(x_train[batch]), y_train[batch]).backward()
            self.optimizer.step()
        with torch.no_grad():
            return (self.net(x_valid).argmax(-1) == y_valid).double().mean().item()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"net": self.net.state_dict(), "opt": self.optimizer.state_dict(), "epoch": self.epoch}, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["opt"])
        self.epoch = state["epoch"]


# %%
# The loop asks what to train next, trains it until it is told to stop, and puts the checkpoint away.

thaw = bv.Thaw(horizon=epochs)
checkpoints: dict[str, bytes] = {}
spent, begun, found = 0, 0, []
while spent < budget:
    piece = thaw.next(str(begun))
    assert piece is not None
    begun += piece.new
    run = Run(int(piece.run))
    if not piece.new:
        run.load(checkpoints[piece.run])
    while run.epoch < epochs:
        decision = thaw.update(piece.run, run.epoch + 1, run.train())
        spent += 1
        found.append(thaw.best)
        if decision.stop or spent == budget:
            break
    checkpoints[piece.run] = run.save()

whole = budget // epochs
print(f"{budget} epochs: {begun} runs begun, {len(thaw.frozen)} of them frozen, best accuracy {thaw.best:.3f}")

# %%
# The same number of epochs in whole runs, one after the other.

plain, best = [], 0.0
for number in range(whole):
    run = Run(number)
    for _ in range(epochs):
        best = max(best, run.train())
        plain.append(best)
print(f"{whole} whole runs: best accuracy {best:.3f}")

# %%
# Each curve ends where its run was frozen; what was thawed goes on.

_, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for seen in thaw.rule.runs.values():
    left.plot(seen.steps, seen.values, color=PALETTE[0], linewidth=0.8, marker=".", markevery=[-1])
left.set(xlabel="epoch of the run", ylabel="validation accuracy", title="runs of the search")
right.plot(found, color=PALETTE[0], label="freeze and thaw")
right.plot(plain, color="#6E6E6E", label="whole runs")
right.set(xlabel="epochs spent", ylabel="best accuracy so far", title="what was found", ylim=(0.8, None))
right.legend(frameon=False)
plt.show()
