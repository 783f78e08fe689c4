"""Interactions of a monotone Boltzmann machine: symmetric, and bounded so that mean field has one fixed point.

Phi = blkdiag(A^T A) - A^T A of the columns A = (A_1, ..., A_n), a block a variable (arXiv 2307.04990, section 3.1).
For v along the simplices v^T Phi v <= sum_i |A_i v_i|^2. With any unit vector u and f = A_i^T u,
(f^T v)^2 <= Var_z(f) sum_l v_l^2 / z_l, and the variance of f over its levels is at most a quarter of its range
squared; so |A_i v|^2 <= D_i^2 / 4 sum_l v_l^2 / z_l, where D_i, the largest distance of two columns of A_i, is the
diameter of the block. Where D_i^2 <= 4 - 2 m, -d^2 E >= m / 2 sum v^2 / z >= m |v|^2: E is concave as `ascent` needs
it. The bound of a block is exact (z half on each of two levels). The paper's, |A_i|^2 <= 1 - m, implies it, and so
does twice that, which the curvature of the entropy allows; but levels in an order, or with few features, may have a
norm that is many times larger.

A is square, since with few rows all variables repel one another; it starts as the identity, which couples nothing. A
block is centred over its levels, which changes biases only, and scaled as a whole, on both sides alike, so Phi stays
symmetric.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from bayesvision.methods.mdbm.ascent import CURVATURE
from bayesvision.methods.mdbm.layout import Block, Layout

__all__ = ["ConvCoupling", "ConvInteractions", "DenseCoupling", "DenseInteractions"]

DEGREE = 3  # of the columns of levels in an order
SHIFT = 2  # of a grid's places under the next one's
LATERAL = 3  # width of the convolutions within a layer
MARGIN = 1  # places around a grid that its rows have more


def column_scale(gram: Float[Tensor, "*count levels levels"], margin: float) -> Float[Tensor, "*count"]:
    """What to multiply a block A_i by, such that D_i^2 <= 4 - 2 m, given A_i^T A_i / (2 - m)."""
    size = gram.diagonal(dim1=-2, dim2=-1)
    diameter = (size.unsqueeze(-1) + size.unsqueeze(-2) - 2 * gram).flatten(-2).amax(-1)
    return ((CURVATURE - margin) / (diameter / 2).clamp(min=1.0)).sqrt()


def polynomials(levels: int) -> Float[Tensor, "levels levels"]:
    """The projection onto polynomials of a low degree in the level."""
    x = torch.linspace(-1, 1, levels, dtype=torch.float64).unsqueeze(-1)
    basis, _ = torch.linalg.qr(x ** torch.arange(min(levels, DEGREE + 1)))
    return basis @ basis.mT


class DenseCoupling:
    """Phi as a matrix; `most` is at least its largest eigenvalue.

    Args:
        columns: A / sqrt(2 - m), of any size.
        layout: where the variables lie.
        margin: m.
    """

    def __init__(self, columns: Float[Tensor, "rows size"], layout: Layout, margin: float) -> None:
        self.layout, columns = layout, layout.centered(columns)
        scales = [column_scale(a.permute(1, 2, 0) @ a.permute(1, 0, 2), margin) for a in layout.grouped(columns)]
        bounded = columns * torch.cat(
            [s.repeat_interleave(b.levels) for s, b in zip(scales, layout.blocks, strict=True)]
        )
        self.most = layout.sums(bounded.square().sum(0)).amax()
        products = bounded.mT @ bounded
        name = layout.names(columns.device)
        own = name.unsqueeze(-1) == name
        self.matrix = -((products + products.mT) / 2).masked_fill(own, 0)  # to the last bit symmetric

    def __call__(self, z: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Phi z."""
        return z @ self.matrix

    def rows(self, first: int, last: int) -> Float[Tensor, "rows size"]:
        """Rows of Phi."""
        return self.matrix[first:last]


