import numpy as np

from benchmarks.curves_data import LEAST, make_task


def test_a_workload_without_a_usable_curve_has_no_runs():
    short = [(np.arange(1.0, LEAST), np.linspace(3, 2, LEAST - 1))]
    broken = [(np.arange(1.0, 30), np.full(29, np.nan))]
    for metric in ("loss", "accuracy", "wer"):
        assert make_task("misc", "nothing", metric, short + broken, 100).runs == []
        assert make_task("misc", "nothing", metric, [], 100).runs == []
    whole = [(np.arange(1.0, 30), np.linspace(3, 1, 29))]
    (run,) = make_task("misc", "one", "loss", short + whole, 100).runs
    assert run.end == 29 and np.all(np.diff(run.u) > 0)
