"""Scores of predictions: of the whole distribution, and of how well its spread tells where the errors are."""

from bayesvision.metrics.calibration import coverage as coverage
from bayesvision.metrics.calibration import expected_calibration_error as expected_calibration_error
from bayesvision.metrics.calibration import ks_pvalue as ks_pvalue
from bayesvision.metrics.calibration import pit as pit
from bayesvision.metrics.calibration import quantile_calibration_error as quantile_calibration_error
from bayesvision.metrics.calibration import simulation_based_calibration as simulation_based_calibration
from bayesvision.metrics.compare import compare as compare
from bayesvision.metrics.latents import latent_pit as latent_pit
from bayesvision.metrics.latents import tarp as tarp
from bayesvision.metrics.scores import accuracy as accuracy
from bayesvision.metrics.scores import brier as brier
from bayesvision.metrics.scores import crps as crps
from bayesvision.metrics.scores import interval_width as interval_width
from bayesvision.metrics.scores import nll as nll
from bayesvision.metrics.scores import rmse as rmse
from bayesvision.metrics.scores import sharpness as sharpness
from bayesvision.metrics.uncertainty import Correlation as Correlation
from bayesvision.metrics.uncertainty import Sparsification as Sparsification
from bayesvision.metrics.uncertainty import ause as ause
from bayesvision.metrics.uncertainty import error_correlation as error_correlation
from bayesvision.metrics.uncertainty import (
    expected_normalized_calibration_error as expected_normalized_calibration_error,
)
from bayesvision.metrics.uncertainty import ood_auroc as ood_auroc
from bayesvision.metrics.uncertainty import ood_fpr95 as ood_fpr95
from bayesvision.metrics.uncertainty import sparsification as sparsification
from bayesvision.metrics.uncertainty import uncertainty_calibration_error as uncertainty_calibration_error
from bayesvision.metrics.uncertainty import worst_group_coverage as worst_group_coverage
