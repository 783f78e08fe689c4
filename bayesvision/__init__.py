"""Bayesian prediction in PyTorch: calibrated answers fast, with baselines that check them."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from bayesvision.registry import EXTRAS, FORMER, MODULES, NAMES

if TYPE_CHECKING:
    from bayesvision.baselines.curve_fit import CurveFit as CurveFit
    from bayesvision.baselines.ensemble import Ensemble as Ensemble
    from bayesvision.baselines.gp import GP as GP
    from bayesvision.baselines.last_value import LastValue as LastValue
    from bayesvision.baselines.mcmc import MCMC as MCMC
    from bayesvision.baselines.particle_filter import ParticleFilter as ParticleFilter
    from bayesvision.core.data import Data as Data
    from bayesvision.distributions.metric import MetricScale as MetricScale
    from bayesvision.early_stopping.rule import StoppingRule as StoppingRule
    from bayesvision.early_stopping.thaw import Thaw as Thaw
    from bayesvision.io.checkpoints import load as load
    from bayesvision.io.checkpoints import pretrained as pretrained
    from bayesvision.io.checkpoints import save as save
    from bayesvision.io.checkpoints import shipped as shipped
    from bayesvision.methods.bayescap.bayescap import BayesCap as BayesCap
    from bayesvision.methods.dkm.dkm import DKM as DKM
    from bayesvision.methods.dkm.images import ImageDKM as ImageDKM
    from bayesvision.methods.dt.dt import DistributionTransformer as DistributionTransformer
    from bayesvision.methods.lcpfn.lcpfn import LCPFN as LCPFN
    from bayesvision.methods.mdbm.images import ImageMDBM as ImageMDBM
    from bayesvision.methods.mdbm.mdbm import MDBM as MDBM
    from bayesvision.methods.pfn.pfn import PFN as PFN
    from bayesvision.methods.ssvi.ssvi import SSVI as SSVI
    from bayesvision.methods.tables.tables import TablePFN as TablePFN
    from bayesvision.training.loggers import JsonLines as JsonLines
    from bayesvision.training.train import Execution as Execution
    from bayesvision.training.train import Train as Train

__version__ = "0.1.0"
__all__ = [*NAMES, *MODULES, "priors"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use: the command answers before torch is loaded, and extras stay optional."""
    if name in MODULES:
        return importlib.import_module(f"bayesvision.{name}")
    if name == "priors":
        return _own_priors()
    if name in FORMER:
        now, since = FORMER[name]
        warnings.warn(f"bayesvision.{name} is bayesvision.{now} since {since}", DeprecationWarning, stacklevel=2)
        name = now
    if name not in NAMES:
        raise AttributeError(f"module 'bayesvision' has no attribute {name!r}")
    try:
        module = importlib.import_module(NAMES[name])
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise ImportError(f'bayesvision.{name} needs {error.name}: pip install "bayesvision[{extra}]"') from error
    return getattr(module, name)


def _own_priors() -> Any:
    """The package `priors` that comes with this one, under its other name `bayesvision.priors`."""
    priors = importlib.import_module("priors")
    if not hasattr(priors, "GaussianProcessMixture"):
        raise ImportError(
            f"the package priors that Python finds, {getattr(priors, '__file__', priors)}, is not that of bayesvision; "
            "uninstall or rename it, or put the folder that holds both first on sys.path"
        )
    return priors


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
