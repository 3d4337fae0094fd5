"""What `mvw calibrate` finds on the embedded model's own scenes.

    python benchmarks/calibrate.py

Writes `benchmarks/results/calibrate_*.json`, the reports of the commands below, and the gates of
the looser bounds, which `benchmarks/policies.py` runs with.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
DYVTE = "dyvte --limit 600 --seed 11 --gate-dtype float16"
SEARCHES = {
    "calibrate_vtw": "vtw --limit 200 --seed 7",
    "calibrate_vtw_64": "vtw --limit 200 --seed 7 --tokens 64",
    "calibrate_mvw": "mvw --limit 200 --seed 7 --tags </SUMMARY>,</CAPTION>",
    "calibrate_mass": "mass --limit 200 --seed 7",
    "calibrate_dyvte": DYVTE,
    "calibrate_dyvte_looser": f"{DYVTE} --agreement 0.92 --loss-ratio 1e9",
}
"""By result file, without the output."""


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for result, words in SEARCHES.items():
            print(f"mvw calibrate {words}", file=sys.stderr)
            command = [sys.executable, "-m", "mvw_cli", "calibrate", *words.split()]
            done = subprocess.run([*command, "-o", f"{result}.yaml"], cwd=folder, check=False)
            if done.returncode not in (0, 1):  # 1: no candidate will do, which is a result
                raise SystemExit(f"{result}: exit code {done.returncode}")
            shutil.copy(folder / f"{result}.report.json", HERE / "results" / f"{result}.json")
            if result == "calibrate_dyvte":  # the same labels serve the looser bounds
                for kept in ("samples.jsonl", "work"):
                    (folder / f"{result}.{kept}").rename(folder / f"{result}_looser.{kept}")
        gates = folder / "calibrate_dyvte_looser.safetensors"
        shutil.copy(gates, HERE / "gates" / "dyvte.safetensors")


if __name__ == "__main__":
    main()
