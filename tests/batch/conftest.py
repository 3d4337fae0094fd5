"""A plugin whose model dies on request."""

import os
from pathlib import Path

import pytest
from plugin_path import plugin_path


@pytest.fixture(scope="session")
def mortal_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plugin_path(tmp_path_factory.mktemp("mortal"), "mortal")


@pytest.fixture
def mortal(mortal_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plugin `mortal`, here and in processes that are started from here."""
    monkeypatch.syspath_prepend(mortal_path.partition(os.pathsep)[0])
    monkeypatch.setenv("PYTHONPATH", mortal_path, prepend=":")
    monkeypatch.setenv("MORTAL_FOLDER", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
