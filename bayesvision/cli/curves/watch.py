"""`bayesvision watch`: a local page that follows the runs of a folder while they grow."""

import base64
import errno
import hashlib
import ipaddress
import math
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import click

from bayesvision.cli.common import Command, check_files
from bayesvision.cli.curves.options import LOGS, build_units, log_options, named

if TYPE_CHECKING:
    from bayesvision.cli.curves.dashboard import Dashboard
    from bayesvision.early_stopping.directions import Mode

__all__ = ["Boards", "Server", "watch"]

SINCE = re.compile(r"/data\?since=(\d{1,15})(?:&metric=([^&]{1,900}))?(?:&mode=(min|max))?")
MOST = 12  # boards of one folder
IDLE = 120.0  # seconds after which a board that nobody looks at rests
PATIENCE = 30  # seconds that a connection may be silent


class Boards:
    """The boards of one folder: one for each metric and direction that a page asks for.

    Args:
        build: makes the board of a metric and a direction; None for what was told on the command line or is found out.
        tell: is given what has to be told on the terminal.
    """

    def __init__(
        self, build: "Callable[[str | None, Mode | None], Dashboard]", tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.build, self.tell = build, tell
        self.first = build(None, None)
        self.all: dict[tuple[str | None, Mode | None], Dashboard] = {(None, None): self.first}
        self.asked: "dict[tuple[str | None, Mode | None], float]" = {(None, None): math.inf}
        self._done, self._told, self._lock = threading.Event(), set[str](), threading.Lock()

    def since(self, version: int, metric: str | None = None, mode: "Mode | None" = None) -> bytes:
        """What changed after `version` on a board; the first one's for a metric that is in no file."""
        key = metric, mode
        if metric not in (None, *self.first.offered):
            return self.first.since(version)
        with self._lock:
            if key not in self.all:
                if len(self.all) >= MOST:  # the one that nobody has looked at for longest makes room
                    idle = min(self.asked, key=lambda one: self.asked[one])
                    del self.all[idle], self.asked[idle]
                self.all[key] = self.build(metric, mode)
            self.asked[key] = max(self.asked.get(key, 0.0), time.monotonic())
            board = self.all[key]
        return board.since(version)

    def run(self, interval: float) -> None:
        """Look at the files every `interval` seconds until `close`."""
        while not self._done.is_set():
            start = time.monotonic()
            for key, board in list(self.all.items()):
                if start - self.asked.get(key, start) < IDLE:
                    board.try_refresh()
            said = [self.first.question[1], *(f"{p.file}: {p.first}" for p in self.first.logs.problems)]
            for text in filter(None, dict.fromkeys(said)):
                if text not in self._told and len(self._told) < MOST:
                    self._told.add(text)
                    self.tell(text)
            self._done.wait(max(0.05, interval - (time.monotonic() - start)))

    def close(self) -> None:
        """End `run`."""
        self._done.set()


class Server(ThreadingHTTPServer):
    """Serves the page at `/` and what changed since a version at `/data?since=N`, and nothing else, to GET alone.

    `&metric=NAME` and `&mode=min` or `max` ask for another metric or direction.

    A request whose Host is a name other than localhost or `host` is refused, so that no foreign page can reach the
    server under a name of its own (DNS rebinding).

    Args:
        host, port: where to listen.
        since: what changed since a version, of a metric and a direction, as JSON.

    Raises:
        OSError: the port is taken, or there is no such host.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, since: "Callable[[int, str | None, Mode | None], bytes]") -> None:
        self.host, self.since = host, since
        self.page = (files("bayesvision.cli.curves") / "watch.html").read_bytes()
        self.policy = _policy(self.page.decode())
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Listen, without asking the network for a name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def allows(self, header: str) -> bool:
        """Whether a Host header names this server: an address, localhost, or the name it was told to listen on."""
        name = re.sub(r":\d{1,5}$", "", header).strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "bayesvision", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer with the page, the data, or an error."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.allows(hosts[0]):
            self._answer(403, b"this server answers to localhost and to addresses only\n")
        elif "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._answer(400, b"a GET has no body\n")
        elif self.path == "/":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        elif match := SINCE.fullmatch(self.path):
            metric = None if match[2] is None else unquote_plus(match[2])
            mode: Mode | None = "min" if match[3] == "min" else "max" if match[3] == "max" else None
            self._answer(200, self.server.since(int(match[1]), metric, mode), "application/json")
        else:
            self._answer(404, b"there is / and /data?since=N\n")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of the protocol, with the same headers as every answer; another method than GET is not allowed."""
        self.close_connection = True
        self._answer(405 if code == 501 else code, b"")

    def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        if code == 405:
            headers["Allow"] = "GET"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""


def _policy(page: str) -> str:
    """The page's own script and style, known by their hashes, may run and ask this server; nothing else may."""
    hashes = []
    for tag in ("script", "style"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in text]
        hashes.append(f"{tag}-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {'; '.join(hashes)}; {rest}"


@click.command(cls=Command, short_help="Serve a page that follows growing logs.")
@click.argument("runs", type=LOGS)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--horizon",
    type=click.FloatRange(0, min_open=True),
    help="Last step of a run; the next of 100, 200, 500, ... that nearly no run has passed.",
)
@log_options
@click.option(
    "--delta", type=click.FloatRange(0, 1, True, True), default=0.05, show_default=True, help="Stop at this chance."
)
@click.option("--mass", type=click.FloatRange(0, 1, True, True), default=0.9, show_default=True, help="Of the band.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
def watch(
    runs: Path, port: int, host: str, horizon: float | None, delta: float, mass: float, interval: float, **options: Any
) -> None:
    """Serve a page that follows the logs in the folder RUNS: every run's curve and band, its chance, stop or go.

    Reads CSV, JSON-lines and TensorBoard files in RUNS and the folders below it, and nothing outside of it.
    """
    check_files(runs)
    import torch

    from bayesvision.cli.curves.dashboard import Dashboard
    from bayesvision.io.checkpoints import find
    from bayesvision.io.logs import Logs

    torch.set_num_threads(1)  # the trainings it watches need the others
    posterior = find(options["model"])

    def build(metric: str | None, mode: "Mode | None") -> Dashboard:
        told = options if mode is None else {**options, "minimize": mode == "min"}
        logs = Logs(runs, named(told)._replace(metric=metric or options["metric"]))
        return Dashboard(logs, posterior, lambda name: build_units(told, name), horizon, delta, mass)

    boards = Boards(build, lambda text: click.echo(f"note: {text}", err=True))
    boards.first.logs.poll()
    said = boards.first.told.said if boards.first.is_clear() and boards.first.told else boards.first.question[1]
    try:
        server = Server(host, port, boards.since)
    except OSError as error:
        advice = "; take another with --port" if error.errno == errno.EADDRINUSE else ""
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror or error}{advice}") from None
    _serve(server, boards, interval, host, f"{runs}{', ' if said else ''}{said},")


def _serve(server: Server, boards: Boards, interval: float, host: str, what: str) -> None:
    """Follow the logs beside the server until it is interrupted."""
    if not _is_loopback(host):
        click.echo(f"warning: whoever reaches this machine at {host} can see these runs", err=True)
    worker = threading.Thread(target=boards.run, args=(interval,), daemon=True)
    worker.start()
    name = "localhost" if _is_loopback(host) else host
    click.echo(f"watching {what} at http://{name}:{server.server_address[1]}/ (Ctrl-C ends it)")
    try:
        server.serve_forever(0.2)
    except KeyboardInterrupt:
        click.echo("ended")
    finally:
        boards.close()
        server.server_close()
        worker.join(10)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
