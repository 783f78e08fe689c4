"""Logs as they are: a small file of every shape that was met."""

import json
import math
from pathlib import Path

import pytest
from files import append, write

from bayesvision.io.log_columns import Names, candidates, choose_metric
from bayesvision.io.log_files import Curve
from bayesvision.io.logs import Logs, read_logs


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# The metric


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        ("loss val_loss", "val_loss"),
        ("train/loss eval/loss", "eval/loss"),
        ("loss acc valid_loss", "valid_loss"),
        ("eval_loss test_loss loss", "eval_loss"),
        ("score loss", "score"),
        ("loss acc", None),
        ("val_loss val_acc", None),
        ("foo bar", None),
        ("value", "value"),
    ],
)
def test_the_metric_held_out_from_training_is_preferred(names, metric):
    choice = choose_metric(names.split(), None)
    assert choice.metric == metric
    assert (choice.problem == "") == (metric is not None)
    for name in names.split():
        assert metric is not None or name in choice.problem


def test_what_is_no_metric():
    names = (
        "epoch step lr learning_rate time eval_runtime eval_samples_per_second grad_norm Unnamed:_0 lr-Adam total_flos"
    )
    assert candidates(["", "Unnamed: 0", "optim/lr", *names.replace("Unnamed:_0", "").split()]) == []
    assert candidates(["val/acc", "epoch", "loss"], ["epoch"]) == ["val/acc", "loss"]


# Restarts


def test_a_resume_replaces_everything_from_its_first_step(tmp_path: Path) -> None:
    """Keras' CSVLogger with append: a second run into the same file, from epoch 2 on, after its header once more."""
    path = write(tmp_path / "log.csv", "epoch,val_acc\n0,0.1\n1,0.2\n2,0.3\n3,0.9\nepoch,val_acc\n2,0.35\n")
    found = read_logs(path)
    assert found.curves == {"log": Curve([1, 2, 3], [0.1, 0.2, 0.35])}
    assert found.notes == ["steps go back in log: what came later replaced what was there from its step on"]
    logs = Logs(path)
    logs.poll()
    append(path, "0,0.4\n1,0.5\n")
    assert logs.poll() == {"log"} and logs.curve("log") == Curve([1, 2], [0.4, 0.5])


@pytest.mark.parametrize("purge", [None, 3])
def test_a_restarted_training_in_tensorboard(tmp_path: Path, purge: int | None) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for first, value, step in ((1, 0.1, None), (3, 0.5, purge)):
        with SummaryWriter(str(tmp_path / "run"), purge_step=step, filename_suffix=f".{first}") as writer:
            for k in range(first, first + 4 if first == 1 else first + 2):
                writer.add_scalar("acc", value, k)
    files = sorted((tmp_path / "run").iterdir(), key=lambda path: path.name.endswith(".3"))
    for k, path in enumerate(files):
        path.rename(path.with_name(f"events.out.tfevents.{k}.{path.name[-1]}"))
    curve = read_logs(tmp_path).curves["run"]
    assert curve.steps == [1, 2, 3, 4] and curve.values == pytest.approx([0.1, 0.1, 0.5, 0.5])


def test_rows_of_several_runs_without_their_names_are_refused(tmp_path: Path) -> None:
    many = "step,val_acc\n" + "".join(f"{k},0.{r}\n" for r in range(1, 9) for k in (1, 2, 3))
    with pytest.raises(ValueError, match=r"steps of run 'a' go back 7 times and .*; sort the rows by step, .* --run"):
        read_logs(write(tmp_path / "a.csv", many))


