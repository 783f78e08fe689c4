"""Files, which are data only: checkpoints, tensors, tables, training logs."""
