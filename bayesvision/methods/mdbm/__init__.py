"""Monotone deep Boltzmann machines: joint completion and classification with a unique answer."""
