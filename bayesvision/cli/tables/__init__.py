"""The command on tables."""
