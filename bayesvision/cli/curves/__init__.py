"""Commands on training logs."""
