import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import browser, missing

import bayesvision as bv
from bayesvision.cli.curves.dashboard import Dashboard
from bayesvision.cli.curves.options import build_units
from bayesvision.cli.curves.watch import Boards, Server
from bayesvision.io.log_columns import Names
from bayesvision.io.logs import Logs

TINY = bv.LCPFN(width=8, layers=1, heads=2, readers=1, components=2)
ALONE = pytest.mark.skipif(bool(missing()), reason=f"no browser to test the page in: {missing()}")


NOTHING = dict.fromkeys(("run", "step", "metric", "minimize", "lower", "upper", "soft_lower", "soft_upper"))


def board(
    folder: Path, horizon: float | None = None, posterior: object = None, metric: str | None = None, **told: object
) -> Dashboard:
    logs, options = Logs(folder, Names(metric=metric)), NOTHING | told
    return Dashboard(logs, posterior or TINY.untrained(), lambda name: build_units(options, name), horizon, 0.05, 0.9)


def write(folder: Path, name: str, values: object, start: int = 1) -> None:
    """Append readings to the log of a run."""
    path = folder / f"{name}.csv"
    with open(path, "a", encoding="utf-8") as file:
        if start == 1:
            file.write("epoch,acc\n")
        file.writelines(f"{start + k},{value:.6f}\n" for k, value in enumerate(np.atleast_1d(values)))


def told(board: Dashboard, since: int = 0) -> tuple[dict, dict]:
    """What is said of all, and of every run that is newer."""
    data = json.loads(board.since(since))
    return data, {run["name"]: run for run in data.pop("runs")}


def test_the_board_follows_and_tells_only_what_changed(tmp_path: Path) -> None:
    watched = board(tmp_path, 10)
    watched.refresh()
    head, runs = told(watched)
    assert runs == {} and head["count"] == 0 and head["best"] is None and not head["busy"]
    write(tmp_path, "a", [0.1, 0.2, 0.3])
    write(tmp_path, "b", [0.5])
    write(tmp_path, "c", np.linspace(0.1, 0.9, 10))
    watched.refresh()
    head, runs = told(watched)
    assert set(runs) == {"a", "b", "c"} and head["best"] == 0.9 and head["holder"] == "c" and head["metrics"] == ["acc"]
    assert runs["c"]["call"] == "done" and runs["c"]["chance"] is None and runs["c"]["final"] == [0.9] * 3
    a = runs["a"]
    assert a["ahead"][0] == 4 and a["ahead"][-1] == 10 and len(a["band"]) == 5
    assert all(x < y for x, y in zip(a["band"][0], a["band"][4], strict=True))
    assert runs["b"]["call"] == "go" and "fewer than 2" in runs["b"]["why"]
    assert told(watched, head["version"])[1] == {}
    watched.refresh()
    assert told(watched)[0]["version"] == head["version"]  # nothing new, nothing said
    write(tmp_path, "a", 0.4, 4)
    watched.refresh()
    newer, runs = told(watched, head["version"])
    assert set(runs) == {"a"} and runs["a"]["ahead"][0] == 5 and newer["count"] == 3
    (tmp_path / "b.csv").unlink()
    watched.refresh()
    assert told(watched, newer["version"])[0]["count"] == 2


def test_the_board_agrees_with_the_library(tmp_path: Path) -> None:
    posterior = bv.pretrained("lcpfn")
    values = 0.9 - 0.4 * np.arange(1, 13) ** -0.7
    watched = board(tmp_path, 40, posterior)
    write(tmp_path, "a", values[:5])
    write(tmp_path, "b", [0.2, 0.21, 0.2, 0.21, 0.2, 0.2, 0.2, 0.21, 0.2, 0.2])
    watched.refresh()
    write(tmp_path, "a", values[5:], 6)
    watched.refresh()
    runs = told(watched)[1]
    law = posterior.with_metric(40.0).condition(np.arange(1.0, 13), values.round(6)).predict(np.arange(13.0, 41))
    chance = float(law.probability_above(float(values.round(6).max())).max())
    assert runs["a"]["chance"] == pytest.approx(chance, abs=2e-3) and runs["a"]["call"] == "go"
    expected = [float(v[-1]) for v in (law.quantile(0.5), *law.interval(0.9))]
    assert runs["a"]["final"][0] == runs["a"]["band"][2][-1]  # the median everywhere
    assert runs["a"]["final"] == pytest.approx(expected, abs=1e-3)
    assert [q[-1] for q in runs["a"]["band"]][::4] == pytest.approx(expected[1:], abs=1e-3)
    assert runs["b"]["call"] == "stop" and "probability" in runs["b"]["why"]


