"""How latent variables move between observations: theta' = f(theta) + N(0, noise), and its checks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import as_tensor

__all__ = ["Motion"]


class Motion(NamedTuple):
    """A transition and the covariance of its noise.

    Attributes:
        matrix: F of f(theta) = F theta; None where f is another function.
        function: f.
        noise: the covariance.
    """

    matrix: Float[Tensor, "latents latents"] | None
    function: Callable[[Tensor], Tensor]
    noise: Float[Tensor, "latents latents"]

    @classmethod
    def of(cls, transition: Any, noise: Any, supports: tuple[str, ...], like: Tensor) -> "Motion":
        """What somebody handed in, with tensors like `like`.

        Raises:
            ValueError: latent variables that are not real, wrong shapes, or a covariance that is not symmetric and
                positive semi-definite.
        """
        d = len(supports)
        if set(supports) != {"real"}:
            raise ValueError(f"only real latent variables move, got {', '.join(supports)}")
        noise = _covariance(noise, d).to(like)
        if callable(transition):
            return cls(None, _checked(transition, d), noise)
        matrix = as_tensor("transition", transition).to(like)
        if matrix.shape != (d, d):
            raise ValueError(f"transition must be a matrix [{d}, {d}] or a function, got {tuple(matrix.shape)}")
        return cls(matrix, lambda theta: theta @ matrix.mT, noise)

    def factor(self) -> Float[Tensor, "latents latents"]:
        """A matrix C with C C^T = noise, which may be singular."""
        values, vectors = torch.linalg.eigh(self.noise.double())
        return (vectors * values.clamp(min=0).sqrt()).to(self.noise)


def _checked(transition: Callable[[Tensor], Any], d: int) -> Callable[[Tensor], Tensor]:
    def image(theta: Tensor) -> Tensor:
        found = torch.as_tensor(transition(theta)).to(theta)
        if found.shape != theta.shape:
            raise ValueError(f"transition must keep the shape [..., {d}], got {tuple(found.shape)}")
        if not found.isfinite().all():
            raise ValueError("transition must give finite values, got some that are not")
        return found

    return image


def _covariance(noise: Any, d: int) -> Float[Tensor, "latents latents"]:
    found = as_tensor("noise", noise).double()
    if found.shape != (d, d):
        raise ValueError(f"noise must be a covariance [{d}, {d}], got {tuple(found.shape)}")
    if not torch.allclose(found, found.mT):
        raise ValueError("noise must be symmetric, a covariance")
    least = torch.linalg.eigvalsh(found).min()
    if least < -1e-9 * found.abs().max():
        raise ValueError(f"noise must be positive semi-definite, got the eigenvalue {float(least):g}")
    return found
