"""Uncertainty around a frozen network."""
