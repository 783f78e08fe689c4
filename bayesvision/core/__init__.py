"""What every method stands on: the roles, the data users hand in and the checks on it, recipes, standardisation."""
