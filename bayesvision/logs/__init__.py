"""Training logs as runs, each with values at steps: CSV, JSON lines and TensorBoard files, read once or followed."""

from bayesvision.logs.follow import Curve, Logs, Problem
from bayesvision.logs.follow import read_logs as read_logs
from bayesvision.logs.formats import Names

__all__ = ["Curve", "Logs", "Names", "Problem", "read_logs"]
