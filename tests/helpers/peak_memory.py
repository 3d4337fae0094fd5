"""The peak of a process's memory, for tests that start one to measure it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_kib() -> int:
    """Return the most resident memory that this process has had.

    Not `ru_maxrss`: that is the peak of the process that started this one, where it is larger.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def run_measured(code: str, *arguments: object, cwd: Path | None = None) -> int:
    """Run code in a process of its own; return how many KiB its peak has grown since `before`.

    It sets `before = peak_kib()`, finds its arguments from `sys.argv[1]` on, and what is in
    `tests/helpers`.
    """
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    path += "from pathlib import Path\nfrom peak_memory import peak_kib\n"
    words = [
        sys.executable,
        "-c",
        f"{path}{code}\nprint(peak_kib() - before)",
        *map(str, arguments),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])
