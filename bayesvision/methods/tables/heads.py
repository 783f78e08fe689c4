"""Raw output of the table network to a distribution around what the Gaussian process predicts."""

import math

import torch
import torch.distributions as td
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayesvision.distributions import Categorical, Mixture, Normal

__all__ = ["ProcessClassHead", "ProcessMixtureHead"]

FLOOR = 0.02  # of the probability that the process gives to a class


class ProcessMixtureHead(nn.Module):
    """Three numbers for each component to a `Mixture` of normals in units of the process's own prediction.

    With raw output (w, a, b), component k has the weight softmax(w)_k, the mean m + s sinh(a_k) and the standard
    deviation s exp(b_k), where m and s are the process's mean and standard deviation: the network says how the answer
    differs from that of the process, on whatever scale it lives. Two wide components of small, fixed weight around the
    context's own mean see to it that no answer is ruled out.
    """

    REACH = 8.0  # maximum of |a|
    LOW, HIGH = -5.0, 6.0  # of b
    WEIGHTS, WIDTHS = (2e-3, 2e-4), (3.0, 30.0)  # of the wide components, in standard deviations of the target

    start: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        self.outputs = 3 * components
        a = torch.linspace(-1.4, 1.4, components, dtype=torch.float32)
        start = torch.cat([-a.sinh().square() / 2, a, torch.full_like(a, -0.4)])
        self.register_buffer("start", start, persistent=False)

    def forward(
        self,
        raw: Float[Tensor, "*batch outputs"],
        mean: Float[Tensor, "*batch"],
        stddev: Float[Tensor, "*batch"],
        loc: float | Float[Tensor, "*#batch"] = 0.0,
        scale: float | Float[Tensor, "*#batch"] = 1.0,
    ) -> Mixture:
        """Distribution of loc + scale z, where `mean` and `stddev` are those of z; in their dtype."""
        logits, a, b = (raw + self.start.to(raw)).to(mean.dtype).chunk(3, -1)
        centre, width = mean.unsqueeze(-1), stddev.unsqueeze(-1)
        centres = centre + width * a.clamp(-self.REACH, self.REACH).sinh()
        widths = width * b.clamp(self.LOW, self.HIGH).exp()
        weights, wide = (centre.new_tensor(v).expand(*mean.shape, -1) for v in (self.WEIGHTS, self.WIDTHS))
        log_rest = math.log1p(-sum(self.WEIGHTS))
        logits = torch.cat([logits.log_softmax(-1) + log_rest, weights.log()], -1)
        centres, widths = torch.cat([centres, torch.zeros_like(wide)], -1), torch.cat([widths, wide], -1)
        loc, scale = (v.unsqueeze(-1) if isinstance(v, Tensor) else v for v in (loc, scale))
        components = Normal(loc + scale * centres, scale * widths, validate_args=False)
        return Mixture(td.Categorical(logits=logits, validate_args=False), components, validate_args=False)


class ProcessClassHead(nn.Module):
    """One number for each class, added to the logarithm of the probability that the process gives to it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.outputs = classes

    def forward(
        self,
        raw: Float[Tensor, "*batch most"],
        mean: Float[Tensor, "*batch most"],
        classes: Int[Tensor, "*#batch"] | None = None,
    ) -> Categorical:
        """Probabilities of the classes 0, ..., `classes` - 1, all of them if left out; the others have none."""
        logits = raw + mean.clamp(min=FLOOR).log()
        if classes is not None:
            there = torch.arange(raw.shape[-1], device=raw.device) < classes.unsqueeze(-1)
            logits = logits.masked_fill(~there, -1e9)
        return Categorical(logits=logits, validate_args=False)
