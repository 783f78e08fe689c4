"""Heads: raw output to distribution, in the target's units and the right dtype."""

import pytest
import torch

from bayesvision.distributions import Bar, Categorical
from bayesvision.nn.heads import BarHead, CategoricalHead

BORDERS = torch.linspace(-2, 2, 9)


def raw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bar_head_is_the_bar_of_its_logits():
    head, logits = BarHead(BORDERS), raw(3, 4, 8)
    assert head.outputs == 8
    law = head(logits)
    assert isinstance(law, Bar)
    assert (law.batch_shape, law.event_shape) == ((3, 4), ())
    torch.testing.assert_close(law.probs, logits.softmax(-1))
    assert torch.equal(law.borders, BORDERS)
    y = raw(3, 4, seed=1)
    assert torch.equal(law.log_prob(y), Bar(logits, BORDERS).log_prob(y))


def test_shift_and_scale_are_those_of_the_target():
    head, logits, z = BarHead(BORDERS), raw(3, 8).double(), raw(3, seed=1).double()
    loc, scale = torch.tensor([5.0, -1.0, 0.0]).double(), torch.tensor([0.1, 3.0, 7.0]).double()
    plain, law = head(logits), head(logits, loc, scale)
    torch.testing.assert_close(law.mean, loc + scale * plain.mean)
    torch.testing.assert_close(law.stddev, scale * plain.stddev)
    torch.testing.assert_close(law.log_prob(loc + scale * z), plain.log_prob(z) - scale.log())
    torch.testing.assert_close(law.cdf(loc + scale * z), plain.cdf(z))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_that_of_the_raw_output_but_at_least_single(kind):
    wide = torch.promote_types(kind, torch.float32)
    for head in (BarHead(BORDERS), BarHead(BORDERS).double()):
        assert head(raw(4, 8).to(kind)).mean.dtype == wide
        one = torch.ones(4, dtype=torch.float64)
        assert head(raw(4, 8).to(kind), 0 * one, one).mean.dtype == torch.float64


def test_gradients_reach_the_raw_output():
    logits = raw(4, 8).double().requires_grad_()
    BarHead(BORDERS)(logits).log_prob(torch.zeros(4).double()).sum().backward()
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(4).double())  # log-softmax: they sum to 0
    assert (logits.grad != 0).all()


def test_borders_travel_with_the_weights():
    assert list(BarHead(BORDERS).state_dict()) == ["borders"]
    with pytest.raises(ValueError, match=r"borders must be one axis, got the shape \(1, 9\)"):
        BarHead.__init__.__wrapped__(BarHead(BORDERS), BORDERS.unsqueeze(0))


def test_categorical_head():
    head, logits = CategoricalHead(3), raw(2, 5, 3)
    assert head.outputs == 3
    law = head(logits)
    assert isinstance(law, Categorical)
    assert (law.batch_shape, law.event_shape) == ((2, 5), ())
    torch.testing.assert_close(law.class_probs, logits.softmax(-1))
    assert not list(head.state_dict())
