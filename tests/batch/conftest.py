"""A plugin whose model dies on request."""

import json
import os
from pathlib import Path

import pytest
from plugin_path import plugin_path


@pytest.fixture(scope="session")
def fickle_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plugin_path(tmp_path_factory.mktemp("fickle"), "fickle")


@pytest.fixture
def mortal(fickle_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plugin `fickle`, here and in processes that are started from here."""
    monkeypatch.syspath_prepend(fickle_path.partition(os.pathsep)[0])
    monkeypatch.setenv("PYTHONPATH", fickle_path, prepend=":")
    monkeypatch.setenv("FICKLE", json.dumps({"kills": str(tmp_path)}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
