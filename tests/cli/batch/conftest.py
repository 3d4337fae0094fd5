"""`mvw batch` as a process."""

import os
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
from batch_process import Batch
from plugin_path import plugin_path


@pytest.fixture(scope="session")
def batch_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Batch]:
    """Make a `Batch` that runs in a folder."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("MVW_", "FICKLE", "HF_"))}
    mine["PYTHONPATH"] = plugin_path(tmp_path_factory.mktemp("fickle"), "fickle")
    mine |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # it counts when transformers is imported
        forkserver.ensure_running()
    return lambda folder: Batch(folder, mine | {"MVW_HOME": str(folder / "home")})


@pytest.fixture
def batch(batch_in: Callable[[Path], Batch], tmp_path: Path) -> Batch:
    return batch_in(tmp_path)
