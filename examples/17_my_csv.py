"""
Bayesian regression on my CSV
=============================

A table with text, dates and holes, read as it is: a prediction with its interval for every row, from a network that was
trained beforehand. The same as a command: ``bayesvision predict train.csv --target IBM --test test.csv``.
"""

# %%
# Monthly share prices that matplotlib ships; a company has no price before it went public.

import argparse

import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="fewer rows")
rows = 80 if parser.parse_args().smoke else 200

with matplotlib.cbook.get_sample_data("Stocks.csv") as file:
    table = pd.read_csv(file, comment="#")
table = table[table["IBM"].notna()]
order = np.random.default_rng(0).permutation(len(table))
seen, new = table.iloc[order[:rows]], table.iloc[order[rows:]]
print(seen.head())

# %%
# Condition, and ask. Nothing is fitted but a small Gaussian process that the network reads.

post = bv.pretrained("pfn-table").condition(seen.drop(columns="IBM"), seen["IBM"].to_numpy())
law = post.predict(new.drop(columns="IBM"))
frame = law.to_frame(mass=0.9).assign(truth=new["IBM"].to_numpy())
print(frame.head().round(1))
print("90 % intervals hold", f"{bv.metrics.coverage(law, frame['truth'].to_numpy(), 0.9):.0%}", "of the truths")

# %%
# What each column was taken for, and what the intervals look like.

for column in post.columns.columns:
    print(column.name, "->", column.kind)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
mean_only = bv.distributions.Normal(law.mean * 0 + seen["IBM"].mean(), law.mean * 0 + seen["IBM"].std())
bv.plots.predicted_against_actual(law, frame["truth"].to_numpy(), ax=left)
bv.plots.calibration_curve({"pfn-table": law, "mean only": mean_only}, frame["truth"].to_numpy(), ax=right)
figure.suptitle("IBM's share price, in dollars")
plt.show()
