"""The fixtures of `mvw batch` as a process, and a plugin whose model dies on request."""

from pathlib import Path

import pytest
from batch_process import batch, batch_in, fickle_path, forker

HELPERS = Path(__file__).parents[1] / "helpers"

__all__ = ["batch", "batch_in", "fickle_path", "forker"]  # fixtures


@pytest.fixture(scope="session")
def mortal_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on whose path the plugin `mortal` counts as installed."""
    folder = tmp_path_factory.mktemp("mortal")
    info = folder / "mvw_mortal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mvw-mortal\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mvw]\nmortal = mortal\n")
    for name in ("mortal.py", "mortal_model.py"):
        (folder / name).symlink_to(HELPERS / name)
    return folder


@pytest.fixture
def mortal(mortal_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plugin, here and in processes that are started from here."""
    monkeypatch.syspath_prepend(str(mortal_path))
    monkeypatch.setenv("PYTHONPATH", str(mortal_path), prepend=":")
    monkeypatch.setenv("MORTAL_FOLDER", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
