"""`Problem`: a batch of inference problems drawn from a family."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["MixtureParameters", "Problem"]


class MixtureParameters(NamedTuple):
    """Gaussian mixtures over the latent variables.

    Attributes:
        logits: unnormalised log weights.
        loc: means.
        scale_tril: Cholesky factors of the covariances.
    """

    logits: Float[Tensor, "... components"]
    loc: Float[Tensor, "... components latents"]
    scale_tril: Float[Tensor, "... components latents latents"]


class Problem(NamedTuple):
    """A batch of problems, each with a prior of its own.

    Attributes:
        x: designs of the observations; no columns where an observation has none.
        y: what was observed.
        theta: the latent variables behind it.
        prior: the family that drew the batch.
        hyper: what tells each prior, for families with a parametric kind of their own; None otherwise.
        mixture: each prior as a Gaussian mixture, for families of these; None otherwise.
    """

    x: Float[Tensor, "batch rows features"]
    y: Float[Tensor, "batch rows"]
    theta: Float[Tensor, "batch latents"]
    prior: Any = None
    hyper: Float[Tensor, "batch hyper"] | None = None
    mixture: MixtureParameters | None = None
