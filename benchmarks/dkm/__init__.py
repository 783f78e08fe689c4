"""Benchmarks of deep kernel machines."""
