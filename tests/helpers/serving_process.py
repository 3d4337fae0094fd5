"""A real `mvw serve`, in a process of its own, and the ways in which clients reach it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
from openai import OpenAI

QUESTION = "How many red circles are there?"


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    """Of the API, as stdout has it."""
    process: subprocess.Popen[str]
    token: str | None = None

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def client(self, **given: Any) -> OpenAI:
        options = {"api_key": self.token or "none", "max_retries": 0, "timeout": 60, **given}
        return OpenAI(base_url=self.url, **options)

    def metric(self, name: str) -> float:
        """Sum what `/metrics` has under a name, labels and all."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        text = httpx.get(f"{self.root}/metrics", headers=headers, timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith(name)]
        assert lines, f"no {name} in\n{text}"
        return sum(float(line.split()[-1]) for line in lines)


@contextmanager
def serving(folder: Path, *options: str, token: str | None = None) -> Iterator[Served]:
    """Run `mvw serve` on a free port."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if token is not None:
        env["MVW_API_KEY"] = token
    words = [sys.executable, "-m", "mvw_cli", "serve", "--port", "0", *options]
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (folder / "stderr").read_text()
        yield Served(url, process, token)
    finally:
        process.kill()
        process.wait()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def content(*urls: str, question: str = QUESTION) -> list[dict[str, Any]]:
    """What a user says: images, then a question."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": question}]


def body(*urls: str, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content(*urls, question=question)}]
    return {"model": "shapes", "messages": messages, **more}
