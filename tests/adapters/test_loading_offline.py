"""`--offline` and MVW_OFFLINE: nothing asks the network. The server is a real one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from processes import run_process

from mvw_cli.errors import ExitCode


class Refusing(ThreadingHTTPServer):
    """A hub that has no model at all, and counts who asks."""

    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Refusing)
        self.server.requests.append(self.path)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Refusing]:
    with Refusing(("127.0.0.1", 0), Handler) as made:
        made.requests = []
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.mark.parametrize(
    ("options", "variable", "asks"),
    [([], "", True), (["--offline"], "", False), ([], "1", False)],
)
def test_who_asks(
    server: Refusing, tmp_path: Path, options: list[str], variable: str, asks: bool
) -> None:
    """The model a/b is nowhere."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    variables = {
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "",  # another test in this process may have set it
        **({"MVW_OFFLINE": variable} if variable else {}),
    }
    asked = ("infer", "picture.png", "w1", "--model", "a/b", *options)
    ran = run_process(sys.executable, *asked, cwd=tmp_path, **variables)
    assert ran.code == ExitCode.MODEL, ran.err
    said = "There is no model a/b on the hub." if asks else "a/b is not on this machine."
    assert f"Error: {said}" in ran.err.splitlines()
    assert bool(server.requests) == asks
