"""Distribution Transformers: from a prior and observations to a posterior, the prior chosen at run time."""
