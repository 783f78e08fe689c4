"""Files: what comes back, what is refused and why, and the checkpoints that come with the package."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import INSTANCES, STORABLE, base, playing, seen

import bayesvision as bv
from bayesvision.distributions import Categorical
from bayesvision.io import checkpoints
from bayesvision.io.tensors import read_tensors, write_tensors
from priors import GaussianProcess

ROOT = Path(__file__).parents[2]
PFN = next(i for i in INSTANCES if i.name == "pfn")
GP = next(i for i in INSTANCES if i.name == "gp")
EXTRAS = {"gpytorch": "gp", "linear_operator": "gp", "pyro": "mcmc", "arviz": "mcmc", "sklearn": "", "pandas": ""}


def each(instances):
    return pytest.mark.parametrize("instance", instances, ids=lambda i: i.name)


@pytest.fixture
def path(tmp_path):
    """A whole checkpoint."""
    bv.save(seen(PFN), tmp_path / "pfn.safetensors")
    return tmp_path / "pfn.safetensors"


def rewrite(path, change, sign=False):
    """Change tensors and header in place; `sign` makes the digest fit again."""
    tensors, header = read_tensors(path)
    change(tensors, header)
    if sign:
        del header["sha256"]
        header["sha256"] = checkpoints._digest(tensors, header)
    write_tensors(path, tensors, header)


def predictions(posterior, instance=PFN):
    law = posterior.predict(instance.rows(7, seed=2)[0])
    return law.class_probs if instance.classes else torch.stack([law.mean, law.stddev])


# Round trips; `test_contract.py` has those that are bit for bit


@each(playing(STORABLE))
def test_the_header_tells_what_the_file_is(instance, tmp_path):
    posterior = seen(instance)
    bv.save(posterior, tmp_path / "file.safetensors")
    header = checkpoints.describe(tmp_path / "file.safetensors")
    assert (header["format"], header["version"]) == (checkpoints.FORMAT, bv.__version__)
    assert header["method"] == type(posterior.method).__name__
    assert header["method"] in checkpoints.POSTERIORS
    assert list(tmp_path.iterdir()) == [tmp_path / "file.safetensors"]
    assert not any(p.requires_grad for p in bv.load(tmp_path / "file.safetensors", net=instance.net).parameters())


@each([i for i in playing(STORABLE) if i.prior is not None and i.name != "lcpfn-scale"])  # lcpfn in other units
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_keeps_two_digits(instance, kind, tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    bv.save(base(instance), whole)
    bv.save(base(instance), half, kind)
    weights = sum(p.numel() for p in base(instance).parameters() if p.ndim > 1)
    assert abs(whole.stat().st_size - half.stat().st_size - 2 * weights) < 200
    loaded, data = bv.load(half), instance.rows(12, seed=1)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for a, b in ((loaded, base(instance)), (loaded.condition(*data), seen(instance))):
        found, expected = predictions(a, instance), predictions(b, instance)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 if kind == torch.bfloat16 else 0.01)


def test_types_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dtype must be a floating-point type such as torch\.float16, got torch\.int8"
    ):
        bv.save(seen(PFN), tmp_path / "no.safetensors", torch.int8)
    assert not list(tmp_path.iterdir())


def test_files_without_a_digest_are_read(path):
    rewrite(path, lambda tensors, header: header.pop("sha256"))
    assert torch.equal(predictions(bv.load(path)), predictions(seen(PFN)))


# What is refused


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda t, h: h.update(method="Oracle"),
            "the method is 'Oracle', which is none of PFN, LCPFN, TablePFN, BayesCap, DistributionTransformer, "
            "MDBM, ImageMDBM, SSVI, DKM, ImageDKM, GP",
        ),
        (lambda t, h: h.update(format=3, version="9.9"), "the format is 3 .* written by version '9.9', so install"),
        (lambda t, h: h.pop("format"), "the format is None"),
        (lambda t, h: h.pop("recipe"), "lacks 'recipe'"),
        (lambda t, h: h["recipe"].update(width=-4), "width must be a whole number of at least 1, got -4"),
        (lambda t, h: h["recipe"].update(depth=3), "depth"),
        (lambda t, h: h["recipe"].update(context=3), "the context has 12 rows .* at most 3"),
        (lambda t, h: t.pop("network.output.bias"), r"network\.output\.bias"),
        (lambda t, h: t.pop("head.borders"), r"lacks 'head\.borders'"),
        (lambda t, h: t.pop("y"), "lacks 'y'"),
        (lambda t, h: t.update(extra=torch.ones(1)), "extra"),
        (lambda t, h: t.update({"network.output.bias": torch.ones(3)}), r"network\.output\.bias"),
        (lambda t, h: t.update({"head.borders": torch.ones(1, 21)}), "borders"),
    ],
)
def test_files_that_do_not_fit(path, change, word):
    rewrite(path, change, sign=True)
    with pytest.raises(ValueError, match=rf"(?s)^{path}: .*{word}"):
        bv.load(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_or_a_cut_is_noticed(tmp_path_factory, place, flip, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    whole = tmp_path_factory.getbasetemp() / "whole.safetensors"
    if not whole.exists():
        bv.save(seen(PFN), whole)
    data = bytearray(whole.read_bytes())
    index = int(place**3 * len(data))  # more often in the header, which is the shorter part
    data[index] ^= flip
    path.write_bytes(data[:index] if cut else data)
    with pytest.raises(ValueError, match=str(path)):
        bv.load(path)


def test_a_pickle_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "model.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Trap())), lambda: torch.save({"weights": Trap()}, path)):
        write()
        with pytest.raises(ValueError, match=r"is not a whole safetensors file"):
            bv.load(path)
        assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap works


def test_missing_files_and_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.safetensors"):
        bv.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file"):
        bv.load(tmp_path)
    with pytest.raises(ValueError, match=r"name must be one of .* got 'pfn-moon'; .* use load\(path\)"):
        bv.pretrained("pfn-moon")
    assert callable(bv.pretrained)  # a module of that name would hide it


# What comes with the package


@pytest.fixture
def package(path, tmp_path, monkeypatch):
    """A package folder with one checkpoint in place of the real one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    index = {"tiny": {"file": path.name, "sha256": digest, "summary": "a test"}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(checkpoints, "_folder", lambda: tmp_path)
    return path


def test_a_shipped_checkpoint_is_found_by_name(package):
    assert checkpoints.shipped()["tiny"].summary == "a test"
    assert torch.equal(predictions(bv.pretrained("tiny")), predictions(seen(PFN)))
    assert checkpoints.describe("tiny") == checkpoints.describe(package)


def test_a_changed_shipped_file_is_refused(package):
    bv.save(base(PFN), package)  # a sound file, but not the one that was shipped
    with pytest.raises(ValueError, match=r"was changed: its SHA-256 is .* install again"):
        bv.pretrained("tiny")
    package.unlink()
    with pytest.raises(ValueError, match=r"is missing; install bayesvision again"):
        bv.pretrained("tiny")


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_shipped_checkpoints(name):
    entry = checkpoints.shipped()[name]
    path = checkpoints.shipped_file(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    assert path.stat().st_size <= 12_000_000
    assert entry.summary
    assert checkpoints.describe(name)["metadata"]["data" if name.startswith("mdbm-") else "prior"]
    posterior = bv.pretrained(name)
    if name.startswith("dt-"):
        assert posterior.latent.mean.isfinite().all()
        return
    x = torch.rand(5, 1, generator=torch.Generator().manual_seed(0))
    law = posterior.predict((60 * x).round() if name.startswith("mdbm-") else x)
    said = law.class_probs if isinstance(law, Categorical) else torch.stack([law.mean, law.stddev])
    assert torch.isfinite(said).all()


@pytest.mark.parametrize("kernel", ["rbf", "matern12", "matern32", "matern52"])
@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("name", ["pfn-gp", "pfn-table"])  # curves: test_lcpfn.py
def test_shipped_checkpoints_beat_the_constant(name, features, kernel):
    # Paired over 60 data sets; a useless network would pass 4 standard errors with probability below 1e-4.
    prior = GaussianProcess(features, lengthscale=0.5 * features**0.5, noise=0.02, kernel=kernel)
    task = prior.sample(60, 50, generator=torch.Generator().manual_seed(features))
    x, y, query, truth = task.x[:, :30], task.y[:, :30], task.x[:, 30:], task.y[:, 30:]
    constant = torch.distributions.Normal(y.mean(-1, keepdim=True), y.std(-1, keepdim=True))

    def errors_ahead(y):
        gain = bv.pretrained(name).condition(x, y).predict(query).log_prob(truth) - constant.log_prob(truth)
        return gain.mean() / gain.mean(-1).std() * 60**0.5

    assert errors_ahead(y) > 4
    assert errors_ahead(y.flip(-1)) < 4  # given the targets of other rows, it can do no better than the constant


# The core alone

CORE_ALONE = f"""
import importlib, importlib.util, sys
extras = {EXTRAS!r}
if "--block" in sys.argv:
    for name in extras:
        sys.modules[name] = None
else:
    assert not any(importlib.util.find_spec(name) for name in extras)
import bayesvision as bv, priors, torch
for name in ("PFN", "Train", "Data", "load", "save", "pretrained", "JsonLines", "metrics", "plots", "distributions"):
    getattr(bv, name)
import bayesvision.cli
train = bv.Train(steps=2, batch=4, execution=bv.Execution(device="cpu"))
method = bv.PFN(features=1, context=8, width=16, layers=1, heads=2, bars=10, train=train)
posterior = method.fit(priors.BayesianLinear(1))
bv.save(posterior.condition([[0.1], [0.2]], [1.0, 2.0]), sys.argv[1])
assert torch.isfinite(bv.load(sys.argv[1]).predict([[0.3]]).mean).all()
for name, extra in (("GP", "gp"), ("MCMC", "mcmc")):
    try:
        getattr(bv, name)
        raise SystemExit(f"{{name}} came without its extra")
    except ImportError as error:
        assert f'pip install "bayesvision[{{extra}}]"' in str(error), error
if len(sys.argv) > 3:
    try:
        bv.load(sys.argv[3])
        raise SystemExit("a GP was loaded without its extra")
    except ImportError as error:
        assert 'pip install "bayesvision[gp]"' in str(error), error
print("core alone")
"""


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_core_does_without_the_extras(tmp_path):
    bv.save(seen(GP), tmp_path / "gp.safetensors")
    files = tmp_path / "pfn.safetensors", "--block", tmp_path / "gp.safetensors"
    done = run(sys.executable, "-c", CORE_ALONE, *files, cwd=ROOT)
    assert done.stdout.endswith("core alone\n"), done.stderr


def test_the_core_installs_alone(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "dist", "build", "docs", "tests"))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", ".", cwd=source)
    assert done.returncode == 0, done.stderr
    done = run(python, "-c", CORE_ALONE, tmp_path / "pfn.safetensors", cwd=tmp_path)
    assert done.stdout.endswith("core alone\n"), done.stderr
