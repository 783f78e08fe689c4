"""Replays of finished runs under an early-stopping policy: what it would have spent, and what it would have found.

A sequence of runs is taken one after the other; each is trained step by step until the policy stops it or it ends, and
`best` is the best value of any run so far, the running one included (Adriaensen et al. 2023, arXiv 2310.20447, section
5.3). Curves are arrays [runs, steps] where larger is better, NaN after the end of a run. Many orders of the same runs
are replayed at once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

__all__ = ["Interleaving", "Policy", "Replay", "random_orders", "replay", "speedup", "steps_to"]

Curves = Float[np.ndarray, "runs steps"]
Runs = Int[np.ndarray, " orders"]
Stopper = Callable[[Runs, Float[np.ndarray, " orders"]], Runs]


@runtime_checkable
class Policy(Protocol):
    """Decides how long the runs of a sequence are trained.

    `begin` is told the curves and the number of orders, and returns a function that is called once for each place in
    the sequence: with the runs [orders] that come next and the best value [orders] before them, it says after how many
    steps [orders] each is stopped; the length of the run or more where it is not.
    """

    def begin(self, curves: Curves, orders: int) -> Stopper: ...


@runtime_checkable
class Interleaving(Protocol):
    """A policy that goes back to runs: it plays all orders by itself, of curves and a budget that were checked."""

    def play(self, curves: Curves, orders: Int[np.ndarray, "orders places"], budget: int) -> "Replay": ...


class Replay(NamedTuple):
    """What a policy did with each order of the runs.

    Attributes:
        best: best value found [orders, budget] after 1, 2, ... steps; -inf before the first.
        taken: steps spent on the run at each place of an order [orders, places]; 0 where the budget does not reach.
        stopped: whether the policy ended the run at that place [orders, places].
    """

    best: Float[np.ndarray, "orders budget"]
    taken: Int[np.ndarray, "orders places"]
    stopped: Shaped[np.ndarray, "orders places"]

    @property
    def spent(self) -> Int[np.ndarray, " orders"]:
        """Steps spent in all."""
        return self.taken.sum(1)

    @property
    def found(self) -> Float[np.ndarray, " orders"]:
        """Best value found in the end."""
        return self.best[:, -1]

    def regret(self, optimum: float) -> Float[np.ndarray, " budget"]:
        """Mean over the orders of `optimum` minus the best value so far; infinite before the first value."""
        return (optimum - self.best).mean(0)


def lengths(curves: Curves) -> Int[np.ndarray, " runs"]:
    """Steps until the last value of each run."""
    there = ~np.isnan(curves)
    return np.where(there.any(1), curves.shape[1] - there[:, ::-1].argmax(1), 0)


def bests(curves: Curves) -> Curves:
    """Best value of each run up to each step, -inf before its first."""
    return np.maximum.accumulate(np.where(np.isnan(curves), -np.inf, curves), 1)


def random_orders(runs: int, orders: int, seed: int = 0, places: int | None = None) -> Int[np.ndarray, "orders places"]:
    """Independent random orders of the runs; with `places` so many draws each, with replacement."""
    source = np.random.default_rng(seed)
    if places is not None:
        return source.integers(runs, size=(orders, places))
    return np.stack([source.permutation(runs) for _ in range(orders)])


def replay(curves: Any, policy: Policy | Interleaving, orders: Any, budget: int | None = None) -> Replay:
    """Take the runs of each order one after the other until `budget` steps are spent or no run is left.

    A policy that goes back to runs takes new ones in this order, and frozen ones as it likes.

    Args:
        curves: values [runs, steps], larger is better, NaN after the end of a run.
        policy: when to stop a run.
        orders: indices of the runs to take [orders, places]; a run may come again, and is then trained again.
        budget: steps to spend; by default as many as the whole runs have.

    Raises:
        ValueError: an array of another shape, an infinite value, an order that is none, or a budget below 1.
    """
    curves, orders, budget = _checked(curves, orders, budget)
    if isinstance(policy, Interleaving):
        return policy.play(curves, orders, budget)
    count, columns = len(orders), np.arange(curves.shape[1])
    length, tops = lengths(curves), bests(curves)
    trace = np.full((count, budget), -np.inf)
    taken, stopped = np.zeros(orders.shape, int), np.zeros(orders.shape, bool)
    best, spent = np.full(count, -np.inf), np.zeros(count, int)
    stop = policy.begin(curves, count)
    for place, runs in enumerate(orders.T):
        wanted = stop(runs, best)
        steps = np.minimum(wanted, length[runs])
        paid = np.minimum(steps, budget - spent)
        row, column = np.nonzero(columns < paid[:, None])
        trace[row, spent[row] + column] = np.maximum(best[row], tops[runs[row], column])
        taken[:, place], stopped[:, place] = paid, (wanted < length[runs]) & (paid == steps) & (paid > 0)
        last = np.where(paid > 0, tops[runs, np.maximum(paid, 1) - 1], -np.inf)
        best, spent = np.maximum(best, last), spent + paid
        if (spent >= budget).all():
            break
    return Replay(np.maximum.accumulate(trace, 1), taken, stopped)


def _checked(curves: Any, orders: Any, budget: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    curves, orders = np.asarray(curves, dtype=np.float64), np.asarray(orders)
    if curves.ndim != 2 or not curves.size:
        raise ValueError(f"curves must be an array [runs, steps], got the shape {curves.shape}")
    if np.isinf(curves).any() or np.isnan(curves).all():
        raise ValueError("curves must hold finite values, and NaN after the end of a run; cut diverged runs short")
    if orders.ndim != 2 or orders.dtype.kind not in "iu" or not orders.size:
        raise ValueError(f"orders must hold indices of runs [orders, runs], got {orders.dtype} {orders.shape}")
    if orders.min() < 0 or orders.max() >= len(curves):
        raise ValueError(f"orders must hold indices 0 to {len(curves) - 1}, got {orders.min()} to {orders.max()}")
    budget = int(lengths(curves)[orders].sum(1).max()) if budget is None else budget
    if budget < 1:
        raise ValueError(f"budget must be at least 1 step, got {budget}")
    return curves, orders, budget


def steps_to(regret: Float[np.ndarray, " budget"], level: float) -> float:
    """Steps until `regret` is at most `level`; infinite if it never is."""
    reached = np.nonzero(regret <= level)[0]
    return float(reached[0] + 1) if len(reached) else math.inf


def speedup(policy: Float[np.ndarray, " budget"], reference: Float[np.ndarray, " budget"]) -> float:
    """Steps that `reference` needs to reach the final regret of `policy`, over the steps that `policy` needed."""
    return steps_to(reference, policy[-1]) / steps_to(policy, policy[-1])
