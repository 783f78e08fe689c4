import copy
import itertools
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from train_script import RECIPE, TINY, Recorder, run, squared_error, tiny_batch, tiny_network, tiny_pfn

import bayesvision as bv
from bayesvision.core.recipes import describe
from bayesvision.io.tensors import read_tensors, write_tensors
from bayesvision.methods.pfn.pfn import _loss
from bayesvision.methods.pfn.tasks import TaskStream
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import generator, seeded
from bayesvision.training.train import Execution, Train
from priors import BayesianLinear

SCRIPT = Path(__file__).with_name("train_script.py")


def weights(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a, b, tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=tolerance, msg=lambda text, k=k: f"{k}: {text}")


@pytest.fixture(scope="module")
def finished():
    """Weights and metrics of the run that nothing interrupted."""
    log = Recorder()
    network, _ = run(log=log)
    return weights(network), log


class Interrupted(Exception):
    pass


def stop_at(step, train=TINY):
    def batch(i, j):
        if i == step:
            raise Interrupted
        return tiny_batch(train, i, j)

    return batch


# --- the recipe


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99), lr=st.floats(1e-6, 1.0))
def test_learning_rate_warms_up_and_falls_to_zero(steps, warmup, lr):
    train = Train(steps=steps, warmup=warmup, lr=lr)
    rates = [train.learning_rate(step) for step in range(steps)]
    n = math.ceil(warmup * steps)
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in rates)
    assert rates[:n] == pytest.approx([lr * (i + 1) / n for i in range(n)])
    for i in range(n, steps):  # half a cosine from lr at the end of the warm-up to 0 after the last step
        assert rates[i] == pytest.approx(lr * math.cos(math.pi / 2 * (i - n) / (steps - n)) ** 2, abs=1e-12)
    if n < steps:
        assert rates[n] == lr and train.learning_rate(steps) == pytest.approx(0, abs=1e-12)


def test_the_first_step_moves_the_weights():
    network, _ = run(replace(TINY, steps=1, warmup=0.5))
    assert not same(weights(network), weights(tiny_network()))


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"max_grad_norm": -1.0},
        {"warmup": 1.0},
        {"batch": 8, "accumulate": 3},
    ],
)
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Train(**fields)


@pytest.mark.parametrize(
    ("recipe", "name"), [(Train(), "precision"), (Train(), "optimizer"), (Execution(), "sharding")]
)
def test_a_choice_that_is_none_is_named(recipe, name):
    changed = copy.copy(recipe)
    object.__setattr__(changed, name, "float16")  # past the annotation, which the tests check too
    with pytest.raises(ValueError, match=f"{name} must be .* got 'float16'"):
        changed.__post_init__(*[None] * (6 if isinstance(recipe, Train) else 0))


def test_the_keywords_of_before_are_taken_and_named():
    with pytest.warns(DeprecationWarning, match=r"clip is max_grad_norm, folder is checkpoint_dir, interval is save"):
        train = Train(clip=2.0, folder="here", interval=3)
    assert train == Train(max_grad_norm=2.0)
    assert train.execution == Execution(checkpoint_dir="here", save_every=3)
    with pytest.raises(ValueError, match="save_every"):
        Execution(save_every=0)


