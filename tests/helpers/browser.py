"""A real browser, driven over its DevTools protocol through two pipes; nothing to install for it.

Pages are opened from files, at a width of one's choice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from select import select
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads commands from 3 and answers on 4."""


PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
# In CI a browser is installed: there, tests without one fail where `browser` is asked for.
needs_browser = pytest.mark.skipif(
    PROGRAM is None and os.environ.get("CI") != "true",
    reason="no browser of the Chromium family is installed",
)
VOID = {"meta", "link", "path", "circle", "rect", "image", "input"}


class Checked(HTMLParser):
    """Complains of elements that are not closed; gathers text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script", "title"):
            self.text.append(data)

    def said(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.text).split())


def brightness(colour: str) -> int:
    """Add up red, green and blue of a computed colour."""
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@dataclass
class Tab:
    """One page, and what it did besides being shown."""

    send: Callable[..., dict[str, Any]]
    complaints: list[str] = field(default_factory=list)
    """Errors of the console, of scripts and of the page's own policy."""
    requests: list[str] = field(default_factory=list)
    """Addresses that the page asked for, itself left out."""

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


class Browser:
    """A browser that is running."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._in = out, into
        self._id, self._rest = 0, b""
        self._tab: Tab | None = None
        self._url = ""

    def open(self, page: Path, width: int, *, height: int = 844, dark: bool = False) -> Tab:
        """Open a page in a window of this width, as a phone does, and wait until it is loaded."""
        self._url = page.resolve().as_uri()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(lambda method, **words: self.send(method, session, **words))
        self._tab = tab
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.send(f"{domain}.enable")
        tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.send("Emulation.setEmulatedMedia", features=[scheme])
        tab.send("Page.navigate", url=self._url)
        end = time.monotonic() + PATIENCE_S
        while tab.evaluate("document.readyState + location.href") != "complete" + self._url:
            assert time.monotonic() < end, "the page was not loaded"
            time.sleep(0.05)
        time.sleep(0.2)  # what it still asks for comes to light
        tab.evaluate("0")
        return tab

    def send(self, method: str, session: str | None = None, **words: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": words}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select([self._in], [], [], PATIENCE_S)[0], "the browser does not answer"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if self._tab is None:
            return
        words = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                url = words["request"]["url"]
                if url != self._url and not url.startswith("data:"):
                    self._tab.requests.append(url)
            case "Log.entryAdded":
                self._tab.complaints.append(words["entry"]["text"])
            case "Runtime.exceptionThrown":
                self._tab.complaints.append(str(words["exceptionDetails"]["text"]))
            case "Runtime.consoleAPICalled" if words["type"] in ("error", "warning", "assert"):
                self._tab.complaints.append(str(words["args"]))


@contextmanager
def running(program: str, folder: Path) -> Iterator[Browser]:
    """Run a browser with a profile folder of its own."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    words = [str(their_in), str(their_out), program, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *words],
        pass_fds=(their_in, their_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    browser = Browser(our_out, our_in)
    try:
        yield browser
        browser.send("Browser.close")
    finally:
        os.close(our_out)
        os.close(our_in)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