@pytest.mark.parametrize(
    "text",
    [
        "seed,epoch,val_acc\n" + "".join(f"{s},{e},0.{s}{e}\n" for s in (1, 2, 3) for e in range(1, 5)),
        "model,epoch,val_acc\n" + "".join(f"{m},{e},0.{e}\n" for m in "xyz" for e in range(1, 5)),
        lines(*({"model": m, "epoch": e, "val": {"acc": 0.1 * e}} for m in "xy" for e in (1, 2, 3))),
    ],
)
def test_a_column_that_tells_runs_apart_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.txt", text)
    with pytest.raises(ValueError, match=r"changes where the steps go back or repeat.*say --run") as error:
        read_logs(path)
    name = str(error.value).split("--run '")[1].split("'")[0]
    assert len(read_logs(path, Names(run=name)).curves) >= 2


def test_steps_that_repeat_again_and_again_are_refused(tmp_path: Path) -> None:
    text = "epoch,val_acc\n" + "".join(f"{e},0.{e}{k}\n" for e in range(1, 6) for k in (1, 2, 3))
    with pytest.raises(ValueError, match=r"repeat 10 times; .* --step"):
        read_logs(write(tmp_path / "a.csv", text))


def test_files_that_count_their_steps_unlike_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "epoch,step,val_acc\n" + "".join(f"{k // 4},{50 * (k + 1)},0.{k}\n" for k in range(6)))
    write(tmp_path / "b.csv", "epoch,step,val_acc\n1,200,0.5\n2,400,0.6\n")
    with pytest.raises(ValueError, match="some files count steps by epoch and some by step; name one with --step"):
        read_logs(tmp_path)
    assert read_logs(tmp_path, Names(step="step")).curves["b"].steps == [200, 400]
    once = "epoch,step,val_acc\n1,100,0.5\n2,200,0.6\n2,201,0.7\n"  # a last evaluation
    assert read_logs(write(tmp_path / "c.csv", once)).curves["c"] == Curve([1, 2], [0.5, 0.7])


