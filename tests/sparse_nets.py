"""Small networks, rows and recipes that the tests of sparse networks share."""

import torch
from torch import nn

from bayesvision import Data, Execution, Train
from bayesvision.methods.ssvi.layers import sparse_layer
from bayesvision.methods.ssvi.learning import Learner
from bayesvision.methods.ssvi.network import trainable
from bayesvision.methods.ssvi.selection import random_places
from bayesvision.training.seeds import generator, seeded

CPU = Execution(device="cpu")
QUICK = Train(steps=60, batch=16, lr=1e-2, execution=CPU)


def draws(seed, *shape):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def net(inputs=3, width=32, outputs=1, **kind):
    with seeded(1):
        return nn.Sequential(
            nn.Linear(inputs, width, dtype=torch.float32, **kind),
            nn.Tanh(),
            nn.Linear(width, outputs, dtype=torch.float32, **kind),
        )


def layer(outputs=7, inputs=5, kept=12, bias=True, dtype=torch.float64):
    with seeded(2):
        dense = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    return sparse_layer(dense, random_places((outputs, inputs), kept, generator("cpu", 3)), 1.0, 0.3)


def rows(count=80, seed=5):
    x = draws(seed, count, 3)
    return x, x[:, 0] - 0.5 * x[:, 1] + 0.1 * draws(seed + 1, count)


def learner_of(method, x, y):
    from bayesvision.training.batches import Minibatches
    from bayesvision.training.examples import read

    examples, inputs, _ = read(Data(x, y), 0, method.classes)
    model = method.untrained(method.net, inputs, trainable(method.net))
    return Learner(method, model, Minibatches(examples, method.train, torch.device("cpu"))), model
