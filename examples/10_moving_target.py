"""
A moving target
===============

A filter keeps a belief over what it cannot see. Here the belief over a target's position and velocity is a Gaussian
mixture, updated by ``dt-sensor``, a network that comes with the package: one forward pass a reading, and the posterior
is the prior of what comes next. The rangefinder is wrong in three readings of ten, as real ones are.
"""

# %%
# The target starts somewhere in the north-east and wanders. Each second a station at the origin reads its distance and
# its bearing.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.distributions as td
from matplotlib.animation import FuncAnimation, PillowWriter

import bayesvision as bv
from priors import SensorFusion

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="take fewer steps")
parser.add_argument("--gif", type=Path, help="write the belief over time as an animation")
arguments = parser.parse_args()

family, steps = SensorFusion(), 6 if arguments.smoke else 40
F, Q = family.transition, family.noise
start = td.MultivariateNormal(
    torch.tensor([4.0, 5.0, 0.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 4, 0.1, 0.1])).double()
)

torch.manual_seed(3)
state, states, readings = start.sample(), [], []
for _ in range(steps):
    state = td.MultivariateNormal(F @ state, Q).sample()
    states.append(state)
    readings.append(family.observed(state, family.reading).sample())

# %%
# The filter is four words: ``move`` and ``condition``, for the network and for a particle filter with 20,000 draws.

belief = bv.pretrained("dt-sensor").with_prior(start)
particles = bv.ParticleFilter(2_000 if arguments.smoke else 20_000).fit(family).with_prior(start)
beliefs = []
for reading in readings:
    belief = belief.move(F, Q).condition(y=reading)
    particles = particles.move(F, Q).condition(y=reading)
    beliefs.append((belief.latent, particles.latent))

gap = max(float((mine.mean - theirs.mean)[:2].norm()) for mine, theirs in beliefs)
print(f"position: the means of both filters are never farther apart than {gap:.2f}")

# %%
# The belief after a few of the readings, with the true position as a cross and what was read as a dot.

path = torch.stack(states)
extent = (*(float(v) for v in (path[:, 0].min() - 3, path[:, 0].max() + 3)),)
extent = (*extent, *(float(v) for v in (path[:, 1].min() - 3, path[:, 1].max() + 3)))


def panel(ax, step):
    ax.clear()
    bv.plots.belief(beliefs[step][0], truth=states[step], extent=extent, ax=ax)
    ax.plot(path[: step + 1, 0], path[: step + 1, 1], color="0.5", lw=1)
    distance, bearing = readings[step]
    ax.plot(float(distance * bearing.cos()), float(distance * bearing.sin()), ".", color="tab:orange")
    ax.set_title(f"reading {step + 1}", fontsize=10)


shown = torch.linspace(0, steps - 1, 5).round().int().tolist()
figure, axes = plt.subplots(1, 5, figsize=(14, 3), sharey=True, layout="constrained")
for ax, step in zip(axes, shown, strict=True):
    panel(ax, step)
axes[0].set_ylabel("north")
figure.supxlabel("east")
plt.show()

# %%
# The same as an animation: ``python examples/10_moving_target.py --gif belief.gif``.

if arguments.gif:
    figure, ax = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    animation = FuncAnimation(figure, lambda step: panel(ax, step), frames=steps)
    animation.save(arguments.gif, PillowWriter(fps=5))
    print(f"wrote {arguments.gif}")
