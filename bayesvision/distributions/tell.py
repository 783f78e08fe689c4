"""Predictions for people: as a frame, and as a small picture in a notebook."""

import html
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas

__all__ = ["framed", "shown"]

MOST = 40  # marginals in a picture
WIDTH, HEIGHT, EDGE = 420, 120, 6  # of it, in pixels
BLUE, GREY = "#0072B2", "#888888"  # seen on white and on black


def framed(parts: dict[str, Tensor], shape: tuple[int, ...]) -> "pandas.DataFrame":
    """Columns of a frame with a row for each index of the batch axes `shape`."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError('to_frame needs pandas: pip install "bayesvision[frame]"') from error
    columns = {name: value.detach().flatten().cpu().numpy() for name, value in parts.items()}
    if len(shape) < 2:
        return pandas.DataFrame(columns)
    index = pandas.MultiIndex.from_product([range(size) for size in shape])
    return pandas.DataFrame(columns, index=index)


def shown(law: Any) -> str:
    """HTML of a prediction: what `repr` says, and a picture of its first marginals; never an error."""
    text = f"<code>{html.escape(repr(law))}</code>"
    try:
        with torch.no_grad():
            picture = _intervals(law) if hasattr(law, "quantile") else _shares(law)
    except Exception:  # parameters that are not finite, or an empty batch
        return text
    return f"<div>{text}<br>{picture}</div>"


def _first(law: Any) -> Any:
    """The first marginals, on one batch axis at most."""
    while len(law.batch_shape) > 1:
        law = law[0]
    return law[:MOST] if law.batch_shape else law


def _intervals(law: Any) -> str:
    """Median, half and nine tenths of every marginal, side by side."""
    law = _first(law)
    levels = law.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)).double().reshape(5, -1)
    if not bool(levels.isfinite().all()):
        raise ValueError("quantiles must be finite to be drawn, and these are not")
    low, high = float(levels.min()), float(levels.max())
    across, span = (WIDTH - 2 * EDGE) / levels.shape[1], (high - low) or 1.0

    def y(value: float) -> float:
        return EDGE + (HEIGHT - 2 * EDGE) * (high - value) / span

    marks = []
    for k, column in enumerate(levels.T.tolist()):
        x = EDGE + across * (k + 0.5)
        for (bottom, top), wide in (((column[0], column[4]), 2), ((column[1], column[3]), 6)):
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y(bottom):.1f}" y2="{y(top):.1f}"'
            marks.append(
                f'<line {ends} stroke="{BLUE}" stroke-width="{min(wide, 0.8 * across):.1f}" stroke-opacity="0.6"/>'
            )
        marks.append(f'<circle cx="{x:.1f}" cy="{y(column[2]):.1f}" r="{min(3, across / 2):.1f}" fill="{BLUE}"/>')
    return _svg(marks, f"{low:.4g}", f"{high:.4g}")


def _shares(law: Any) -> str:
    """Probabilities of the classes of every marginal, one on top of the other."""
    shares = _first(law).class_probs.double()
    shares = shares.reshape(-1, shares.shape[-1])
    across, marks = (WIDTH - 2 * EDGE) / len(shares), []
    for k, row in enumerate(shares.tolist()):
        top = float(EDGE)
        for number, share in enumerate(row):
            tall = (HEIGHT - 2 * EDGE) * share
            shade = 0.15 + 0.8 * number / max(1, len(row) - 1)
            box = f'x="{EDGE + across * k:.1f}" y="{top:.1f}" width="{0.85 * across:.1f}" height="{tall:.1f}"'
            marks.append(f'<rect {box} fill="{BLUE}" fill-opacity="{shade:.2f}"/>')
            top += tall
    return _svg(marks, f"class {shares.shape[1] - 1}", "class 0")


def _svg(marks: list[str], low: str, high: str) -> str:
    label = f'font-size="10" fill="{GREY}"'
    words = f'<text x="2" y="10" {label}>{high}</text><text x="2" y="{HEIGHT + 4}" {label}>{low}</text>'
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT + 8}" width="{WIDTH}" style="max-width: 100%"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame} role="img">{"".join(marks)}{words}</svg>'
