import json
import os
import sys
from pathlib import Path

import pytest
from files import append, write
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesvision.io.log_columns import Names
from bayesvision.io.log_files import Curve
from bayesvision.io.logs import Logs, read_logs


def test_long_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", "Run,epoch,lr,value\nb,1,9,0.5\na,1,9,0.25\nb,2,9,0.75\na,3,9,\na,2,9,0.5")
    curves, metric, _ = read_logs(path)
    assert list(curves) == ["b", "a"] and metric == "value"
    assert curves["b"] == Curve([1, 2], [0.5, 0.75])
    assert curves["a"] == Curve([1, 2], [0.25, 0.5])  # an empty cell is no reading


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_wide_csv(tmp_path: Path, delimiter: str) -> None:
    text = "\ufeffstep,first,second\r\n10,0.1,0.2\r\n20,0.3,\r\n".replace(",", delimiter)
    curves, metric, _ = read_logs(write(tmp_path / "runs.csv", text))
    assert curves == {"first": Curve([10, 20], [0.1, 0.3]), "second": Curve([10], [0.2])} and metric == "metric"


def test_one_run_in_a_file_is_called_after_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "trial.csv", "epoch,val_acc\n1,0.5\n")
    assert read_logs(path) == ({"trial": Curve([1], [0.5])}, "val_acc", [])
    assert list(read_logs(tmp_path)[0]) == ["a/trial"]
    write(tmp_path / "b.csv", "epoch,one,two\n1,0.5,0.6\n")
    assert list(read_logs(tmp_path)[0]) == ["a/trial", "b/one", "b/two"]
    write(tmp_path / "c.csv", "epoch,val_loss\n1,0.5\n")
    with pytest.raises(ValueError, match="the files hold the metrics val_acc, val_loss; name one with --metric"):
        read_logs(tmp_path)


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "epoch,step,train_loss,val_acc,seed\n1,100,2.5,0.5,3\n")
    found = read_logs(path)  # what is held out from training is preferred, and it is said
    assert found.metric == "val_acc" and found.notes == [
        "read val_acc, and not train_loss; --metric NAME takes another one"
    ]
    several = write(tmp_path / "several.csv", "epoch,loss,val_loss,val_acc\n1,2.5,2.6,0.5\n")
    with pytest.raises(ValueError, match=r"several.csv: the metric may be any of loss, val_loss, val_acc; name"):
        read_logs(several)
    with pytest.raises(ValueError, match=r"no column 'val_ac' for --metric, only loss, val_loss, val_acc"):
        read_logs(several, Names(metric="val_ac"))
    assert read_logs(path, Names(metric="val_acc"))[0] == {"log": Curve([1], [0.5])}
    assert read_logs(path, Names("seed", "step", "train_loss"))[0] == {"3": Curve([100], [2.5])}
    pandas = write(tmp_path / "index.csv", ",a,b\n0,0.1,0.2\n1,0.3,0.4\n")
    assert read_logs(pandas)[0]["a"] == Curve([1, 2], [0.1, 0.3])


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "acc": 0.5, "time": 3.0}, {"epoch": 2, "lr": 1e-3}, {"epoch": 2, "acc": 0.75}, {"note": "x"}]
    path = write(tmp_path / "log.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_logs(path) == ({"log": Curve([1, 2], [0.5, 0.75])}, "acc", [])
    rows = '{"trial": 7, "step": 1, "loss": 1, "acc": 0.5}\n{"trial": 8, "step": 1, "acc": null}\n'
    path = write(tmp_path / "other.txt", rows)  # told by its first character
    assert read_logs(path, Names(metric="acc"))[0] == {"7": Curve([1], [0.5])}
    with pytest.raises(ValueError, match=r"other.txt: the metric may be any of loss, acc; name one with --metric"):
        read_logs(path)
    with pytest.raises(ValueError, match=r"no key 'accuracy' for --metric, only loss, acc"):
        read_logs(path, Names(metric="accuracy"))


def test_steps_are_counted_from_one(tmp_path: Path) -> None:
    def steps(*given: int) -> list[float]:
        text = "step,v\n" + "".join(f"{s},0.5\n" for s in given)
        logs = Logs(write(tmp_path / "a.csv", text))
        logs.poll()
        return logs.curve("a").steps

    assert steps(0, 1, 2) == [1, 2, 3]
    assert steps(0, 500, 1000) == [500, 1000]  # the untrained state is left out
    assert steps(3, 1, 2) == [1, 2]  # it began anew
    assert steps(0, 1, 2) == [1, 2, 3]
    whole = Logs(write(tmp_path / "a.csv", "step,v\n0,0.1\n1,0.2\n2,0.3\n"))
    whole.poll()
    assert whole.curve("a", horizon=3).steps == [1, 2, 3]
    assert whole.curve("a", horizon=2) == Curve([1, 2], [0.2, 0.3])  # the last is no third
    assert steps(0) == []
    write(tmp_path / "b.csv", "step,v,w\n0,0.5,0.6\n1,0.5,\n")
    assert read_logs(tmp_path / "b.csv")[0]["w"].steps == [1]


def test_diverged_runs(tmp_path: Path) -> None:
    curve = read_logs(write(tmp_path / "a.csv", "step,v\n1,0.5\n2,nan\n"))[0]["a"]
    assert curve.diverged and curve.finite == Curve([1], [0.5])
    assert not curve.finite.diverged


BAD = {
    "text": ("step,v\n1,0.5\n2,x\n", "line 3: 'v' is 'x' where a number"),
    "underscores": ("step,v\n1_0,0.5\n", "line 2: 'step' is '1_0' where a number"),
    "ragged": ("step,v\n1,0.5,3\n", "line 2: 3 fields"),
    "negative": ("step,v\n-1,0.5\n", "line 2: the step is -1"),
    "no step": ("step,v\n,0.5\n", "line 2: the step is missing"),
    "no run": ("run,step,v\n,1,0.5\n", "line 2: the run has no name"),
    "no header": ("1,2\n3,4\n", "line 1: the first line holds numbers"),
    "twice": ("step,v,v\n1,2,3\n", "line 1: two columns are called 'v'"),
    "no steps": ("a,b\n1,2\n", "line 1: no column for steps among a, b; name it with --step"),
    "no values": ("step,time\n1,2\n", "line 1: no column of values"),
    "quotes": ('step,v\n1,"0.5\n', "line 2: "),
    "zero byte": ("step,v\n1,0.5\0\n", "line 2: NUL"),
    "empty": ("", "no runs"),
    "header alone": ("step,v\n", "no runs"),
    "not JSON": ('{"step": 1, "v": 1}\n{"step": 2\n', "line 2: not JSON"),
    "no object": ('{"step": 1, "v": 1}\n[1]\n', "line 2: not a JSON object"),
    "text in JSON": ('{"step": 1, "v": 1}\n{"step": 2, "v": "1"}\n', "line 2: 'v' is '1' where a number"),
    "true in JSON": ('{"step": true, "v": 1}\n', "line 1: 'step' is 'True'"),
    "no step in JSON": ('{"v": 1}\n', "line 1: no key for steps"),
    "deep JSON": ('{"step": 1, "v": 1}\n' + "[" * 100_000 + "\n", "line 2: not JSON"),
    "long integer": ('{"step": 1, "v": 1' + "0" * 400 + "}\n", "line 1: 'v' is a number of too many digits"),
    "longer integer": ('{"step": 1, "v": 1' + "0" * 9000 + "}\n", "line 1: not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_with_their_line(tmp_path: Path, name: str) -> None:
    text, words = BAD[name]
    path = write(tmp_path / "runs.txt", text)
    with pytest.raises(ValueError) as error:
        read_logs(path)
    assert str(error.value).startswith(str(path)) and words in str(error.value)
    logs = Logs(path)  # the same while following: counted, not fatal
    logs.poll()
    assert "no runs" in words or words in logs.problems[0].first


def test_other_encodings_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_logs(write(tmp_path / "a.csv", b"step,v\n1,\xe9\n"))
    with pytest.raises(ValueError, match="no such file"):
        read_logs(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no runs"):
        read_logs(tmp_path / "empty")


def test_names_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "run,step,v\n\x1b[31mred\x07,1,0.5\n" + "x" * 999 + ",1,0.5\n")
    first, second = read_logs(path)[0]
    assert first == "\ufffd[31mred\ufffd" and len(second) == 200


def test_growing_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "step,v\n1,0.5\n2,0.")
    logs = Logs(tmp_path)
    assert logs.poll() == {"a"} and logs.curve("a") == Curve([1], [0.5])
    assert logs.poll() == set()
    append(path, "75\n3,oops\n")
    assert logs.poll() == {"a"} and logs.curve("a") == Curve([1, 2], [0.5, 0.75])
    assert [(p.file, p.count) for p in logs.problems] == [("a.csv", 1)] and "line 4" in logs.problems[0].first
    append(path, "2,0.8\n")  # reported again
    write(tmp_path / "b" / "c.jsonl", '{"step": 1, "v": 0.5}\n')
    assert logs.poll() == {"a", "b/c"} and logs.curve("a") == Curve([1, 2], [0.5, 0.8])
    assert logs.runs == ["a", "b/c"] and logs.metrics == ["v"]
    (tmp_path / "b" / "c.jsonl").unlink()
    assert logs.poll() == {"b/c"} and logs.runs == ["a"]


def test_replaced_and_rewritten_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "run,step,v\nx,1,0.5\ny,1,0.6\n")
    logs = Logs(path)
    logs.poll()
    write(tmp_path / "new", "run,step,v\nx,1,0.7\nx,2,0.8\n").replace(path)
    assert logs.poll() == {"x", "y"} and logs.runs == ["x"] and logs.curve("x") == Curve([1, 2], [0.7, 0.8])
    write(path, "run,step,v\nx,1,0.7\nx,2,0.8\nx,3,0.9\n")  # written anew with one more line: the same as appended
    assert logs.poll() == {"x"} and logs.curve("x").steps == [1, 2, 3]
    write(path, "run,step,v\nx,1,0.1\nx,2,0.8\nx,3,0.9\nx,4,1.0\n")  # the past changed
    assert logs.poll() == {"x"} and logs.curve("x").values == [0.1, 0.8, 0.9, 1.0]
    write(path, "run,step,v\nz,1,0.1\n")
    assert logs.poll() == {"x", "z"} and logs.runs == ["z"]


LINES = ["1,0.5", "2,0.75", "7,bad", "", "3,1e-3", "\xe9\xe9", "4,nan", "5,0.1,9", "6,2"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=12), st.lists(st.integers(0, 80), max_size=5))
def test_reading_in_pieces_is_reading_at_once(tmp_path_factory: pytest.TempPathFactory, lines, cuts) -> None:
    folder = tmp_path_factory.mktemp("logs")
    text = "".join(f"{line}\n" for line in ["step,v", *lines]).encode()
    followed = Logs(write(folder / "a.csv", b""))
    followed.poll()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True):
        append(folder / "a.csv", text[start:end])
        followed.poll()
    whole = Logs(folder / "a.csv")
    whole.poll()
    assert followed.problems == whole.problems and followed.runs == whole.runs
    assert [str(followed.curve(r)) for r in followed.runs] == [str(whole.curve(r)) for r in whole.runs]