def test_under_torchrun_each_process_has_its_own_accelerator(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Execution(device="cuda").pick_device() == torch.device("cuda", 3)
    assert Execution(device="cuda:1").pick_device() == torch.device("cuda", 1)
    assert Execution(device="cpu").pick_device() == torch.device("cpu")


# --- generators


@given(key=st.lists(st.integers(0, 2**48), max_size=4))
def test_generator_is_a_pure_function_of_its_key(key):
    before = torch.get_rng_state()
    first, second = generator("cpu", *key), generator("cpu", *key)
    assert first.initial_seed() == second.initial_seed()
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_and_permuted_keys_give_unrelated_streams():
    keys = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)] + [(a,) for a in range(12)] + [()]
    seeds = [generator("cpu", *key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(keys)
    # Half of the 63 bits of neighbours differ: a mean over 1,727 independent pairs has the standard deviation
    # sqrt(63 / 4 / 1727) = 0.096, so 5 of them reject a right generator with probability 6e-7.
    flips = [(a ^ b).bit_count() for a, b in itertools.pairwise(seeds[:1728])]
    assert abs(sum(flips) / len(flips) - 31.5) < 5 * 0.096


def test_seeded_restores_the_generator_even_after_an_exception():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with pytest.raises(Interrupted), seeded(5):
        a = torch.rand(3)
        raise Interrupted
    assert torch.equal(torch.rand(2), expected)
    with seeded(5):
        assert torch.equal(torch.rand(3), a)
    with seeded(6):
        assert not torch.equal(torch.rand(3), a)


# --- minimize


def test_a_regression_network_learns_and_is_ready_to_use(finished):
    _, log = finished
    network, cost = run()
    assert log.losses[-5:].mean() < 0.5 * log.losses[:5].mean()
    assert not network.training
    assert cost["steps"] == TINY.steps and cost["processes"] == 1 and cost["seconds"] >= 0


def test_a_pfn_learns_and_the_same_recipe_gives_the_same_bits():
    logs = [Recorder(), Recorder()]
    first, second = (tiny_pfn(log=log) for log in logs)
    assert same(first.state_dict(), second.state_dict()) and torch.equal(logs[0].losses, logs[1].losses)
    other = tiny_pfn(replace(TINY, seed=4))
    assert not same(first.network.state_dict(), other.network.state_dict())

    unseen = [TaskStream(first.method, BayesianLinear()).batch(step, 0) for step in range(1000, 1050)]
    start = first.method.untrained(first.head.borders)
    before, after = (torch.stack([_loss(p, batch) for batch in unseen]).mean() for p in (start, first))
    assert after < before - 0.1


def test_the_same_recipe_gives_the_same_bits_whatever_the_global_generator(finished):
    torch.manual_seed(99)
    network, _ = run()
    assert same(weights(network), finished[0])
    torch.manual_seed(99)
    with seeded(0):
        network, _ = run(network=tiny_network(), train=replace(TINY, seed=4))
    assert not same(weights(network), finished[0])


def surroundings():  # not the state of `random`, which the checks of annotations in these tests draw from
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 (the global one is what must not change)
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "handlers": [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
        "attention": [torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()],
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
    }


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["finished", "exception", "terminated"])
def test_the_surroundings_are_as_before(tmp_path, grad, kind, end):
    train = replace(TINY, steps=3, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path)))

    def batch(step, part):
        if step == 1 and end == "exception":
            raise Interrupted
        if step == 1 and end == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny_batch(train, step, part, kind)

    torch.set_default_dtype(kind)
    try:
        with torch.set_grad_enabled(grad):
            network, before = tiny_network(), surroundings()
            start = weights(network)
            expected = {"finished": (), "exception": Interrupted, "terminated": SystemExit}[end]
            if expected:
                with pytest.raises(expected):
                    minimize(network, squared_error, batch, train, RECIPE)
            else:
                minimize(network, squared_error, batch, train, RECIPE)
            assert surroundings() == before
    finally:
        torch.set_default_dtype(torch.float32)
    assert not same(weights(network), start)  # it did train, also where gradients were switched off


def test_accumulated_micro_batches_are_their_concatenation():
    def fit(accumulate):
        network = tiny_network().double().eval()
        network[2].p = 0.0  # dropout draws for each micro-batch anew
        train = replace(TINY, steps=10, accumulate=accumulate)
        log = Recorder()

        def batch(step, part):
            halves = [tiny_batch(replace(TINY, accumulate=2), step, j, torch.float64) for j in range(2)]
            return halves[part] if accumulate == 2 else tuple(torch.cat(v) for v in zip(*halves, strict=True))

        minimize(network, squared_error, batch, train, RECIPE, log)
        return {**weights(network), "loss": log.losses, "norm": torch.tensor([m["norm"] for m in log.metrics])}

    close(fit(1), fit(2), 1e-7)


