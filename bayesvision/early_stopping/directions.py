"""Which way a metric gets better: told, or known by its name, and never guessed."""

import dataclasses
import re
from typing import Any, Literal

from bayesvision.core.metric_words import ENDINGS, LARGER, SMALLER
from bayesvision.distributions.metric import MetricScale

__all__ = ["ARTICLES", "Mode", "check_mode", "directed", "direction", "known_direction"]

Mode = Literal["min", "max"]

FLIPS = frozenset(("neg", "negative", "minus"))
ARTICLES = {"min": "smaller", "max": "larger"}


def known_direction(metric: str) -> Mode | None:
    """`min` or `max` for a well-known name such as `val_loss` or `eval/accuracy`; None for any other.

    A name that holds a word of a loss is one, whatever stands beside it (`top5_error`); `neg_` turns the direction.
    """
    spelt = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric).lower()
    words = set(re.findall(r"[a-z]+\d*", spelt)) | set(re.findall(r"[a-z]+", spelt))
    if {"cross", "entropy"} <= words:
        words.add("crossentropy")
    flips = bool(words & FLIPS)
    if any(word in SMALLER or word.endswith(ENDINGS) for word in words):
        return "max" if flips else "min"
    if words & LARGER:
        return "min" if flips else "max"
    return None


def direction(
    metric: str, mode: Mode | None, scale: MetricScale | None, ask: str = "mode='min' or mode='max'"
) -> tuple[Mode, str]:
    """The direction of a metric and how it is known: as told by `mode`, by the scale, or by its name.

    Args:
        ask: what the caller can say to tell it.

    Raises:
        ValueError: nobody tells it, or the scale says another one than the name.
    """
    if mode is not None:
        return mode, "as told"
    known = known_direction(metric)
    if scale is not None:
        told: Mode = "min" if scale.minimize else "max"
        if known is not None and known != told:
            raise ValueError(
                f"{metric!r} sounds as if {ARTICLES[known]} were better, and its scale says {ARTICLES[told]}; say {ask}"
            )
        return told, "as its scale says"
    if known is None:
        raise ValueError(f"whether {metric!r} is better when larger or smaller is not known by its name; say {ask}")
    return known, "as its name says"


def check_mode(mode: Any, scale: MetricScale | None = None) -> None:
    """Refuse what is no direction, and one that is not the scale's; None is left to the scale.

    Raises:
        ValueError: as said.
    """
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    if scale is not None and mode is not None and scale.minimize != (mode == "min"):
        raise ValueError(f"mode={mode!r} contradicts the scale, which says minimize={scale.minimize}")


def directed(scale: MetricScale | None, mode: Mode) -> MetricScale | None:
    """The scale with that direction, if there is a scale."""
    return None if scale is None else dataclasses.replace(scale, minimize=mode == "min")
