"""Shared fixtures: a clean environment, the command line in this process or another, plugins."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock  # comes with torch
from hypothesis import settings

# Two workers with as many threads as there are cores would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell's background job has Ctrl-C ignored, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
from browser import PROGRAM, Browser, running
from hints import parse_hint
from processes import Ran, make_venv, pip_install, run_process

from mvw_cli import console
from mvw_cli.__main__ import main
from mvw_cli.plugins import load_plugins

PLUGINS = Path(__file__).parent / "plugins"
settings.register_profile("long")  # tests/fuzz tries many more examples with it


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep the user's own settings and profiles out of every test."""
    for name in list(os.environ):
        if name.startswith(("MVW_", "_MVW_")) or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MVW_HOME", str(tmp_path / "mvw-home"))
    load_plugins.cache_clear()
    console.reset()
    yield
    load_plugins.cache_clear()
    console.reset()


@pytest.fixture
def mvw(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""

    def run(*arguments: str) -> Ran:
        from mvw_cli.cli import cli

        capsys.readouterr()
        load_plugins.cache_clear()
        cli.commands.clear()
        cli._asked_plugins = False
        code = main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def user_profile(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a profile into the user directory."""

    def write(name: str, text: str) -> Path:
        folder = tmp_path / "mvw-home" / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def check_hint() -> Callable[[str], None]:
    """Check that a hint, if it is an `mvw` command, is one that the command line accepts."""
    return parse_hint


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Build something in a folder once for all the processes of a test run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def build(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not (folder / ".built").exists():
                folder.mkdir()
                make(folder)
                (folder / ".built").touch()
        return folder

    return build


@pytest.fixture(scope="session")
def plugin_python(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A Python in which every package of tests/plugins is installed by pip."""

    def make(folder: Path) -> None:
        python = make_venv(folder / "venv")
        pip_install(python, *sorted(PLUGINS.glob("mvw-*")))
        next(folder.glob("venv/lib/*/site-packages/mvw_gone.py")).unlink()

    return once("plugins", make) / "venv" / "bin" / "python"


@pytest.fixture
def installed(plugin_python: Path, tmp_path: Path) -> Callable[..., Ran]:
    """Run `mvw` beside chosen plugins: `installed("good,broken", "list", "adapters")`."""

    def run(plugins: str, *arguments: str, **env: str) -> Ran:
        return run_process(
            plugin_python, *arguments, cwd=tmp_path, **{"MVW_LOAD_PLUGINS": plugins, **env}
        )

    return run


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Ran]:
    """Run `mvw` in a process of its own, with this environment's packages."""

    def run(*arguments: str, **env: str) -> Ran:
        return run_process(sys.executable, *arguments, cwd=tmp_path, **env)

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that runs."""
    assert PROGRAM is not None, "CI has no browser of the Chromium family: .ci/run installs one"
    with running(PROGRAM, tmp_path_factory.mktemp("browser")) as started:
        yield started
