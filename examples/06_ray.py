"""
Stopping the trials of Ray Tune
===============================

``LCPFNScheduler`` starts trials in the order of submission and stops those that are unlikely to beat the best one.
``LCPFNStopper`` does the same as a stopper, which leaves the place of the scheduler to another.
"""

# %%
import argparse
import tempfile

import matplotlib.pyplot as plt
import ray
from ray import tune

from bayesvision.integrations.ray import LCPFNScheduler

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="a few short trials")
smoke = parser.parse_args().smoke
trials, epochs = (4, 8) if smoke else (40, 40)

# %%
# The trainable runs in a worker process, so it imports what it needs. It reports the validation accuracy on the digits
# of scikit-learn after every epoch.


def train(config):
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    net = nn.Sequential(nn.Linear(64, config["width"]), nn.ReLU(), nn.Linear(config["width"], 10))
    optimizer = torch.optim.Adam(net.parameters(), config["lr"])
    for _ in range(epochs):
        for rows in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (net(x[1200:]).argmax(-1) == y[1200:]).double().mean().item()
        tune.report({"accuracy": accuracy})


# %%
# The scheduler takes the metric and its direction from ``TuneConfig``.

scheduler = LCPFNScheduler(horizon=epochs)
ray.init(num_cpus=1 if smoke else None, include_dashboard=False, log_to_driver=False, logging_level="error")
with tempfile.TemporaryDirectory() as folder:
    tuner = tune.Tuner(
        train,
        param_space={"lr": tune.loguniform(1e-5, 1e-1), "width": tune.choice([16, 64])},
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", num_samples=trials, scheduler=scheduler, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    curves = [result.metrics_dataframe for result in results]
ray.shutdown()

best = results.get_best_result()
spent = sum(len(curve) for curve in curves)
print(f"best accuracy {best.metrics['accuracy']:.3f} with {best.config}")
print(f"{spent} epochs instead of {trials * epochs}")
print(scheduler.debug_string())

# %%
# The curves, up to where they ended.

_, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for curve in curves:
    ax.plot(curve.training_iteration, curve.accuracy, color="#0072B2", linewidth=0.8, marker="x", markevery=[-1])
ax.set(xlabel="epoch", ylabel="validation accuracy")
plt.show()
