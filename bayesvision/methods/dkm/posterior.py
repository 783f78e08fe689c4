"""What a trained deep kernel machine predicts: numbers, with rows taken in in closed form, and classes."""

import math
from typing import Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.core.modules import outside_inference_mode, share
from bayesvision.core.recipes import build, to_json
from bayesvision.core.roles import Conditionable, Exported, Posterior
from bayesvision.distributions import Categorical, Normal
from bayesvision.methods.dkm.learning import Rows
from bayesvision.methods.dkm.outputs import Statistics
from bayesvision.nn.kernels import cholesky
from bayesvision.training.examples import Inputs, Scales, read_targets
from bayesvision.training.seeds import generator

__all__ = ["DKMClassPosterior", "DKMPosterior"]

BLOCK = 1_024  # rows of one block


class _Learned(nn.Module):
    """The units of the data, the machine, and what both kinds of posteriors can tell of its layers."""

    x_loc: Tensor
    x_scale: Tensor

    def __init__(self, method: Any, model: Any, units: Scales, inputs: Inputs, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.method, self.model, self.inputs, self.metadata = method, model, inputs, metadata
        for name, value in units._asdict().items():
            if value is not None:
                self.register_buffer(name, value.double())
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Nothing: what was learned stays as it is."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(lambda value: value.to(fn(value).device), recurse)  # numbers stay in float64

    def _rows(self, x: Any) -> tuple[Tensor, tuple[int, ...], torch.dtype]:
        rows, batch, dtype = self.inputs.check(x)
        return (rows.to(self.x_loc.device).double() - self.x_loc) / self.x_scale, batch, dtype

    @torch.no_grad()
    def gram(self, layer: int) -> Float[Tensor, "P P"]:
        """The learned Gram matrix of the inducing points in a layer, 0 for the inputs.

        Raises:
            ValueError: no such layer.
        """
        last = len(self.model.machine.layers)
        if layer not in range(last + 1):
            raise ValueError(f"layer must be one of 0 to {last}, got {layer!r}")
        return self.model.machine.learned()[layer]

    @torch.no_grad()
    def drift(self) -> Float[Tensor, " layers"]:
        """How far each layer moved from the kernel of the one below: KL(N(0, G_l) || N(0, K(G_{l-1}))), a point."""
        return self.model.machine.kl() / self.x_loc.new_tensor([layer.count for layer in self.model.machine.layers])

    def export(self) -> Exported:
        """All that was learned; what inputs are and what training cost."""
        rest = {"inputs": to_json(self.inputs), "metadata": self.metadata}
        return Exported({}, dict(self.state_dict()), rest)

    @classmethod
    def restore(cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any]) -> Any:
        """The posterior that `export` described."""
        inputs = build(Inputs, header["inputs"])
        model = method.rebuilt(tensors, inputs, header["metadata"]["rows of data"])
        units = Scales(*(tensors.get(name) for name in Scales._fields))
        posterior = cls(method, model, units, inputs, header["metadata"])
        posterior.load_state_dict(tensors)
        return posterior


