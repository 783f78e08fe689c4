"""Put a trained network for tables into the package, in float16, with what was measured on tables never drawn before.

    python -m tools.ship.tables my-table.safetensors --name pfn-table --summary "Regression on any table."

The table compares the network with the Gaussian process that it reads, on the prior that it was trained on.
"""

import torch

from bayesvision.methods.tables.encoding import Encoding
from bayesvision.methods.tables.tables import TablePFNPosterior
from bayesvision.training.seeds import generator
from priors import StructuralTables
from tools.ship.common import run

QUERIES, BATCH, LIKE_A_NORMAL = 50, 10, 30.0


@torch.no_grad()
def measure(posterior: TablePFNPosterior, tables: int) -> list[dict[str, float]]:
    """Mean NLL of the network and of the process alone or the class frequencies, by the number of rows seen."""
    lines, classes = [], posterior.method.classes
    for rows in (30, 100, 400):
        ours, other, inside = [], [], []
        for k in range(tables // BATCH):
            task = StructuralTables((1, 20), classes=classes, categories=0.0).sample(
                BATCH, rows + QUERIES, generator=generator("cpu", 99, rows, k)
            )
            for x, y in zip(task.x.double(), task.y, strict=True):
                y = y.double() if classes is None else y
                if len(y[:rows].unique()) < 2:
                    continue
                law, truth = posterior.condition(x[:rows], y[:rows]).predict(x[rows:]), y[rows:]
                if classes is not None:
                    known = truth <= int(y[:rows].max())
                    ours.append(-law.log_prob(truth.clamp(max=int(y[:rows].max())))[known].mean())
                    frequency = (torch.bincount(y[:rows]) + 1).double()
                    other.append(-(frequency / frequency.sum()).log()[truth[known]].mean())
                    inside.append((law.class_probs.argmax(-1) == truth).double().mean())
                    continue
                encoding = Encoding.of(x[:rows], y[:rows], torch.zeros(x.shape[-1], dtype=torch.bool), None, True)
                far = ((truth - encoding.y_loc) / encoding.y_scale).abs() < LIKE_A_NORMAL
                said = encoding.predicted(x[rows:], None)
                alone = torch.distributions.Normal(said.mean[..., 0], said.stddev)
                unit = ((truth - encoding.y_loc) / encoding.y_scale)[far]
                alone = torch.distributions.Normal(alone.mean[far], alone.stddev[far])
                ours.append((-law.log_prob(truth)[far] - encoding.y_scale.log()).mean())
                other.append(-alone.log_prob(unit).mean())
                low, high = law.interval(0.9)
                inside.append(((low < truth) & (truth < high)).double().mean())
        a, b = torch.stack(ours), torch.stack(other)
        lines.append(
            {
                "context": rows,
                "nll": round(float(a.mean()), 3),
                "error": round(float(a.std() / len(a) ** 0.5), 3),
                "nll of frequencies" if classes else "nll of the process": round(float(b.mean()), 3),
                "accuracy" if classes else "coverage 90 %": round(float(torch.stack(inside).mean()), 3),
            }
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    run(__doc__, "tables", 200, lambda network, n: {"on the prior": measure(network, n)})
