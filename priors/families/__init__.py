"""Families of inference problems: a meta-prior over priors, a prior over latent variables, and what is observed."""

from priors.families.linear_gaussian import LinearGaussian as LinearGaussian
from priors.families.normal_variance import NormalVariance as NormalVariance
from priors.families.problem import MixtureParameters as MixtureParameters
from priors.families.problem import Problem as Problem
from priors.families.process_hyperparameters import ProcessHyperparameters as ProcessHyperparameters
from priors.families.qubit import Qubit as Qubit
from priors.families.sensor_fusion import SensorFusion as SensorFusion