def test_a_new_best_moves_the_chances_of_all(tmp_path: Path) -> None:
    watched = board(tmp_path, 20)
    write(tmp_path, "a", [0.3, 0.4, 0.45])
    write(tmp_path, "b", [0.3, 0.4, 0.45])
    watched.refresh()
    head, runs = told(watched)
    before = runs["a"]["chance"]
    write(tmp_path, "b", 0.9, 4)
    watched.refresh()
    runs = told(watched, head["version"])[1]
    assert set(runs) == {"a", "b"} and runs["a"]["chance"] < before


def test_the_horizon_is_guessed_and_grows(tmp_path: Path) -> None:
    watched = board(tmp_path)
    write(tmp_path, "a", np.linspace(0.1, 0.5, 100))
    watched.refresh()
    head, runs = told(watched)
    assert head["horizon"] == 100 and head["guessed"] and runs["a"]["call"] == "done"
    write(tmp_path, "a", [0.5, 0.51], 101)
    watched.refresh()
    head, runs = told(watched)
    assert head["horizon"] == 200 and runs["a"]["ahead"][-1] == 200 and runs["a"]["count"] == 102


def test_one_long_run_among_short_ones_does_not_set_the_horizon(tmp_path: Path) -> None:
    for k in range(12):
        write(tmp_path, f"short-{k}", [0.1, 0.2, 0.3])
    write(tmp_path, "long", np.linspace(0.1, 0.5, 20_000))
    watched = board(tmp_path)
    watched.refresh()
    head, runs = told(watched)
    assert head["horizon"] == 100 and runs["short-3"]["final"] and runs["long"]["call"] == "done"
    assert "19900 readings lie beyond it, up to step 20000" in runs["long"]["why"]
    seen = runs["long"]["steps"]  # true observations on both sides of the horizon
    assert sum(s <= 100 for s in seen) == 100 and len(seen) == 160 and seen[-1] == 20_000
    line = [0.1 + 0.4 * (s - 1) / 19_999 for s in seen]
    assert runs["long"]["values"] == pytest.approx(line, abs=1e-5)


def test_nothing_is_said_before_a_hundredth_of_the_way(tmp_path: Path) -> None:
    watched = board(tmp_path, 1000)
    write(tmp_path, "a", [0.1, 0.2, 0.3])
    write(tmp_path, "b", np.full(10, 0.1))
    watched.refresh()
    runs = told(watched)[1]
    assert runs["a"]["call"] == "go" and "before 1% of the way" in runs["a"]["why"] and runs["a"]["final"] == []
    assert runs["b"]["final"]


def test_another_metric_has_a_direction_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    watched = board(tmp_path, 10)
    watched.refresh()
    assert told(watched)[0]["minimize"] and told(watched)[0]["best"] == 2.0
    with open(path, "a") as file:
        file.write('{"step": 2, "val_acc": 0.3}\n{"step": 3, "val_acc": 0.6}\n')
    watched.refresh()
    head, runs = told(watched)
    assert not head["minimize"] and head["best"] == 0.6 and head["metrics"] == ["val_acc"] and runs["a"]["count"] == 2


def test_a_run_that_is_early_under_a_new_horizon_has_no_forecast(tmp_path: Path) -> None:
    write(tmp_path, "b", 0.2)
    write(tmp_path, "a", np.linspace(0.1, 0.5, 90))
    write(tmp_path, "c", np.linspace(0.1, 0.5, 90))
    watched = board(tmp_path)
    watched.refresh()
    assert told(watched)[1]["b"]["final"]
    for name in "ac":
        write(tmp_path, name, np.full(20, 0.5), 91)
    watched.refresh()
    assert watched.fleet.horizon == 200 and told(watched)[1]["b"]["final"] == []
    write(tmp_path, "a", 0.9, 111)
    watched.refresh()
    assert not watched.busy and told(watched)[0]["best"] == 0.9


def test_boards_that_nobody_looks_at_make_room(tmp_path: Path) -> None:
    names = [f"val_acc{k}" for k in range(20)]
    (tmp_path / "a.csv").write_text("epoch," + ",".join(names) + "\n1" + ",0.5" * 20 + "\n")
    boards = Boards(lambda metric, mode: board(tmp_path, 10, metric=metric))
    boards.first.refresh()
    for name in names:
        boards.since(0, name)
    assert len(boards.all) == 12 and (names[-1], None) in boards.all and (None, None) in boards.all