def test_micro_batches_are_drawn_one_by_one_in_order():
    asked = []

    def batch(step, part):
        asked.append((step, part))
        return tiny_batch(TINY, step, part)

    minimize(tiny_network(), squared_error, batch, replace(TINY, steps=3, accumulate=4), RECIPE)
    assert asked == [(i, j) for i in range(3) for j in range(4)]


def test_the_gradient_is_clipped():
    def fit(clip, scale):
        network = tiny_network()
        batch = lambda i, j: tiny_batch(TINY, i, j)  # noqa: E731
        log = Recorder()
        minimize(
            network,
            lambda n, b: scale * squared_error(n, b),
            batch,
            replace(TINY, steps=1, max_grad_norm=clip),
            RECIPE,
            log,
        )
        return torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item(), log.metrics[0]["norm"]

    norm, logged = fit(0.1, 100.0)
    assert norm == pytest.approx(0.1, rel=1e-4) and logged > 1  # the log has the norm before clipping
    norm, logged = fit(1e6, 1.0)
    assert norm == pytest.approx(logged, rel=1e-5)


def test_the_log_receives_every_step(finished):
    _, log = finished
    assert log.steps == list(range(1, TINY.steps + 1))
    for step, metrics in zip(log.steps, log.metrics, strict=True):
        assert metrics.keys() == {"loss", "lr", "norm", "seconds", "sampling"}
        assert all(type(v) is float and math.isfinite(v) for v in metrics.values())
        assert metrics["lr"] == TINY.learning_rate(step - 1)
        assert metrics["norm"] > 0 and 0 <= metrics["sampling"] <= 1
    seconds = [m["seconds"] for m in log.metrics]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_logged_loss_is_that_of_the_weights_before_the_step(finished):
    network = tiny_network().train()
    values = []
    for part in range(2):
        with seeded(generator("cpu", TINY.seed, 0, part).initial_seed()):
            values.append(squared_error(network, tiny_batch(TINY, 0, part)).item())
    assert finished[1].losses[0].item() == pytest.approx(sum(values) / 2, rel=1e-6)


def strict(line):
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_lines_appends_one_valid_object_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    log = bv.JsonLines(path)
    run(replace(TINY, steps=4), log)
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]  # before it is closed
    log.close()
    log = bv.JsonLines(path)
    log.log({"loss": math.nan, "norm": math.inf, "lr": 0.5}, 5)
    log.close()
    lines = [strict(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5 and lines[-1] == {"step": 5, "loss": None, "norm": None, "lr": 0.5}
    assert lines[0].keys() == {"step", "loss", "lr", "norm", "seconds", "sampling"}


def undefined_gradient(network, batch):  # 0 forwards, infinity times 0 backwards
    return squared_error(network, batch) + (0 * network[0].weight).sqrt().sum()


def undefined_value(network, batch):
    return squared_error(network, batch) * math.nan


@pytest.mark.parametrize("bad", [undefined_value, undefined_gradient])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_harms_the_state(tmp_path, bad):
    train = replace(TINY, accumulate=1, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path), save_every=1))
    batch = lambda step, part: (step, tiny_batch(train, step, part))  # noqa: E731
    loss = lambda n, b: bad(n, b[1]) if b[0] == 3 else squared_error(n, b[1])  # noqa: E731
    network = tiny_network()
    with pytest.raises(FloatingPointError, match=r"nan.*at step 4; lower lr=0\.01"):
        minimize(network, loss, batch, train, RECIPE)
    tensors, header = read_tensors(tmp_path / "training.safetensors")
    assert header["step"] == 3
    assert all(v.isfinite().all() for v in tensors.values())
    assert all(p.isfinite().all() for p in network.parameters())


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    kinds = set()

    def loss(network, batch):
        output = network(batch[0])
        kinds.add(output.dtype)
        return (output.float() - batch[1]).square().mean()

    network, batch = tiny_network(), lambda i, j: tiny_batch(TINY, i, j)
    minimize(network, loss, batch, replace(TINY, steps=2, precision="bfloat16"), RECIPE)
    assert kinds == {torch.bfloat16} and all(p.dtype == torch.float32 for p in network.parameters())


