"""Peak memory and time of 10,000 queries against 1,000 context rows, in a fresh process."""

import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.common import write

WORK = "--work"


def work() -> None:
    import bayesvision as bv

    torch.set_num_threads(1)
    method = bv.PFN(features=8, context=1000, width=128, layers=6, bars=500, standardize=True)
    posterior = method.untrained(torch.linspace(-4, 4, 501)).requires_grad_(False)
    x, y, new = torch.randn(1000, 8), torch.randn(1000), torch.randn(10_000, 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    conditioned = posterior.condition(x, y)
    middle = time.perf_counter()
    low, high = conditioned.predict(new).interval(0.9)
    end = time.perf_counter()
    assert (low < high).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "peak MiB of the whole process": round(peak),
                "MiB above the imported library": round(peak - before),
                "condition s": round(middle - start, 3),
                "predict and interval s": round(end - middle, 3),
            }
        )
    )


def main() -> None:
    if WORK in sys.argv:
        work()
        return
    done = subprocess.run([sys.executable, __file__, WORK], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    write("pfn/prediction_memory", {"queries": 10_000, "context": 1000, "memory": [found]})


if __name__ == "__main__":
    main()
