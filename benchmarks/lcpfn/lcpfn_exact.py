"""How far is `lcpfn-prior` from the exact posterior of its prior? Sequential Monte Carlo gives the ceiling.

The prior's thirteen parameters are standard normals here (uniform ones through their cdf), cut to the curves that it
accepts. Particles start there, the likelihood comes in by powers that leave half of them effective (Del Moral, Doucet
and Jasra 2006), and at each power all particles move by differential evolution (ter Braak 2006), which leaves the
tempered posterior as it is. The score is that of the other tables: the log-likelihood of the rest of a curve under the
marginal predictive laws, averaged over its epochs, then over curves; network and reference see the same ones.

Two samplers with seeds of their own are run for each curve. Their disagreement says how well the reference is known: a
finite sample scores too low by about half the variance of its log density, so the mean of both in one mixture is taken,
and curves on which they differ by more than 0.05 nats are counted.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesvision.io.checkpoints import find
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors.curves import PARAMETER_PRIORS, LearningCurves

SEEN = (10, 20, 40, 80)
APART = 0.05  # nats a epoch between two samplers: a curve whose reference is not known
MOST = 60  # powers of the likelihood
TINY = 1e-9
LogLikelihood = Callable[[Tensor], tuple[Tensor, Tensor]]


def to_normal(theta: dict[str, Tensor]) -> Tensor:
    """Parameters as standard normals [*batch, parameters]."""
    columns = []
    for name, (law, a, b) in PARAMETER_PRIORS.items():
        value = theta[name].double()
        share = ((value - a) / (b - a)).clamp(TINY, 1 - TINY)  # a draw in float32 may lie at an end
        columns.append(torch.special.ndtri(share) if law == "uniform" else (value.log() - a) / b)
    return torch.stack(columns, -1)


def from_normal(z: Tensor) -> dict[str, Tensor]:
    """The parameters of standard normals."""
    pairs = zip(PARAMETER_PRIORS.items(), z.unbind(-1), strict=True)
    return {
        name: a + (b - a) * torch.special.ndtr(v) if law == "uniform" else (a + b * v).exp()
        for (name, (law, a, b)), v in pairs
    }


def next_power(loglik: Tensor, power: Tensor, target: float) -> Tensor:
    """The greatest power [curves] at which a share `target` of the particles [curves, particles] stays effective."""
    low, high = power.clone(), torch.ones_like(power)
    for step in range(40):
        middle = high if step == 0 else (low + high) / 2
        log_w = (middle - power).unsqueeze(-1) * loglik
        effective = (2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1)).exp() / loglik.shape[-1]
        enough = effective >= target
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low


def sample(
    start: Tensor, loglik: LogLikelihood, moves: int, seed: int, target: float = 0.5
) -> tuple[Tensor, dict[str, Tensor]]:
    """Particles [curves, particles, parameters] of prod N(z; 0, 1) 1[allowed] L(z), from those of the prior.

    Args:
        start: particles of the prior, cut to what is allowed.
        loglik: log-likelihoods and whether each particle is allowed [curves, particles].
        moves: for each particle at each power.

    Returns:
        The particles, and of each curve the log evidence, the powers taken, and the share of moves accepted.
    """
    source, z = generator("cpu", seed), start.clone()
    curves, particles, size = z.shape
    value, _ = loglik(z)
    power, evidence = z.new_zeros(curves), z.new_zeros(curves)
    taken, accepted = z.new_zeros(curves), z.new_zeros(curves)
    for _ in range(MOST):
        new = next_power(value, power, target)
        log_w = (new - power).unsqueeze(-1) * value
        evidence += log_w.logsumexp(-1) - math.log(particles)
        taken += power < 1
        keep = _systematic(log_w.softmax(-1), source)
        z, value = z.gather(1, keep.unsqueeze(-1).expand(-1, -1, size)), value.gather(1, keep)
        power, last = new, bool((new >= 1).all())
        rate = z.new_zeros(curves)
        count = moves * (3 if last else 1)
        for k in range(count):
            z, value, moved = _move(z, value, power, loglik, source, kind=k % 4)
            rate += moved
        accepted = rate / count
        if last:
            return z, {"evidence": evidence, "powers": taken, "accepted": accepted}
    raise RuntimeError(f"the likelihood did not come in within {MOST} powers, but to {power.min():.3g} of it")


def _systematic(weights: Tensor, source: torch.Generator) -> Tensor:
    """Places drawn by systematic resampling [curves, particles]."""
    curves, particles = weights.shape
    first = torch.rand(curves, 1, generator=source, dtype=weights.dtype)
    at = (first + torch.arange(particles, dtype=weights.dtype)) / particles
    return torch.searchsorted(weights.cumsum(-1), at).clamp(max=particles - 1)


def _proposal(z: Tensor, difference: Tensor, kind: int, source: torch.Generator) -> Tensor:
    """Symmetric proposals in some of the parameters: by a difference of two others, whole or in part, or a new draw."""
    size = z.shape[-1]
    share = torch.tensor([1 / size, 0.25, 0.5, 1.0])[torch.randint(4, z.shape[:-1], generator=source)]
    some = torch.rand(z.shape, generator=source) < share.unsqueeze(-1)
    some |= torch.nn.functional.one_hot(torch.randint(size, z.shape[:-1], generator=source), size).bool()
    noise = torch.randn(z.shape, generator=source, dtype=z.dtype)
    if kind == 3:  # keeps the standard normal
        part = 0.8
        return torch.where(some, math.sqrt(1 - part**2) * z + part * noise, z)
    if kind == 2:  # the whole difference: from one mode to another
        return torch.where(some, z + difference + 1e-4 * noise, z)
    scale = 2.38 / (2 * some.sum(-1, keepdim=True)).sqrt() * (0.3, 0.8)[kind]
    return torch.where(some, z + scale * difference + 1e-4 * noise, z)


def _move(
    z: Tensor, value: Tensor, power: Tensor, loglik: LogLikelihood, source: torch.Generator, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: half of the particles move by differences of the other half, then these."""
    curves, particles, _ = z.shape
    z, value, moved = z.clone(), value.clone(), z.new_zeros(curves)
    order = torch.randperm(particles, generator=source)
    halves = order[: particles // 2], order[particles // 2 :]
    for mine, others in (halves, halves[::-1]):
        a = others[torch.randint(len(others), (len(mine),), generator=source)]
        b = others[torch.randint(len(others), (len(mine),), generator=source)]
        proposal = _proposal(z[:, mine], z[:, a] - z[:, b], kind, source)
        new, allowed = loglik(proposal)
        old = value[:, mine]
        gain = power.unsqueeze(-1) * (new - old)
        if kind != 3:
            gain = gain - (proposal.square() - z[:, mine].square()).sum(-1) / 2
        chance = torch.rand(curves, len(mine), generator=source, dtype=z.dtype).log()
        yes = allowed & (chance < gain)
        z[:, mine] = torch.where(yes.unsqueeze(-1), proposal, z[:, mine])
        value[:, mine] = torch.where(yes, new, old)
        moved += yes.double().mean(-1) / 2
    return z, value, moved


def curve_likelihood(prior: LearningCurves, y: Tensor, seen: int) -> LogLikelihood:
    """log p(y_1..seen | z) of curves [curves, epochs], and whether the prior accepts each z."""
    epochs = torch.arange(1, prior.epochs + 1, dtype=torch.float64)

    def loglik(z: Tensor) -> tuple[Tensor, Tensor]:
        theta = from_normal(z)
        f = prior.curve(theta, epochs)
        low, high = f.aminmax(dim=-1)
        allowed = (f[..., -1] > f[..., 0]) & (low >= 0) & (high <= 1)
        square = (y[:, None, :seen] - f[..., :seen]).square().sum(-1)
        log_sigma = theta["sigma"].log()
        value = -square / (2 * theta["sigma"].square()) - seen * (log_sigma + math.log(2 * math.pi) / 2)
        return value, allowed

    return loglik


def densities(prior: LearningCurves, z: Tensor, y: Tensor, seen: int) -> Tensor:
    """log N(y_t; f(t), sigma) of the epochs to come [curves, particles, epochs]."""
    theta = from_normal(z)
    epochs = torch.arange(seen + 1, prior.epochs + 1, dtype=torch.float64)
    f, sigma = prior.curve(theta, epochs), theta["sigma"].unsqueeze(-1)
    return -((y[:, None, seen:] - f) / sigma).square() / 2 - sigma.log() - math.log(2 * math.pi) / 2


def reference(prior: LearningCurves, y: Tensor, seen: int, particles: int, moves: int, seed: int) -> dict[str, Tensor]:
    """Scores [curves] of two samplers and of both together, and what they say of themselves."""
    logs, notes = [], []
    for k in range(2):
        start = to_normal(prior.accepted(particles, generator("cpu", seed + 2 * k))[0])
        z, note = sample(start.expand(len(y), -1, -1), curve_likelihood(prior, y, seen), moves, seed + 2 * k + 1)
        logs.append(densities(prior, z, y, seen))
        notes.append(note)
    one, two = (log.logsumexp(1) - math.log(particles) for log in logs)
    both = torch.logaddexp(one, two) - math.log(2)
    return {
        "one": one.mean(-1), "two": two.mean(-1), "both": both.mean(-1),
        "evidence apart": (notes[0]["evidence"] - notes[1]["evidence"]).abs(),
        "powers": notes[0]["powers"], "accepted": notes[0]["accepted"],
    }  # fmt: skip


def measure(posterior: Any, prior: LearningCurves, y: Tensor, seen: int, particles: int, moves: int) -> dict[str, Any]:
    """One line: network and reference on the same curves."""
    start = time.perf_counter()
    parts = [reference(prior, y[k : k + 1], seen, particles, moves, 1000 * seen + 7 * k) for k in range(len(y))]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    seconds = (time.perf_counter() - start) / len(y)
    x = torch.arange(1.0, prior.epochs + 1).expand(len(y), -1).unsqueeze(-1)
    values = y.float()
    with torch.no_grad():
        law = posterior.condition(x[:, :seen], values[:, :seen]).predict(x[:, seen:])
        network = law.log_prob(values[:, seen:]).double().mean(-1)
    apart = (found["one"] - found["two"]).abs()
    known = apart <= APART
    line: dict[str, Any] = {"seen": seen, "curves": len(y)}
    for name, scores in (("network", network), ("reference", found["both"])):
        line[name], line[f"{name} error"] = mean_and_error(scores.tolist())
    line["reference minus network"], line["difference error"] = mean_and_error((found["both"] - network).tolist())
    line["where both samplers agree"], line["agreed error"] = mean_and_error((found["both"] - network)[known].tolist())
    line["not known"] = int((~known).sum())
    line["samplers apart, median"] = round(float(apart.median()), 4)
    line["one sampler"] = round(float((found["one"] + found["two"]).mean() / 2), 4)
    line["powers"] = round(float(found["powers"].mean()), 1)
    line["moves accepted"] = round(float(found["accepted"].mean()), 3)
    return {**line, "seconds a curve": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lcpfn-prior")
    parser.add_argument("--curves", type=int, default=150)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--seed", type=int, default=987654)
    parser.add_argument("--seen", type=int, nargs="*", default=SEEN)
    parser.add_argument("--name", default="lcpfn_exact")
    a = parser.parse_args()
    torch.set_num_threads(1)
    prior, posterior = LearningCurves(), find(a.model)
    y = prior.sample(a.curves, prior.epochs, generator=generator("cpu", a.seed)).y.double()
    lines = []
    for seen in a.seen:
        lines.append(measure(posterior, prior, y, seen, a.particles, a.moves))
        print(lines[-1], flush=True)
    write(f"lcpfn/{a.name}", {"settings": vars(a), "apart": APART, "results": lines})


if __name__ == "__main__":
    main()
