"""Layers of which some weights are kept, as independent normals, and all others are exactly zero."""

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayesvision.methods.ssvi.products import Pattern, products

__all__ = ["SparseConv", "SparseLayer", "SparseLinear", "sparse_layer"]

SPARSE_FROM = 0.2  # density up to which compressed rows are faster than a dense product on a CPU
LEAST = 1e-20  # variance of an output whose inputs are all zero, where the root has no gradient

Kernel = Literal["compressed rows", "masked dense"]


class SparseLayer(nn.Module):
    """The kept weights theta_i ~ N(mu_i, sigma_i^2), sigma = softplus(rho), of one layer; nothing else is stored.

    In training a linear layer on [n, inputs] draws its outputs given its inputs, N(mu x + bias, sigma^2 x^2 + ...)
    (local reparameterisation, Kingma et al. 2015, arXiv 1506.02557, eq. 6). Where an example meets the same weights at
    several places, as in a convolution or on [n, steps, inputs], it draws them once for all of these: mu x + r (sigma
    e)(s x) with random signs r and s of each example and one e (flipout, Wen et al. 2018, arXiv 1803.04386, eq. 4).
    Otherwise the weights are `mu`, which a draw may take the place of.

    Args:
        index: flat places of the kept weights in the dense weight, ascending.
        shape: of the dense weight.
        mu, sigma: of the kept weights.
        bias_mu, bias_sigma: of the biases, which are all kept; None without.
    """

    index: Tensor
    mu: nn.Parameter
    rho: nn.Parameter

    def __init__(
        self,
        index: Int[Tensor, " kept"],
        shape: tuple[int, ...],
        mu: Float[Tensor, " kept"],
        sigma: float,
        bias_mu: Float[Tensor, " outputs"] | None,
        bias_sigma: float,
    ) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.shape = tuple(shape)
        self.mu, self.rho = nn.Parameter(mu), nn.Parameter(torch.full_like(mu, _inverse_softplus(sigma)))
        self.bias_mu = None if bias_mu is None else nn.Parameter(bias_mu)
        start = _inverse_softplus(bias_sigma)
        self.bias_rho = None if bias_mu is None else nn.Parameter(torch.full_like(bias_mu, start))
        self.probe: Tensor | None = None  # a dense zero, added to the means, that collects a dense gradient
        self._pattern: Pattern | None = None

    @property
    def sigma(self) -> Float[Tensor, " kept"]:
        """Standard deviations of the kept weights."""
        return nn.functional.softplus(self.rho)

    @property
    def size(self) -> int:
        """Number of weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def weight(self) -> Tensor:
        """All weights, dense: for modules that read a layer's weight instead of calling it; a draw in training."""
        values = self.mu + self.sigma * torch.randn_like(self.mu) if self.training else self.mu
        return self._dense(values) if self.probe is None else self._dense(values) + self.probe

    @property
    def bias(self) -> Tensor | None:
        """The biases; a draw in training."""
        if self.bias_mu is None or self.bias_rho is None or not self.training:
            return self.bias_mu
        return self.bias_mu + nn.functional.softplus(self.bias_rho) * torch.randn_like(self.bias_mu)

    @property
    @abstractmethod
    def kernel(self) -> Kernel:
        """How products are computed on a CPU."""

    @property
    def pattern(self) -> Pattern:
        """The places of `index` as compressed rows of [outputs, rest], made anew when they have changed."""
        known = self._pattern
        if known is None or known.index.device != self.index.device or not torch.equal(known.index, self.index):
            self._pattern = Pattern.of(self.index, (self.shape[0], self.size // self.shape[0]))
        assert self._pattern is not None
        return self._pattern

    def _dense(self, values: Float[Tensor, " kept"]) -> Tensor:
        return values.new_zeros(self.size).index_put((self.index,), values).view(self.shape)

    @abstractmethod
    def _product(self, x: Tensor, values: Float[Tensor, " kept"], probed: bool = False) -> Tensor:
        """Outputs without biases, on axis 0, with the kept weights `values`; with `probed` the probe's as well."""

    @abstractmethod
    def _signs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Random signs for each example, of its inputs and of its outputs, to multiply `x` and `_product` with."""

    @abstractmethod
    def _restored(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Outputs as the dense layer gives them for `x`."""

    def _local(self, x: Tensor) -> Tensor:
        """A draw of outputs given inputs, without biases; or of weights given the example."""
        noise = self.sigma * torch.randn_like(self.mu)
        inner, outer = self._signs(x)
        return self._product(x, self.mu, True) + outer * self._product(x * inner, noise)

    def forward(self, x: Tensor) -> Tensor:
        given, x = x, x if x.is_floating_point() else x.to(self.mu.dtype)
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.mu.dtype)
        outputs = self._local(x) if self.training else self._product(x, self.mu, True)
        if self.bias_mu is not None:
            outputs = outputs + self._biases(outputs)
        return self._restored(outputs, given)

    def _biases(self, outputs: Tensor) -> Tensor:
        """Biases; in training a draw for each example."""
        rest = (1,) * (outputs.ndim - 1)
        assert self.bias_mu is not None and self.bias_rho is not None
        if not self.training:
            return self.bias_mu.view(-1, *rest)
        noise = torch.randn((len(outputs), *self._examples(outputs)), dtype=self.mu.dtype, device=outputs.device)
        return self.bias_mu.view(-1, *rest) + nn.functional.softplus(self.bias_rho).view(-1, *rest) * noise

    def _examples(self, outputs: Tensor) -> tuple[int, ...]:
        """Shape of `outputs` after axis 0 with 1 for every axis within an example."""
        return (outputs.shape[1], *(1 for _ in outputs.shape[2:]))

    def kl(self, prior_std: float | None = None) -> Float[Tensor, ""]:
        """KL(q || p) = sum_i [log(s / sigma_i) + (sigma_i^2 + mu_i^2) / (2 s^2) - 1/2] of kept weights and biases.

        Without `prior_std` it is `natural_std` for weights and 1 for biases.
        """
        total = _kl(self.mu, self.rho, prior_std or self.natural_std)
        return total if self.bias_mu is None else total + _kl(self.bias_mu, self.bias_rho, prior_std or 1.0)

    @property
    def natural_std(self) -> float:
        """sqrt(2 outputs / kept): outputs are as large as rectified inputs then (He et al. 2015, arXiv 1502.01852)."""
        return math.sqrt(2 * self.shape[0] / len(self.mu))

    @torch.no_grad()
    def rewire(self, index: Tensor, mu: Tensor, rho: Tensor) -> None:
        """Keep other weights, as many as before."""
        self.index.copy_(index)
        self.mu.copy_(mu)
        self.rho.copy_(rho)


class SparseLinear(SparseLayer):
    """A linear layer, on compressed rows where these are faster."""

    @property
    def kernel(self) -> Kernel:
        return "compressed rows" if len(self.mu) <= SPARSE_FROM * self.size else "masked dense"

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.shape[0]

    def _columns(self, x: Tensor) -> Tensor:
        """Inputs [inputs, *examples, places within one], flat after the first axis."""
        if x.shape[-1] != self.shape[1]:
            raise RuntimeError(f"the layer takes {self.shape[1]} inputs, got the shape {tuple(x.shape)}")
        return x.reshape(-1, self.shape[1]).mT

    def _on_rows(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and self.kernel == "compressed rows"

    def _product(self, x: Tensor, values: Tensor, probed: bool = False) -> Tensor:
        columns = self._columns(x)
        rows = self._on_rows(x)
        outputs = products(columns, self.pattern, values)[0] if rows else self._dense(values) @ columns
        outputs = outputs + self.probe @ columns if probed and self.probe is not None else outputs
        return outputs.view(len(outputs), *x.shape[:-1]) if x.ndim > 2 else outputs

    def _local(self, x: Tensor) -> Tensor:
        if x.ndim > 2:
            return super()._local(x)
        columns, variance = self._columns(x), self.sigma.square()
        if self._on_rows(x):
            mean, spread = products(columns, self.pattern, self.mu, variance)
            assert spread is not None
        else:
            mean, spread = self._dense(self.mu) @ columns, self._dense(variance) @ columns.square()
        mean = mean if self.probe is None else mean + self.probe @ columns
        if self.bias_rho is not None:
            spread = spread + nn.functional.softplus(self.bias_rho).square().unsqueeze(-1)
        noise = torch.randn(mean.shape, dtype=self.mu.dtype, device=mean.device)
        return mean + spread.to(noise.dtype).clamp(min=LEAST).sqrt() * noise

    def _biases(self, outputs: Tensor) -> Tensor:
        if outputs.ndim > 2 or self.bias_mu is None:
            return super()._biases(outputs)
        return self.bias_mu.unsqueeze(-1)  # their variance is in that of the outputs

    def _signs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(x), *(1 for _ in x.shape[1:-1]))
        return _random_signs((*shape, self.shape[1]), x), _random_signs((self.shape[0], *shape), x)

    def _restored(self, outputs: Tensor, x: Tensor) -> Tensor:
        return outputs.mT.reshape(*x.shape[:-1], self.shape[0]) if x.ndim < 3 else outputs.movedim(0, -1)

    def extra_repr(self) -> str:
        """Inputs, outputs, kept weights."""
        return f"{self.shape[1]} to {self.shape[0]}, {len(self.mu):,} of {self.size:,} weights"


class SparseConv(SparseLayer):
    """A convolution of one or two axes, computed with a dense kernel that is made for the moment.

    Unfolded inputs would let compressed rows do less arithmetic, but writing them costs more than they save.
    """

    def __init__(self, *parts: Any, like: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(*parts)
        self.axes = len(like.kernel_size)
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups
        self.padding, self.padding_mode = like.padding, like.padding_mode
        self.margins = list(like._reversed_padding_repeated_twice)

    @property
    def kernel(self) -> Kernel:
        return "masked dense"

    def _product(self, x: Tensor, values: Tensor, probed: bool = False) -> Tensor:
        apply, padding = (nn.functional.conv1d if self.axes == 1 else nn.functional.conv2d), self.padding
        if self.padding_mode != "zeros":
            x, padding = nn.functional.pad(x, self.margins, mode=self.padding_mode), 0
        kernel = self._dense(values)
        kernel = kernel + self.probe if probed and self.probe is not None else kernel
        outputs: Any = apply(x, kernel, None, self.stride, padding, self.dilation, self.groups)
        return outputs.movedim(-self.axes - 1, 0)

    def _signs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count, places = x.shape[: -self.axes - 1], (1,) * self.axes
        return (
            _random_signs((*count, x.shape[-self.axes - 1], *places), x),
            _random_signs((self.shape[0], *count, *places), x),
        )

    def _examples(self, outputs: Tensor) -> tuple[int, ...]:
        return (*outputs.shape[1 : -self.axes], *(1,) * self.axes)

    def _restored(self, outputs: Tensor, x: Tensor) -> Tensor:
        return outputs.movedim(0, -self.axes - 1)

    def extra_repr(self) -> str:
        """Channels, kernel, kept weights."""
        sizes = f"{self.in_channels} to {self.shape[0]}, {' x '.join(map(str, self.kernel_size))}"
        return f"{sizes}, {len(self.mu):,} of {self.size:,} weights"


def _random_signs(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return 2 * torch.randint(2, shape, device=like.device).to(like.dtype) - 1


def sparse_layer(like: nn.Linear | nn.Conv1d | nn.Conv2d, index: Tensor, factor: float, spread: float) -> SparseLayer:
    """The layer that keeps the weights at `index` of a dense one, times `factor`.

    Args:
        spread: standard deviations, as a fraction of the root mean square of the kept weights.
    """
    weight, bias = like.weight.detach(), None if like.bias is None else like.bias.detach().clone()
    mu = factor * weight.flatten()[index]
    sigma = spread * max(float(mu.double().square().mean().sqrt()), 1e-3)
    parts = (index, tuple(weight.shape), mu, sigma, bias, sigma)
    return SparseLinear(*parts) if isinstance(like, nn.Linear) else SparseConv(*parts, like=like)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _kl(mu: Tensor, rho: Any, prior_std: float) -> Float[Tensor, ""]:
    sigma = nn.functional.softplus(rho)
    ratio = sigma / prior_std
    return (0.5 * (ratio.square() + (mu / prior_std).square() - 1) - ratio.log()).sum()
