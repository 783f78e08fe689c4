"""
Bayesian optimisation with a PFN
================================

A shipped network as the model of BoTorch: conditioned at each step, never fitted. ``PredictiveLogEI`` is exact for
whatever it predicts.
"""

# %%
# Branin's function on the unit square; BoTorch maximises, so it is negated. Five points to begin with.

import argparse
import warnings

import matplotlib.pyplot as plt
import torch
from botorch.optim import optimize_acqf
from botorch.test_functions import Branin

import bayesvision as bv
from bayesvision.integrations.botorch import PredictiveLogEI, PredictiveModel

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="choose fewer points")
steps = 8 if parser.parse_args().smoke else 20
warnings.simplefilter("ignore")

branin = Branin(negate=True)
low, high = branin.bounds.double()
box = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def ask(x: torch.Tensor) -> torch.Tensor:
    return branin(low + (high - low) * x).double()


x = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(5, dtype=torch.float64)
y = ask(x)

# %%
# Each step conditions the network on what was seen and asks where improvement is to be expected.

trained = bv.pretrained("pfn-gp")
for step in range(steps):
    torch.manual_seed(step)
    model = PredictiveModel(trained.condition(x, y))
    new, _ = optimize_acqf(PredictiveLogEI(model, y.max()), box, q=1, num_restarts=4, raw_samples=64)
    x, y = torch.cat([x, new]), torch.cat([y, ask(new)])

print(f"best value {y.max():.3f} after {len(y)} evaluations; the optimum is {branin.optimal_value:.3f}")

# %%
# The points over the function's contours, and the regret.

side = torch.linspace(0, 1, 80, dtype=torch.float64)
grid = torch.cartesian_prod(side, side)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.contourf(side, side, (-ask(grid)).log1p().reshape(80, 80).T, 20, cmap="Blues_r")
left.scatter(x[:5, 0], x[:5, 1], marker="s", color="#6E6E6E", label="first five")
left.scatter(x[5:, 0], x[5:, 1], color="#D55E00", edgecolor="white", label="chosen")
left.set(title="where it looked")
left.legend(loc="upper right")
right.plot(range(1, len(y) + 1), branin.optimal_value - y.cummax(0).values, color="#0072B2")
right.set(xlabel="evaluations", ylabel="regret", yscale="log", title="what was left to gain")
plt.show()
