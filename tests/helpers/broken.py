"""Checkpoint folders that are broken in one way each, and a hub that answers as told."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError
from mvw_hf.tiny import tiny_llava


def write_checkpoint(folder: Path, **save: Any) -> Path:
    """Write the tiny model as a user would have it."""
    model, processor = tiny_llava()
    model.save_pretrained(folder, **save)
    processor.save_pretrained(folder)
    return folder


def set_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class Hub:
    """Stands where the network is: counts requests, and answers each in the same way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.requests: list[str] = []
        self.answer: Callable[[Any], Any] = self.silent
        # The hub's HTTP library has been renamed once; it is whichever its own errors come from.
        client_module = import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
        self._http = client_module
        huggingface_hub.close_session()
        # It asks again after ever longer pauses.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setattr(
            client_module.Client, "send", lambda _, request, **options: self._send(request)
        )
        for module in (huggingface_hub.constants, huggingface_hub.file_download.constants):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))

    def _send(self, request: Any) -> Any:
        self.requests.append(str(request.url))
        return self.answer(request)

    def silent(self, request: Any) -> Any:
        raise self._http.ConnectError("no route to host", request=request)

    def has(self, name: str, folder: Path, cache: Path) -> None:
        """Answer as for a repository whose files are those of a folder, fetched already."""
        commit = "0" * 40
        held = cache / f"models--{name.replace('/', '--')}"
        (held / "refs").mkdir(parents=True)
        (held / "refs" / "main").write_text(commit)
        (held / "snapshots").mkdir()
        folder.rename(held / "snapshots" / commit)
        files = {file.name for file in (held / "snapshots" / commit).iterdir()}

        def answer(request: Any) -> Any:
            headers = {"X-Repo-Commit": commit, "ETag": '"1"', "Content-Length": "1"}
            if request.method == "HEAD" and str(request.url).rpartition("/")[2] in files:
                return self._http.Response(200, headers=headers, request=request)
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self._http.Response(404, headers=headers, request=request)

        self.answer = answer

    def refuses(self, status: int, code: str) -> None:
        """Answer with an error as the hub writes them."""
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.answer = lambda request: self._http.Response(status, headers=headers, request=request)