def test_a_restart_over_two_event_files_is_said(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for k, steps in enumerate((range(1, 11), range(6, 9))):
        with SummaryWriter(str(tmp_path / "run"), filename_suffix=f".{k}") as writer:
            for step in steps:
                writer.add_scalar("acc", 0.1 * k, step)
    for path in (tmp_path / "run").iterdir():
        path.rename(path.with_name(f"events.out.tfevents.{path.name[-1]}"))
    found = read_logs(tmp_path)
    assert found.curves["run"].steps[-1] == 8 and "steps go back in run" in found.notes[0]


# Gaps and divergence


def test_a_row_without_the_metric_is_a_gap(tmp_path: Path) -> None:
    """pandas writes NaN, Keras NA, where the metric was not evaluated; the training loss is a number there."""
    text = "epoch,loss,val_loss\n1,3,NaN\n2,2,2.5\n3,1.9,NaN\n4,1.8,2.0\n5,1.7,NaN\n"
    curve = read_logs(write(tmp_path / "a.csv", text)).curves["a"]
    assert curve == Curve([2, 4], [2.5, 2.0]) and not curve.diverged
    keras = "epoch,loss,val_loss\n1,3,NA\n2,2,2.5\n3,1.9,NA\n"
    assert not read_logs(write(tmp_path / "a.csv", keras)).curves["a"].diverged


@pytest.mark.parametrize(
    "text",
    [
        "epoch,val_loss\n1,3\n2,nan\n",  # nothing else was written: it was evaluated
        "epoch,loss,val_loss\n1,3,2\n2,nan,nan\n",  # the training diverged as well
        "epoch,loss,val_loss\n1,3,3\n2,2,2\n3,1,nan\n",  # evaluated at every row so far
        "epoch,loss,val_loss\n1,3,nan\n2,2,2\n3,1,nan\n4,1,2\n5,1,nan\n6,1,nan\n7,1,nan\n",  # overdue
        "epoch,loss,val_loss\n1,3,2\n2,2,inf\n",
    ],
)
def test_a_metric_that_was_evaluated_and_is_no_number_has_diverged(tmp_path: Path, text: str) -> None:
    curve = read_logs(write(tmp_path / "a.csv", text)).curves["a"]
    assert curve.diverged and curve.finite.values


def test_numbers_that_json_writes_as_text(tmp_path: Path) -> None:
    rows = [{"step": 1, "val": 0.5}, {"step": 2, "val": "NaN"}, {"step": 3, "val": 0.7}, {"step": 4, "val": "Infinity"}]
    curve = read_logs(write(tmp_path / "a.jsonl", lines(*rows))).curves["a"]
    assert curve.steps == [1, 2, 3, 4] and curve.values[3] == math.inf and curve.diverged
    assert curve.finite == Curve([1, 3], [0.5, 0.7])


# JSON


def test_train_and_validation_on_separate_lines(tmp_path: Path) -> None:
    """The first line's loss is not the metric; while the file grows the choice is made anew, and what was read too."""
    path = write(tmp_path / "log.jsonl", lines({"step": 10, "loss": 3.0, "lr": 1e-3}, {"step": 20, "loss": 2.0}))
    logs = Logs(path)
    assert logs.poll() == {"log"} and logs.metrics == ["loss"]
    append(path, lines({"step": 20, "val_loss": 2.5, "eval_time": 1.0}, {"step": 30, "loss": 1.0, "lr": 1e-4}))
    assert logs.poll() == {"log"} and logs.metrics == ["val_loss"] and logs.curve("log") == Curve([20], [2.5])
    append(path, lines({"step": 40, "val_loss": 2.25}))
    logs.poll()
    assert logs.curve("log") == Curve([20, 40], [2.5, 2.25])
    assert read_logs(path).notes == ["read val_loss, and not loss; --metric NAME takes another one"]
    append(path, lines({"step": 40, "val_acc": 0.5}))
    assert logs.poll() == {"log"} and logs.runs == [] and "val_loss, val_acc" in logs.problems[0].first
    assert logs.choices == ["loss", "val_loss", "val_acc"]
    with pytest.raises(ValueError, match="may be any of loss, val_loss, val_acc; name one with --metric"):
        read_logs(path)
    assert read_logs(path, Names(metric="loss")).curves["log"] == Curve([10, 20, 30], [3.0, 2.0, 1.0])


def test_nested_json(tmp_path: Path) -> None:
    rows = [{"epoch": k, "train": {"acc": 0.9, "lr": 0.1}, "val": {"acc": 0.1 * k, "n": [1]}} for k in (1, 2)]
    found = read_logs(write(tmp_path / "a.jsonl", lines(*rows)))
    assert found.metric == "val/acc" and found.curves["a"] == Curve([1, 2], [0.1, 0.2])
    assert read_logs(tmp_path / "a.jsonl", Names(metric="train/acc")).curves["a"].values == [0.9, 0.9]


def trainer_state(steps: list[int]) -> str:
    train = [{"epoch": k / 100, "step": k, "loss": 3 / k, "grad_norm": 1.0, "learning_rate": 0.1} for k in steps]
    held_out = [{"epoch": k / 100, "step": k, "eval_loss": 4 / k, "eval_runtime": 2.0} for k in steps]
    return json.dumps({"global_step": steps[-1], "max_steps": 500, "log_history": [*train, *held_out]}, indent=1)


def test_a_hugging_face_trainer(tmp_path: Path) -> None:
    """trainer_state.json by itself, and in the folders of checkpoints, of which the newest is read."""
    path = write(tmp_path / "trainer_state.json", trainer_state([100, 200]))
    found = read_logs(path)
    assert found.metric == "eval_loss" and found.curves["trainer_state"].values == [0.04, 0.02]
    folder = tmp_path / "runs"
    for run in ("a", "b"):
        for last in (100, 200, 1000):
            write(
                folder / run / f"checkpoint-{last}" / "trainer_state.json",
                trainer_state(list(range(100, last + 1, 100))),
            )
    write(folder / "b" / "trainer_state.json", trainer_state(list(range(100, 1101, 100))))
    write(folder / "c" / "trainer_state.json", trainer_state([100, 200]))  # of a training that was resumed since
    write(folder / "c" / "checkpoint-700" / "trainer_state.json", trainer_state([100, 200, 700]))
    write(folder / "a" / "config.json", "{}")
    found = read_logs(folder, Names(step="step"))
    assert {name: curve.steps[-1] for name, curve in found.curves.items()} == {
        "a": 1000,
        "b": 1100,
        "c": 700,
    }
    with pytest.raises(ValueError, match=r"config.json: no log: expected a trainer_state.json"):
        read_logs(folder / "a" / "config.json")


def test_a_history_of_keras_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "history.json", json.dumps({"loss": [3, 2, 1], "val_loss": [3.5, 2.5, 2]}))
    assert read_logs(path).curves["history"] == Curve([1, 2, 3], [3.5, 2.5, 2])


