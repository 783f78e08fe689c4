"""Pictures of beliefs: what is drawn is where the belief is."""

import pytest
import torch

from bayesvision import plots
from bayesvision.distributions import GaussianMixture, WeightedDraws


def two_lumps():
    loc = torch.tensor([[-2.0, 0.0, 5.0], [2.0, 1.0, 5.0]], dtype=torch.float64)
    return GaussianMixture(torch.zeros(2), loc, 0.3 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3))


def test_the_density_is_drawn_where_the_components_are():
    ax = plots.belief(two_lumps(), truth=[2.0, 1.0, 0.0])
    density = ax.images[0].get_array()
    left, right, bottom, top = ax.images[0].get_extent()
    row, column = divmod(int(density.argmax()), density.shape[1])
    x = left + (right - left) * column / (density.shape[1] - 1)
    y = bottom + (top - bottom) * row / (density.shape[0] - 1)
    assert min((x + 2) ** 2 + y**2, (x - 2) ** 2 + (y - 1) ** 2) < 0.02
    assert ax.lines[0].get_xdata()[0] == 2.0 and ax.get_xlim() == (left, right)


def test_weighted_draws_are_points():
    law = WeightedDraws(torch.rand(30, 2).double(), torch.full((30,), 1 / 30).double())
    ax = plots.belief(law, extent=(0, 1, 0, 1))
    assert len(ax.collections[0].get_offsets()) == 30


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="one problem"):
        plots.belief(two_lumps().expand((3,)))
    positive = GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0), ("positive", "real"))
    with pytest.raises(ValueError, match="two real ones"):
        plots.belief(positive)
