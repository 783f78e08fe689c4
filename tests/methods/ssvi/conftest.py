"""A trained network that several tests ask."""

import pytest
from sparse_nets import QUICK, net, rows

from bayesvision import SSVI, Data


@pytest.fixture(scope="module")
def fitted():
    x, y = rows()
    return SSVI(net(), density=0.4, draws=8, train=QUICK).fit(Data(x, y)), x, y
