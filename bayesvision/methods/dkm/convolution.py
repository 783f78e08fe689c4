"""The convolutional machine: Gram matrices of inducing patches, and of every place of an image with them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bayesvision.methods.dkm.learning import centres
from bayesvision.methods.dkm.machine import Features, GramLayer, Grams, Layered, Objective, whitened_kernel
from bayesvision.nn.kernels import GramKernel, KernelName, factor
from bayesvision.training.seeds import generator

__all__ = ["ConvMachine"]

SIZE = 3  # height and width of a patch
CANDIDATES = 4_000  # patches that inducing ones are chosen from
ROUNDING, TINY = 1e-9, 1e-30


class Places:
    """Gram matrices with every place of a batch of images.

    Args:
        grams: cross [P, images * height * width] and rows [images * height * width], image by image.
        images: how many.
        height, width: of each.
    """

    def __init__(self, grams: Grams, images: int, height: int, width: int) -> None:
        self.grams, self.shape = grams, (images, height, width)

    @property
    def cross(self) -> Float[Tensor, "images P height width"]:
        """Of inducing points with every place."""
        return self.grams.cross.unflatten(1, self.shape).transpose(0, 1)

    @property
    def rows(self) -> Float[Tensor, "images 1 height width"]:
        """Of every place with itself."""
        return self.grams.rows.unflatten(0, self.shape).unsqueeze(1)

    @classmethod
    def of(cls, inducing: Tensor, cross: Tensor, rows: Tensor) -> "Places":
        """From maps [images, P, height, width] and [images, 1, height, width]."""
        images, _, height, width = cross.shape
        return cls(Grams(inducing, cross.transpose(0, 1).flatten(1), rows.flatten()), images, height, width)


class Mixing(nn.Module):
    """A convolution of Gram matrices (Milsom et al. 2023, arXiv 2309.09814, section 4).

    An inducing patch i of the next layer has, at each of its D = 9 places d, the mixture sum_j C_dij of the inducing
    points j below. With s + d the place d of the patch around s,

        G_ii' <- sum_d C_d G C_d^T / D,    G_is <- sum_dj C_dij G_j,s+d / D,    G_ss <- sum_d G_s+d,s+d / D,

    and nothing beyond the edge.

    Args:
        below, count: P of the layer below and of this one.
        stride: of the places s.
    """

    def __init__(self, below: int, count: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.mix = nn.Parameter(torch.zeros(count, below, SIZE, SIZE, dtype=torch.float64))

    def forward(self, places: Places) -> Places:
        """Gram matrices of patches."""
        flat = self.mix.permute(2, 3, 0, 1).reshape(SIZE * SIZE, *self.mix.shape[:2])
        inducing = torch.einsum("dij,jk,dlk->il", flat, places.grams.inducing, flat) / len(flat)
        cross = functional.conv2d(places.cross, self.mix / len(flat), stride=self.stride, padding=SIZE // 2)
        rows = functional.avg_pool2d(places.rows, SIZE, self.stride, SIZE // 2)
        return Places.of(inducing, cross, rows)


def normalised(grams: Grams) -> Grams:
    """Features less their mean over inducing points, in units in which these have the mean square 1.

    With m the mean over inducing points, G_ij <- (G_ij - G_im - G_mj + G_mm) / s, and s the mean diagonal of inducing
    points then: batch norm of features that nobody has, in which a row depends on itself alone. Without it all patches
    are alike after some layers, since kernels are positive.
    """
    own, seen = grams.inducing.mean(0), grams.cross.mean(0)
    whole = own.mean()
    inducing = grams.inducing - own - own.unsqueeze(1) + whole
    least = ROUNDING * grams.inducing.diagonal().mean() + TINY  # patches that are all the same stay so
    scale = inducing.diagonal().mean().clamp(min=least)
    cross = grams.cross.sub(seen).sub_((own - whole).unsqueeze(1))
    return Grams(inducing / scale, cross / scale, (grams.rows - 2 * seen + whole).clamp(min=0) / scale)


class ConvMachine(Layered):
    """Blocks of convolved, learned and normalised Gram matrices, then the average over places; all in float64.

    Args:
        shape: of an image, [channels, height, width].
        counts: number of inducing patches of each layer.
        strides: of each layer.
        kernel: of each layer and of the output.
        fixed: layers whose Gram matrix stays that of the kernel.
        ridge, objective, stiffness: as in `GramLayer`; the last one of each layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        counts: tuple[int, ...],
        strides: tuple[int, ...],
        kernel: KernelName,
        fixed: tuple[bool, ...],
        ridge: float,
        objective: Objective,
        stiffness: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.inducing = nn.Parameter(torch.zeros(counts[0], shape[0], SIZE, SIZE, dtype=torch.float64))
        self.mixings = nn.ModuleList(
            Mixing(below, count, stride) for below, count, stride in zip(counts, counts[1:], strides[1:], strict=False)
        )
        self.layers = nn.ModuleList(
            GramLayer(count, GramKernel(kernel), fixed[k], ridge, objective, stiffness[k] if stiffness else 1.0)
            for k, count in enumerate(counts)
        )
        self.pooled = nn.Parameter(torch.eye(counts[-1], dtype=torch.float64))
        self.output = GramKernel(kernel)

    def patches(self, x: Float[Tensor, "images channels height width"]) -> Places:
        """Gram matrices of the pixels of patches, z z^T / pixels."""
        z = self.inducing.flatten(1)
        cross = functional.conv2d(x, self.inducing / z.shape[1], padding=SIZE // 2)
        rows = functional.avg_pool2d(x.square().mean(1, keepdim=True), SIZE, 1, SIZE // 2)
        return Places.of(z @ z.mT / z.shape[1], cross, rows)

    def layer(self, number: int, places: Places) -> Places:
        """Gram matrices of a layer from those of the one below, for the first from those of the pixels."""
        places = places if number == 0 else self.mixings[number - 1](places)
        grams = self.layers[number](places.grams, f"layer {number + 1}")
        return Places(normalised(grams), *places.shape)

    def average(self, places: Places) -> Grams:
        """Of the means over places.

        What inducing points do not tell of a place is independent of that of another, as it is of other images.
        """
        grams, (images, _, _) = places.grams, places.shape
        cross = grams.cross.unflatten(1, (images, -1))
        small = factor(grams.inducing, "the average")
        told = torch.linalg.solve_triangular(small, grams.cross, upper=False).unflatten(1, (images, -1))
        mean, count = told.mean(2), told.shape[2]
        rest = (grams.rows.view(images, -1) - told.square().sum(0)).clamp(min=0).mean(1) / count
        cross = self.pooled @ cross.mean(2)
        return normalised(Grams(self.pooled @ grams.inducing @ self.pooled.mT, cross, mean.square().sum(0) + rest))

    def grams(self, x: Float[Tensor, "images channels height width"]) -> list[Places]:
        """Gram matrices of the pixels, and of each layer."""
        found = [self.patches(x)]
        for number in range(len(self.layers)):
            found.append(self.layer(number, found[-1]))
        return found

    def learned(self) -> list[Float[Tensor, "P P"]]:
        """Gram matrices of the inducing points, of the pixels and of each layer."""
        nothing = self.inducing.new_zeros(1, self.inducing.shape[1], 8, 8)
        return [places.grams.inducing for places in self.grams(nothing)]

    def forward(self, x: Float[Tensor, "images channels height width"]) -> Features:
        """What the output layer sees of the images."""
        _, a, rest = whitened_kernel(self.output, self.average(self.grams(x)[-1]), "the output")
        return Features(a, rest, self.penalty())

    @torch.no_grad()
    def start(self, x: Float[Tensor, "images channels height width"], seed: int) -> None:
        """Put the inducing patches of every layer where those of the images `x` are, by k-means++."""
        self.eval()  # at the Gram matrices themselves, not at draws around them
        parts = functional.unfold(x, SIZE, padding=SIZE // 2).transpose(1, 2).flatten(0, 1)
        self.inducing.copy_(_centres(parts, len(self.inducing), seed).view_as(self.inducing))
        places = self.layer(0, self.patches(x))
        for number, mixing in enumerate(self.mixings):
            assert isinstance(mixing, Mixing)
            small, told = _whitened(places)
            parts = functional.unfold(told, SIZE, padding=SIZE // 2, stride=mixing.stride).transpose(1, 2).flatten(0, 1)
            chosen = _centres(parts, len(mixing.mix), seed + number + 1).view(len(mixing.mix), told.shape[1], -1)
            solved = torch.linalg.solve_triangular(small.mT, chosen.transpose(0, 1).flatten(1), upper=True)
            mixing.mix.copy_(solved.unflatten(1, (len(mixing.mix), -1)).transpose(0, 1).reshape(mixing.mix.shape))
            places = self.layer(number + 1, places)
        small, told = _whitened(places)
        chosen = _centres(told.mean((2, 3)), len(self.pooled), seed + len(self.layers))
        self.pooled.copy_(torch.linalg.solve_triangular(small.mT, chosen.mT, upper=True).mT)


def _whitened(places: Places) -> tuple[Tensor, Float[Tensor, "images P height width"]]:
    """The factor L of the Gram matrix of inducing points, and L^-1 G_it."""
    small = factor(places.grams.inducing, "the start")
    told = torch.linalg.solve_triangular(small, places.grams.cross, upper=False)
    return small, told.unflatten(1, places.shape).transpose(0, 1)


def _centres(values: Float[Tensor, "n columns"], count: int, seed: int) -> Float[Tensor, "count columns"]:
    """Centres of a part of the rows; if these are fewer, again and again, and all with a little noise."""
    source = generator("cpu", seed, 1 << 45)
    some = centres(values[torch.randperm(len(values), generator=source)[:CANDIDATES].to(values.device)], count, seed)
    some = some.repeat(math.ceil(count / len(some)), 1)[:count]
    noise = torch.randn(some.shape, generator=source, dtype=some.dtype).to(some)
    return some + 1e-3 * some.square().mean().sqrt().clamp(min=ROUNDING) * noise