# --- the training state


@pytest.mark.parametrize("step", [1, 7, 13, 39])
def test_a_run_that_broke_off_goes_on_bit_by_bit(tmp_path, finished, step):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path), save_every=6))
    with pytest.raises(Interrupted):
        minimize(tiny_network(), squared_error, stop_at(step), train, RECIPE)
    log = Recorder()
    network, _ = run(
        replace(train, execution=replace(train.execution, save_every=5)), log, network=tiny_network(seed=77)
    )  # the state brings the weights
    if step < 6:
        network, _ = run(
            replace(train, execution=replace(train.execution, checkpoint_dir=str(tmp_path / "other"))), log
        )
    else:
        assert log.steps[0] == step // 6 * 6 + 1
    assert same(weights(network), finished[0])


def test_a_finished_run_is_not_repeated(tmp_path, finished):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path)))
    run(train)
    log = Recorder()
    network, cost = run(train, log, network=tiny_network(seed=77))
    assert same(weights(network), finished[0]) and log.steps == [] and cost["steps"] == TINY.steps


def test_the_seconds_of_all_parts_are_counted(tmp_path):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path), save_every=1))
    with pytest.raises(Interrupted):
        minimize(tiny_network(), squared_error, stop_at(5), train, RECIPE)
    tensors, header = read_tensors(tmp_path / "training.safetensors")
    write_tensors(tmp_path / "training.safetensors", tensors, header | {"seconds": 1000.0})
    log = Recorder()
    _, cost = run(train, log)
    assert cost["seconds"] >= 1000 and log.metrics[0]["seconds"] > 1000 and log.metrics[0]["sampling"] <= 1


