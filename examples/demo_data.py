"""Write demo/train.csv and demo/test.csv: the monthly share prices that matplotlib ships, dates and holes included.

Prices of eight companies and two indices, 1990 to 2020, in dollars; a company has no price before it went
public. What is asked is the price of IBM, given the date and the other prices. 200 rows to learn from.
"""

import sys
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pandas as pd


def main(folder: str) -> None:
    with matplotlib.cbook.get_sample_data("Stocks.csv") as file:
        table = pd.read_csv(file, comment="#")
    table = table[table["IBM"].notna()]  # the others tell the day of a dividend
    order = np.random.default_rng(0).permutation(len(table))
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", order[:200]), ("test", order[200:])):
        table.iloc[rows].to_csv(place / f"{name}.csv", index=False)
    print(f"wrote {place}/train.csv (200 rows) and {place}/test.csv ({len(order) - 200} rows)")


if __name__ == "__main__":
    main(sys.argv[1])
