"""One curve, epochs, and the dtype of what is predicted."""

import numpy as np
import pandas
import pytest
import torch
from checks import rejected, unchecked

from bayesvision.core.data import Data, check_epochs, one_curve, output_dtype

HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((HALF,), SINGLE),
        ((torch.bfloat16,), SINGLE),
        ((SINGLE,), SINGLE),
        ((DOUBLE,), DOUBLE),
        ((SINGLE, DOUBLE), DOUBLE),  # a float64 target keeps its digits, whatever the inputs are
        ((DOUBLE, SINGLE), DOUBLE),
        ((HALF, SINGLE), SINGLE),
        ((SINGLE, torch.int64), SINGLE),  # labels have no digits
        ((), SINGLE),
    ],
)
def test_the_dtype_of_predictions_is_the_widest_of_what_was_given(dtypes, expected):
    assert output_dtype(*(torch.ones(2, dtype=dtype) for dtype in dtypes)) == expected


def test_a_curve_is_sorted_and_in_float64():
    t, y, dtype = one_curve(Data(np.array([3, 1, 2]), pandas.Series([0.3, 0.1, 0.2])))
    assert dtype == DOUBLE
    assert (t.tolist(), y.tolist(), t.dtype, y.dtype) == ([1, 2, 3], [0.1, 0.2, 0.3], DOUBLE, DOUBLE)
    t, y, dtype = one_curve(Data(torch.tensor([[2.0], [1.0]]), torch.tensor([0.5, 0.5])))  # a constant curve is one
    assert (t.tolist(), y.tolist(), dtype) == ([1, 2], [0.5, 0.5], torch.float32)


def test_what_is_no_curve_is_refused():
    with (
        unchecked(),
        pytest.raises(TypeError, match=r"^source must be Data\(x, y\) with the epochs and values of one curve"),
    ):
        one_curve([1.0, 2.0])
    with rejected(r"^x must be the epochs of one curve, \[n\] or \[n, 1\], got \(2, 3, 1\); fit them one by one"):
        one_curve(Data(torch.ones(2, 3, 1), torch.ones(2, 3)))
    with rejected("^y must hold the values of the curve at the epochs x, got None"):
        one_curve(Data([1.0, 2.0]))
    with rejected("^x must have 1 columns"):
        one_curve(Data(torch.ones(3, 2), torch.ones(3)))


def test_epochs_count_from_one():
    assert check_epochs([1, 2]).tolist() == [1, 2]
    assert check_epochs(torch.ones(2, 3, 1)).shape == (2, 3)
    for bad in (0.0, -1.0):
        with rejected(f"^x must hold epochs above 0, got {bad:g}; count epochs from 1"):
            check_epochs([1.0, bad])
