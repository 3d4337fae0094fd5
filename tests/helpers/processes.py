"""Run `mvw` in processes of its own, in virtual environments made for the purpose."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


def own_adapters() -> dict[str, str]:
    """Read the adapters that come with mvw off its entry points: name and package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points: dict[str, str] = project["entry-points"]["mvw"]
    points["kimi-k2.5"] = points["kimi-vl"]  # one package with two adapters
    return {name: points[name] for name in sorted(points) if name != "policies"}


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("Warning: ")]


def run_process(python: Path | str, *arguments: str, cwd: Path, **env: str) -> Ran:
    """Run `mvw` in a process of its own."""
    done = subprocess.run(
        [python, "-m", "mvw_cli", *arguments],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def make_venv(folder: Path) -> Path:
    """Make a virtual environment that sees the packages of this one, and return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = sysconfig.get_path("purelib")
    # addsitedir, not a bare path: mvw itself may be installed here by a .pth file.
    Path(site, "shared.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python


def pip(python: Path, *arguments: str) -> None:
    """Run pip offline in a virtual environment made by `make_venv`."""
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pip_install(python: Path, *packages: Path) -> None:
    """Install local packages: no download, no dependencies, no build environment."""
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip(python, "install", *flags, *map(str, packages))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
