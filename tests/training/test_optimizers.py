"""Muon moves matrices along orthogonalised momentum."""

import torch

from bayesvision.training.optimizers import Muon, _orthogonal


def test_singular_values_become_about_one():
    source = torch.Generator().manual_seed(0)
    for shape in ((32, 32), (64, 16), (16, 48)):
        values = torch.linalg.svdvals(_orthogonal(torch.randn(shape, generator=source)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_directions_stay_those_of_the_matrix():
    left, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))
    found = left.mT @ _orthogonal(left @ torch.diag(torch.linspace(0.5, 2, 20)))
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3


def test_steps_are_those_of_torch_but_for_its_rounding():
    source = torch.Generator().manual_seed(2)
    ours = torch.nn.Parameter(torch.randn(48, 24, generator=source))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = (
        Muon([ours], 1e-2),
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(10):
        ours.grad = torch.randn(48, 24, generator=source)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()  # bfloat16 has three digits
