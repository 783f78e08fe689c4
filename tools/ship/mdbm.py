"""Train the Boltzmann machine of scikit-learn's digits and put it into the package, in float16.

python -m tools.ship.mdbm mdbm-digits.safetensors --name mdbm-digits --summary "Digits of 8 x 8 pixels with holes."

The file is made if it is not there: 1,500 of the 1,797 digits, and the rest for what is measured.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from tools.ship.common import run

TRAINED = 1_500


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 8, 8] from 0 to 1, and labels."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.as_tensor(found.images) / 16, torch.as_tensor(found.target)


def train(path: Path) -> None:
    """The machine: every pixel is coupled with every other and with the class."""
    x, y = digits()
    recipe = bv.MDBM.images(
        shape=(1, 8, 8), classes=10, hidden=(), grey=8, train=bv.Train(steps=2_000, batch=128, lr=1e-2)
    )
    posterior = recipe.fit(bv.Data(x[:TRAINED], y[:TRAINED]))
    posterior.metadata["data"] = f"scikit-learn's digits, the first {TRAINED:,}"
    bv.save(posterior, path)


def measure(posterior: Any, count: int) -> list[dict[str, float]]:
    """Accuracy, and NLL of label and of hidden pixels, at shares of pixels that are seen."""
    x, y = (value[TRAINED : TRAINED + count] for value in digits())
    level, lines = (x * (posterior.method.grey - 1)).round().long(), []
    for share in (0.6, 0.4, 0.2, 1.0):
        mask = torch.rand(x.shape, generator=generator("cpu", 5)) < share
        done = posterior.complete(x, mask)
        line = {"seen": share, "accuracy": round(float((done.label.mode == y).double().mean()), 3)}
        line["label NLL"] = round(float(-done.label.log_prob(y).mean()), 3)
        if not mask.all():
            line["pixel NLL"] = round(float(-done.pixels.log_prob(level.unsqueeze(1))[:, 0][~mask].mean()), 3)
        lines.append(line)
        print(line, flush=True)
    return lines


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".safetensors") and not Path(sys.argv[1]).exists():
        torch.set_num_threads(1)
        train(Path(sys.argv[1]))
    run(__doc__, "images", 297, lambda posterior, n: {"digits that training did not see": measure(posterior, n)})
