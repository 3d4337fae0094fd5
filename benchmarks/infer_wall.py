"""Wall time of `mvw infer` on the embedded model against the shortest plain script.

Whole processes in turn, on the same image, weights and question. Limit: 1.3 times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result

HERE = Path(__file__).parent
MVW = str(Path(sys.executable).parent / "mvw")
QUESTION = "How many red circles are there?"


def wall_s(command: list[str]) -> float:
    start = perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([MVW, "samples", folder, "--count", "1"], check=True, capture_output=True)
        image = str(next(Path(folder).glob("**/*.png")))
        commands = {
            "mvw_infer_s": [MVW, "infer", image, QUESTION],
            "mvw_infer_no_withdrawal_s": [MVW, "infer", image, QUESTION, "--no-withdrawal"],
            "plain_script_s": [sys.executable, str(HERE / "plain_script.py"), image, QUESTION],
        }
        arms = {name: (lambda c=command: wall_s(c)) for name, command in commands.items()}
        samples = interleaved(arms, pairs=15, warm_up=2)
    ratio = paired_ratio(samples["mvw_infer_s"], samples["plain_script_s"])
    figures = {name: summarise(values) for name, values in samples.items()}
    for name, figure in figures.items():
        print(f"{name}: median {figure.median:.2f}, p90 {figure.p90:.2f}")
    print(say_ratio("mvw infer / plain script (limit 1.3)", ratio))
    print(write_result("infer_wall", {**figures, "infer_over_plain": ratio, "limit": 1.3}))


if __name__ == "__main__":
    main()