# Tables


def test_an_export_of_wandb(tmp_path: Path) -> None:
    header = ",".join(f'"{c}"' for run in ("blue-1", "red-2") for c in (f"{run} - val/acc", f"{run} - val/acc__MIN",
                                                                         f"{run} - val/acc__MAX"))  # fmt: skip
    path = write(tmp_path / "wandb.csv", f'"Step",{header}\n1,0.1,0.1,0.1,0.2,0.2,0.2\n2,,,,0.3,0.3,0.3\n')
    found = read_logs(path)
    assert found.metric == "val/acc"
    assert found.curves == {"blue-1": Curve([1], [0.1]), "red-2": Curve([1, 2], [0.2, 0.3])}
    several = write(tmp_path / "wandb.csv", "Step,a - loss,a - acc\n1,2,0.5\n")
    with pytest.raises(ValueError, match="may be any of loss, acc"):
        read_logs(several)
    assert read_logs(several, Names(metric="acc")).curves == {"a": Curve([1], [0.5])}


def test_an_epoch_that_stands_still(tmp_path: Path) -> None:
    """Iterations are the steps then, from the first row on."""
    text = "epoch,step,val_acc\n" + "".join(f"{k // 4},{50 * (k + 1)},{0.1 * k:.1f}\n" for k in range(6))
    assert read_logs(write(tmp_path / "a.csv", text)).curves["a"].steps == [50, 100, 150, 200, 250, 300]
    rows = [{"epoch": 0, "iter": 10 * k, "val_acc": 0.1} for k in range(1, 4)]
    assert read_logs(write(tmp_path / "a.jsonl", lines(*rows))).curves["a"].steps == [10, 20, 30]
    lightning = "epoch,step,train_loss,val_acc\n0,9,2.0,\n0,9,,0.5\n1,19,1.0,\n1,19,,0.6\n"
    assert read_logs(write(tmp_path / "metrics.csv", lightning)).curves["metrics"] == Curve([1, 2], [0.5, 0.6])


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "index of pandas": ",epoch,val_acc\n0,1,0.5\n1,2,0.75\n",
        "unnamed index": "Unnamed: 0,epoch,val_acc\n0,1,0.5\n1,2,0.75\n",
        "quoted separators": '"a, b";epoch;val_acc\nx;1;0.5\nx;2;0.75\n',
        "trailing separators": "epoch,val_acc,\n1,0.5,\n2,0.75,\n",
        "trailing in rows": "epoch,val_acc\n1,0.5,\n2,0.75,\n",
        "repeated header": "epoch,val_acc\n1,0.5\nepoch,val_acc\n2,0.75\n",
        "decimal commas": "epoch;val_acc\n1;0,5\n2;0,75\n",
        "carriage returns": "epoch,val_acc\r1,0.5\r2,0.75\r",
        "both ends": "epoch,val_acc\r\n1,0.5\r\n2,0.75\r\n",
        "two epochs": "epoch,Epoch time,val_acc\n1,3,0.5\n2,3,0.75\n",
    }.items(),
)
def test_tables_of_many_hands(tmp_path: Path, name: str, text: str) -> None:
    found = read_logs(
        write(tmp_path / "a.csv", text), Names(metric="val_acc") if name == "quoted separators" else Names()
    )
    assert found.curves == {"a": Curve([1, 2], [0.5, 0.75])}, name


