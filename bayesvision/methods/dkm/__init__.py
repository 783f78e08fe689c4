"""Deep kernel machines."""
