"""Posteriors and predictions as ArviZ reads them: diagnostics, summaries, leave-one-out, and plots."""

from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from bayesvision import __version__
from bayesvision.core.checks import as_tensor, check_count, check_inputs
from bayesvision.core.data import Data
from bayesvision.core.roles import Draws, Posterior, Sampled
from bayesvision.integrations import needs
from bayesvision.training.seeds import seeded

with needs("arviz"):
    import arviz
    import xarray

__all__ = ["to_arviz", "to_datatree"]

CHAINS = 4  # that independent draws are told as, so that R-hat has something to compare


def to_datatree(source: Any, data: Any = None, *, draws: int = 1_000, seed: int = 0) -> "xarray.DataTree":
    """Draws of a posterior or of a prediction as an `xarray.DataTree` in ArviZ's schema.

    Groups: `posterior` (every latent variable), `posterior_predictive`, `log_likelihood`, `observed_data` and
    `constant_data` (y and x), `sample_stats` (how a sampler went). What is not known has no group: a GP has no draws of
    latent variables, and rows that depend on one another given a draw have no log-likelihood of their own, which
    `arviz.loo` needs.

    Example:
        >>> tree = to_datatree(bv.MCMC(program, chains=4).fit(bv.Data(x, y)))
        >>> arviz.summary(tree), arviz.loo(tree)  # ArviZ 1.0 and newer; before that see to_arviz

    Args:
        source: a posterior (`MCMC` and `DistributionTransformer` remember their rows, others need `data`), or a
            distribution of rows [n] that `predict` returned.
        data: rows to predict; with y also what was observed there, which goes to `observed_data`.
        draws: where they are independent, in four chains of equal length; a sampler has the draws that it has.
        seed: of these draws, and of the draws of y.

    Raises:
        ValueError: no rows and nothing latent, wrong data, or `draws` below 8.
        TypeError: `source` is neither a posterior nor a distribution.
    """
    check_count("draws", draws, 8)
    count = CHAINS * -(-draws // CHAINS)  # rounded up to chains of equal length
    if isinstance(source, td.Distribution):
        found = Draws({}, source)
    elif isinstance(source, Posterior):
        found = _drawn(source, data, count, seed)
    else:
        raise TypeError(f"source must be a posterior or a distribution, got {type(source).__name__}")
    y = found.y
    if data is not None and data.y is not None and found.observed is not None:
        y = _targets(data, found.observed)
    groups = {"posterior": {name: _chains(value, found.iid) for name, value in found.sites.items()}}
    if found.observed is not None:
        groups |= _rows(found, y, count, seed)
    if found.statistics:
        groups["sample_stats"] = found.statistics
    groups |= {
        "observed_data": {} if y is None else {"y": y},
        "constant_data": {} if found.x is None else {"x": found.x},
    }
    sets = {name: _dataset(values, name) for name, values in groups.items() if values}
    return xarray.DataTree.from_dict(sets)


def to_arviz(source: Any, data: Any = None, **choices: int) -> Any:
    """`to_datatree(source, data, ...)` for the installed ArviZ: `arviz.InferenceData` before 1.0, the tree since.

    Example:
        >>> arviz.plot_trace(to_arviz(posterior))
    """
    tree = to_datatree(source, data, **choices)
    return tree if int(arviz.__version__.split(".")[0]) >= 1 else arviz.from_datatree(tree)


def _drawn(source: Posterior, data: Any, count: int, seed: int) -> Draws:
    if data is not None and not isinstance(data, Data):
        raise TypeError(f"data must be Data(x, y), got {type(data).__name__}")
    if data is not None and data.x is None:
        raise ValueError("data must hold rows x, got None; of a family without designs, condition on y alone")
    with torch.no_grad():
        if isinstance(source, Sampled):
            return source.sampled(count, seed, None if data is None else data.x)
        if data is None:
            raise ValueError(
                f"{type(source).__name__} has no draws of its own; say by data=Data(x, y) which rows to predict"
            )
        return Draws({}, source.predict(data.x), _numbers(data.x))


def _numbers(x: Any) -> Tensor | None:
    """Rows as numbers; None where they are text or dates, which have no place in a data set of numbers."""
    try:
        return check_inputs(x, missing=True)
    except ValueError:
        return None


def _targets(data: Data, law: td.Distribution) -> Tensor:
    """Targets of the rows of `data`, which classes may have as numbers of any kind."""
    y = as_tensor("y", data.y)
    rows = law.batch_shape[len(law.batch_shape) - y.ndim :]
    if tuple(y.shape) != tuple(rows) or not bool(torch.isfinite(y.double()).all()):
        raise ValueError(
            f"y must have one finite value for each row that is predicted, {tuple(rows)}, got {tuple(y.shape)}; "
            "leave out rows without"
        )
    return y.long() if isinstance(law, td.Categorical) else y


def _rows(found: Draws, y: Tensor | None, count: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Draws of y, and its log-likelihood where rows are independent given a draw."""
    law: Any = found.observed
    with seeded(seed), torch.no_grad():
        drawn = law.sample() if found.sites else law.sample((count,)).unsqueeze(0)
    groups = {"posterior_predictive": {"y": _chains(drawn, found.iid)}}
    if y is not None and found.sites and found.pointwise:
        groups["log_likelihood"] = {"y": _chains(law.log_prob(y.to(drawn.device)), found.iid)}
    return groups


def _chains(values: Tensor, iid: bool) -> Tensor:
    """[1, draws, ...] of independent draws as chains of equal length; what is in chains stays so."""
    return values[0].unflatten(0, (CHAINS, -1)) if iid else values


def _dataset(values: dict[str, Tensor], group: str) -> "xarray.Dataset":
    lead = () if group in ("observed_data", "constant_data") else ("chain", "draw")
    variables, coordinates = {}, {}
    for name, value in values.items():
        array = value.detach().cpu().numpy()
        name = name.replace("/", ".")  # a tree takes it for a path
        if name in ("chain", "draw"):
            raise ValueError(f"the latent variable {name!r} is called like an axis of ArviZ; rename it in the program")
        named = {"y": ("row",), "x": ("row", "column")}.get(name) if group != "posterior" else None
        own = array.ndim - len(lead)
        rest = named if named and len(named) == own else tuple(f"{name}_dim_{k}" for k in range(own))
        variables[name] = ((*lead, *rest), array)
        coordinates |= {axis: np.arange(size) for axis, size in zip((*lead, *rest), array.shape, strict=True)}
    attributes = {"inference_library": "bayesvision", "inference_library_version": __version__}
    return xarray.Dataset(variables, coordinates, attributes)
