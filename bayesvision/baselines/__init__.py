"""Exact and near-exact references: Gaussian processes and Markov chain Monte Carlo."""
