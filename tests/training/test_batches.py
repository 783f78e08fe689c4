"""Examples that are kept once, and mini-batches of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesvision.core.data import Data
from bayesvision.training.batches import Examples, Minibatches, batches_of, places
from bayesvision.training.seeds import generator
from bayesvision.training.train import Train

CHECKS = settings(max_examples=40, deadline=None, derandomize=True)


def filled(large=1 << 30, count=10):
    examples = Examples(large)
    x = torch.randn(count, 2, 3, generator=generator("cpu", 0), dtype=torch.float64)
    label, flag = torch.arange(count), torch.arange(count) % 2 == 0
    for first in range(0, count, 4):
        examples.add(x[first : first + 4], label[first : first + 4], flag[first : first + 4])
    return examples, (x, label, flag)


@pytest.mark.parametrize("large", [1 << 30, 300, 0])
def test_examples_keep_their_bits_in_memory_and_in_a_file(large):
    examples, parts = filled(large)
    assert len(examples) == 10 and (examples.file is None) == (large > 1_000)
    chosen = torch.tensor([7, 0, 7, 3])
    for _ in range(2):  # before and after they were stacked
        for k in (0, 5, 9):
            assert all(torch.equal(a, part[k]) for a, part in zip(examples[k], parts, strict=True))
        found = examples.take(chosen)
        assert [v.dtype for v in found] == [torch.float64, torch.int64, torch.bool]
        assert all(torch.equal(a, part[chosen]) for a, part in zip(found, parts, strict=True))
    examples.add(parts[0][:1] + 1, parts[1][:1], parts[2][:1])
    assert len(examples) == 11 and torch.equal(examples[10][0], parts[0][0] + 1)
    assert torch.equal(examples.take(torch.tensor([10, 2]))[0], torch.stack([parts[0][0] + 1, parts[0][2]]))


@pytest.mark.parametrize("large", [1 << 30, 50])
def test_examples_of_several_shapes(large):
    examples = Examples(large)
    examples.add(torch.ones(1, 3, 4), torch.zeros(1))
    examples.add(torch.full((1, 2, 5), 2.0), torch.ones(1))
    assert examples[0][0].shape == (3, 4) and examples[1][0].shape == (2, 5)
    assert float(examples[1][0].sum()) == 20 and float(examples[1][1]) == 1


def test_examples_share_no_memory():
    x = torch.ones(3, 2)
    examples = Examples()
    examples.add(x)
    x.zero_()
    assert float(examples.take(torch.arange(3))[0].sum()) == 6


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 50))
@CHECKS
def test_every_epoch_runs_through_all_examples(count, batch, seed):
    seen = torch.cat([places(seed, step, batch, count) for step in range(2 * count)])[: 2 * count]
    for epoch in (seen[:count], seen[count:]):
        assert torch.equal(epoch.sort().values, torch.arange(count))
    assert torch.equal(places(seed, 3, batch, count), places(seed, 3, batch, count))


def test_micro_batches_make_up_the_batch():
    examples, _ = filled()
    whole = Minibatches(_pairs(examples), Train(batch=4), torch.device("cpu"))
    parts = Minibatches(_pairs(examples), Train(batch=4, accumulate=2), torch.device("cpu"))
    assert parts.num_data == 10
    for step in range(5):
        x = torch.cat([parts(step, k)[0] for k in range(2)])
        assert torch.equal(x, whole(step, 0)[0])


def _pairs(examples):
    pairs = Examples()
    pairs.add(*examples.take(torch.arange(len(examples)))[:2])
    return pairs


def test_augment_sees_a_generator_of_the_batch():
    examples, _ = filled()

    def shaken(x, source):
        return x + torch.rand(x.shape, generator=source, dtype=x.dtype)

    batches = Minibatches(_pairs(examples), Train(batch=4), torch.device("cpu"), shaken)
    assert torch.equal(batches(1, 0)[0], batches(1, 0)[0])
    plain = Minibatches(_pairs(examples), Train(batch=4), torch.device("cpu"))
    moved = [batches(step, 0)[0] - plain(step, 0)[0] for step in (0, 1)]
    assert not torch.equal(moved[0], moved[1]) and (moved[0] > 0).all()


def test_a_table_is_read_whole_and_an_array_in_blocks():
    found = list(batches_of(Data(torch.rand(130, 2, 2), torch.arange(130.0))))
    assert [len(x) for x, _ in found] == [64, 64, 2]
    assert torch.equal(torch.cat([y for _, y in found]), torch.arange(130.0))


class Sizes(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(index + 1), 0.0


class NoLength(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return torch.zeros(1), 0.0


def test_datasets_that_cannot_be_read():
    with pytest.raises(ValueError, match="x must have one shape in all examples"):
        list(batches_of(Sizes()))
    with pytest.raises(ValueError, match="NoLength without one; wrap it in a DataLoader"):
        list(batches_of(NoLength()))