class DenseInteractions(nn.Module):
    """Weak random interactions at first, within layers and between neighbours.

    Args:
        layout: where the variables lie.
        ordered: variables, in the order of the layout, whose levels have an order. Their columns are polynomials of
            degree 3 in the level: a few numbers are learned for each, however many levels there are.
    """

    allowed: Bool[Tensor, "size size"]

    def __init__(self, layout: Layout, ordered: tuple[bool, ...]) -> None:
        super().__init__()
        first = 0
        for k, block in enumerate(layout.blocks):
            smooth = torch.tensor(ordered[first : first + block.count]).unsqueeze(-1).unsqueeze(-1)
            free = torch.eye(block.levels, dtype=torch.float64)
            kept = torch.where(smooth, polynomials(block.levels), free).to(torch.float32)
            self.register_buffer(f"kept{k}", kept, persistent=False)
            first += block.count
        self.layout, sizes = layout, layout.layer_sizes()
        scale = 0.1 / layout.size**0.5
        layer = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("allowed", (layer - layer.unsqueeze(-1)).abs() <= 1, persistent=False)
        self.weights = nn.Parameter(torch.randn(self.allowed.shape, dtype=torch.float32) * scale)

    def coupling(self, margin: float) -> DenseCoupling:
        """Phi, bounded."""
        columns = self.weights * self.allowed.to(self.weights)
        columns = columns + torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
        parts = [
            torch.einsum("rgk,gkl->rgl", part, getattr(self, f"kept{k}").to(part)).flatten(1)
            for k, part in enumerate(self.layout.grouped(columns))
        ]
        return DenseCoupling(torch.cat(parts, -1), self.layout, margin)


class ConvInteractions(nn.Module):
    """Weak random convolutions within each grid and from each to the next, and weights from all of them to the label.

    Rows of a grid lie one place beyond it on every side, so that every variable has all its taps, and A_i^T A_i is the
    same at every place.

    Args:
        layout: a grid a layer, and the label as the last if it is there.
        labelled: whether it is.
    """

    label: nn.Parameter | None

    def __init__(self, layout: Layout, labelled: bool, scale: float = 0.02) -> None:
        super().__init__()
        self.layout = layout
        self.grids = layout.blocks[:-1] if labelled else layout.blocks
        width = SHIFT + 2 * MARGIN
        self.lateral, self.upward = nn.ParameterList(), nn.ParameterList()
        for grid in self.grids:
            shape = (_channels(grid), _channels(grid), LATERAL, LATERAL)
            self.lateral.append(nn.Parameter(torch.randn(shape, dtype=torch.float32) * scale))
        for fine, coarse in zip(self.grids, self.grids[1:], strict=False):
            shape = (_channels(coarse), _channels(fine), width, width)
            self.upward.append(nn.Parameter(torch.randn(shape, dtype=torch.float32) * scale))
        classes = sum(b.size for b in layout.blocks[len(self.grids) :])
        size = sum(grid.size for grid in self.grids)
        self.register_parameter(
            "label", nn.Parameter(torch.randn(size, classes, dtype=torch.float32) * scale) if classes else None
        )

    def coupling(self, margin: float) -> "ConvCoupling":
        """Phi, bounded."""
        return ConvCoupling(list(self.lateral), list(self.upward), self.label, self.layout, margin)


