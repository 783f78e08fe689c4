import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bayesvision.io.tensors import KEY, read_tensors, replacing, write_tensors


class Bomb:
    """An object whose unpickling would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def written(folder, **header):
    path = folder / "a.safetensors"
    write_tensors(path, {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, header)
    return path


def test_replacing_puts_the_file_in_place(tmp_path):
    with replacing(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_replacing_leaves_everything_as_it_was_after_an_exception(tmp_path, error, old):
    target = tmp_path / "a.txt"
    if old is not None:
        target.write_text(old)
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["a.txt"])
    assert old is None or target.read_text() == old


def test_replacing_in_a_missing_folder_is_said_to_be_so(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "a.txt"):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask, mask):
    umask(mask)
    path = written(tmp_path)
    with replacing(tmp_path / "b.txt") as temporary:
        temporary.write_text("b")
    assert {stat.S_IMODE(p.stat().st_mode) for p in (path, tmp_path / "b.txt")} == {0o666 & ~mask}
    assert os.umask(mask) == mask


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    header=st.dictionaries(
        st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.booleans()), max_size=3
    ),
)
def test_tensors_and_header_come_back(tmp_path_factory, shape, kind, header):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    write_tensors(path, {"t": tensor}, header)
    tensors, found = read_tensors(path)
    assert found == header and list(tensors) == ["t"]
    assert tensors["t"].dtype == kind and torch.equal(tensors["t"], tensor)


def test_tensors_may_share_memory_be_views_and_need_gradients(tmp_path):
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    write_tensors(tmp_path / "a", {"all": base, "tied": base, "turned": base.T, "part": base[1:, ::2]}, {})
    tensors, _ = read_tensors(tmp_path / "a")
    assert torch.equal(tensors["turned"], base.T) and torch.equal(tensors["part"], base[1:, ::2])
    assert torch.equal(tensors["all"], base) and torch.equal(tensors["tied"], base)


def test_a_file_that_was_read_may_be_replaced(tmp_path):
    path = written(tmp_path)
    tensors, _ = read_tensors(path)
    write_tensors(path, {"w": torch.zeros(2, 3)}, {})
    assert torch.equal(tensors["w"], torch.arange(6.0).reshape(2, 3))


def test_a_missing_file_is_no_value_error(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read_tensors(path)


def test_every_truncation_is_refused(tmp_path):
    path = written(tmp_path, recipe="x")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.safetensors .*(save it again|copy it anew)"):
            read_tensors(path)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_renamed_pickle_is_refused_and_not_executed(tmp_path, dump):
    path, trace = tmp_path / "a.safetensors", tmp_path / "trace"
    with open(path, "wb") as file:
        dump(Bomb(trace), file)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tensors(path)
    assert not trace.exists()
    with open(path, "rb") as file:  # the pickle does leave the trace where somebody loads it
        pickle.load(file) if dump is pickle.dump else torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [(None, "bayesvision did not write it"), ({KEY: "{"}, "broken header"), ({KEY: json.dumps([1])}, "broken header")],
)
def test_a_foreign_header_is_refused(tmp_path, metadata, message):
    save_file({"w": torch.zeros(2)}, tmp_path / "a", metadata)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "a")
