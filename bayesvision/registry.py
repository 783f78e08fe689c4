"""One table of names: where each public name lives, which posterior a checkpoint's method has, which extra it needs."""

from typing import NamedTuple

__all__ = ["EXTRAS", "FORMER", "MODULES", "NAMES", "POSTERIORS", "Former"]

NAMES = {  # name of `bayesvision` -> module, imported on first use
    "BayesCap": "bayesvision.methods.bayescap.bayescap",
    "CurveFit": "bayesvision.baselines.curve_fit",
    "Data": "bayesvision.core.data",
    "Ensemble": "bayesvision.baselines.ensemble",
    "Execution": "bayesvision.training.train",
    "GP": "bayesvision.baselines.gp",
    "JsonLines": "bayesvision.training.loggers",
    "LCPFN": "bayesvision.methods.lcpfn.lcpfn",
    "LastValue": "bayesvision.baselines.last_value",
    "MCMC": "bayesvision.baselines.mcmc",
    "MetricScale": "bayesvision.distributions.metric",
    "PFN": "bayesvision.methods.pfn.pfn",
    "StoppingRule": "bayesvision.early_stopping.rule",
    "Train": "bayesvision.training.train",
    "load": "bayesvision.io.checkpoints",
    "pretrained": "bayesvision.io.checkpoints",
    "save": "bayesvision.io.checkpoints",
}
MODULES = ("distributions", "integrations", "metrics", "plots")
POSTERIORS = {  # method in a checkpoint's header -> module and class of its posterior
    "PFN": ("bayesvision.methods.pfn.pfn", "PFNPosterior"),
    "LCPFN": ("bayesvision.methods.lcpfn.lcpfn", "LCPFNPosterior"),
    "BayesCap": ("bayesvision.methods.bayescap.cap", "Cap"),
    "GP": ("bayesvision.baselines.gp", "GPPosterior"),
}
EXTRAS = {  # package -> extra of bayesvision that installs it
    "gpytorch": "gp",
    "linear_operator": "gp",
    "pyro": "mcmc",
    "arviz": "mcmc",
    "sklearn": "sklearn",
    "emcee": "curves",
    "optuna": "optuna",
    "ray": "ray",
    "lightning": "lightning",
    "transformers": "transformers",
    "keras": "keras",
    "pandas": "frame",
}


class Former(NamedTuple):
    """A public name of an earlier release, and what it is called now."""

    now: str
    since: str


FORMER = {"Scale": Former("MetricScale", "0.2")}