class Odd(nn.Module):
    """Tied and frozen weights, a weight that no loss reaches, a running statistic."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.frozen, self.norm, self.last = nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.norm(self.frozen(self.second(self.first(x).tanh()))))


def test_tied_frozen_unused_weights_and_buffers_survive_an_interruption(tmp_path):
    def odd():
        with seeded(1):
            return Odd()

    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path), save_every=1))
    with pytest.raises(Interrupted):
        minimize(odd(), squared_error, stop_at(9), train, RECIPE)
    resumed, whole = odd(), odd()
    run(train, network=resumed)
    run(network=whole)
    assert resumed.first.weight is resumed.second.weight
    assert same(weights(resumed), weights(whole)) and not same(weights(whole), weights(odd()))


def test_a_state_may_move_but_not_change(tmp_path, finished):
    method = {
        "method": "tiny",
        "train": describe(replace(TINY, execution=replace(TINY.execution, checkpoint_dir="here"))),
    }  # as a method's own fields hold it
    batch = lambda i, j: tiny_batch(TINY, i, j)  # noqa: E731
    here, there = tmp_path / "here", tmp_path / "there"
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(here), save_every=8))
    with pytest.raises(Interrupted):
        minimize(tiny_network(), squared_error, stop_at(9), train, method)
    shutil.move(here, there)
    moved = replace(
        train,
        execution=replace(train.execution, checkpoint_dir=str(there), save_every=100, sharding="fsdp", device="auto"),
    )
    if moved.execution.pick_device().type == "cpu":
        network, log = tiny_network(), Recorder()
        minimize(network, squared_error, batch, moved, {"method": "tiny", "train": describe(moved)}, log)
        assert log.steps[0] == 9 and same(weights(network), finished[0])
    for other, recipe in [(replace(moved, lr=0.5), method), (replace(moved, seed=0), method), (moved, {"method": "b"})]:
        with pytest.raises(
            ValueError, match=r"there.training\.safetensors .*another recipe; choose another folder, or"
        ):
            minimize(tiny_network(), squared_error, batch, other, recipe)


def test_a_pfn_goes_on_in_a_folder_that_was_moved(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    first = tiny_pfn(replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(here))))
    shutil.move(here, there)
    log = Recorder()
    second = tiny_pfn(replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(there))), log)
    assert log.steps == [] and same(first.state_dict(), second.state_dict())


def test_a_state_of_another_network_is_refused(tmp_path):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path)))
    run(train)
    for network in (nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 1))):
        start = weights(network)
        with pytest.raises(ValueError, match=r"other names or shapes .* choose another folder"):
            run(train, network=network)
        assert same(weights(network), start)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_broken_or_foreign_state_is_refused_and_not_executed(tmp_path):
    train, path, trace = (
        replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path))),
        tmp_path / "training.safetensors",
        tmp_path / "trace",
    )
    run(train)
    whole = path.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"training\.safetensors is not a whole safetensors file.*copy it anew"):
            run(train)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        run(train)
    torch.save(Bomb(trace), path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        run(train)
    assert not trace.exists()
    write_tensors(path, {"w": torch.zeros(1)}, {"method": "PFN"})  # a checkpoint
    with pytest.raises(ValueError, match="another recipe"):
        run(train)


# --- signals


def test_sigterm_saves_between_two_steps_and_exits_with_code_0(tmp_path, finished):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path), save_every=1000))
    with pytest.raises(SystemExit) as stopped:
        run(train, terminate_at=11)
    assert stopped.value.code == 0
    assert read_tensors(tmp_path / "training.safetensors")[1]["step"] == 12
    network, _ = run(train)
    assert same(weights(network), finished[0])


def test_sigterm_in_the_last_step_is_not_lost(tmp_path):
    train = replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path)))
    with pytest.raises(SystemExit):
        run(train, terminate_at=TINY.steps - 1)
    assert read_tensors(tmp_path / "training.safetensors")[1]["step"] == TINY.steps


def test_without_a_folder_sigterm_is_left_alone():
    ours, caught = lambda *_: caught.append(1), []
    before = signal.signal(signal.SIGTERM, ours)
    try:
        run(replace(TINY, steps=3), terminate_at=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [1, 1]  # one for each micro-batch of that step


def test_a_thread_may_train(tmp_path, finished):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            run(replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(tmp_path))))[0]
        )
    )
    thread.start()
    thread.join()
    assert same(weights(found[0]), finished[0])


def environment():
    keep = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    root = str(SCRIPT.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return keep | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}


def start(folder, *options, launcher=()):
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), str(folder), *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, folder, step):
    """Wait until the log holds `step`."""
    log = folder / "log.jsonl"
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def finish(process, timeout=240):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output


def test_a_run_killed_twice_gives_the_bits_of_one_that_was_not(tmp_path, finished):
    random_step = random.Random(8)
    reached = 0
    for interval in ("1", "4"):  # with 1, the blow often falls while a state is being written
        reached = random_step.randint(reached + 6, reached + 14)
        process = start(tmp_path, "--pause", "0.01", "--interval", interval)
        wait_for(process, tmp_path, reached)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and not (tmp_path / "weights.safetensors").exists()
    finish(start(tmp_path))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1 and steps[-1] == TINY.steps  # the later parts went on, they did not start anew
    assert same(read_tensors(tmp_path / "weights.safetensors")[0], finished[0])


def test_a_terminated_process_exits_with_0_and_goes_on_bit_by_bit(tmp_path, finished):
    process = start(tmp_path, "--pause", "0.01", "--interval", "1000")
    wait_for(process, tmp_path, 9)
    process.terminate()
    finish(process)
    assert not (tmp_path / "weights.safetensors").exists()
    assert 9 <= read_tensors(tmp_path / "state" / "training.safetensors")[1]["step"] < TINY.steps
    finish(start(tmp_path))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, TINY.steps + 1))
    assert same(read_tensors(tmp_path / "weights.safetensors")[0], finished[0])


# --- several processes

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes under torchrun found, and their notes; all cases share one start."""
    folder = tmp_path_factory.mktemp("two")
    finish(start(folder, "--distributed", launcher=TORCHRUN))
    tensors, notes = read_tensors(folder / "rank0.safetensors")
    return tensors, notes, read_tensors(folder / "rank1.safetensors")[1]


def part(tensors, name):
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


