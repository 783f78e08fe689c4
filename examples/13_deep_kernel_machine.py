"""
A deep kernel machine
=====================

An infinitely wide network is a Gaussian process with a fixed kernel: depth adds nothing to what it finds alike. A deep
kernel machine lets the Gram matrix of each layer move, and pays for it with a divergence that nu weighs.
"""

# %%
# Two spirals, one within the other: points that are near each other are often of different classes.

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="fewer points and steps")
parser.add_argument("--out", type=Path, help="save the first picture")
arguments = parser.parse_args()

count, steps = (15, 20) if arguments.smoke else (60, 300)
torch.manual_seed(0)
angle = torch.linspace(0.5, 3, count).sqrt() * 5
spiral = torch.stack([angle * angle.cos(), angle * angle.sin()], -1) / 8
x = torch.cat([spiral, -spiral]) + 0.02 * torch.randn(2 * count, 2)
y = torch.arange(2).repeat_interleave(count)

# %%
# The same machine with no, little and much freedom. All points are inducing ones, in the order of their classes. The
# less nu, the more the layers pull the classes apart; the infinitely wide network finds a point as near to the other
# spiral as to its own.

machines = {}
for nu in (math.inf, 1.0, 0.01):
    train = bv.Train(steps=steps, batch=1_000, lr=3e-2, max_grad_norm=10.0)
    machine = bv.DKM(layers=3, inducing=None, classes=2, kernel="arccos", nu=nu, ard=False, train=train)
    machines[f"nu = {nu:g}"] = machine.fit(bv.Data(x, y))
figure = bv.plots.gram_matrices(machines, figure=plt.figure(layout="constrained"))
if arguments.out:
    figure.savefig(arguments.out, dpi=120)
plt.show()
for name, post in machines.items():
    print(name, "drift of the layers", post.drift().numpy().round(3))

# %%
# What they say of the plane.

line = torch.linspace(-1.4, 1.4, 20 if arguments.smoke else 80)
grid = torch.cartesian_prod(line, line)
figure, axes = plt.subplots(1, len(machines), figsize=(10, 3.4), layout="constrained")
for ax, (name, post) in zip(axes, machines.items(), strict=True):
    chance = post.predict(grid).probs[:, 1].view(len(line), len(line)).T
    ax.imshow(chance, origin="lower", extent=(-1.4, 1.4, -1.4, 1.4), cmap="RdBu_r", vmin=0, vmax=1)
    ax.scatter(*x.T, c=y, cmap="RdBu_r", edgecolors="white", s=14, linewidths=0.5)
    ax.set(title=f"{name}: accuracy {float(bv.metrics.accuracy(post.predict(x), y)):.0%}", xticks=[], yticks=[])
plt.show()
