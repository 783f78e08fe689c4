"""Pyro: any program as a prior, and our own priors as pyro models."""

from priors.programs.models import model as model
from priors.programs.prior import PyroPrior as PyroPrior
