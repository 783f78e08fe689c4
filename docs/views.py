"""What people see of each benchmark: one message, at most seven columns, the best value bold; data only."""

from dataclasses import dataclass, field
from typing import Any

LOW, HIGH = min, max


@dataclass(frozen=True)
class View:
    """A table that says one thing.

    Attributes:
        message: what to take from it.
        table: key of the rows in the JSON, parts apart by slashes.
        columns: key of a column -> its header with the unit; of a pivot, its rows' key.
        errors: key of a value -> key of its standard error, shown small.
        best: key of a value -> `LOW` or `HIGH`, which is bold within each group of equal `within`.
        keep: only rows with these values.
        pivot: (key that becomes columns, key of the value, key of its error or ""), for a table across models.
        dots: also as a dot plot, on a logarithmic axis if "log".
    """

    message: str
    table: str
    columns: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    keep: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    pivot: tuple[str, str, str] | None = None
    good: Any = None
    dots: str = ""


VIEWS: dict[str, list[View]] = {
    "pfn_vs_gp": [
        View(
            "A trained PFN is within 0.01 to 0.03 nats of the exact posterior predictive with one input, and within 0.1 with "
            "five; zero is perfect.",
            "networks/*/gaps",
            {"context": "rows seen"},
            pivot=("features", "gap", "error"),
            dots="gap to the exact answer, nats",
        )
    ],
    "pfn_vs_nuts": [
        View(
            "The network is 800 to 1,600 times faster than NUTS on the same prior and 0.01 to 0.06 nats behind it; type-II "
            "maximum likelihood is worse than both where rows are few.",
            "comparison",
            {"features": "inputs", "rows": "rows"},
            pivot=("model", "nll", "error"),
            good=LOW,
        ),
        View(
            "Seconds for a data set.",
            "comparison",
            {"features": "inputs", "rows": "rows"},
            pivot=("model", "seconds", ""),
            good=LOW,
        ),
    ],
    "throughput": [
        View(
            "Training steps a second are level with the package `pfns` at the same size: 1.09 times as many (median of the "
            "rounds).",
            "training",
            {"round": "round"},
            pivot=("package", "steps a second", ""),
            good=HIGH,
        )
    ],
    "prediction_memory": [
        View(
            "10,000 rows are predicted from 1,000 within 300 MiB.",
            "memory",
            {
                "MiB above the imported library": "memory, MiB",
                "condition s": "condition, s",
                "predict and interval s": "predict and interval, s",
            },
        )
    ],
    "tables_uci": [
        View(
            "Negative log-likelihood from 200 rows, standardised targets; lower is better. No model is best everywhere.",
            "uci",
            {"set": "set"},
            keep={"rows": (200,)},
            pivot=("model", "nll", "nll error"),
            good=LOW,
        )
    ],
    "tables_open": [
        View(
            "Mean rank over 10 sets of numbers (1 is best), by the rows to learn from.",
            "summary",
            {"model": "model"},
            keep={"target": ("numbers",)},
            pivot=("rows", "mean rank", "rank error"),
            good=LOW,
            dots="mean rank, 1 is best",
        ),
        View(
            "The same for classes.",
            "summary",
            {"model": "model"},
            keep={"target": ("classes",)},
            pivot=("rows", "mean rank", "rank error"),
            good=LOW,
        ),
    ],
    "posteriordb": [
        View(
            "All eleven posteriors agree with their reference draws: means within 0.1 deviations, deviations within 10 %, "
            "R-hat below 1.01.",
            "posteriors",
            {
                "posterior": "posterior",
                "worst mean, sd": "worst mean, sd",
                "worst sd": "worst sd, share",
                "worst R-hat": "worst R-hat",
                "least ESS": "least ESS",
                "divergences": "divergences",
                "seconds": "seconds",
            },
            keep={"sampler": ("bayesvision",)},
        ),
        View(
            "Numpyro compiles its models and then takes 5 to 15 times less time on one thread, but for arma11, where a chain of "
            "its is stuck (R-hat 1.53). Models of PyTorch run in pyro alone.",
            "posteriors",
            {"posterior": "posterior, seconds for 4 chains of 2,000 steps"},
            pivot=("sampler", "seconds", ""),
            good=LOW,
        ),
        View(
            "Largest distance of a mean from the reference, in deviations; the goal is 0.1.",
            "posteriors",
            {"posterior": "posterior"},
            pivot=("sampler", "worst mean, sd", ""),
            good=LOW,
        ),
    ],
    "trust": [
        View(
            "Nothing speaks against a method at 1 %, but for dt-sensor (p = 0.009); every answer that is spoiled is seen.",
            "summary",
            {
                "method": "method",
                "data sets": "data sets",
                "p": "p",
                "coverage of 90 %": "coverage of 90 %",
                "p, half as wide": "p, half as wide",
                "p, twice as wide": "p, twice as wide",
                "p, shifted": "p, shifted",
            },
        )
    ],
    "botorch_regret": [
        View(
            "On Branin all are level, but for pfn-gp behind with qLogNEI. On Hartmann-6 BoTorch's own process wins and pfn-gp finds nothing: from 5 to 30 rows of six columns it knows too little. Logarithm (base 10) of the regret after 30 evaluations; lower is better.",
            "summary",
            {"function": "function", "acquisition": "acquisition"},
            pivot=("model", "log10 regret at 30", "error"),
            good=LOW,
        ),
        View(
            "Seconds to choose the next point, fitting or conditioning included.",
            "summary",
            {"function": "function", "acquisition": "acquisition"},
            pivot=("model", "seconds a step", ""),
            good=LOW,
        ),
    ],
    "normal_variance": [
        View(
            "Kullback-Leibler divergence from the exact posterior, in nats; lower is better.",
            "comparison",
            {
                "meta-prior": "meta-prior",
                "method": "method",
                "KL": "KL, nats",
                "Kolmogorov": "Kolmogorov distance",
                "s / 1,000 problems": "s / 1,000 problems",
            },
            errors={"KL": "KL error"},
            best={"KL": LOW},
            within=("meta-prior",),
        )
    ],
    "families": [
        View(
            "Negative log density of the latent variables; the exact answer is the least there can be.",
            "posteriors",
            {
                "family": "family",
                "method": "method",
                "NLL": "NLL, nats",
                "above exact": "above exact, nats",
                "s / 1,000 problems": "s / 1,000 problems",
            },
            errors={"NLL": "NLL error", "above exact": "above exact error"},
        )
    ],
    "sensor_fusion": [
        View(
            "The Distribution Transformer lies between particle filters of 1,000 and of 10,000 particles in likelihood, and a hundredth behind them in position.",
            "filters",
            {
                "method": "method",
                "NLL": "NLL, nats",
                "position RMSE": "position RMSE",
                "coverage 90 %": "coverage of 90 %",
                "ms / step, alone": "ms / step",
            },
            errors={"NLL": "NLL error"},
            best={"NLL": LOW, "position RMSE": LOW},
        )
    ],
    "car": [
        View(
            "Where Kalman's filter is exact, the network stays with it over 1,600 steps.",
            "filters",
            {"filter": "filter", "NLL": "NLL, nats", "RMSE, m": "RMSE, m", "ms / step": "ms / step"},
            errors={"NLL": "NLL error"},
            best={"NLL": LOW},
        )
    ],
    "simulators": [
        View(
            "Two-sample tests against the reference posterior at 10,000 simulations: 0.5 is perfect, 1 is told apart always.",
            "C2ST",
            {"task": "task"},
            pivot=("method", "C2ST", "C2ST error"),
            good=LOW,
        )
    ],
    "imputation": [
        View(
            "Negative log-likelihood of hidden cells, nats; the Boltzmann machine is best on 11 of 20 sets.",
            "scores",
            {"set": "set"},
            pivot=("model", "nll", "nll error"),
            good=LOW,
        )
    ],
    "completion": [
        View(
            "Negative log-likelihood of hidden pixels, nats, by what is seen of the digit.",
            "scores",
            {"model": "model"},
            keep={"seen": ("60%", "40%", "20%", "centre", "half", "quadrant")},
            pivot=("seen", "pixel NLL", ""),
            good=LOW,
        ),
        View(
            "Accuracy of the label from the same answer.",
            "scores",
            {"model": "model"},
            keep={"seen": ("100%", "60%", "40%", "20%", "half", "quadrant")},
            pivot=("seen", "accuracy", ""),
            good=HIGH,
        ),
    ],
    "fixed_point": [
        View(
            "What it takes to solve mean field, to each tolerance.",
            "solvers",
            {
                "solver": "solver",
                "tolerance": "tolerance",
                "steps": "steps",
                "converged": "converged, share",
                "ms an image": "ms an image",
            },
            best={"ms an image": LOW},
            within=("tolerance",),
        )
    ],
    "images": [
        View(
            "MNIST: what is kept of the weights, and what it costs in accuracy and likelihood.",
            "mnist",
            {
                "model": "model",
                "kept": "weights kept",
                "accuracy": "accuracy, %",
                "NLL": "NLL, nats",
                "ECE": "ECE",
                "AUROC": "AUROC, notMNIST",
                "seconds": "seconds",
            },
            errors={"accuracy": "accuracy error", "NLL": "NLL error"},
            best={"accuracy": HIGH, "NLL": LOW, "ECE": LOW, "AUROC": HIGH},
        )
    ],
    "sparse_uci": [
        View(
            "Mean log-likelihood, nats; higher is better. SSVI is ahead of MC dropout on 4 of 8 sets.",
            "uci",
            {"set": "set"},
            pivot=("model", "log-likelihood", "log-likelihood error"),
            good=HIGH,
        )
    ],
    "sparse_cifar": [
        View(
            "A small CNN on JPEG CIFAR-10: fewer multiply-adds cost accuracy here.",
            "models",
            {
                "model": "model",
                "multiply-adds, times fewer": "multiply-adds, times fewer",
                "accuracy": "accuracy, %",
                "NLL": "NLL, nats",
                "ECE": "ECE",
                "seconds": "seconds",
            },
            errors={"accuracy": "accuracy error", "NLL": "NLL error"},
            best={"accuracy": HIGH, "NLL": LOW},
        )
    ],
    "sparse_speed": [
        View(
            "A training step is 1.1 to 20 times faster than with masked dense layers, the more the wider and the sparser: 4.4 times at width 2,048 and 5 %.",
            "linear",
            {
                "width": "width",
                "density": "density",
                "masked dense step, ms": "masked dense, ms",
                "sparse step, ms": "sparse, ms",
                "times faster": "times faster",
                "memory over density": "memory / density",
            },
        )
    ],
    "dkm_uci": [
        View(
            "Mean test log-likelihood, nats; higher is better. By paired differences DKM is best or level on 7 of 8 sets.",
            "uci",
            {"set": "set"},
            pivot=("model", "log-likelihood", "log-likelihood error"),
            good=HIGH,
        )
    ],
    "dkm_cost": [
        View(
            "Seconds of an epoch grow linearly with the rows; at 45,000 rows a deep machine costs 2.6 to 3.4 times a variational Gaussian "
            "process.",
            "cost",
            {
                "model": "model",
                "1,000 rows, s": "1,000 rows, s",
                "10,000 rows, s": "10,000 rows, s",
                "45,000 rows, s": "45,000 rows, s",
                "slope": "slope",
            },
        )
    ],
    "dkm_mnist": [
        View(
            "Learned kernels (nu = 1) against the fixed ones of an infinitely wide network, 20 minutes on one core.",
            "images",
            {
                "nu": "nu",
                "accuracy %": "accuracy, %",
                "log-likelihood": "log-likelihood, nats",
                "ECE": "ECE",
                "AUROC, notMNIST": "AUROC, notMNIST",
                "minutes": "minutes",
            },
            errors={"accuracy %": "accuracy error", "log-likelihood": "log-likelihood error"},
            best={"accuracy %": HIGH, "log-likelihood": HIGH},
        )
    ],
    "lcpfn_real": [
        View(
            "Real curves from five sources that no training saw: log-likelihood of what came, nats; higher is better.",
            "all curves",
            {
                "model": "model",
                "log-likelihood": "log-likelihood, nats",
                "CRPS": "CRPS",
                "MAE": "MAE",
                "rank": "mean rank",
                "ms / curve": "ms / curve",
            },
            errors={"log-likelihood": "error"},
            best={"log-likelihood": HIGH, "CRPS": LOW, "MAE": LOW, "rank": LOW},
        ),
        View(
            "The same by source.",
            "by source",
            {"model": "model"},
            pivot=("source", "log-likelihood", "error"),
            good=HIGH,
            dots="log-likelihood, nats",
        ),
    ],
    "early_stopping": [
        View(
            "How many times sooner a search finds what it would have found without stopping, mean over each source's tasks.",
            "summary",
            {"policy": "policy"},
            pivot=("source", "mean speed-up", ""),
            good=HIGH,
            dots="times sooner",
        )
    ],
    "automl_optuna": [
        View(
            "A search of 30 trials with Optuna; ten seeds.",
            "summary",
            {
                "pruner": "pruner",
                "seconds": "seconds",
                "epochs": "epochs",
                "score": "score",
                "score at equal time": "score at equal time",
                "times faster": "times faster",
            },
            errors={
                "seconds": "seconds error",
                "score": "score error",
                "score at equal time": "score at equal time error",
            },
            best={"score": HIGH, "score at equal time": HIGH},
        )
    ],
    "lcpfn_training": [
        View(
            "What the choices in training buy in five minutes: log-likelihood by the share of the curve seen, nats.",
            "summary",
            {"training": "training", "steps": "steps", "10 %": "10 %", "20 %": "20 %", "40 %": "40 %", "80 %": "80 %"},
            errors={f"{k} %": f"{k} % error" for k in (10, 20, 40, 80)},
            best={f"{k} %": HIGH for k in (10, 20, 40, 80)},
        )
    ],
    "lcpfn_exact": [
        View(
            "The network is level with the exact posterior at 40 and 80 epochs seen; at 10 and 20 the exact one is not known "
            "well enough to say.",
            "results",
            {
                "seen": "epochs seen",
                "network": "network, nats",
                "reference": "reference, nats",
                "reference minus network": "difference, nats",
                "seconds a curve": "seconds of the reference",
            },
            errors={
                "network": "network error",
                "reference": "reference error",
                "reference minus network": "difference error",
            },
        )
    ],
    "lcpfn_vs_mcmc": [
        View(
            "Log-likelihood of the rest of a curve, nats, by epochs seen; higher is better.",
            "comparison",
            {"model": "model"},
            pivot=("seen", "ll", "error"),
            good=HIGH,
        ),
        View(
            "Seconds a curve.",
            "comparison",
            {"model": "model"},
            pivot=("seen", "seconds", ""),
            good=LOW,
        ),
    ],
    "bayescap": [
        View(
            "Spread around a frozen network for super-resolution; intervals are of 95 % over images.",
            "rows",
            keep={
                "row": (
                    "constant normal",
                    "gradient energy of the answer",
                    "test-time augmentation, 16 passes",
                    "dropout at inference, 16 passes",
                    "laplace-torch, last layer",
                    "cap, generalised, calibrated",
                    "cap, student, input too, calibrated",
                    "3 caps, generalised, input too, calibrated",
                    "legacy loss",
                )
            },
            best={"nll": LOW, "crps": LOW, "ause": LOW, "ood auroc": HIGH},
            columns={
                "row": "method",
                "nll": "NLL, nats",
                "crps": "CRPS",
                "ause": "AUSE",
                "coverage": "coverage of 90 %",
                "ood auroc": "AUROC, noise",
                "ms an image": "ms an image",
            },
        )
    ],
    "bayescap_more": [
        View(
            "Around a denoiser.",
            "denoising",
            {"row": "method", "nll": "NLL, nats", "crps": "CRPS", "ause": "AUSE", "coverage": "coverage of 90 %"},
            errors={"nll": "nll error", "coverage": "coverage error"},
            best={"nll": LOW, "crps": LOW, "ause": LOW},
        ),
        View(
            "Around MLPs on UCI regression: NLL, nats.",
            "tables",
            {"set": "set"},
            pivot=("row", "nll", "nll error"),
            good=LOW,
        ),
    ],
}


COSTS = {  # of a run on one core, as far as it was noted
    "pfn_vs_gp": "1.8 hours",
    "pfn_vs_nuts": "15 minutes",
    "dkm_mnist": "27 minutes",
    "dkm_uci": "hours",
    "images": "2 hours",
    "sparse_cifar": "25 minutes",
    "early_stopping": "28 minutes",
    "automl_optuna": "6 minutes",
    "lcpfn_training": "15 minutes",
    "lcpfn_exact": "50 minutes",
    "lcpfn_vs_mcmc": "an hour",
    "bayescap": "12 minutes",
    "posteriordb": "35 minutes",
    "botorch_regret": "80 minutes",
    "trust": "20 minutes",
    "prediction_memory": "seconds",
}
