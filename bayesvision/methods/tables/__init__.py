"""A prior-data fitted network for tables as they come: numbers, categories and holes."""
