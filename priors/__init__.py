"""Priors over data sets: every one draws a whole batch with `sample(batch, rows, generator=...)`."""

from priors.curves import LearningCurves as LearningCurves
from priors.exact import GaussianPosterior as GaussianPosterior
from priors.families import LinearGaussian as LinearGaussian
from priors.families import NormalVariance as NormalVariance
from priors.families import ProcessHyperparameters as ProcessHyperparameters
from priors.families import Qubit as Qubit
from priors.families import SensorFusion as SensorFusion
from priors.gaussian_process import GaussianProcess as GaussianProcess
from priors.gaussian_process import GaussianProcessMixture as GaussianProcessMixture
from priors.linear import BayesianLinear as BayesianLinear
from priors.mixture import PriorMixture as PriorMixture
from priors.networks import RandomNetwork as RandomNetwork
from priors.real_curves import RealisticLearningCurves as RealisticLearningCurves
from priors.tables import StructuralTables as StructuralTables
from priors.task import Task as Task
