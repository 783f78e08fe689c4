"""Priors over data sets: every one draws a whole batch with `sample(batch, rows, generator=...)`."""

from priors.combine import MixtureOf as MixtureOf
from priors.curves import LearningCurves as LearningCurves
from priors.curves import LearningCurvesPlus as LearningCurvesPlus
from priors.networks import RandomNetwork as RandomNetwork
from priors.regression import BayesianLinear as BayesianLinear
from priors.regression import GaussianPosterior as GaussianPosterior
from priors.regression import GaussianProcess as GaussianProcess
from priors.regression import GaussianProcessMixture as GaussianProcessMixture
from priors.task import Task as Task
