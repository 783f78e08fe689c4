"""
Fill the holes
==============

One Boltzmann machine completes images and says what they show, whatever is hidden, and an answer comes with a bound of
its distance to the only solution. ``mdbm-digits``, a machine of scikit-learn's digits, comes with the package.
"""

# %%
# Digits that training did not see, behind four kinds of mask.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="train for fewer steps")
parser.add_argument("--out", type=Path, help="save the first picture")
arguments = parser.parse_args()

digits = load_digits()
x, y = torch.as_tensor(digits.images[1_500:]) / 16, torch.as_tensor(digits.target[1_500:])
chosen = torch.tensor([0, 3, 12, 25, 31, 48, 53, 77])
x, y = x[chosen], y[chosen]
mask = torch.ones_like(x, dtype=torch.bool)
mask[:2, 4:] = False  # the lower half
mask[2:4, :, 4:] = False  # the right half
mask[4:6, 2:6, 2:6] = False  # the centre
mask[6:] = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4  # four pixels in ten are seen

machine = bv.pretrained("mdbm-digits")
done = machine.complete(x, mask)
figure = bv.plots.completions(x, mask, done, figure=plt.figure(layout="constrained"))
if arguments.out:
    figure.savefig(arguments.out, bbox_inches="tight", dpi=120)
plt.show()

# %%
# Means are soft where the machine does not know, and the deviation says where. The classes come from the same
# inference, and so does the certificate.

print("true classes", y.tolist())
print("guesses     ", done.label.mode.tolist(), "with", [f"{float(p):.2f}" for p in done.label.probs.amax(-1)])
print(f"no pixel or class is farther than {float(done.certificate.bound.max()):.0e} from the only fixed point")

# %%
# A table works alike: categories are levels, numbers are cut into bins, and every hole gets a distribution.

rng = np.random.default_rng(0)
kind = rng.integers(3, size=400)
frame = pd.DataFrame(
    {
        "kind": np.array(["red", "green", "blue"])[kind],
        "size": 10 * kind + rng.normal(size=400),
        "weight": 3 * kind + rng.normal(size=400),
        "shiny": np.where(rng.random(400) < 0.2 + 0.3 * kind, "yes", "no"),
    }
)
holes = frame.mask(rng.random(frame.shape) < 0.2)
table = bv.MDBM(train=bv.Train(steps=30 if arguments.smoke else 400, batch=128, lr=1e-2)).fit(holes)
imputed = table.impute(holes)
print(pd.concat([holes.head(6), imputed.filled.head(6)], axis=1))

# %%
# How sure it is of each cell, and one of them as a distribution.

_, ax = plt.subplots(figsize=(4, 6))
bv.plots.holes(imputed, ax)
plt.show()

# %%

row = int(imputed.holes[:, 1].nonzero()[0])
low, high = (float(v[row]) for v in imputed.column("size").interval(0.9))
print(f"row {row}: the size lies between {low:.1f} and {high:.1f} with 90 %; it was {frame['size'][row]:.1f}")
