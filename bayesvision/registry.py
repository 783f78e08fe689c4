"""One table of names: where each public name lives, which posterior a checkpoint's method has, which extra it needs."""

from typing import NamedTuple

__all__ = ["EXTRAS", "FORMER", "MODULES", "NAMES", "POSTERIORS", "Former", "Stored"]


class Stored(NamedTuple):
    """The classes that make a posterior of a checkpoint, each as its module and name.

    Attributes:
        alone: what the file holds; None if that is nothing without the network that it was learned around.
        around: the same with the network of `load(path, net=net)`; None if there is no such network.
    """

    alone: tuple[str, str] | None
    around: tuple[str, str] | None = None


class Former(NamedTuple):
    """A public name of an earlier release, and what it is called now."""

    now: str
    since: str


NAMES = {  # name of `bayesvision` -> module, imported on first use
    "BayesCap": "bayesvision.methods.bayescap.bayescap",
    "CurveFit": "bayesvision.baselines.curve_fit",
    "DKM": "bayesvision.methods.dkm.dkm",
    "Data": "bayesvision.core.data",
    "DistributionTransformer": "bayesvision.methods.dt.dt",
    "Ensemble": "bayesvision.baselines.ensemble",
    "Execution": "bayesvision.training.train",
    "GP": "bayesvision.baselines.gp",
    "ImageDKM": "bayesvision.methods.dkm.images",
    "ImageMDBM": "bayesvision.methods.mdbm.images",
    "JsonLines": "bayesvision.training.loggers",
    "LCPFN": "bayesvision.methods.lcpfn.lcpfn",
    "LastValue": "bayesvision.baselines.last_value",
    "MCMC": "bayesvision.baselines.mcmc",
    "MDBM": "bayesvision.methods.mdbm.mdbm",
    "MetricScale": "bayesvision.distributions.metric",
    "PFN": "bayesvision.methods.pfn.pfn",
    "ParticleFilter": "bayesvision.baselines.particle_filter",
    "SSVI": "bayesvision.methods.ssvi.ssvi",
    "StoppingRule": "bayesvision.early_stopping.rule",
    "Thaw": "bayesvision.early_stopping.thaw",
    "TablePFN": "bayesvision.methods.tables.tables",
    "Train": "bayesvision.training.train",
    "load": "bayesvision.io.checkpoints",
    "pretrained": "bayesvision.io.checkpoints",
    "save": "bayesvision.io.checkpoints",
    "shipped": "bayesvision.io.checkpoints",
}
MODULES = ("distributions", "integrations", "metrics", "plots")
POSTERIORS = {  # method in a checkpoint's header -> its posterior
    "PFN": Stored(("bayesvision.methods.pfn.pfn", "PFNPosterior")),
    "LCPFN": Stored(("bayesvision.methods.lcpfn.lcpfn", "LCPFNPosterior")),
    "TablePFN": Stored(("bayesvision.methods.tables.tables", "TablePFNPosterior")),
    "BayesCap": Stored(
        ("bayesvision.methods.bayescap.cap", "Cap"), ("bayesvision.methods.bayescap.bayescap", "BayesCapPosterior")
    ),
    "DistributionTransformer": Stored(
        ("bayesvision.methods.dt.dt", "DTPosterior"), ("bayesvision.methods.dt.dt", "DTPosterior")
    ),
    "MDBM": Stored(("bayesvision.methods.mdbm.mdbm", "TableMDBMPosterior")),
    "ImageMDBM": Stored(("bayesvision.methods.mdbm.images", "ImageMDBMPosterior")),
    "SSVI": Stored(None, ("bayesvision.methods.ssvi.posterior", "SSVIPosterior")),
    "DKM": Stored(("bayesvision.methods.dkm.posterior", "DKMPosterior")),
    "ImageDKM": Stored(("bayesvision.methods.dkm.posterior", "DKMClassPosterior")),
    "GP": Stored(("bayesvision.baselines.gp", "GPPosterior")),
}
EXTRAS = {  # package -> extra of bayesvision that installs it
    "gpytorch": "gp",
    "linear_operator": "gp",
    "pyro": "mcmc",
    "arviz": "mcmc",
    "joblib": "mcmc",
    "sklearn": "sklearn",
    "emcee": "curves",
    "optuna": "optuna",
    "ray": "ray",
    "lightning": "lightning",
    "transformers": "transformers",
    "keras": "keras",
    "pandas": "frame",
}
FORMER = {"Scale": Former("MetricScale", "0.2")}  # public name of an earlier release