def test_a_line_without_end_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"step,v\n1,0.5\n" + b"x" * 9_000_000)
    logs = Logs(tmp_path)
    logs.poll()
    append(path, b"x" * 3_000_000)
    logs.poll()
    append(path, "\n2,0.75\n")
    logs.poll()
    assert logs.curve("a") == Curve([1, 2], [0.5, 0.75])
    assert logs.problems[0].count == 1 and "longer than" in logs.problems[0].first


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "secret.csv", "step,v\n1,0.5\n")
    folder = tmp_path / "runs"
    write(folder / "a.csv", "step,v\n1,0.5\n")
    write(folder / ".hidden.csv", "step,v\n1,0.5\n")
    write(folder / ".git" / "b.csv", "step,v\n1,0.5\n")
    (folder / "link.csv").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe.csv")  # would block whoever opens it
    logs = Logs(folder)
    logs.poll()
    assert logs.runs == ["a"]
    assert [p.file for p in logs.problems] == ["pipe.csv"] and "regular" in logs.problems[0].first
    (folder / "a.csv").unlink()
    (folder / "a.csv").symlink_to(outside)  # swapped while followed
    assert logs.poll() == {"a"} and logs.runs == []
    entry = tmp_path / "entry"
    entry.symlink_to(folder, target_is_directory=True)  # the folder itself may be given by a link
    write(folder / "d.csv", "step,v\n1,0.5\n")
    logs = Logs(entry)
    logs.poll()
    assert logs.runs == ["d"]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def scalar(tag: str, step: int, value: float) -> Event:
        return Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    writer = EventFileWriter(str(tmp_path / "trial" / "one"))
    for step in (0, 1):
        writer.add_event(scalar("acc", step, 0.5 + 0.25 * step))
        writer.add_event(scalar("loss", step, 2.0))
    writer.flush()
    logs = Logs(tmp_path)
    logs.poll()
    assert "any of acc, loss" in logs.problems[0].first
    logs = Logs(tmp_path, Names(metric="acc"))
    assert logs.poll() == {"trial/one"} and logs.curve("trial/one") == Curve([1, 2], [0.5, 0.75])
    writer.add_event(scalar("acc", 2, 0.875))
    writer.flush()
    assert logs.poll() == {"trial/one"} and logs.curve("trial/one") == Curve([1, 2, 3], [0.5, 0.75, 0.875])
    (path,) = (tmp_path / "trial" / "one").iterdir()
    whole = path.read_bytes()
    again = write(tmp_path / "trial" / "one" / "events.out.tfevents.9999999999.b", whole[:-9])  # a restart, cut short
    assert logs.poll() == {"trial/one"} and logs.curve("trial/one").steps == [1, 2]  # it replaces what was there
    append(again, whole[-9:])
    assert logs.poll() == {"trial/one"} and not logs.problems and logs.curve("trial/one").steps == [1, 2, 3]
    write(tmp_path / "bad" / "events.out.tfevents.1", b"no such thing" * 99)
    logs.poll()
    assert logs.runs == ["trial/one"]
    writer.close()


def test_tensorboard_in_its_own_tensor_form(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_text("note", "hello")
        for step in range(3):
            writer.add_scalar("acc", 0.25 * step, step)
    assert read_logs(tmp_path)[:2] == ({"run": Curve([1, 2, 3], [0.0, 0.25, 0.5])}, "acc")


def test_without_tensorboard_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    write(tmp_path / "events.out.tfevents.1", b"")
    write(tmp_path / "a.csv", "step,v\n1,0.5\n")
    logs = Logs(tmp_path)
    logs.poll()
    assert logs.runs == ["a"] and "bayesvision[tensorboard]" in logs.problems[0].first
    with pytest.raises(ValueError, match=r"tfevents.1: TensorBoard files need tensorboard: pip install"):
        read_logs(tmp_path)
