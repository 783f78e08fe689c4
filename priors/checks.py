"""The checks that the priors share."""

from numbers import Integral, Real

__all__ = ["check_counts", "check_positive"]


def check_counts(**counts: object) -> None:
    """Raise a `ValueError` that names the first of `counts` which is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_positive(**values: object) -> None:
    """Raise a `ValueError` that names the first of `values` which is not positive and finite."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def feature_range(features: int | tuple[int, int]) -> tuple[int, int]:
    """Minimum and maximum number of features; a `ValueError` unless `features` is a count or a range of them."""
    pair = tuple(features) if isinstance(features, tuple | list) else (features, features)
    for value in pair:
        check_counts(features=value)
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ValueError(f"features must be a number or a range (least, most), got {features!r}")
    return pair[0], pair[1]
