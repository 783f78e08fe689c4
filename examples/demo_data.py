"""Write demo/train.csv and demo/test.csv: the diabetes data that scikit-learn ships, its first eight columns.

442 patients; age, sex, body mass index, blood pressure and four serum measurements, each centred and scaled; the target
y is a measure of disease progression one year later (Efron et al. 2004, Annals of Statistics 32, 407-499).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes


def main(folder: str) -> None:
    data = load_diabetes()
    table = np.column_stack([data.data[:, :8], data.target])
    order = np.random.default_rng(0).permutation(len(table))
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    header = ",".join([*data.feature_names[:8], "y"])
    for name, rows in (("train", order[:200]), ("test", order[200:])):
        np.savetxt(place / f"{name}.csv", table[rows], fmt="%.8g", delimiter=",", header=header, comments="")
    print(f"wrote {place}/train.csv (200 rows) and {place}/test.csv ({len(order) - 200} rows)")


if __name__ == "__main__":
    main(sys.argv[1])
