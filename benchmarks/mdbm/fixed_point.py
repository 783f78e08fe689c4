"""What it takes to solve mean field: the accelerated ascent beside coordinate ascent and plain parallel mean field.

On the machine of MNIST that `benchmarks.mdbm.completion` trained, 200 test images with 40 % of their pixels seen. A
step of the ascent, of parallel mean field, or a sweep of coordinate ascent updates all variables once; all end at the
same certificate. Then the interactions are multiplied, beyond the bound, and parallel mean field starts at 0 and at
random.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesvision as bv
from bayesvision.methods.mdbm.ascent import Ascent, Bounded, Coupling
from benchmarks.common import DATA, write
from benchmarks.mdbm.completion import images, masks

MOST = 400


class Problem:
    """Images with holes as clamped variables of a machine."""

    def __init__(self, posterior: Any, x: Tensor, seen: Tensor) -> None:
        machine = posterior.exact()
        self.bounded, self.bias, self.layout = machine.bounded(), machine.bias, machine.layout
        self.free, self.start = machine.clamped(posterior.codes(x, seen, None))

    def certified(self, z: Tensor) -> Tensor:
        """The bound of the distance of softmax(Phi z + b) to the only fixed point."""
        t = torch.where(self.free, self.layout.softmax(self.bounded.coupling(z) + self.bias), self.start)
        off = torch.where(self.free, self.layout.centered(self.bounded.coupling(t - z)), 0.0)
        return off.norm(dim=-1) / self.bounded.margin

    def ascent(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Iterations, and which converged."""
        found = Ascent(self.bounded, self.bias).solve(self.free, self.start, tolerance, MOST)
        return found[2], found[3]

    def coordinates(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Sweeps over all variables, one after the other."""
        z = torch.where(self.free, self.layout.softmax(self.bias), self.start)
        field, matrix = self.bounded.coupling(z) + self.bias, self.bounded.coupling.rows(0, self.layout.size)
        sweeps, spans = torch.full((len(z),), MOST), self.layout.spans()
        for sweep in range(1, 201):
            for low, high in spans:
                new = torch.where(self.free[:, low:high], field[:, low:high].softmax(-1), z[:, low:high])
                field += (new - z[:, low:high]) @ matrix[low:high]
                z[:, low:high] = new
            done = self.certified(z) <= tolerance
            sweeps = torch.where(done & (sweeps == MOST), sweep, sweeps)
            if done.all():
                break
        return sweeps, sweeps < MOST

    def parallel(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Steps of z = softmax(Phi z + b)."""
        z = torch.where(self.free, self.layout.softmax(self.bias), self.start)
        steps = torch.full((len(z),), MOST)
        for step in range(1, MOST + 1):
            z = torch.where(self.free, self.layout.softmax(self.bounded.coupling(z) + self.bias), self.start)
            done = self.certified(z) <= tolerance
            steps = torch.where(done & (steps == MOST), step, steps)
            if done.all():
                break
        return steps, steps < MOST


class Scaled:
    """Interactions times a number."""

    def __init__(self, coupling: Coupling, factor: float) -> None:
        self.matrix, self.layout = factor * coupling.rows(0, coupling.layout.size), coupling.layout
        self.most = factor * coupling.most

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix

    def rows(self, first: int, last: int) -> Tensor:
        return self.matrix[first:last]


def unbounded(problem: Problem, factor: float) -> dict[str, Any]:
    """Parallel mean field, plain and damped by half, of interactions times `factor`, from two starts."""
    matrix = factor * problem.bounded.coupling.rows(0, problem.layout.size)
    line: dict[str, Any] = {"interactions": f"x {factor:g}"}
    for name, keep in (("plain", 0.0), ("damped", 0.5)):
        ends, still = [], torch.zeros(len(problem.start), dtype=torch.bool)
        for seed in range(2):
            rng = torch.Generator().manual_seed(seed)
            first = 3.0 * seed * torch.randn(problem.start.shape, generator=rng, dtype=torch.float64)
            z = torch.where(problem.free, problem.layout.softmax(first), problem.start)
            for _ in range(500):
                new = problem.layout.softmax(z @ matrix + problem.bias)
                z, before = torch.where(problem.free, keep * z + (1 - keep) * new, problem.start), z
            still |= (z - before).norm(dim=-1) > 1e-3
            ends.append(z)
        apart = (ends[0] - ends[1]).norm(dim=-1) > 1e-2
        line[f"{name}: not converged"] = round(float(still.double().mean()), 3)
        line[f"{name}: start decides"] = round(float((apart & ~still).double().mean()), 3)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="The folder that holds mnist/.")
    parser.add_argument("--machine", type=Path, default=Path("build/mdbm/MDBM.safetensors"))
    parser.add_argument("--images", type=int, default=200)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if not (a.data / "mnist").exists() or not a.machine.exists():
        print(f"no MNIST in {a.data}, or no {a.machine}; run benchmarks.mdbm.completion first")
        return
    _, _, x, _ = images(a.data)
    posterior: Any = bv.load(a.machine)
    seen = masks(1_000)["40%"][: a.images]
    problem, lines = Problem(posterior, x[: a.images].double(), seen), []
    with torch.no_grad():
        for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
            for name, work in (
                ("ascent", problem.ascent),
                ("coordinate ascent", problem.coordinates),
                ("parallel mean field", problem.parallel),
            ):
                start = time.perf_counter()
                steps, done = work(tolerance)
                seconds = time.perf_counter() - start
                line = {"solver": name, "tolerance": tolerance, "steps": round(float(steps[done].double().mean()), 1)}
                line |= {"converged": float(done.double().mean()), "ms an image": round(1e3 * seconds / len(steps), 3)}
                if name == "coordinate ascent":
                    line["updates of one variable"] = round(line["steps"] * problem.layout.count)
                lines.append(line)
                print(line, flush=True)
        margins = []
        for margin in (0.01, 0.05, 0.2, 0.5, 1.0):
            weaker = Problem(posterior, x[: a.images].double(), seen)
            factor = (2 - margin) / (2 - problem.bounded.margin)
            scaled = Scaled(problem.bounded.coupling, factor)
            weaker.bounded = Bounded(scaled, margin, problem.bounded.opposite * factor)
            steps, done = weaker.ascent(1e-6)
            margins.append(
                {"m": margin, "steps": round(float(steps.double().mean()), 1), "converged": float(done.double().mean())}
            )
            print(margins[-1], flush=True)
        beyond = [unbounded(problem, factor) for factor in (1.0, 2.0, 4.0, 8.0)]
    for line in beyond:
        print(line, flush=True)
    write("mdbm/fixed_point", {"solvers": lines, "margins, to 1e-6": margins, "beyond the bound": beyond})


if __name__ == "__main__":
    main()
