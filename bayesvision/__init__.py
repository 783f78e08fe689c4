"""Bayesian prediction in PyTorch."""

from bayesvision.methods.pfn import PFN as PFN
from bayesvision.training import Train as Train
