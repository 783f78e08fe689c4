"""Products with sparse matrices that share one pattern, and their gradients: what makes a step cheap."""

import functools
import warnings
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Pattern", "compressed", "products"]


@functools.cache
def _quiet() -> None:
    """Let torch say once, unheard, that its compressed rows are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends, places = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        torch.sparse_csr_tensor(ends, places, torch.zeros(0, dtype=torch.float32), (1, 1))


def compressed(ends: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix on compressed rows."""
    _quiet()
    return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


class Pattern(NamedTuple):
    """Where a matrix [rows, columns] may be other than zero, as compressed rows; that of its transpose too.

    Attributes:
        index: flat places, ascending.
        ends, columns: compressed rows of the matrix.
        ends_t, columns_t: those of the transpose.
        order: which of the values, in the order of `index`, are the transpose's, one after the other.
        shape: rows and columns.
    """

    index: Int[Tensor, " kept"]
    ends: Int[Tensor, " rows_and_one"]
    columns: Int[Tensor, " kept"]
    ends_t: Int[Tensor, " columns_and_one"]
    columns_t: Int[Tensor, " kept"]
    order: Int[Tensor, " kept"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, index: Int[Tensor, " kept"], shape: tuple[int, int]) -> Self:
        """The pattern of ascending flat places."""
        row, column = index // shape[1], index % shape[1]
        order = column.argsort(stable=True)
        ends, ends_t = (_ends(v, n) for v, n in ((row, shape[0]), (column, shape[1])))
        columns, columns_t = column.int(), row[order].int()
        return cls(index.clone(), ends, columns, ends_t, columns_t, order.int(), shape)

    def times(self, values: Float[Tensor, " kept"], x: Float[Tensor, "columns n"]) -> Float[Tensor, "rows n"]:
        """A x."""
        return compressed(self.ends, self.columns, values, self.shape) @ x

    def transposed_times(
        self, values: Float[Tensor, " kept"], g: Float[Tensor, "rows n"]
    ) -> Float[Tensor, "columns n"]:
        """A^T g."""
        return compressed(self.ends_t, self.columns_t, values[self.order], self.shape[::-1]) @ g

    def outer(self, g: Float[Tensor, "rows n"], x: Float[Tensor, "columns n"]) -> Float[Tensor, " kept"]:
        """The entries of g x^T at the places of the pattern: no other is computed."""
        zero = compressed(self.ends, self.columns, g.new_zeros(len(self.columns)), self.shape)
        return torch.sparse.sampled_addmm(zero, g, x.mT, beta=0.0).values()


def _ends(places: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(places.bincount(minlength=count).cumsum(0), (1, 0)).int()


class _Products(torch.autograd.Function):
    """A x and V (x * x), with A and V on one pattern.

    With G and H the gradients of both: of x it is A^T G + 2 x * V^T H, of the values of A those of G x^T at the
    pattern, and of the values of V those of H (x * x)^T.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, mean, variance)
        ctx.pattern = pattern
        return pattern.times(mean, x), pattern.times(variance, x.square())

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (x, mean, variance), pattern = ctx.saved_tensors, ctx.pattern
        g, h = g.contiguous(), h.contiguous()
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = pattern.transposed_times(mean, g) + 2 * x * pattern.transposed_times(variance, h)
        of_mean = pattern.outer(g, x) if ctx.needs_input_grad[1] else None
        of_variance = pattern.outer(h, x.square()) if ctx.needs_input_grad[2] else None
        return of_x, of_mean, of_variance, None


class _Product(torch.autograd.Function):
    """A x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, pattern: Pattern) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, mean)
        ctx.pattern = pattern
        return pattern.times(mean, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (x, mean), pattern = ctx.saved_tensors, ctx.pattern
        g = g.contiguous()
        of_x = pattern.transposed_times(mean, g) if ctx.needs_input_grad[0] else None
        return of_x, pattern.outer(g, x) if ctx.needs_input_grad[1] else None, None


def products(
    x: Float[Tensor, "columns n"],
    pattern: Pattern,
    mean: Float[Tensor, " kept"],
    variance: Float[Tensor, " kept"] | None = None,
) -> tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"] | None]:
    """Mean A x and, if asked, variance V (x * x) of outputs whose weights are independent, columns being examples."""
    with torch.autocast(x.device.type, enabled=False):  # compressed rows have no half precision
        x = x.to(mean.dtype).contiguous()
        if variance is None:
            return _Product.apply(x, mean, pattern), None  # pyright: ignore[reportReturnType]
        return _Products.apply(x, mean, variance, pattern)  # pyright: ignore[reportReturnType]
