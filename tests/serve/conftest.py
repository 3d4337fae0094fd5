"""Servers that the tests of this folder share, and what they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_process import Served, data_url, serving

SCENES = 8
TOKEN = "a token of 24 characters"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scenes that the embedded model can read."""
    from mvw_shapes.samples import write_samples

    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder, SCENES, seed=841)
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="session")
def urls(scenes: list[Path]) -> list[str]:
    """The same as data URLs."""
    return [data_url(path.read_bytes()) for path in scenes]


@pytest.fixture(scope="session")
def server(scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with room for all, that reads files and the web."""
    folder = tmp_path_factory.mktemp("server")
    files = str(scenes[0].parent)
    options = ["--allow-files", files, "--allow-urls", "--max-body", "1MiB", "--max-images", "3"]
    with serving(folder, *options, "--read-timeout", "1", "--max-pixels", "1000000") as served:
        yield served


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one slot and one place to wait, for whoever has its token."""
    folder = tmp_path_factory.mktemp("narrow")
    with serving(folder, "--slots", "1", "--queue", "1", token=TOKEN) as served:
        yield served
