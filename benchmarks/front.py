"""Draw docs/front.png: what `pfn-gp` predicts from eight rows, beside the exact answer that NUTS takes seconds for."""

import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import bayesvision as bv
from bayesvision import plots
from priors import GaussianProcessMixture, programs

PICTURE = Path(__file__).parents[1] / "docs" / "front.png"


def main() -> None:
    torch.set_num_threads(1)
    places = [0.02, 0.06, 0.12, 0.17, 0.2, 0.26, 0.31, 0.36, 0.55, 0.58, 0.62, 0.68, 0.9, 0.93, 0.97]
    x = torch.tensor(places, dtype=torch.float64).unsqueeze(-1)
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.sin(7 * x[:, 0]) + 0.15 * noise
    grid = torch.linspace(-0.1, 1.1, 200, dtype=torch.float64).unsqueeze(-1)
    trained = bv.pretrained("pfn-gp")
    trained.condition(x, y).predict(grid).mean  # noqa: B018 (warm)
    start = time.perf_counter()
    network = trained.condition(x, y).predict(grid)
    seconds = {"network": time.perf_counter() - start}
    start = time.perf_counter()
    program = programs.model(GaussianProcessMixture(features=1, recipe="botorch"))
    exact = bv.MCMC(program, warmup=200, draws=300, chains=2, seed=0).fit(x, y).predict(grid)
    seconds["exact"] = time.perf_counter() - start
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, law, title in (
        (left, network, f"pfn-gp, one forward pass: {1000 * seconds['network']:.0f} ms"),
        (right, exact, f"the same kind of prior, sampled by NUTS: {seconds['exact']:.0f} s"),
    ):
        plots.predictive_band(law, grid, bv.Data(x, y), ax=ax)
        ax.set_title(title, fontsize=11)
        ax.set(xlabel="x", ylabel="")
    figure.savefig(PICTURE, dpi=130)
    print(seconds)


if __name__ == "__main__":
    main()