@pytest.mark.parametrize("metric", ["dice", "miou", "psnr", "r2", "auroc", "reward"])
def test_train_and_validation_columns_are_no_two_runs(tmp_path: Path, metric: str) -> None:
    path = write(tmp_path / "a.csv", f"epoch,train_{metric},val_{metric}\n1,0.9,0.5\n2,0.95,0.6\n")
    assert read_logs(path)[:2] == ({"a": Curve([1, 2], [0.5, 0.6])}, f"val_{metric}")
    odd = write(tmp_path / "a.csv", "epoch,train_foo,val_foo\n1,0.9,0.5\n")
    assert read_logs(odd).metric == "val_foo"


def test_utf16_with_an_epoch_that_stands_still(tmp_path: Path) -> None:
    text = "epoch,step,val_acc\n" + "".join(f"{k // 4},{50 * (k + 1)},0.{k}\n" for k in range(6))
    assert read_logs(write(tmp_path / "a.csv", text.encode("utf-16"))).curves["a"].steps == [
        50 * k for k in range(1, 7)
    ]


def test_json_of_other_kinds(tmp_path: Path) -> None:
    path = write(tmp_path / "x.log.json", lines({"epoch": 1, "val_acc": 0.5}, {"epoch": 2, "val_acc": 0.6}))
    assert read_logs(path).curves == {"x.log": Curve([1, 2], [0.5, 0.6])}
    path = write(tmp_path / "a.jsonl", lines({"run": None, "epoch": 1, "val_acc": 0.5}))
    assert list(read_logs(path).curves) == ["a"]


def test_a_document_that_is_being_written_keeps_its_run(tmp_path: Path) -> None:
    path = write(tmp_path / "trainer_state.json", trainer_state([100, 200]))
    logs = Logs(tmp_path)
    logs.poll()
    write(path, trainer_state([100, 200, 300])[:-40])
    assert logs.poll() == set() and logs.curve(logs.runs[0]).steps[-1] == 2.0 and not logs.problems
    write(path, trainer_state([100, 200, 300]))
    assert logs.poll() and logs.curve(logs.runs[0]).steps[-1] == 3.0


def test_utf16(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "epoch\tval_acc\r\n1\t0,5\r\n".encode("utf-16"))
    logs = Logs(path)
    logs.poll()
    assert logs.curve("a") == Curve([1], [0.5])
    append(path, "2\t0,75\r\n".encode("utf-16-le"))
    assert logs.poll() == {"a"} and logs.curve("a") == Curve([1, 2], [0.5, 0.75])


# Folders


def test_files_that_are_no_logs_are_passed_over_and_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "epoch,val_acc\n1,0.5\n")
    write(tmp_path / "data.csv", "name,age\nAnn,3\n")
    found = read_logs(tmp_path)
    assert list(found.curves) == ["a"]
    assert found.notes == ["passed over data.csv: line 1: no column for steps among name, age; name it with --step"]
    append(tmp_path / "a.csv", "2,x\n")  # a log with a bad line is another thing
    with pytest.raises(ValueError, match=r"a.csv: line 3: 'val_acc' is 'x'"):
        read_logs(tmp_path)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(ValueError, match=r"no runs \(data.csv: line 1"):
        read_logs(tmp_path)


def test_a_table_and_an_event_file_of_one_training_are_one_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "version_0")) as writer:
        for step in (10, 20):
            writer.add_scalar("val_acc", step / 100, step)
    write(tmp_path / "version_0" / "metrics.csv", "epoch,val_acc\n1,0.1\n2,0.2\n")
    found = read_logs(tmp_path)
    assert found.curves == {"version_0/metrics": Curve([1, 2], [0.1, 0.2])} and "are of one training" in found.notes[0]