class DKMClassPosterior(_Learned, Posterior):
    """A deep kernel machine of classes."""

    def predict(self, x: Any) -> Categorical:
        """Average of the softmax over draws of the processes, the same in every row.

        Raises:
            ValueError: other columns, or numbers that are not finite.
        """
        rows, batch, dtype = self._rows(x)
        parts = []
        for block in rows.split(BLOCK // 4):
            source = generator("cpu", self.method.train.seed, 1 << 46)
            logits = self.model.output.logits(self.model.machine(block), source)
            parts.append(logits.log_softmax(-1).logsumexp(0) - math.log(len(logits)))
        return Categorical(logits=torch.cat(parts).unflatten(0, batch).to(dtype), validate_args=False)


class DKMPosterior(_Learned, Conditionable):
    """A deep kernel machine of numbers, and sums over the rows that it has seen."""

    y_loc: Tensor
    y_scale: Tensor

    def __init__(self, *parts: Any, known: Statistics | None = None) -> None:
        super().__init__(*parts)
        count, outputs = len(self.model.machine.inducing), max(1, math.prod(self.inputs.targets))
        laws = outputs if self.method.heteroscedastic else 1
        zero = self.x_loc.new_zeros(laws, count, count), self.x_loc.new_zeros(outputs, count)
        self.known = Statistics(*zero) if known is None else known

    @classmethod
    @torch.no_grad()
    def of(cls, method: Any, model: Any, units: Scales, inputs: Inputs, rows: Rows, cost: dict[str, Any]) -> Self:
        """From a trained machine and its rows."""
        posterior = cls(method, model, units, inputs, cost).to(rows.device)
        for places in torch.arange(len(rows)).split(BLOCK):
            posterior.known = posterior._with(posterior.known, *rows.take(places))
        return posterior

    def _one_data_set(self, x: Any) -> tuple[Tensor, torch.dtype]:
        rows, batch, dtype = self._rows(x)
        if len(batch) != 1:
            raise ValueError(f"x must be one data set [rows, columns], got batch axes {batch[:-1]}")
        return rows, dtype

    def _with(self, known: Statistics, rows: Tensor, y: Tensor) -> Statistics:
        seen = self.model.machine(rows)
        return known.added(seen.a, y, self.model.output.weight(seen))

    @outside_inference_mode
    @torch.no_grad()
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has seen the rows (x, y) too, in closed form; what was learned stays.

        Raises:
            ValueError: other columns, targets of another shape, or numbers that are not finite.
        """
        rows, _ = self._one_data_set(x)
        y = read_targets(y, rows)
        if tuple(y.shape) != (len(rows), *self.inputs.targets):
            raise ValueError(f"y must have the shape {(len(rows), *self.inputs.targets)}, got {tuple(y.shape)}")
        y = (y.to(rows) - self.y_loc) / self.y_scale
        new, known = share(self), self.known
        for block, targets in zip(rows.split(BLOCK), y.reshape(len(rows), -1).split(BLOCK), strict=True):
            known = self._with(known, block, targets)
        new.known = known
        new.metadata = self.metadata | {"rows seen": self.metadata.get("rows seen", 0) + len(rows)}
        return new

    def predict(self, x: Any) -> Normal:
        """Marginals of noisy targets: mean a^T m and variance rest + |R^T a|^2 + noise, w ~ N(m, R R^T).

        Raises:
            ValueError: other columns, or numbers that are not finite.
        """
        rows, batch, dtype = self._rows(x)
        mean, root = self.model.output.posterior(self.known)
        locs, variances = [], []
        for block in rows.split(BLOCK):
            seen = self.model.machine(block)
            locs.append(seen.a.mT @ mean.mT)
            told = (root.mT @ seen.a).square().sum(1).mT
            variances.append(seen.rest.unsqueeze(-1) + told + self.model.output.noise_at(seen))
        return self._law(torch.cat(locs), torch.cat(variances).sqrt(), batch, dtype)

    def _law(self, loc: Tensor, scale: Tensor, batch: tuple[int, ...], dtype: torch.dtype) -> Normal:
        loc, scale = ((v if self.inputs.targets else v.squeeze(-1)).unflatten(0, batch) for v in (loc, scale))
        return Normal((self.y_loc + self.y_scale * loc).to(dtype), (self.y_scale * scale).to(dtype))

    def joint(self, x: Any) -> td.MultivariateNormal:
        """Joint distribution of noisy targets at the rows of `x`, [*batch, rows], of several [*batch, outputs, rows].

        Raises:
            ValueError: other columns, or numbers that are not finite.
        """
        if isinstance(x, Tensor) and x.ndim > 2:
            laws, batch = [self.joint(part) for part in x.flatten(0, -3)], x.shape[:-2]
            loc, factor = (torch.stack([getattr(law, n) for law in laws]) for n in ("loc", "scale_tril"))
            return td.MultivariateNormal(loc.unflatten(0, batch), scale_tril=factor.unflatten(0, batch))
        rows, dtype = self._one_data_set(x)
        mean, root = self.model.output.posterior(self.known)
        seen = self.model.machine(rows, whole=True)
        half = root.mT @ seen.a
        noise = torch.diag_embed(self.model.output.noise_at(seen).mT)
        factor = cholesky(seen.rest + half.mT @ half + noise, "the covariance of these rows")
        scale = self.y_scale.reshape(-1, 1)
        loc = self.y_loc.reshape(-1, 1) + scale * (mean @ seen.a)
        factor = scale.unsqueeze(-1) * factor
        loc, factor = (loc, factor) if self.inputs.targets else (loc.squeeze(0), factor.squeeze(0))
        return td.MultivariateNormal(loc.to(dtype), scale_tril=factor.to(dtype))

    @classmethod
    def restore(cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any]) -> Any:
        """The posterior that `export` described; one of classes, if the recipe has them."""
        if method.classes:
            return DKMClassPosterior.restore(method, tensors, header)
        return super().restore(method, tensors, header)
