"""
A network that comes with the package
=====================================

``bv.pretrained`` opens a posterior that has already learned its prior. Nothing is trained and nothing is downloaded:
conditioning on a table takes one forward pass.
"""

# %%
# The diabetes data of scikit-learn, 442 patients (Efron, Hastie, Johnstone and Tibshirani 2004).

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="use fewer rows")
smoke = parser.parse_args().smoke

table = load_diabetes(as_frame=True)
x, y = table.data, table.target
order = np.random.default_rng(0).permutation(len(x))
trained = bv.pretrained("pfn-gp")
rows = 60 if smoke else 250
seen, held = order[:rows], order[rows:]

# %%
# ``condition`` takes frames as they are and remembers the column names. Beside it an exact Gaussian process, whose
# hyper-parameters are fitted to the same rows.

data = bv.Data(x.iloc[seen], y.iloc[seen])
posteriors = {"PFN": trained.condition(*data), "GP": bv.GP(restarts=0 if smoke else 3).fit(data)}
print(bv.metrics.compare(posteriors, bv.Data(x.iloc[held], y.iloc[held])).round(3).to_string())

# %%
# Predictions against the truth, and whether the intervals hold what they promise.

with torch.no_grad():
    predictives = {name: posterior.predict(x.iloc[held]) for name, posterior in posteriors.items()}
figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
bv.plots.predicted_against_actual(predictives["PFN"], y.iloc[held], ax=axes[0]).set_title("PFN")
bv.plots.calibration_curve(predictives, y.iloc[held], ax=axes[1]).set_title("calibration")
plt.show()
