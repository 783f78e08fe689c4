"""Pyro: any program as a prior, and our own priors as pyro models."""

from priors.programs.prior import PyroPrior as PyroPrior
