"""
A sparse Bayesian network
=========================

A network of which one weight in twenty is kept, each as a normal, and which looks for the best ones while it trains. It
says how sure it is, and what it does not keep takes neither memory nor time.
"""

# %%
# Digits of 8 x 8 pixels, and a plain torch module, which is left as it is.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="train for fewer steps")
parser.add_argument("--out", type=Path, help="save the first picture")
arguments = parser.parse_args()

digits = load_digits()
order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))
x, y = torch.as_tensor(digits.images, dtype=torch.float32)[order] / 16, torch.as_tensor(digits.target)[order]

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
train = bv.Train(steps=100 if arguments.smoke else 2_000, batch=64, lr=5e-3)
post = bv.SSVI(net, density=0.05, classes=10, train=train).fit(bv.Data(x[:1_297], y[:1_297]))
print(post)

# %%
# Of which pixels the first layer keeps weights: it was free to choose, and leaves those out that are always dark.

where = post.places["1.weight"][:, 1]
kept = where.bincount(minlength=64).view(8, 8)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, picture, title in zip(axes, (x.mean(0), kept), ("mean image", "kept weights of each pixel"), strict=True):
    drawn = ax.imshow(picture, cmap="magma")
    figure.colorbar(drawn, ax=ax, shrink=0.8)
    ax.set(title=title, xticks=[], yticks=[])
if arguments.out:
    figure.savefig(arguments.out, dpi=120)
plt.show()

# %%
# What the draws of the weights disagree about, the mutual information, tells digits from what is none.

held, truth = x[1_297:], y[1_297:]
law = post.predict(held)
print(f"accuracy {float(bv.metrics.accuracy(law, truth)):.1%}, NLL {float(bv.metrics.nll(law, truth)):.3f}")
strange = held.flatten(1)[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))].view_as(held)
for name, images in (("digits", held), ("shuffled pixels", strange)):
    law = post.predict(images)
    print(
        f"{name}: entropy {float(law.entropy().mean()):.2f}, of it {float(law.mutual_information.mean()):.2f} unknown"
    )

# %%
# What it costs, counted beside the dense network, and a plain module to deploy.

cost = post.cost
print(f"{cost.fewer_macs:.0f} times fewer multiply-adds; training holds {cost.total.training_bytes:,} bytes in weights")
print(f"and their moments, where the dense network would hold {cost.total.dense_training_bytes:,}")
plain = post.compact()
print(plain)
assert torch.equal(plain(held).argmax(-1), post.model(held).argmax(-1))

# %%
# Numbers: one output is the mean, and the noise is learned. Outside the points the draws part.

torch.manual_seed(0)
t = torch.cat([torch.rand(60) - 1.5, torch.rand(60) + 0.5]).unsqueeze(-1)
z = torch.sin(3 * t[:, 0]) + 0.1 * torch.randn(len(t))
curve = nn.Sequential(nn.Linear(1, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 1))
train = bv.Train(steps=100 if arguments.smoke else 3_000, batch=32, lr=1e-2)
post = bv.SSVI(curve, density=0.5, beta_warmup=0.5, train=train).fit(bv.Data(t, z))
grid = torch.linspace(-2.5, 2.5, 200).unsqueeze(-1)
ax = plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
bv.plots.predictive_band(post.predict(grid), grid[:, 0], ax=ax)
ax.plot(t[:, 0], z, ".", color=bv.plots.INK, markersize=4)
plt.show()
