"""What a row of a curve and a question about a later one say to the network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

UNIT = 0.005  # differences of a metric in [0, 1] count linearly below it and by their logarithm above
WINDOWS = (2, 4, 8, 16, 32)  # rows of the running means that a token compares its value with
START = 0.5  # epoch and value that stand in for the last ones before anything was seen


def _resolve(difference: Tensor) -> Tensor:
    """A difference of metric values on a scale that resolves small ones."""
    return torch.asinh(difference / UNIT) / 2


def _window_mean(total: Float[Tensor, "*batch sums"], window: int) -> Float[Tensor, "*batch n"]:
    """Mean of the last `window` entries at every place, of fewer at the start, from the sums that start with a zero."""
    n = total.shape[-1] - 1
    end = torch.arange(1, n + 1, device=total.device)
    start = (end - window).clamp(min=0)
    return (total[..., 1:] - total[..., start]) / (end - start).to(total)


def _sums(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch sums"]:
    return nn.functional.pad(values.double().cumsum(-1), (1, 0))


def _tokens(t: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n features"]:
    """What a row says to the network: epoch, value, and how the value relates to those before it.

    Every entry of row n is a function of the rows 1, ..., n alone.
    """
    first = t[..., :1]
    gap = t / torch.cat([first - 1, t[..., :-1]], -1).clamp(min=START)
    total = _sums(y)
    step = torch.cat([torch.zeros_like(y[..., :1]), y.diff(dim=-1)], -1)
    rough = _sums(step.abs())
    means = [_resolve(_window_mean(total, w) - y) for w in (*WINDOWS, t.shape[-1])]
    roughness = [(_window_mean(rough, w) / UNIT + 0.01).log() / 3 for w in (2, 8, 32)]
    best, worst = y.cummax(-1).values, y.cummin(-1).values
    values = [
        t / 50 - 1, t.log() / 2.3 - 1, gap.log(), 2 * y - 1, _resolve(step), *means, *roughness,
        _resolve(best - y), _resolve(y - worst), _resolve(y - y[..., :1]),
    ]  # fmt: skip
    return torch.stack([v.to(y.dtype) for v in values], -1)


FEATURES = 8 + len(WINDOWS) + 1 + 3


def _questions(t: Float[Tensor, "*batch"], last: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch queries"]:
    """What a query says: its epoch, alone and against the last one seen."""
    last = last.expand(t.shape)
    return torch.stack(
        [t / 50 - 1, t.log() / 2.3 - 1, (t / last).log() / 2, (t - last) / 50, 1 / torch.log1p(t) - 0.5], -1
    )


QUERIES = 5
