"""`TablePFN`: a prior over tables becomes a network that predicts one column of a new table in a forward pass."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesvision.core.checks import (
    check_classes,
    check_count,
    check_inputs,
    check_prior,
    check_targets,
)
from bayesvision.core.columns import Columns, is_frame, named_classes
from bayesvision.core.context import Cache, KVCache
from bayesvision.core.data import output_dtype
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.recipes import convert_fields, describe
from bayesvision.core.roles import Conditionable, Exported, Following
from bayesvision.distributions import Categorical, Mixture
from bayesvision.methods.tables.contexts import mixed, screened, spread
from bayesvision.methods.tables.encoding import CELL_FEATURES, Encoding, target_features
from bayesvision.methods.tables.heads import ProcessClassHead, ProcessMixtureHead
from bayesvision.methods.tables.network import CellTransformer
from bayesvision.methods.tables.tasks import TableBatch, TableStream
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["TablePFN", "TablePFNPosterior"]

CELLS = 40_000  # of one forward pass in predict: bounds its memory


@dataclass(frozen=True)
class TablePFN:
    """Prior-data fitted network for tables of numbers, categories and holes (Hollmann et al. 2023, arXiv 2207.01848).

    Minimises -E log q(y' | x', x, y) over tables drawn from a prior (Mueller et al. 2022, arXiv 2112.10510, eq. 3), n
    context rows with n log-uniform up to `context` and queries beside them. The network attends along the rows and
    the columns of the table (`bayesvision.methods.tables.network`), so the order of neither matters. A Gaussian process
    with a lengthscale for each column, fitted to the context, tells the network what it predicts, and the network's
    answer is in units of that prediction (`bayesvision.methods.tables.gp_features`): the network learns by how much
    the table differs from a draw of the process.

    Example:
        >>> post = bv.TablePFN(columns=8, context=64, train=bv.Train(steps=500)).fit(StructuralTables((1, 8)))
        >>> post.condition(frame, y).predict(new).interval(0.9)

    Args:
        columns: maximum number of columns in training; of more, those most correlated with the target are kept.
        classes: None for a numeric target, otherwise the maximum number of classes.
        context: maximum number of context rows in training; more are spread over up to four contexts of that many,
            whose predictions are mixed with equal weights.
        width, layers, heads: size of the transformer.
        components: normals of the predictive mixture.
        process: let the network read the Gaussian process; without it, it answers in units of the standardised target.
        train: how to train.

    Raises:
        ValueError: a field is out of range.
    """

    columns: int = 32
    classes: int | None = None
    context: int = 512
    width: int = 96
    layers: int = 4
    heads: int = 4
    components: int = 8
    process: bool = True
    train: Train = field(default_factory=lambda: Train(batch=8))

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("columns", "context", "width", "layers", "heads", "components"):
            check_count(name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if self.classes is not None and not 2 <= self.classes <= 100:
            raise ValueError(f"classes must be None or 2 to 100, got {self.classes}")

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "TablePFNPosterior":
        """Train on tables drawn from the prior `source`; the result has seen no data.

        Raises:
            ValueError: the prior draws more columns or other classes than this network takes, or wrong shapes.
            TypeError: `source` is not a prior.
        """
        stream = TableStream(check_prior(source), self.columns, self.classes, self.context, self.process, self.train)
        posterior = self.untrained()
        recipe = {"method": describe(self), "prior": describe(source)}
        cost = minimize(posterior, _loss, stream.batch, self.train, recipe, log, {"tasks": stream.tasks()})
        size = sum(p.numel() for p in posterior.network.parameters())
        posterior.metadata = {"prior": describe(source), "parameters": size, **cost}
        return posterior.requires_grad_(False)

    def untrained(self) -> "TablePFNPosterior":
        """A posterior with initial weights."""
        head = ProcessMixtureHead(self.components) if self.classes is None else ProcessClassHead(self.classes)
        outputs = self.classes or 1
        with seeded(self.train.seed):
            network = CellTransformer(CELL_FEATURES, 3 * outputs + 2, head.outputs, self.width, self.layers, self.heads)
        return TablePFNPosterior(self, network, head)


def _loss(posterior: "TablePFNPosterior", batch: TableBatch) -> Float[Tensor, ""]:
    raw = posterior.network(batch.cells, batch.target, batch.query, batch.asked).float()
    if batch.classes is None:
        return -posterior.head(raw, batch.mean[..., 0], batch.stddev).log_prob(batch.answers).mean()
    return -posterior.head(raw, batch.mean, batch.classes.view(-1, 1)).log_prob(batch.answers).mean()


class TablePFNPosterior(Conditionable):
    """What a trained `TablePFN` knows: the network, and the table that it was conditioned on, if any.

    Attributes:
        method: the recipe.
        metadata: the prior, the number of parameters and what training cost.
        columns: what each column of a frame was taken for; None for arrays, whose columns are numbers.
        labels: names of the classes where they are not 0, 1, ...; None otherwise.
    """

    x: Tensor | None
    y: Tensor | None

    def __init__(self, method: TablePFN, network: CellTransformer, head: Any) -> None:
        super().__init__()
        self.method, self.network, self.head = method, network, head
        self.metadata: dict[str, Any] = {}
        self.columns: Columns | None = None
        self.labels: tuple[str, ...] | None = None
        self.encoding: Encoding | None = None
        self.contexts: Tensor | None = None  # rows of each context, where one does not hold them all
        self.kept: Tensor | None = None  # columns that were screened, where there are too many
        for name in ("x", "y"):
            self.register_buffer(name, None, persistent=False)
        self.cache = KVCache()

    @property
    def rows(self) -> int:
        """Number of rows that this posterior was conditioned on."""
        return 0 if self.x is None else self.x.shape[-2]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.prior_token.device

    def unconditioned(self) -> Self:
        """The bare network, as if no table had been seen."""
        new = share(self)
        new.x, new.y, new.columns, new.labels, new.encoding, new.cache = None, None, None, None, None, KVCache()
        new.contexts, new.kept = None, None
        return new

    def with_columns(self, columns: Columns) -> Self:
        """The same network for frames whose columns are `columns`, rather than what the first frame looks like.

        Raises:
            ValueError: the posterior has seen rows already.
        """
        if self.rows:
            raise ValueError(f"columns must be set before condition; this posterior has seen {self.rows} rows")
        new = share(self)
        new.columns = columns
        return new

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the rows (x, y).

        Of a frame, the columns may be numbers, text, categories and dates, with holes (`bayesvision.core.columns`); of
        an array or tensor, [*batch, rows, columns], they are numbers, NaN for a missing one.

        Raises:
            ValueError: wrong shapes, infinite values, a constant target, targets that are no classes of the network or,
                in regression, no numbers, or other columns than before.
        """
        new = share(self)
        if self.columns is None and self.x is None and is_frame(x):
            new.columns = Columns.of(x)
        x = new._table(x).double()
        if self.x is not None and x.shape[:-2] != self.x.shape[:-2]:
            raise ValueError(f"x must have the batch axes {tuple(self.x.shape[:-2])}, got {tuple(x.shape[:-2])}")
        y, new.labels = self._targets(y, x)
        if self.x is not None and self.y is not None:
            x, y = torch.cat([self.x, x], -2), torch.cat([self.y, y], -1)
        if self.method.classes is None and x.shape[-2] == 1:
            raise ValueError("x must have at least 2 rows, got 1: one row has no scale to measure the target by")
        new.x, new.y = x.detach(), y.detach()
        new._encode()
        return new

    def _table(self, x: Any) -> Float[Tensor, "*batch rows columns"]:
        """Columns as numbers, NaN for missing ones."""
        known = None if self.x is None else self.x.shape[-1]
        if self.columns is not None and is_frame(x):
            x = self.columns.encode(x)
        return check_inputs(x, known, missing=True).to(self.device)

    def _targets(self, y: Any, x: Tensor) -> tuple[Tensor, tuple[str, ...] | None]:
        """Numbers, or codes of classes with their names."""
        values, names = named_classes(y)
        if self.method.classes is None:
            if names is not None:
                raise ValueError(
                    f"y must hold numbers, got the classes {', '.join(names[:5])}; "
                    "take a network for classes, such as bayesvision.pretrained('pfn-classes')"
                )
            y = check_targets(y, x, seen=self.y)
            return y, None
        if names is None:
            return check_classes(y, x, self.method.classes), self.labels
        labels = tuple(dict.fromkeys([*(self.labels or ()), *names]))
        if self.x is not None and self.labels is None:
            raise ValueError(f"y must hold classes as numbers, as before, got {', '.join(names[:5])}")
        codes = torch.tensor([labels.index(v) for v in values])
        return check_classes(codes, x, self.method.classes), labels

    @torch.no_grad()
    def _encode(self) -> None:
        """Statistics of the rows seen, the process fitted to them, and their keys and values."""
        assert self.x is not None and self.y is not None
        classes, dtype = self.method.classes, self.network.prior_token.dtype
        x, y, categorical = self.x, self.y if classes else self.y.double(), self._categorical()
        self.kept = screened(x, y, categorical, classes, self.method.columns)
        if self.kept is not None:
            x, categorical = x[..., self.kept], categorical[..., self.kept]
        self.contexts = spread(x.shape[-2], self.method.context)
        if self.contexts is not None:
            x, y = x[..., self.contexts, :], y[..., self.contexts]
            categorical = categorical.unsqueeze(-2).expand(*x.shape[:-2], -1)
        self.encoding = Encoding.of(x, y, categorical, classes, self.method.process)
        seen = target_features(self.encoding.outputs(y, classes), self.encoding.seen(x, classes))
        self.cache.store(self.network.encode(self.encoding.cells(x).to(dtype), seen.to(dtype)))

    def _categorical(self) -> Bool[Tensor, "*batch columns"]:
        assert self.x is not None
        flags = torch.zeros(self.x.shape[-1], dtype=torch.bool)
        if self.columns is not None:
            flags = torch.as_tensor(self.columns.categorical)
        return flags.to(self.device).expand(*self.x.shape[:-2], -1)

    @property
    def summary(self) -> str:
        """How many rows and columns the predictions rest on, in words."""
        if self.x is None:
            return "no rows"
        rows, columns = self.x.shape[-2:]
        said = (
            f"{rows} rows"
            if self.contexts is None
            else (f"{len(self.contexts)} contexts of {self.contexts.shape[-1]} of the {rows} rows")
        )
        return f"{said}, {columns if self.kept is None else f'{len(self.kept)} of the {columns}'} columns"

    def predict(self, x: Any) -> Mixture | Categorical:
        """Posterior predictive of every row of `x`; the prior predictive, of a standardised target, before `condition`.

        It is in float64 where `x` or the targets seen are. The batch axes of `x` broadcast with those of the context.

        Raises:
            ValueError: wrong shapes, infinite values, or other columns than before.
        """
        given = self._table(x)
        dtype = output_dtype(given, self.y)
        x, encoding = given.double(), self.encoding
        batch = () if self.x is None else self.x.shape[:-2]
        try:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-2], batch), *x.shape[-2:])
        except RuntimeError:
            raise ValueError(
                f"x must have batch axes that broadcast with the context's {tuple(batch)}, got {tuple(x.shape[:-2])}"
            ) from None
        x = x if self.kept is None else x[..., self.kept]
        if self.contexts is not None:
            x = x.unsqueeze(-3).expand(*x.shape[:-2], len(self.contexts), *x.shape[-2:])
        if encoding is None:
            none = x[..., :0, :].detach()
            y = none[..., 0].long() if self.method.classes else none[..., 0]
            encoding = Encoding.of(
                none, y, torch.zeros_like(x[..., 0, :], dtype=torch.bool), self.method.classes, False
            )
        size = max(1, CELLS // (math.prod(x.shape[:-2]) * (x.shape[-1] + 1)))
        parts = [self._read(encoding, part, dtype) for part in x.split(size, -2)]
        raw, mean, stddev = (torch.cat(values, -2) for values in zip(*parts, strict=True))
        if self.method.classes is None:
            loc, scale = encoding.y_loc.to(dtype), encoding.y_scale.to(dtype)
            law = self.head(raw, mean[..., 0], stddev[..., 0], loc, scale)
        else:
            count = self.method.classes if self.y is None else int(self.y.max()) + 1
            law = self.head(raw[..., :count], mean[..., :count])
        return law if self.contexts is None else mixed(law)

    def _read(self, encoding: Encoding, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Raw output for queries, and what the process predicts for them."""
        classes, narrow = self.method.classes, self.network.prior_token.dtype
        process = encoding.predicted(x, classes)
        asked = target_features(None, process)
        cache = self._cache(x, asked.to(narrow))
        raw = self.network.decode(encoding.cells(x).to(narrow), asked.to(narrow), cache)
        mean = process.mean
        if classes is not None:
            mean = mean + encoding.y_loc.unsqueeze(-2)
        return raw.to(dtype), mean.to(dtype), process.stddev.unsqueeze(-1).to(dtype)

    def _cache(self, x: Tensor, asked: Tensor) -> Cache:
        if self.cache.layers:
            return self.cache.cache
        cells = self.network.prior_token.new_zeros(*x.shape[:-2], 0, x.shape[-1], CELL_FEATURES)
        return self.network.encode(cells, asked[..., :0, :])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        x, y, before = self.x, self.y, (self.device, self.network.prior_token.dtype)
        super()._apply(fn, recurse)
        if x is not None and y is not None:  # the rows stay exact: a rounded offset would move every prediction
            self.x, self.y = x.to(self.device), y.to(self.device)
            if before != (self.device, self.network.prior_token.dtype):
                self._encode()
        return self

    def export(self) -> Exported:
        """Weights and the table seen; what is known of the network, of the columns and of the classes."""
        weights, exact = split_state(self)
        if self.x is not None and self.y is not None:
            exact |= {"x": self.x, "y": self.y}
        columns = None if self.columns is None else self.columns.to_json()
        return Exported(weights, exact, {"metadata": self.metadata, "columns": columns, "labels": self.labels})

    @classmethod
    def restore(cls, method: TablePFN, tensors: dict[str, Tensor], header: dict[str, Any]) -> "TablePFNPosterior":
        """The posterior that `export` described."""
        weights = {k: v for k, v in tensors.items() if k not in ("x", "y")}
        posterior = method.untrained()
        posterior.to(weights["network.norm.weight"].dtype).load_state_dict(weights)
        posterior.metadata = header["metadata"]
        posterior.requires_grad_(False).eval()
        if "x" in tensors:
            posterior.columns = None if header["columns"] is None else Columns.from_json(header["columns"])
            posterior.labels = None if header["labels"] is None else tuple(header["labels"])
            posterior.x, posterior.y = tensors["x"], tensors["y"]
            posterior._encode()
        return posterior
