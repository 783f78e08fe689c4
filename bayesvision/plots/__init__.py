"""Pictures of predictions: one function each, which draws on matplotlib axes and returns them.

Without `ax` a figure is made that pyplot does not know of; `axes.figure.savefig(path)` writes it.
"""

from bayesvision.plots.beliefs import belief as belief
from bayesvision.plots.classes import class_shares as class_shares
from bayesvision.plots.classes import reliability_diagram as reliability_diagram
from bayesvision.plots.classes import true_class_probabilities as true_class_probabilities
from bayesvision.plots.completions import completions as completions
from bayesvision.plots.completions import holes as holes
from bayesvision.plots.curves import curve_fan as curve_fan
from bayesvision.plots.grams import gram_matrices as gram_matrices
from bayesvision.plots.maps import sparsification_curve as sparsification_curve
from bayesvision.plots.maps import uncertainty_maps as uncertainty_maps
from bayesvision.plots.predictions import calibration_curve as calibration_curve
from bayesvision.plots.predictions import comparison_bars as comparison_bars
from bayesvision.plots.predictions import pit_histogram as pit_histogram
from bayesvision.plots.predictions import predicted_against_actual as predicted_against_actual
from bayesvision.plots.predictions import predictive_band as predictive_band
from bayesvision.plots.predictions import prior_and_posterior as prior_and_posterior
from bayesvision.plots.style import GRID as GRID
from bayesvision.plots.style import INK as INK
from bayesvision.plots.style import MUTED as MUTED
from bayesvision.plots.style import PALETTE as PALETTE