def test_several_metrics_and_unknown_directions_are_asked_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("epoch,val_loss,val_foo\n1,3.0,0.5\n2,2.5,0.6\n")
    told_here: list[str] = []
    build = lambda metric, mode: board(tmp_path, 10, metric=metric, minimize=mode and mode == "min")  # noqa: E731
    boards = Boards(build, told_here.append)
    with serving(boards) as port:

        def head(query: str) -> dict:
            return json.loads(ask(port, f"/data?since=0{query}")[2])

        while not head("")["question"]:
            time.sleep(0.05)
        assert head("")["question"] == "metric" and head("")["choices"] == ["val_loss", "val_foo"]
        while not head("&metric=val_loss")["runs"]:
            time.sleep(0.05)
        found = head("&metric=val_loss")
        assert found["minimize"] and found["best"] == 2.5 and found["metrics"] == ["val_loss"]
        while not head("&metric=val_foo")["question"]:
            time.sleep(0.05)
        assert "not known by its name" in head("&metric=val_foo")["asks"]
        while not head("&metric=val_foo&mode=max")["runs"]:
            time.sleep(0.05)
        assert head("&metric=val_foo&mode=max")["best"] == 0.6
        assert head("&metric=nothing")["question"] == "metric" and len(boards.all) == 4
        assert ask(port, "/data?since=0&mode=up")[0] == 404
    assert any("several metrics" in text for text in told_here)


def test_what_cannot_be_read_is_shown_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = board(tmp_path, 10)
    write(tmp_path, "a", [0.1, 7.5])
    write(tmp_path, "b", [0.1, float("nan")])
    write(tmp_path, "c", [0.1, 0.2])
    with open(tmp_path / "c.csv", "a") as file:
        file.write("3,<b>oops</b>\n")
    watched.refresh()
    head, runs = told(watched)
    assert runs["a"]["call"] == "none" and "7.5" in runs["a"]["why"] and runs["a"]["band"] == []
    assert runs["b"]["call"] == "diverged" and "diverged" in runs["b"]["why"] and runs["b"]["values"] == [0.1, None]
    assert runs["c"]["count"] == 2 and head["problems"][0][:2] == ["c.csv", 1]

    monkeypatch.setattr(watched.logs, "poll", lambda: 1 / 0)
    boards = Boards(lambda metric, mode: watched)
    worker = threading.Thread(target=boards.run, args=(0.1,))
    worker.start()
    while not told(watched)[0]["error"]:
        time.sleep(0.01)
    monkeypatch.undo()
    while told(watched)[0]["error"]:
        time.sleep(0.01)
    boards.close()
    worker.join(10)
    assert not worker.is_alive()


