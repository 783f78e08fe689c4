"""`pfn-classes`, logistic regression and a random forest on the small data sets that come with scikit-learn.

Each model sees --rows random rows and is scored on the others: negative log-likelihood in nats, and accuracy.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bayesvision as bv
from benchmarks.common import mean_and_error, write

SETS = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--splits", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    posterior, lines = bv.pretrained("pfn-classes"), []
    for name, load in SETS.items():
        x, y = load(return_X_y=True)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(a.splits):
            order = np.random.default_rng(seed).permutation(len(y))
            seen, new = order[: a.rows], order[a.rows :]
            linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            forest = RandomForestClassifier(300, random_state=seed, n_jobs=1)
            models = {
                "pfn-classes": lambda s=seen, n=new, x=x, y=y: (
                    posterior.condition(x[s], y[s]).predict(x[n]).class_probs.numpy()
                ),
                "logistic": lambda s=seen, n=new, x=x, y=y, m=linear: m.fit(x[s], y[s]).predict_proba(x[n]),
                "random forest": lambda s=seen, n=new, x=x, y=y, m=forest: m.fit(x[s], y[s]).predict_proba(x[n]),
            }
            for model, work in models.items():
                start = time.perf_counter()
                probs = work()
                seconds = time.perf_counter() - start
                nll = -np.log(np.clip(probs[np.arange(len(new)), y[new]], 1e-9, 1)).mean()
                found.setdefault(model, []).append((nll, (probs.argmax(1) == y[new]).mean(), seconds))
        for model, values in found.items():
            nll, error = mean_and_error([v[0] for v in values])
            accuracy, seconds = (float(np.mean([v[k] for v in values])) for k in (1, 2))
            line = {"set": name, "model": model, "nll": nll, "nll error": error, "accuracy": round(accuracy, 3)}
            lines.append(line | {"seconds": float(f"{seconds:.3g}")})
            print(lines[-1], flush=True)
    write("tables/tables_classes", {"rows": a.rows, "splits": a.splits, "classes": lines})


if __name__ == "__main__":
    main()
