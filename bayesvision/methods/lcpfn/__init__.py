"""Learning curves extrapolated by a prior-data fitted network."""
