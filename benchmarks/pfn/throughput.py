"""Prior throughput and training speed, against the public package `pfns` 0.4.2 at one size.

Both train a Gaussian-process prior (RBF, one feature, fixed hyper-parameters) with the same width, layers, heads,
batch, sequence length and number of bars, in float32 on the same threads, in turn in the same run. The peer lives
in an environment of its own:

    python -m venv peer && peer/bin/pip install torch==2.13.0
    peer/bin/pip install --no-deps pfns==0.4.2
    peer/bin/pip install einops pyyaml tqdm tensorboard scikit-learn gpytorch configspace
    python -m benchmarks.pfn.throughput --peer peer/bin/python
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch

import bayesvision as bv
from bayesvision.methods.pfn import pfn
from bayesvision.methods.pfn.tasks import TaskStream
from bayesvision.training.seeds import generator
from benchmarks.common import write
from priors import BayesianLinear, GaussianProcess, GaussianProcessMixture, RandomNetwork

SIZE = {"width": 128, "layers": 4, "heads": 4, "batch": 32, "rows": 101, "bars": 500}


def prior_throughput(seconds: float) -> list[dict[str, float | str]]:
    """Data sets a second of each prior."""
    cases = {
        "BayesianLinear(8)": BayesianLinear(features=8),
        "GaussianProcess(1)": GaussianProcess(),
        "GaussianProcess(8)": GaussianProcess(features=8, lengthscale=0.6),
        "GaussianProcessMixture(8)": GaussianProcessMixture(features=8),
        "RandomNetwork(8)": RandomNetwork(features=8),
    }
    lines: list[dict[str, float | str]] = []
    for name, prior in cases.items():
        for rows in (32, 128, 512):
            prior.sample(64, rows, generator=generator("cpu", 0))
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                prior.sample(64, rows, generator=generator("cpu", count))
                count += 64
            speed = count / (time.perf_counter() - start)
            lines.append({"prior": name, "rows": rows, "data sets a second": round(speed)})
            print(lines[-1], flush=True)
    return lines


class Fixed(TaskStream):
    """Batches of one size and split, so that both packages do the same work."""

    def sizes(self, step: int) -> tuple[int, int, int]:
        return SIZE["batch"], SIZE["rows"], SIZE["rows"] // 2


class Last:
    """Keeps the last metrics."""

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        self.metrics = metrics | {"step": step}


def ours(steps: int) -> dict[str, float | str]:
    """Steps a second of our trainer and the share of time spent in the prior."""
    train = bv.Train(steps=steps, batch=SIZE["batch"], precision="float32")
    size = {name: SIZE[name] for name in ("width", "layers", "heads", "bars")}
    method = bv.PFN(features=1, context=SIZE["rows"] - 1, train=train, **size)
    stream, log = Fixed(method, GaussianProcess(lengthscale=0.2)), Last()
    posterior = method.untrained(stream.borders())
    bv.training.minimize(posterior, pfn._loss, stream.batch, train, {}, log)
    speed = log.metrics["step"] / log.metrics["seconds"]
    return {"package": "bayesvision", "steps a second": round(speed, 2), "share in the prior": log.metrics["sampling"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="Python of an environment that holds pfns.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    training, ratios = [], []
    for turn in range(a.rounds):
        training.append({"round": turn, **ours(a.steps)})
        print(training[-1], flush=True)
        if a.peer is not None:
            script = Path(__file__).with_name("peer_pfns.py")
            command = [str(a.peer), str(script), json.dumps(SIZE | {"steps": a.steps, "threads": a.threads})]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            training.append({"round": turn, **json.loads(done.stdout.splitlines()[-1])})
            ratios.append(training[-2]["steps a second"] / training[-1]["steps a second"])
            print(training[-1], flush=True)
    summary = {"median ratio of steps a second to pfns": round(sorted(ratios)[len(ratios) // 2], 2)} if ratios else {}
    write("pfn/throughput", {"size": SIZE, **summary, "training": training, "priors": prior_throughput(a.seconds)})


if __name__ == "__main__":
    main()