@needs_gloo
@pytest.mark.parametrize(("sharding", "tolerance"), [("ddp", 1e-5), ("fsdp", 1e-4)])
def test_two_processes_give_the_loss_and_the_weights_of_one(two, finished, sharding, tolerance):
    tensors, notes, others = two
    close(part(tensors, sharding), {**finished[0], "loss": finished[1].losses}, tolerance)
    assert notes[f"{sharding}.processes"] == others[f"{sharding}.processes"] == 2
    assert notes[f"{sharding}.logged"] == TINY.steps and others[f"{sharding}.logged"] == 0
    assert notes[f"{sharding}.kinds"] == others[f"{sharding}.kinds"] == ["Parameter"]  # plain ones, not shards


@needs_gloo
@pytest.mark.parametrize(("sharding", "tolerance"), [("ddp", 1e-5), ("fsdp", 1e-4)])
def test_two_processes_of_which_one_was_terminated_go_on_together(two, finished, sharding, tolerance):
    tensors, notes, others = two
    resumed = part(tensors, f"{sharding}-resumed")
    assert f"{sharding}.stopped" not in notes | others  # both exited
    assert notes[f"{sharding}-resumed.steps"] == list(range(1, TINY.steps + 1))
    close(resumed, {**finished[0], "loss": finished[1].losses}, tolerance)
    assert same(resumed, part(tensors, sharding))  # two processes that nothing interrupted give these very bits


@needs_gloo
@pytest.mark.parametrize(("sharding", "tolerance"), [("ddp", 1e-5), ("fsdp", 1e-4)])
def test_two_processes_train_the_pfn_of_one(two, sharding, tolerance):
    log = Recorder()
    expected = {**tiny_pfn(log=log).state_dict(), "loss": log.losses}
    found = part(two[0], f"pfn-{sharding}")
    for tensors in (expected, found):  # the same vector added to all keys changes nothing: Adam follows rounding noise
        for name in [k for k in tensors if k.endswith("key_value.bias")]:
            tensors[name] = tensors[name].chunk(2)[1]
    close(found, expected, tolerance)


@needs_gloo
def test_micro_batches_that_cannot_be_shared_are_refused(two):
    for notes in two[1:]:
        assert notes["accumulate"] == (
            "accumulate=1 micro-batches cannot be shared by 2 processes; set accumulate to a multiple of 2"
        )


@needs_gloo
def test_processes_that_see_different_states_are_stopped(two):
    for notes in two[1:]:
        assert "not all processes see the same" in notes["apart"] and "a disk that they share" in notes["apart"]


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_that_were_killed_go_on_as_two_or_as_one(tmp_path, finished, sharding):
    process = start(tmp_path, "--sharding", sharding, "--pause", "0.01", "--interval", "3", launcher=TORCHRUN)
    wait_for(process, tmp_path, 13)
    process.terminate()  # torchrun hands it on; both workers save and exit
    process.communicate(timeout=60)
    reached = read_tensors(tmp_path / "state" / "training.safetensors")[1]["step"]
    assert 12 <= reached < TINY.steps
    shutil.copytree(tmp_path, tmp_path / "one", ignore=shutil.ignore_patterns("one"))
    finish(start(tmp_path, "--sharding", sharding, launcher=TORCHRUN))
    finish(start(tmp_path / "one"))
    for folder in (tmp_path, tmp_path / "one"):
        close(read_tensors(folder / "weights.safetensors")[0], finished[0], 1e-4)


# --- torch.compile


def test_the_set_transformer_and_a_whole_loss_compile_without_a_graph_break(tmp_path):
    finish(start(tmp_path, "--compiled"))
    _, notes = read_tensors(tmp_path / "compiled.safetensors")
    assert notes.pop("reasons") == []
    assert notes == {name: [0, 1, True] for name in ("transformer-0", "transformer-1", "transformer-7", "loss")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_run_gives_the_losses_of_an_eager_one(tmp_path):
    log = Recorder()
    tiny_pfn(log=log, steps=4)
    finish(start(tmp_path, "--pfn", "--compile"), timeout=600)  # not under the checks of annotations
    compiled = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    torch.testing.assert_close(torch.tensor(compiled), log.losses, rtol=0, atol=1e-3)
