from dataclasses import replace

import pytest
import torch
from checks import rejected

import bayesvision as bv
from bayesvision.io.checkpoints import shipped_file
from priors import BayesianLinear, LearningCurves

TRAIN = bv.Train(steps=3, batch=2, execution=bv.Execution(device="cpu"))
SMALL = bv.PFN(width=16, layers=1, heads=2, bars=10, context=8, train=TRAIN)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A network and the file it is in; the file holds rows as well, which are no weights."""
    post = SMALL.fit(BayesianLinear())
    path = tmp_path_factory.mktemp("start") / "first.safetensors"
    bv.save(post.condition(torch.randn(4, 1), torch.randn(4)), path)
    return post, str(path)


def state(post):
    return post.network.state_dict()


def test_training_starts_from_the_weights_of_the_file_and_the_costs_add_up(first):
    before, path = first
    still = replace(SMALL, train=replace(TRAIN, start=path, steps=1, lr=1e-12)).fit(BayesianLinear())
    for name, value in state(before).items():
        torch.testing.assert_close(state(still)[name], value, rtol=0, atol=1e-9)
    assert torch.equal(still.head.borders, before.head.borders)
    assert still.metadata["steps"] == before.metadata["steps"] + 1
    alone = replace(SMALL, train=replace(TRAIN, steps=1)).fit(BayesianLinear())
    assert still.metadata["tasks"] == before.metadata["tasks"] + alone.metadata["tasks"]
    assert len(still.metadata["started from"]) == 64


def test_training_starts_from_a_file_of_the_first_format():
    train = replace(TRAIN, start=str(shipped_file("lcpfn-prior")), steps=1, batch=1, lr=1e-12)
    method = replace(bv.pretrained("lcpfn-prior").method, rows=(8, 8), train=train)
    before, after = bv.pretrained("lcpfn-prior").float(), method.fit(LearningCurves())
    torch.testing.assert_close(after.predict(50.0).mean, before.predict(50.0).mean, rtol=1e-4, atol=1e-5)


def test_a_run_that_starts_from_a_file_goes_on_after_an_interruption(first, tmp_path):
    _, path = first
    train = replace(TRAIN, start=path, steps=4)
    whole = replace(SMALL, train=train).fit(BayesianLinear())

    class Stop(Exception):
        pass

    class Until:
        def log(self, metrics, step, /):
            if step == 2:
                raise Stop

    resumable = replace(train, execution=bv.Execution(device="cpu", checkpoint_dir=str(tmp_path), save_every=1))
    with pytest.raises(Stop):
        replace(SMALL, train=resumable).fit(BayesianLinear(), Until())
    resumed = replace(SMALL, train=resumable).fit(BayesianLinear())
    assert all(torch.equal(state(whole)[k], v) for k, v in state(resumed).items())


def test_other_networks_are_refused(first):
    _, path = first
    start = replace(TRAIN, start=path)
    with rejected("another network: .*has the shape"):
        replace(SMALL, width=32, train=start).fit(BayesianLinear())
    with rejected("checkpoint of LCPFN, got one of PFN"):
        bv.LCPFN(width=16, heads=2, layers=1, train=start).fit(LearningCurves())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        replace(SMALL, train=replace(TRAIN, start="nowhere")).fit(BayesianLinear())
