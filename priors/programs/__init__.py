"""Pyro: any program as a prior, and our own priors as pyro models."""

from priors.programs.family import ProgramFamily as ProgramFamily
from priors.programs.models import model as model
from priors.programs.prior import PyroPrior as PyroPrior
