"""Steps a second of `pfns` 0.4.2 at a given size; run by throughput.py in an environment that holds the package."""

import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass

import torch
from pfns.batch_shape_sampler import BatchShape, BatchShapeSamplerConfig
from pfns.model.bar_distribution import BarDistributionConfig
from pfns.model.transformer_config import TransformerConfig
from pfns.optimizer import OptimizerConfig
from pfns.priors import fast_gp
from pfns.priors.prior import AdhocPriorConfig
from pfns.train import MainConfig, train


@dataclass(frozen=True)
class Fixed(BatchShapeSamplerConfig):
    """One shape and one split for every step."""

    def sample_batch_shape(self, epoch: int, step: int) -> BatchShape:
        return BatchShape(self.batch_size, self.max_seq_len, 1, self.max_seq_len // 2)


SAMPLING = [0.0]


def get_batch(*arguments, **named):
    """The package's own Gaussian-process prior, timed."""
    start = time.perf_counter()
    batch = fast_gp.get_batch(*arguments, **named)
    SAMPLING[0] += time.perf_counter() - start
    return batch


def seconds(size: dict[str, int], steps: int) -> float:
    hyperparameters = {"noise": 0.01, "outputscale": 1.0, "lengthscale": 0.2}
    prior = AdhocPriorConfig(get_batch_methods=get_batch, prior_kwargs={"hyperparameters": hyperparameters})
    model = TransformerConfig(
        criterion=BarDistributionConfig(torch.linspace(-4, 4, size["bars"] + 1).tolist(), full_support=True),
        emsize=size["width"],
        nhid=4 * size["width"],
        nlayers=size["layers"],
        nhead=size["heads"],
        attention_between_features=False,
    )
    config = MainConfig(
        priors=[prior],
        optimizer=OptimizerConfig("adamw", lr=1e-3),
        model=model,
        batch_shape_sampler=Fixed(size["batch"], size["rows"], 1, 1),
        epochs=1,
        warmup_epochs=1,
        steps_per_epoch=steps,
        train_mixed_precision=False,
        verbose=False,
        num_workers=0,
    )
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, device="cpu", reusable_config=False)
    return time.perf_counter() - start


def main() -> None:
    size = json.loads(sys.argv[1])
    torch.set_num_threads(size["threads"])
    few = seconds(size, 5)  # set-up and warm-up, subtracted from the longer run
    SAMPLING[0] = 0.0
    many = seconds(size, 5 + size["steps"])
    spent = many - few
    share = SAMPLING[0] * size["steps"] / (5 + size["steps"]) / spent
    print(
        json.dumps(
            {"package": "pfns 0.4.2", "steps a second": round(size["steps"] / spent, 2), "share in the prior": share}
        )
    )


if __name__ == "__main__":
    main()