@contextlib.contextmanager
def serving(watched: Dashboard | Boards, host: str = "127.0.0.1") -> Iterator[int]:
    """A server of the board, which is refreshed often."""
    boards = watched if isinstance(watched, Boards) else Boards(lambda metric, mode: watched)
    server = Server(host, 0, boards.since)
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.05,)),
        threading.Thread(target=boards.run, args=(0.2,)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield server.server_address[1]
    finally:
        boards.close()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(10)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_the_server_serves_the_page_and_the_data_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "secret.csv").write_text("step,v\n1,0.123456\n")
    write(tmp_path / "runs", "a", [0.1, 0.2])
    (tmp_path / "runs" / "link.csv").symlink_to(tmp_path / "secret.csv")
    watched = board(tmp_path / "runs", 10)
    with serving(watched) as port:
        status, headers, body = ask(port, "/")
        assert status == 200 and b"<title>bayesvision watch" in body and "text/html" in headers["Content-Type"]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and policy.count("'sha256-") == 2
        while ask(port, "/data?since=0")[2].count(b'"name"') < 1:
            time.sleep(0.05)
        status, headers, body = ask(port, "/data?since=0")
        assert status == 200 and headers["Content-Type"] == "application/json" and b"secret" not in body
        assert list(told(watched)[1]) == ["a"] and str(tmp_path).encode() not in body
        for path in (
            "/data", "/data?since=-1", "/data?since=1e3", "/data?since=0&x=1", f"/data?since={'9' * 99}", "/index.html",
            "/../secret.csv", "/%2e%2e/secret.csv", "/a.csv", "/?", "/data/?since=0", str(tmp_path / "secret.csv"),
        ):  # fmt: skip
            status, headers, body = ask(port, path)
            assert status == 404 and headers["Content-Security-Policy"] == policy and b"0.123456" not in body, path
        for method in ("POST", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE"):
            status, headers, _ = ask(port, "/", method)
            assert status == 405 and headers["Allow"] == "GET", method
        assert ask(port, "/", **{"Content-Length": "3"})[0] == 400
        for headers in ask(port, "/")[1], ask(port, "/none")[1]:
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
            assert headers["X-Frame-Options"] == "DENY" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["Server"] == "bayesvision "[: len(headers["Server"])]


def test_foreign_hosts_are_refused(tmp_path: Path) -> None:
    with serving(board(tmp_path)) as port:
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:9", "LOCALHOST", "192.168.1.7:80"):
            assert ask(port, "/", Host=host)[0] == 200, host
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
        ):
            assert ask(port, "/data?since=0", Host=host)[0] == 403, host
        with socket.create_connection(("127.0.0.1", port), 5) as raw:  # no Host at all, and two
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 403 " in raw.recv(100)
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
            assert b" 403 " in raw.recv(100)
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
            assert b" 414 " in raw.recv(100)
        assert ask(port, "/")[0] == 200


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bayesvision", "watch", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    write(tmp_path, "a", [0.1, 0.2])
    process = start(tmp_path, "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.split("http://localhost:")[1].split("/")[0])
    assert ask(port, "/")[0] == 200
    second = start(tmp_path, "--port", str(port))
    out, error = second.communicate(timeout=60)
    assert second.returncode == 2 and len(error.splitlines()) == 1 and f"port {port}" in error and "--port" in error
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "ended\n" and error == ""


@ALONE
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    values = 0.9 - 0.4 * np.arange(1, 41) ** -0.7
    write(tmp_path, "steady", values[:6])
    write(tmp_path, "<img src=x onerror=alert(1)>", [0.1, 0.2, 0.1])
    posterior = bv.pretrained("lcpfn")
    with serving(board(tmp_path, 40, posterior)) as port, browser() as page:
        page.open(f"http://localhost:{port}/")
        page.until("return document.querySelectorAll('.row:not([hidden])').length === 2")
        page.until("return runs.get('steady').band.length === 5")
        assert page.run("return document.querySelectorAll('img').length") == 0
        assert page.run("return document.querySelector('#name').textContent") == "steady"
        drawn = (
            "const c = $('chart'); return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
        )
        assert page.run(drawn)
        picture = page.run("return $('chart').toDataURL()")
        first = page.run("return runs.get('steady').ahead[0]")
        write(tmp_path, "steady", values[6:12], 7)
        page.until("return runs.get('steady').ahead[0] === arguments[0]", first + 6)
        page.until("return $('chart').toDataURL() !== arguments[0]", picture)
        assert page.run("return document.querySelector('#at').textContent").startswith("12")
        page.run("$('search').value = 'img'; $('search').dispatchEvent(new Event('input'))")
        assert page.run("return shown.map((run) => run.name)") == ["<img src=x onerror=alert(1)>"]
        page.run("document.querySelector('.row').click()")
        assert page.run("return $('call').textContent") == "■ stop"
        page.dark()
        page.until("return ink.curve === '#f2f4f7'")
        (tmp_path / "steady.csv").unlink()
        page.until("return runs.size === 1")
        assert page.log() == []


@ALONE
def test_five_hundred_runs_stay_usable(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    for k in range(500):
        top, steps = source.uniform(0.5, 0.9), int(source.integers(3, 30))
        write(tmp_path, f"trial-{k}", top - 0.4 * np.arange(1, steps + 1) ** -0.7)
    with serving(board(tmp_path, 40)) as port, browser() as page:
        page.open(f"http://localhost:{port}/")
        page.until("return runs.size === 500 && !head.busy", seconds=60)
        assert page.run("return document.querySelectorAll('.row').length") < 60  # those in sight
        clock = "const t = performance.now(); for (let k = 0; k < 10; k++) {0}; return (performance.now() - t) / 10"
        assert page.run(clock.replace("{0}", "refresh()")) < 150  # milliseconds
        assert page.run(clock.replace("{0}", "{ $('list').scrollTop = 900 * k; rows(); }")) < 100
        write(tmp_path, "trial-7", 0.91, 30)
        page.until("return head.holder === 'trial-7'")
        page.run("document.querySelector('[data-key=last]').click(); $('list').scrollTop = 0; rows()")
        assert page.run("return document.querySelector('.row').dataset.name") == "trial-7"
        assert page.log() == []
