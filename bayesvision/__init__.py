"""Bayesian prediction in PyTorch: calibrated answers fast, with baselines that check them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesvision.baselines.curves import CurveFit as CurveFit
    from bayesvision.baselines.curves import LastValue as LastValue
    from bayesvision.baselines.ensemble import Ensemble as Ensemble
    from bayesvision.baselines.gp import GP as GP
    from bayesvision.baselines.mcmc import MCMC as MCMC
    from bayesvision.checkpoints import load as load
    from bayesvision.checkpoints import pretrained as pretrained
    from bayesvision.checkpoints import save as save
    from bayesvision.core import Data as Data
    from bayesvision.methods.bayescap import BayesCap as BayesCap
    from bayesvision.methods.lcpfn import LCPFN as LCPFN
    from bayesvision.methods.pfn import PFN as PFN
    from bayesvision.stopping import StoppingRule as StoppingRule
    from bayesvision.training import JsonLines as JsonLines
    from bayesvision.training import Train as Train
    from bayesvision.units import Scale as Scale

__version__ = "0.1.0"

# Imported on first use: the command line answers before torch is loaded, and the extras stay optional.
_HOMES = {
    "CurveFit": "bayesvision.baselines.curves",
    "LastValue": "bayesvision.baselines.curves",
    "Ensemble": "bayesvision.baselines.ensemble",
    "GP": "bayesvision.baselines.gp",
    "MCMC": "bayesvision.baselines.mcmc",
    "load": "bayesvision.checkpoints",
    "pretrained": "bayesvision.checkpoints",
    "save": "bayesvision.checkpoints",
    "Data": "bayesvision.core",
    "BayesCap": "bayesvision.methods.bayescap",
    "LCPFN": "bayesvision.methods.lcpfn",
    "PFN": "bayesvision.methods.pfn",
    "StoppingRule": "bayesvision.stopping",
    "JsonLines": "bayesvision.training",
    "Train": "bayesvision.training",
    "Scale": "bayesvision.units",
}
_MODULES = ("distributions", "integrations", "metrics", "plots")
_EXTRAS = {
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

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bayesvision.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'bayesvision' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise ImportError(f'bayesvision.{name} needs {error.name}: pip install "bayesvision[{extra}]"') from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
