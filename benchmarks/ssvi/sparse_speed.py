"""Time and memory of a training step and of a prediction: sparse layers beside masked dense ones, in one run.

One thread; a network of three layers of the same width, a batch of 128. The masked dense one keeps dense means,
deviations and moments, and a mask, as research code does. Convolutions: dense kernels beside unfolded inputs.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bayesvision as bv
from bayesvision.methods.ssvi.network import layers_of, sparsified
from bayesvision.methods.ssvi.products import Pattern, products
from bayesvision.training.seeds import generator
from benchmarks.common import write

BATCH = 128


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least of several runs."""
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


class Masked(nn.Module):
    """A linear layer with dense means and deviations, all times a mask."""

    def __init__(self, width: int, density: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.rho = nn.Parameter(torch.full((width, width), -5.0))
        self.register_buffer("mask", (torch.rand(width, width) < density).float())

    def forward(self, x: Tensor) -> Tensor:
        variance = (nn.functional.softplus(self.rho) * self.mask).square()
        mean = x @ (self.mu * self.mask).T
        return mean + (x.square() @ variance.T).clamp(min=1e-20).sqrt() * torch.randn_like(mean)


def chain(make: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(make(), nn.ReLU(), make(), nn.ReLU(), make())


def step_of(network: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        network.train()(x).square().mean().backward()
        optimizer.step()

    return step


def bytes_of(network: nn.Module) -> int:
    """Parameters, buffers, what layers keep of their places, and two moments of each parameter."""
    held = 3 * sum(p.numel() * p.element_size() for p in network.parameters())
    held += sum(b.numel() * b.element_size() for b in network.buffers())
    patterns = [v.pattern for v in layers_of(network).values() if v.kernel == "compressed rows"]
    return held + sum(v.numel() * v.element_size() for p in patterns for v in p if isinstance(v, Tensor))


def linear(width: int, density: float, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x, dense = torch.randn(BATCH, width), chain(lambda: nn.Linear(width, width))
    sparse = sparsified(dense, ["0", "2", "4"], density, "erk", "random", 0.01, 0)
    masked = chain(lambda: Masked(width, density))
    times = {name: seconds(step_of(net, x), repeats) for name, net in (("masked", masked), ("sparse", sparse))}
    post = bv.SSVI(dense, density, train=bv.Train(steps=1, batch=4)).fit(bv.Data(x[:4], torch.randn(4, width)))
    plain = post.compact()
    with torch.no_grad():
        dense_answer = seconds(lambda: dense.eval()(x), repeats)
        answer = seconds(lambda: plain.network(x), repeats)
    bytes_dense, bytes_sparse = bytes_of(masked), bytes_of(sparse)
    line = {
        "width": width,
        "density": density,
        "masked dense step, ms": round(1e3 * times["masked"], 2),
        "sparse step, ms": round(1e3 * times["sparse"], 2),
        "times faster": round(times["masked"] / times["sparse"], 2),
        "masked dense, MB": round(bytes_dense / 2**20, 1),
        "sparse, MB": round(bytes_sparse / 2**20, 1),
        "memory over density": round(bytes_sparse / bytes_dense / density, 2),
        "dense prediction, ms": round(1e3 * dense_answer, 3),
        "compact prediction, ms": round(1e3 * answer, 3),
        "prediction, times faster": round(dense_answer / answer, 2),
    }
    print(line, flush=True)
    return line


def convolution(channels: int, side: int, density: float, repeats: int) -> dict[str, Any]:
    """Forward of mean and variance: dense kernels beside unfolded inputs on compressed rows."""
    torch.manual_seed(0)
    x, size = torch.randn(32, channels, side, side), channels * channels * 9
    index = torch.randperm(size, generator=generator("cpu", 0))[: int(density * size)].sort().values
    values, pattern = torch.randn(len(index)), Pattern.of(index, (channels, channels * 9))

    def dense() -> None:
        for part, inputs in ((values, x), (values.square(), x.square())):
            kernel = torch.zeros(size).index_put((index,), part).view(channels, channels, 3, 3)
            nn.functional.conv2d(inputs, kernel, padding=1)

    def unfolded() -> None:
        columns = nn.functional.unfold(x, 3, padding=1).movedim(1, 0).flatten(1)
        products(columns, pattern, values, values.square())

    with torch.no_grad():
        times = seconds(dense, repeats), seconds(unfolded, repeats)
    line = {
        "channels": channels,
        "side": side,
        "density": density,
        "dense kernel, ms": round(1e3 * times[0], 1),
        "unfolded, ms": round(1e3 * times[1], 1),
        "unfolded, times faster": round(times[0] / times[1], 2),
    }
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.02, 0.01])
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    lines = [linear(w, d, a.repeats if w < 4096 else 3) for w in a.widths for d in a.densities]
    convolutions = [convolution(c, s, d, a.repeats) for c, s in ((32, 16), (64, 8)) for d in (0.1, 0.05, 0.01)]
    known = {(line["width"], line["density"]): line for line in lines}
    said = []
    if (2048, 0.05) in known:
        line = known[2048, 0.05]
        said = [
            f"step at width 2048 and density 0.05: {line['times faster']} times faster (goal 3)",
            f"parameters and moments: {line['memory over density']} x density of dense (goal at most 4)",
            f"compact prediction there: {line['prediction, times faster']} times faster than dense (goal above 1)",
        ]
        print("\n".join(said))
    write("ssvi/sparse_speed", {"batch": BATCH, "goals": said, "linear": lines, "convolutions": convolutions})


if __name__ == "__main__":
    main()