class ConvCoupling:
    """Phi of `ConvInteractions`: A z is computed, and A^T of that."""

    def __init__(
        self, lateral: list[Tensor], upward: list[Tensor], label: Tensor | None, layout: Layout, margin: float
    ) -> None:
        self.layout, self.grids = layout, layout.blocks[: len(lateral)]
        self.upward = [_centred(u, 0, g.levels) for u, g in zip(upward, self.grids[1:], strict=True)]
        self.label = label
        self.sizes = [grid.size for grid in self.grids]
        self.lateral, grams = [], []
        for k, (kernel, grid) in enumerate(zip(lateral, self.grids, strict=True)):
            identity = torch.zeros_like(kernel)
            identity[:, :, LATERAL // 2, LATERAL // 2] = torch.eye(
                len(kernel), dtype=kernel.dtype, device=kernel.device
            )
            self.lateral.append(_centred(kernel + identity, 1, grid.levels))
            gram = _gram(self.lateral[-1].transpose(0, 1), grid.groups)
            grams.append(gram + _gram(self.upward[k - 1], grid.groups) if k else gram)
        scales = [column_scale(g, margin) for g in grams]
        own = [g * (s**2).unsqueeze(-1).unsqueeze(-1) for g, s in zip(grams, scales, strict=True)]
        parts = [
            s.repeat_interleave(b.levels).repeat(b.height * b.width) for s, b in zip(scales, self.grids, strict=True)
        ]
        if label is not None:
            self.label, classes = label - label.mean(1, keepdim=True), label.shape[1]
            self.own_label = torch.eye(classes, dtype=label.dtype, device=label.device) - 1 / classes
            gram = self.label.mT @ self.label + self.own_label
            last = column_scale(gram, margin)
            own, parts = [*own, (gram * last**2).unsqueeze(0)], [*parts, last.expand(classes)]
        self.own, self.scale = own, torch.cat(parts)
        self.most = torch.stack([o.diagonal(dim1=-2, dim2=-1).sum(-1).amax() for o in own]).amax()

    def __call__(self, z: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Phi z: what every variable would do to itself, less what all do together."""
        flat = z.reshape(-1, z.shape[-1])
        parts = [
            part.unflatten(1, (-1, len(own))) for part, own in zip(self.layout.grouped(flat), self.own, strict=True)
        ]
        mine = [torch.einsum("gkl,bpgl->bpgk", own, part).flatten(1) for part, own in zip(parts, self.own, strict=True)]
        return (torch.cat(mine, -1) - self.scale * self._products(self.scale * flat)).reshape(z.shape)

    def _products(self, flat: Tensor) -> Tensor:
        """A^T A z, without the scales."""
        parts, found, inner = list(flat.split(self.layout.sizes, -1)), [], []
        pictures = [_image(part, grid) for part, grid in zip(parts, self.grids, strict=False)]
        shares = () if self.label is None else (parts[-1] @ self.label.mT).split(self.sizes, -1)
        for k, kernel in enumerate(self.lateral):
            talk = functional.conv2d(pictures[k], kernel, padding=LATERAL // 2 + MARGIN)
            if k < len(self.upward):
                talk = talk + functional.conv_transpose2d(pictures[k + 1], self.upward[k], stride=SHIFT)
            if shares:
                talk = talk + functional.pad(_image(shares[k], self.grids[k]), (MARGIN,) * 4)
                inner.append(_flat(talk[..., MARGIN:-MARGIN, MARGIN:-MARGIN]))
            back = _flat(functional.conv_transpose2d(talk, kernel, padding=LATERAL // 2 + MARGIN))
            found.append(back + found.pop() if k else back)
            if k < len(self.upward):
                found.append(_flat(functional.conv2d(talk, self.upward[k], stride=SHIFT)))
        if self.label is not None:
            found.append(torch.cat(inner, -1) @ self.label + parts[-1] @ self.own_label)
        return torch.cat(found, -1)

    def rows(self, first: int, last: int) -> Float[Tensor, "rows size"]:
        """Rows of Phi."""
        one_hot = self.scale.new_zeros(last - first, self.layout.size)
        one_hot.diagonal(first).fill_(1)
        return self(one_hot)


def _centred(weights: Tensor, axis: int, levels: int) -> Tensor:
    """Less the mean over the levels of each variable along an axis of channels."""
    cells = weights.unflatten(axis, (-1, levels))
    return (cells - cells.mean(axis + 1, keepdim=True)).flatten(axis, axis + 1)


def _channels(block: Block) -> int:
    return block.groups * block.levels


def _gram(columns: Float[Tensor, "channels rows height width"], groups: int) -> Float[Tensor, "groups levels levels"]:
    """A_i^T A_i of every variable at one place."""
    a = columns.flatten(1).unflatten(0, (groups, -1))
    return a @ a.mT


def _image(flat: Float[Tensor, "batch size"], block: Block) -> Float[Tensor, "batch channels height width"]:
    return flat.unflatten(1, (block.height, block.width, -1)).permute(0, 3, 1, 2)


def _flat(image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch size"]:
    return image.permute(0, 2, 3, 1).flatten(1)
