"""`MDBMPosterior`: a trained machine and the variables that it has seen."""

from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.recipes import describe
from bayesvision.core.roles import Conditionable, Exported, Following
from bayesvision.distributions import Categorical
from bayesvision.methods.mdbm.inference import Certificate, Exactness, elbo
from bayesvision.methods.mdbm.machine import Machine
from bayesvision.methods.mdbm.sampling import gibbs
from bayesvision.methods.mdbm.tasks import Learning, MaskedRows
from bayesvision.training.batches import checksum
from bayesvision.training.loop import minimize

__all__ = ["MDBMPosterior"]

TIGHT = Exactness()


class MDBMPosterior(Conditionable):
    """A trained machine, the values of the variables that it has seen, and the mean field of all others.

    Attributes:
        method: the recipe.
        machine: interactions and biases.
        seen: levels of the visible variables, NaN where unknown.
        belief: marginals of all variables, hidden ones too, in float64.
        metadata: what training cost.
    """

    method: Learning
    seen: Float[Tensor, "... variables"]
    belief: Float[Tensor, "... size"]
    bound: Float[Tensor, "..."]
    iterations: Int[Tensor, "..."]

    def __init__(self, method: Learning, machine: Machine) -> None:
        super().__init__()
        self.method, self.machine = method, machine
        self.metadata: dict[str, Any] = {}
        unknown = torch.full((len(machine.levels),), torch.nan, dtype=torch.float64)
        self.register_buffer("seen", unknown, persistent=False)
        for name in ("belief", "bound", "iterations"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64), persistent=False)

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each variable."""
        return self.machine.levels

    def infer(self) -> None:
        """Let mean field settle given what was seen, in float64."""
        self.belief, certificate = self.exact().settled(self.seen, TIGHT)
        self.bound, self.iterations = certificate.bound, certificate.iterations

    def exact(self) -> Machine:
        """The machine in float64."""
        return self.machine if self.machine.bias.dtype == torch.float64 else share(self.machine).double()

    @property
    def certificate(self) -> Certificate:
        """How near the belief is to the only fixed point: no farther than `bound`."""
        return Certificate(self.bound, self.iterations, self.bound <= TIGHT.tolerance)

    # Seeing and asking

    @property
    def rows(self) -> int:
        """Number of variables that were seen."""
        return int((~self.seen.isnan()).sum(-1).max())

    def places(self, x: Any) -> Int[Tensor, "*batch n"]:
        """Numbers of variables from `x` [*batch, n, 1] or [n].

        Raises:
            ValueError: there are no such variables.
        """
        place = check_inputs(x, 1).squeeze(-1).to(self.seen.device)
        wrong = (place != place.round()) | (place < 0) | (place >= len(self.levels))
        if wrong.any():
            raise ValueError(
                f"x must hold numbers of variables, 0 to {len(self.levels) - 1}, got {float(place[wrong][0]):g}"
            )
        return place.long()

    def values(self, place: Tensor, y: Any) -> Float[Tensor, "*batch n"]:
        """Levels from `y`, one for each place.

        Raises:
            ValueError: there are no such levels.
        """
        value = check_inputs(y, name="y").to(self.seen)
        value = value.squeeze(-1) if value.shape[-1] == 1 and value.ndim > place.ndim else value
        if value.shape != place.shape:
            raise ValueError(f"y must have a level for each of x, {tuple(place.shape)}, got {tuple(value.shape)}")
        most = torch.tensor(self.levels, device=place.device)[place]
        wrong = (value != value.round()) | (value < 0) | (value >= most)
        if wrong.any():
            at = tuple(int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"y must hold levels 0 to {int(most[at]) - 1} of variable {int(place[at])}, got {float(value[at]):g}"
            )
        return value

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the values `y` of the variables `x`.

        Args:
            x: numbers of variables [*batch, n, 1] or [n].
            y: their levels [*batch, n].

        Raises:
            ValueError: variables or levels that do not exist, or a variable with two values.
        """
        place = self.places(x)
        value = self.values(place, y)
        batch = torch.broadcast_shapes(place.shape[:-1], self.seen.shape[:-1])
        whole = self.seen.expand(*batch, -1)
        place, value = place.expand(*batch, -1), value.expand(*batch, -1)
        new = whole.scatter(-1, place, value)
        told = whole.gather(-1, place)
        if (new.gather(-1, place) != value).any() or (~told.isnan() & (told != value)).any():
            raise ValueError("x names a variable twice with different values; say one of them")
        return self.given(new)

    def given(self, seen: Float[Tensor, "*batch variables"]) -> Self:
        """A new posterior that has seen these levels, NaN where unknown, and nothing else."""
        new = share(self)
        new.seen = seen.detach()
        new.infer()
        return new

    def unconditioned(self) -> Self:
        """The posterior without what was seen."""
        return self.given(torch.full_like(self.seen.reshape(-1, len(self.levels))[0], torch.nan))

    def predict(self, x: Any) -> Categorical:
        """Distribution of each of the variables `x` [*batch, n, 1] or [n]; of one that was seen, its value.

        Raises:
            ValueError: there are no such variables.
        """
        place = self.places(x)
        batch = torch.broadcast_shapes(place.shape[:-1], self.belief.shape[:-1])
        found = self.machine.marginals(self.belief).expand(*batch, -1, -1)
        index = place.expand(*batch, -1).unsqueeze(-1).expand(*batch, -1, found.shape[-1])
        return Categorical(probs=found.gather(-2, index), validate_args=False)

    @property
    def elbo(self) -> Float[Tensor, "*batch"]:
        """Lower bound of the log normaliser given what was seen; of log p(seen), but for that of nothing seen."""
        exact = self.exact()
        return elbo(exact.coupling(), exact.bias, self.belief)

    def sample(self, shape: tuple[int, ...] = (), sweeps: int = 50, seed: int = 0) -> Int[Tensor, "*shape"]:
        """Levels of all visible variables together [*shape, *batch, variables], by Gibbs sampling from the belief on.

        Raises:
            ValueError: `sweeps` is no whole number of at least 0.
        """
        check_count("sweeps", sweeps, 0)
        exact, batch = self.exact(), self.belief.shape
        free, _ = exact.clamped(self.seen)
        start, free = (v.expand(*shape, *batch).reshape(-1, batch[-1]) for v in (self.belief, free))
        x = gibbs(exact.coupling(), exact.bias, start, free, sweeps, seed)
        return exact.marginals(x).argmax(-1).reshape(*shape, *batch[:-1], len(self.levels))

    # Copies and files

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As for any module, but levels and marginals stay in float64."""
        exact = {name: getattr(self, name) for name in ("seen", "belief", "bound", "iterations")}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(self.machine.bias.device))
        return self

    def export(self) -> Exported:
        """Weights and what was seen."""
        weights, exact = split_state(self)
        return Exported(weights, exact | {"seen": self.seen}, {"metadata": self.metadata})

    def restored(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """This posterior with the state that `export` gave."""
        seen = tensors.pop("seen")
        self.to(tensors["machine.bias"].dtype)
        self.load_state_dict(tensors)
        self.seen, self.metadata = seen, header["metadata"]
        return self.ready()

    def learn(self, codes: Tensor, rows: MaskedRows, recipe: dict[str, Any], log: Following) -> Self:
        """This posterior, trained on `rows`, whose levels are `codes`."""
        method = self.method
        self.machine.start_from(codes)
        run = {"method": describe(method), "data": checksum(codes), **recipe}
        cost = minimize(self.machine, rows.loss, rows.batch, method.train, run, log)
        self.metadata = {"parameters": sum(p.numel() for p in self.parameters()), **cost}
        return self.ready()

    def ready(self) -> Self:
        """Trained: without gradients, and with the belief that there is before anything is seen."""
        self.requires_grad_(False).eval()
        self.infer()
        return self
