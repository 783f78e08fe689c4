"""Bayesian neural networks that are sparse from the first step."""
