"""
Stopping a Lightning training
=============================

The callback ``LCPFNStopping`` stops a training that is unlikely to improve on the best value so far: its own, or that
of several trainings that share a rule.
"""

# %%
import argparse
import logging
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesvision as bv
from bayesvision.integrations.lightning import LCPFNStopping

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="a few short trainings")
smoke = parser.parse_args().smoke
epochs = 10 if smoke else 60
torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")

# %%
# A small network on the digits of scikit-learn, which logs its validation accuracy.

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
train = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=100, shuffle=True)
valid = DataLoader(TensorDataset(x[1200:], y[1200:]), batch_size=600)


class Net(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr, self.net = lr, nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_acc", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def fit(lr, stopping):
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[stopping],
    )  # fmt: skip
    trainer.fit(Net(lr), train, valid)
    return trainer.current_epoch


# %%
# One training alone. The horizon is the trainer's ``max_epochs`` unless it is given.

alone = LCPFNStopping(monitor="val_acc")
print(f"alone: {fit(1e-2, alone)} epochs, {alone.decision.reason}")

# %%
# A sweep: the trainings share a rule, and each is held against the best of all.

rule = bv.StoppingRule(epochs)
rates = (1e-2, 1e-3, 1e-4, 1e-5)
for lr in rates:
    stopping = LCPFNStopping("val_acc", rule=rule, run=f"lr {lr:g}")
    print(f"lr {lr:g}: {fit(lr, stopping)} epochs, {stopping.decision.reason}")
print(rule.report())

# %%
# The fan behind the last decision.

rule.explain(f"lr {rates[-1]:g}")
plt.show()
