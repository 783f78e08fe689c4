"""A Boltzmann machine of one-hot variables: interactions, biases, and the mean field given what is seen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayesvision.methods.mdbm.ascent import Bounded, Coupling
from bayesvision.methods.mdbm.couplings import ConvInteractions, DenseInteractions
from bayesvision.methods.mdbm.inference import Certificate, Exactness, mean_field
from bayesvision.methods.mdbm.layout import Block, Layout
from bayesvision.training.seeds import generator

__all__ = ["Machine", "dense", "images"]

PART = 256  # problems that are solved at once
STEPS = 30  # of power iteration
SAFE = 1.1  # of an eigenvalue after them


class Machine(nn.Module):
    """Visible variables as users number them, and hidden ones.

    Args:
        interactions: of all variables.
        offsets: where the levels of each visible variable begin in the layout.
        levels: number of levels of each visible variable.
        margin: m, with which mean field is strongly concave.
    """

    variable: Int[Tensor, " size"]
    level: Float[Tensor, " size"]
    entries: Int[Tensor, "variables most"]

    def __init__(
        self,
        interactions: DenseInteractions | ConvInteractions,
        offsets: Int[Tensor, " variables"],
        levels: tuple[int, ...],
        margin: float,
    ) -> None:
        super().__init__()
        self.interactions, self.levels, self.margin = interactions, levels, margin
        size, count = interactions.layout.size, torch.tensor(levels)
        steps = torch.arange(int(count.max()))
        entries = torch.where(steps < count.unsqueeze(-1), offsets.unsqueeze(-1) + steps, size)
        variable = torch.full((size + 1,), len(levels)).scatter(
            0, entries.flatten(), torch.arange(len(levels)).repeat_interleave(len(steps))
        )
        level = torch.zeros(size + 1, dtype=torch.float32).scatter(
            0, entries.flatten(), steps.to(torch.float32).repeat(len(levels))
        )
        for name, value in (("variable", variable[:-1]), ("level", level[:-1]), ("entries", entries)):
            self.register_buffer(name, value, persistent=False)
        self.bias = nn.Parameter(torch.zeros(size, dtype=torch.float32))

    @property
    def layout(self) -> Layout:
        return self.interactions.layout

    def coupling(self) -> Coupling:
        """Phi, bounded."""
        return self.interactions.coupling(self.margin)

    def bounded(self) -> Bounded:
        """Phi, and a bound of the largest eigenvalue of -Phi, in all likelihood: found from below, and a tenth more."""
        coupling = self.coupling()
        with torch.no_grad():
            v = torch.randn(self.bias.shape, generator=generator("cpu", 0), dtype=torch.float64).to(self.bias)
            value = 0.0
            for _ in range(STEPS):
                v = v / v.norm()
                v = coupling.most * v - coupling(v)
            value = float(v.norm() - coupling.most)
        return Bounded(coupling, self.margin, SAFE * max(value, 0.0))

    def clamped(self, codes: Float[Tensor, "*batch variables"]) -> tuple[Tensor, Tensor]:
        """Which entries [*batch, size] are free, and what the others are, given levels, NaN where unknown."""
        whole = torch.cat([codes, torch.full_like(codes[..., :1], torch.nan)], -1)[..., self.variable]
        return whole.isnan(), (whole == self.level).to(self.bias.dtype)

    def field(
        self, codes: Float[Tensor, "batch variables"], exactness: Exactness, bounded: Bounded | None = None
    ) -> tuple[Float[Tensor, "batch size"], Certificate]:
        """Marginals of all variables given levels of the visible ones, NaN where unknown."""
        return mean_field(bounded or self.bounded(), self.bias, *self.clamped(codes), exactness)

    @torch.no_grad()
    def settled(
        self, codes: Float[Tensor, "*batch variables"], exactness: Exactness
    ) -> tuple[Float[Tensor, "*batch size"], Certificate]:
        """The same without gradients, for any number of problems."""
        bounded, batch = self.bounded(), codes.shape[:-1]
        parts = [self.field(part, exactness, bounded) for part in codes.reshape(-1, codes.shape[-1]).split(PART)]
        belief = torch.cat([q for q, _ in parts]).reshape(*batch, -1)
        joined = (torch.cat([getattr(c, name) for _, c in parts]).reshape(batch) for name in Certificate._fields)
        return belief, Certificate(*joined)

    def marginals(self, belief: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch variables most"]:
        """Probabilities of the levels of each visible variable, 0 for levels that it does not have."""
        return torch.cat([belief, torch.zeros_like(belief[..., :1])], -1)[..., self.entries]

    def start_from(self, codes: Float[Tensor, "rows variables"]) -> None:
        """Set the biases of the visible variables to the logarithms of how often their levels occur."""
        for column, entries, count in zip(codes.unbind(-1), self.entries, self.levels, strict=True):
            tally = torch.bincount(column[~column.isnan()].long(), minlength=count).double() + 0.5
            self.bias.data[entries[:count]] = (tally / tally.sum()).log().to(self.bias)


def dense(
    levels: tuple[int, ...], ordered: tuple[bool, ...], hidden: tuple[int, ...], states: int, margin: float
) -> Machine:
    """A machine of visible variables with any numbers of levels and layers of hidden ones, all of them coupled."""
    kinds = sorted(set(levels))
    visible = tuple(Block(1, 1, levels.count(kind), kind) for kind in kinds)
    layout = Layout((visible, *((Block(1, 1, count, states),) for count in hidden)))
    order = sorted(range(len(levels)), key=lambda v: levels[v])
    smooth = (*(ordered[v] for v in order), *(False for _ in range(sum(hidden))))
    offsets = torch.zeros(len(levels), dtype=torch.long)
    widths = torch.tensor([levels[v] for v in order])
    offsets[torch.tensor(order)] = widths.cumsum(0) - widths
    return Machine(DenseInteractions(layout, smooth), offsets, levels, margin)


def images(
    shape: tuple[int, int, int],
    grey: int,
    classes: int | None,
    hidden: tuple[int, ...],
    states: int,
    margin: float,
) -> Machine:
    """A machine of pixels [channels, height, width] in that order, and the class as the last variable.

    Each hidden layer has half the height and width of the one before; without any, all pixels are coupled.
    """
    if not hidden:
        pixels = (grey,) * (shape[0] * shape[1] * shape[2])
        ordered = (True,) * len(pixels)
        if classes is not None:
            pixels, ordered = (*pixels, classes), (*ordered, False)
        return dense(pixels, ordered, hidden, states, margin)
    channels, height, width = shape
    grids = [Block(height, width, channels, grey)]
    for count in hidden:
        height, width = height // 2, width // 2
        grids.append(Block(height, width, count, states))
    label = () if classes is None else (Block(1, 1, 1, classes),)
    layout = Layout((*((grid,) for grid in grids), *((label,) if label else ())))
    pixel = torch.arange(grids[0].count).reshape(shape[1], shape[2], channels).permute(2, 0, 1).flatten()
    offsets = torch.cat([pixel * grey, torch.tensor([layout.size - block.size for block in label], dtype=torch.long)])
    levels = (grey,) * grids[0].count + ((classes,) if classes is not None else ())
    return Machine(ConvInteractions(layout, classes is not None), offsets, levels, margin)
