"""Training: `Train`, the only optimiser loop, its state, processes and seeds."""
