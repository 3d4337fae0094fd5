"""How long the commands take that load no model: `mvw --help`, `mvw list adapters`.

Whole processes, beside a bare interpreter and one that only imports click: what can't be beaten.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result

MVW = str(Path(sys.executable).parent / "mvw")
COMMANDS = {
    "python_ms": [sys.executable, "-c", "pass"],
    "python_click_ms": [sys.executable, "-c", "import click"],
    "help_ms": [MVW, "--help"],
    "infer_help_ms": [MVW, "infer", "--help"],
    "list_adapters_ms": [MVW, "list", "adapters"],
}
LIMITS = {"help_ms": 200, "list_adapters_ms": 400}


def wall_ms(command: list[str]) -> float:
    start = perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return (perf_counter() - start) * 1e3


def main() -> None:
    arms = {name: (lambda c=command: wall_ms(c)) for name, command in COMMANDS.items()}
    samples = interleaved(arms, pairs=21, warm_up=2)
    figures = {name: summarise(values) for name, values in samples.items()}
    for name, figure in figures.items():
        limit = f"  (limit {LIMITS[name]})" if name in LIMITS else ""
        print(f"{name}: median {figure.median:.0f}, p90 {figure.p90:.0f}{limit}")
    bound = paired_ratio(samples["help_ms"], samples["python_click_ms"])
    print(say_ratio("mvw --help / python importing click", bound))
    print(write_result("startup", {**figures, "help_over_bare_click": bound, "limits_ms": LIMITS}))


if __name__ == "__main__":
    main()
