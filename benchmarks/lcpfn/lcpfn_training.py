"""What do the choices in training an LC-PFN buy? The same network for the same time, with one choice undone.

Ours answers every prefix of every curve in one causal pass, with a mixture of normals around the last value. Against
it: one random cut-off a step, from which 100 epochs are predicted (the pass reads the curve up to there and no
further), and 1,000 bars over the targets' quantiles instead of the mixture. Each is trained for `--minutes` on one
thread, its schedule fitted to its own speed, and is then scored on fresh curves of the published prior: mean
log-likelihood of the rest of a curve at 10, 20, 40 and 80 % seen.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesvision import LCPFN, Train
from bayesvision.distributions import Bar
from bayesvision.methods.lcpfn.tasks import TaskStream
from bayesvision.methods.lcpfn.tokens import START, _questions, _tokens
from bayesvision.nn.heads import BarHead
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import LearningCurves

ROWS, BARS, SEEN = 100, 1000, (10, 20, 40, 80)


@dataclass
class Choice:
    """How a batch is drawn and how the output is read."""

    name: str
    one: bool = False
    bars: bool = False

    def prepare(self, method: LCPFN) -> Any:
        """An untrained posterior with the head of this choice."""
        posterior = method.untrained()
        if self.bars:
            task = LearningCurves().sample(4000, ROWS, generator=generator("cpu", 7))
            posterior.head = BarHead(Bar.borders_of(task.y.flatten(), BARS))
            old = posterior.network.output
            posterior.network.output = nn.Linear(old.in_features, BARS)
            nn.init.zeros_(posterior.network.output.weight)
            nn.init.zeros_(posterior.network.output.bias)
        return posterior

    def law(self, posterior: Any, raw: Tensor, last: Tensor) -> Any:
        return posterior.head(raw.float()) if self.bars else posterior.head(raw.float(), last)

    def loss(self, posterior: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Minus the mean log-density of the values asked for, whichever prefixes they are asked from."""
        t, y, prefixes, targets = batch
        last_t, last_y = (
            torch.cat([torch.full_like(v[:, :1], START), v], -1)[:, prefixes].unsqueeze(-1) for v in (t, y)
        )
        asked_t, asked_y = (v.gather(1, targets.flatten(1)).view(targets.shape) for v in (t, y))
        end = int(prefixes.max())
        states, _ = posterior.network.encode(_tokens(t[:, :end], y[:, :end]))
        raw = posterior.network.read(states[:, prefixes].unsqueeze(-2), _questions(asked_t, last_t))
        return -self.law(posterior, raw, last_y).log_prob(asked_y).mean()

    def batches(self, method: LCPFN) -> Any:
        """The stream of a run."""
        stream = TaskStream(method, LearningCurves())
        if not self.one:
            return stream.batch

        def single(step: int, part: int) -> tuple[Tensor, ...]:
            t, y, _, _ = stream.batch(step, part)
            source = generator("cpu", method.train.seed, step, part, 1)
            cut = torch.randint(1, ROWS, (1,), generator=source)
            asked = cut + (torch.rand(len(t), 1, ROWS, generator=source) * (ROWS - cut)).long()
            return t, y, cut, asked

        return single


def run(choice: Choice, method: LCPFN, seconds: float) -> tuple[Any, int]:
    """Train for about so long; the number of steps is set from the time of the first ones."""
    trial, draw = choice.prepare(method), choice.batches(method)
    start = time.perf_counter()
    for step in range(12):
        if step == 2:
            start = time.perf_counter()
        choice.loss(trial, draw(step, 0)).backward()
    steps = max(1, int(seconds / ((time.perf_counter() - start) / 10 * 1.1)))  # a tenth more for the optimiser
    method = replace(method, train=replace(method.train, steps=steps))
    posterior = choice.prepare(method)
    minimize(posterior, choice.loss, choice.batches(method), method.train, {"choice": choice.name}, None)
    return posterior.requires_grad_(False), steps


@torch.no_grad()
def score(choice: Choice, posterior: Any, curves: int) -> dict[str, float]:
    """Mean log-likelihood of the rest of fresh curves and its standard error."""
    task = LearningCurves().sample(curves, ROWS, generator=generator("cpu", 99))
    t, y, line = task.x[..., 0].float(), task.y.float(), {}
    for seen in SEEN:
        states, _ = posterior.network.encode(_tokens(t[:, :seen], y[:, :seen]))
        asked = _questions(t[:, seen:], t[:, seen - 1 : seen])
        raw = posterior.network.read(states[:, -1:], asked)
        each = choice.law(posterior, raw, y[:, seen - 1 : seen]).log_prob(y[:, seen:]).mean(-1)
        line[f"{seen} %"], line[f"{seen} % error"] = mean_and_error(each)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each")
    parser.add_argument("--curves", type=int, default=2000, help="fresh curves to score on")
    parser.add_argument("--layers", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    method, rows = LCPFN(layers=a.layers, train=Train(batch=16)), []
    choices = [Choice("ours"), Choice("one cut-off a step", one=True), Choice("bars", bars=True)]
    for choice in choices:
        start = time.perf_counter()
        posterior, steps = run(choice, method, 60 * a.minutes)
        seconds = time.perf_counter() - start
        rows.append({"training": choice.name, "steps": steps, "seconds": math.floor(seconds)})
        rows[-1] |= score(choice, posterior, a.curves)
        print(rows[-1], flush=True)
    write("lcpfn/lcpfn_training", {"settings": vars(a), "summary": rows})


if __name__ == "__main__":
    main()
