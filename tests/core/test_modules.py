"""Copies that share memory, and tensors made inside `torch.inference_mode()`."""

import torch
from torch import nn

from bayesvision.core.modules import outside_inference_mode, share, split_state


def test_share_copies_nothing_and_moves_alone():
    layer = nn.Linear(2, 2)
    layer.register_buffer("extra", torch.ones(2))
    copy = share(layer)
    assert copy.weight is not layer.weight
    assert copy.weight.data_ptr() == layer.weight.data_ptr()
    assert copy.extra.data_ptr() == layer.extra.data_ptr()
    copy.to(torch.float64)
    assert (copy.weight.dtype, layer.weight.dtype) == (torch.float64, torch.float32)
    assert (copy.extra.dtype, layer.extra.dtype) == (torch.float64, torch.float32)


def test_share_keeps_ties_and_gives_each_its_own_submodules_and_hooks():
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    copy = share(tied)
    assert copy["a"].weight is copy["b"].weight is not tied["a"].weight
    copy["a"].register_forward_hook(lambda *_: torch.zeros(2))
    assert not torch.equal(tied["a"](torch.ones(2)), torch.zeros(2))
    copy["c"] = nn.Identity()
    assert "c" not in tied


def test_split_state_holds_the_whole_state_once():
    module = nn.ModuleDict({"a": nn.Conv2d(2, 3, 3), "b": nn.Linear(2, 2), "norm": nn.BatchNorm1d(3)})
    module["c"] = nn.Linear(2, 2)
    module["c"].weight = module["b"].weight
    module.register_buffer("table", torch.ones(2, 2))  # borders, say: a matrix, but no weights
    module.register_buffer("rows", torch.ones(2, 2), persistent=False)
    matrices, rest = split_state(module)
    assert set(matrices) == {"a.weight", "b.weight", "c.weight"}
    assert {**matrices, **rest}.keys() == module.state_dict().keys() and not set(matrices) & set(rest)
    assert "table" in rest and "rows" not in rest


def test_what_is_made_outside_of_inference_mode_takes_part_in_gradients():
    def fit(x):
        layer = nn.Linear(2, 1)
        layer(x.clone()).sum().backward()  # without the decorator: element 0 of tensors does not require grad
        return layer

    assert outside_inference_mode(fit).__name__ == "fit"
    with torch.inference_mode():
        x = torch.ones(3, 2)
        layer = outside_inference_mode(fit)(x)
        assert torch.is_inference_mode_enabled()
    assert not any(p.is_inference() for p in layer.parameters())
    x = torch.ones(3, 2, requires_grad=True)
    assert torch.autograd.grad(layer(x).sum(), x)[0].shape == (3, 2)
