"""
Your own prior
==============

A prior is a class with a method ``sample``, or a pyro program. Here is an enzyme's rate against the concentration of
its substrate, y = top x / (half + x) + noise, first as a class that a network learns from, then as a program on which
the No-U-Turn sampler checks the network.
"""

# %%
import argparse
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from priors import Task
from priors.programs.prior import PyroPrior

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="train and sample for seconds")
smoke = parser.parse_args().smoke

# %%
# The class needs no base class. It draws a whole batch of data sets at once, on the generator's device, and every
# random number comes from the generator: then a run is a pure function of its seed. A dataclass describes itself in the
# checkpoint.


@dataclass(frozen=True)
class Saturation:
    """y = top x / (half + x) + noise, with top ~ LogN(0, 1/2), half ~ LogN(-1, 1/2) and x ~ U(0, 2)."""

    noise: float = 0.05  # standard deviation

    def sample(self, batch: int, rows: int, *, generator: torch.Generator) -> Task:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=generator.device)

        top, half = torch.exp(normal(batch, 1) / 2), torch.exp(-1 + normal(batch, 1) / 2)
        x = 2 * torch.rand(batch, rows, generator=generator, device=generator.device)
        y = top * x / (half + x) + self.noise * normal(batch, rows)
        return Task(x.unsqueeze(-1), y)


prior = Saturation()
train = bv.Train(steps=500 if smoke else 8_000, batch=16, lr=4e-3 if smoke else 1e-3)
if smoke:
    pfn = bv.PFN(context=8, width=32, layers=3, heads=2, bars=100, train=train)
else:
    pfn = bv.PFN(context=30, train=train)
trained = pfn.fit(prior)

# %%
# The same beliefs as a pyro model of y given x.


def model(x, y=None):
    top = pyro.sample("top", dist.LogNormal(0.0, 0.5))
    half = pyro.sample("half", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("rows", x.shape[-2]):
        return pyro.sample("y", dist.Normal(top * x[..., 0] / (half + x[..., 0]), prior.noise), obs=y)


# %%
# Five measurements. The network answers at once; the sampler runs its chains for this one data set.

task = prior.sample(1, 5, generator=generator("cpu", 1))
data = bv.Data(task.x[0], task.y[0])
length = 60 if smoke else 1_000
sampled = bv.MCMC(model, warmup=length, draws=length, chains=1).fit(data)
print("posterior means:", {name: round(float(draws.mean()), 2) for name, draws in sampled.latent.items()})

grid = torch.linspace(0, 2, 200)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
bv.plots.predictive_band(trained.condition(*data).predict(grid), grid, data, ax=axes[0]).set_title("PFN")
bv.plots.predictive_band(sampled.predict(grid), grid, data, ax=axes[1]).set_title("NUTS")
axes[1].get_legend().remove()
axes[1].set_ylabel("")
plt.show()

# %%
# A pyro program that draws x as well is a prior by itself: ``PyroPrior`` draws data sets from it, and ``pfn.fit`` takes
# it like any other prior.


def program(rows):
    with pyro.plate("inputs", rows):
        x = pyro.sample("x", dist.Uniform(0.0, 2.0)).unsqueeze(-1)
    return x, model(x)


drawn = PyroPrior(program).sample(200, 50, generator=generator("cpu", 2))
direct = prior.sample(200, 50, generator=generator("cpu", 2))
print(f"mean of y: {drawn.y.mean():.2f} from the program, {direct.y.mean():.2f} from the class")
print("latent variables of each data set:", {name: tuple(value.shape) for name, value in drawn.theta.items()})
