"""`MDBM`: a Boltzmann machine of discrete variables in which any of them may be asked given any others."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bayesvision.core.checks import check_count, check_inputs, columns_of
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.recipes import convert_fields, describe
from bayesvision.core.roles import Conditionable, Exported, Log
from bayesvision.distributions import Categorical
from bayesvision.methods.mdbm.couplings import DenseCoupling, bounded_blocks
from bayesvision.methods.mdbm.inference import Certificate, elbo, largest_eigenvalue, mean_field
from bayesvision.methods.mdbm.sampling import gibbs
from bayesvision.methods.mdbm.tasks import MaskedRows, checked_codes, loss
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["MDBM", "MDBMPosterior"]

TIGHT = 1e-5  # distance to the fixed point that answers are certified to


@dataclass(frozen=True)
class MDBM:
    """A monotone deep Boltzmann machine of categorical variables (arXiv 2307.04990).

    p(x) is proportional to exp(x^T Phi x / 2 + b^T x) of one-hot visible and hidden variables. Phi is bounded such that
    mean field has exactly one solution, whatever is observed, and every answer has a bound of its distance to it.
    Layers are coupled within themselves and with their neighbours. Training observes a random part of each row and
    maximises the log-likelihood of the rest under the mean field (section 4.3).

    Example:
        >>> post = bv.MDBM(hidden=(64, 32)).fit(codes)  # whole numbers, NaN where unknown
        >>> post.condition([0, 3], [2, 1]).predict([1]).probs

    Args:
        hidden: numbers of binary hidden variables, layer by layer.
        levels: number of levels of all variables, or of each; 1 + the largest number in the data when left out.
        rank: numbers that each pair of layers talks through.
        margin: m of 2 I - Phi >= m I, in (0, 2]; 2 is no interaction, and 1 + m is the m of the paper.
        observed: least and largest share of a row that training observes.
        label: a column whose log-likelihood counts as much as that of all others together.
        train: how to train; `train.batch` counts rows.

    Raises:
        ValueError: a field is out of range.
    """

    hidden: tuple[int, ...] = (64, 32)
    levels: int | tuple[int, ...] | None = None
    rank: int = 64
    margin: float = 0.1
    observed: tuple[float, float] = (0.1, 0.9)
    label: int | None = None
    train: Train = field(default_factory=lambda: Train(batch=128))

    def __post_init__(self) -> None:
        convert_fields(self)
        check_count("rank", self.rank)
        for count in self.hidden:
            check_count("hidden", count)
        for count in (self.levels,) if isinstance(self.levels, int) else self.levels or ():
            check_count("levels", count)
        if not 0 < self.margin <= 2:
            raise ValueError(f"margin must lie in (0, 2], got {self.margin}")
        low, high = self.observed
        if not 0 <= low <= high < 1:
            raise ValueError(f"observed must be two shares 0 <= low <= high < 1, got {self.observed}")

    @outside_inference_mode
    def fit(self, source: Any, log: Log | None = None) -> "MDBMPosterior":
        """Learn from rows of whole numbers 0, 1, ... [rows, variables], an array or a frame, NaN where unknown.

        Raises:
            ValueError: other numbers, more levels than were told, or a label that is no column.
        """
        codes = checked_codes(source, None, None)
        levels = self._levels(codes)
        if self.label is not None and not 0 <= self.label < len(levels):
            raise ValueError(f"label must be a column from 0 to {len(levels) - 1}, got {self.label}")
        posterior = self.untrained(levels, codes)
        posterior.columns = columns_of(source)
        rows = MaskedRows(codes, self)
        recipe = {"method": describe(self), "levels": list(levels), "rows": len(codes)}
        cost = minimize(posterior, loss, rows.batch, self.train, recipe, log, {"rows": self.train.steps * rows.size})
        size = sum(p.numel() for p in posterior.parameters())
        posterior.metadata = {"parameters": size, "rows of data": len(codes), **cost}
        posterior.requires_grad_(False)
        posterior.infer()
        return posterior

    def _levels(self, codes: Tensor) -> tuple[int, ...]:
        """Number of levels of each variable."""
        most = torch.where(codes.isnan(), -1.0, codes).amax(0).long() + 1
        if self.levels is None:
            return tuple(most.clamp(min=1).tolist())
        told = (self.levels,) * len(most) if isinstance(self.levels, int) else self.levels
        if len(told) != len(most):
            raise ValueError(f"levels must be one number, or one for each of {len(most)} variables, got {len(told)}")
        for variable, (count, seen) in enumerate(zip(told, most.tolist(), strict=True)):
            if seen > count:
                raise ValueError(f"levels gives variable {variable} {count}, and the data has the level {seen - 1}")
        return tuple(told)

    def untrained(self, levels: tuple[int, ...], codes: Tensor | None = None) -> "MDBMPosterior":
        """A posterior with initial weights: weak random interactions, and the frequencies of the levels in `codes`."""
        with seeded(self.train.seed):
            posterior = MDBMPosterior(self, levels)
        if codes is not None:
            for i, count in enumerate(levels):
                tally = torch.bincount(codes[~codes[:, i].isnan(), i].long(), minlength=count).float() + 0.5
                posterior.bias.data[i, :count] = (tally / tally.sum()).log()
        return posterior


class MDBMPosterior(Conditionable):
    """What a trained `MDBM` knows, and the variables that it has seen.

    Attributes:
        method: the recipe.
        levels: number of levels of each visible variable.
        columns: their names, if the data came as a frame.
        metadata: what training cost.
        certificate: how near the belief is to the only fixed point.
    """

    x: Tensor | None
    y: Tensor | None
    certificate: Certificate

    def __init__(self, method: MDBM, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.method, self.levels = method, levels
        self.metadata: dict[str, Any] = {}
        self.columns: tuple[str, ...] | None = None
        sizes = (len(levels), *method.hidden)
        counts = [*levels, *(2 for _ in range(sum(method.hidden)))]
        layer = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        space = torch.repeat_interleave(torch.arange(max(1, len(sizes) - 1)), method.rank)
        exists = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(-1)
        talks = (layer.unsqueeze(-1) == space) | (layer.unsqueeze(-1) == space + 1)
        self.register_buffer("exists", exists, persistent=False)
        self.register_buffer("allowed", talks.unsqueeze(-1) & exists.unsqueeze(1), persistent=False)
        shape = (len(counts), len(space), max(counts))
        self.blocks = nn.Parameter(torch.randn(shape, dtype=torch.float32) * 0.5 / method.rank**0.5)
        self.bias = nn.Parameter(torch.zeros(len(counts), max(counts), dtype=torch.float32))
        for name in ("x", "y"):
            self.register_buffer(name, None, persistent=False)
        self.belief = self.bias.detach()

    exists: Tensor
    allowed: Tensor

    # Inference

    def coupling(self) -> DenseCoupling:
        """Phi."""
        kind = self.blocks.dtype
        blocks = bounded_blocks(self.blocks * self.allowed.to(kind), self.method.margin)
        return DenseCoupling(blocks, self.method.margin)

    def logits(self) -> Float[Tensor, "groups levels"]:
        """b, minus infinity at levels that do not exist."""
        return self.bias.masked_fill(~self.exists, -torch.inf)

    def field(
        self, codes: Float[Tensor, "*batch variables"], known: Bool[Tensor, "*batch variables"], tolerance: float
    ) -> tuple[Float[Tensor, "*batch groups levels"], Certificate]:
        """Mean field of all variables given the `known` ones of `codes`."""
        coupling, bias = self.coupling(), self.logits()
        hidden = known.new_zeros(*known.shape[:-1], len(bias) - known.shape[-1])
        whole = torch.cat([known, hidden], -1)
        start = bias.detach().softmax(-1).expand(*known.shape[:-1], *bias.shape).clone()
        index = torch.where(known, codes, 0.0).long()
        one_hot = nn.functional.one_hot(index, bias.shape[-1]).to(start)
        visible = start[..., : len(self.levels), :]
        start[..., : len(self.levels), :] = torch.where(known.unsqueeze(-1), one_hot, visible)
        lipschitz = largest_eigenvalue(coupling, bias)
        return mean_field(coupling, bias.expand(start.shape), whole, start, lipschitz, tolerance)

    def _exact(self) -> Self:
        """The same machine in float64."""
        return share(self).double() if self.bias.dtype != torch.float64 else self

    @torch.no_grad()
    def infer(self) -> None:
        """Let mean field settle given what was seen, in float64."""
        shape = self.y.shape[:-1] if self.y is not None else ()
        codes = torch.zeros(*shape, len(self.levels), dtype=torch.float64, device=self.bias.device)
        known = torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)
        if self.x is not None and self.y is not None:
            codes, known = codes.scatter(-1, self.x, self.y.to(codes)), known.scatter(-1, self.x, True)
        self.belief, self.certificate = self._exact().field(codes, known, TIGHT)

    # Seeing and asking

    @property
    def rows(self) -> int:
        """Number of variables that were seen."""
        return 0 if self.y is None else self.y.shape[-1]

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the values `y` of the variables `x`.

        Args:
            x: numbers of variables [*batch, n] or [*batch, n, 1].
            y: their levels [*batch, n].

        Raises:
            ValueError: variables or levels that do not exist, or a variable with two values.
        """
        place = self._places(x)
        value = check_inputs(y, name="y").to(self.bias.device)
        value = value.squeeze(-1) if value.shape[-1:] == (1,) and value.ndim > place.ndim else value
        value = value.reshape(place.shape) if value.numel() == place.numel() else value
        if value.shape != place.shape:
            raise ValueError(f"y must have a level for each of x, {tuple(place.shape)}, got {tuple(value.shape)}")
        most = torch.tensor(self.levels, device=place.device)[place]
        wrong = (value != value.round()) | (value < 0) | (value >= most)
        if wrong.any():
            at = tuple(int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"y must hold levels 0 to {int(most[at]) - 1} of variable {int(place[at])}, got {float(value[at]):g}"
            )
        if self.x is not None and self.y is not None:
            if place.shape[:-1] != self.x.shape[:-1]:
                raise ValueError(
                    f"x must have the batch axes {tuple(self.x.shape[:-1])}, got {tuple(place.shape[:-1])}"
                )
            place, value = torch.cat([self.x, place], -1), torch.cat([self.y.to(value), value], -1)
        same = place.unsqueeze(-1) == place.unsqueeze(-2)
        if (same & (value.unsqueeze(-1) != value.unsqueeze(-2))).any():
            raise ValueError("x names a variable twice with different values")
        new = share(self)
        new.x, new.y = place, value.detach()
        new.infer()
        return new

    def _places(self, x: Any) -> Int[Tensor, "*batch n"]:
        if isinstance(x, list | tuple) and x and all(isinstance(name, str) for name in x):
            unknown = [name for name in x if name not in (self.columns or ())]
            if unknown:
                raise ValueError(f"x must name variables among {list(self.columns or ())}, got {unknown}")
            x = [(self.columns or ()).index(name) for name in x]
        place = check_inputs(x, name="x").to(self.bias.device)
        place = place.squeeze(-1) if place.shape[-1] == 1 else place
        if ((place != place.round()) | (place < 0) | (place >= len(self.levels))).any():
            raise ValueError(
                f"x must hold numbers of variables, 0 to {len(self.levels) - 1}, got {place.flatten()[:5]}"
            )
        return place.long()

    def predict(self, x: Any) -> Categorical:
        """Distribution of each of the variables `x` [*batch, n]; one that was seen is what it was seen to be.

        Raises:
            ValueError: variables that do not exist.
        """
        place = self._places(x)
        batch = torch.broadcast_shapes(place.shape[:-1], self.belief.shape[:-2])
        belief = self.belief.expand(*batch, *self.belief.shape[-2:])
        index = place.expand(*batch, place.shape[-1]).unsqueeze(-1)
        found = belief.gather(-2, index.expand(*index.shape[:-1], belief.shape[-1]))
        return Categorical(probs=found.clamp(min=0), validate_args=False)

    @property
    def elbo(self) -> Float[Tensor, "*batch"]:
        """Lower bound of the log normaliser given what was seen."""
        exact = self._exact()
        return elbo(exact.coupling(), exact.logits(), self.belief)

    def sample(self, shape: tuple[int, ...] = (), sweeps: int = 50, seed: int = 0) -> Int[Tensor, "..."]:
        """All visible variables together, [*shape, *batch, variables], by Gibbs sampling from the mean field on."""
        exact = self._exact()
        known = torch.zeros(self.belief.shape[:-1], dtype=torch.bool, device=self.bias.device)
        if self.x is not None:
            known[..., : len(self.levels)] = known[..., : len(self.levels)].scatter(-1, self.x, True)
        drawn = gibbs(exact.coupling(), exact.logits(), self.belief, known, shape, sweeps, seed)
        return drawn[..., : len(self.levels)]

    def impute(self, rows: Any) -> tuple[Categorical, Tensor]:
        """Distribution of every cell of `rows` [rows, variables] given the others that are there, and the rows filled.

        A cell that is there is certain. Holes are filled with the most probable level.

        Raises:
            ValueError: other columns than in training, or levels that it did not have.
        """
        codes = checked_codes(rows, self.levels, self.columns).to(self.bias.device)
        known = ~codes.isnan()
        with torch.no_grad():
            q, certificate = self._exact().field(codes, known, TIGHT)
        if not certificate.converged.all():
            raise ValueError("mean field did not settle; train with a larger margin")
        law = Categorical(probs=q[:, : len(self.levels)], validate_args=False)
        return law, torch.where(known, codes, law.mode.to(codes))

    # Copies and files

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.belief = self.belief.to(self.bias.device)
        self.certificate = Certificate(*(v.to(self.bias.device) for v in self.certificate)) if self._settled else None  # pyright: ignore[reportAttributeAccessIssue]
        return self

    @property
    def _settled(self) -> bool:
        return self.__dict__.get("certificate") is not None

    def export(self) -> Exported:
        """Weights, the variables seen, and the numbers of levels."""
        weights, exact = split_state(self)
        seen = {name: value for name in ("x", "y") if (value := getattr(self, name)) is not None}
        header = {"metadata": self.metadata, "levels": list(self.levels), "columns": self.columns}
        return Exported(weights, exact | seen, header)

    @classmethod
    def restore(cls, method: MDBM, tensors: dict[str, Tensor], header: dict[str, Any]) -> "MDBMPosterior":
        """The posterior that `export` described."""
        posterior = method.untrained(tuple(header["levels"]))
        posterior.x, posterior.y = tensors.pop("x", None), tensors.pop("y", None)
        posterior.to(tensors["blocks"].dtype)
        posterior.load_state_dict(tensors)
        posterior.metadata = header["metadata"]
        posterior.columns = tuple(header["columns"]) if header["columns"] else None
        posterior.requires_grad_(False).eval()
        posterior.infer()
        return posterior
