"""Memory of `mvw batch` over many items: resident memory of the process along the run.

The whole command runs, listing included, on a tiny LLaVA of random weights that writes one token,
so that items pass as fast as reading, scheduling and recording go. Images are hard links to a few
files under names of their own. Linux only: resident memory is read from /proc.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
from measuring import write_result
from mvw_hf.tiny import tiny_llava
from PIL import Image

_DIFFERENT = 50
"""Image files; each is linked as often as it takes, as file systems allow only so many links."""


def prepare(folder: Path, items: int) -> tuple[Path, Path]:
    model, processor = tiny_llava()
    checkpoint, images = folder / "model", folder / "images"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    (folder / "originals").mkdir()
    images.mkdir()
    for number in range(_DIFFERENT):
        picture = Image.new("RGB", (48, 36), (5 * number, 90, 255 - 5 * number))
        picture.save(folder / "originals" / f"{number}.png")
    for number in range(items):
        source = folder / "originals" / f"{number % _DIFFERENT}.png"
        os.link(source, images / f"{number:07}.png")
    return checkpoint, images


def resident(pid: int) -> int | None:
    """Bytes of resident memory; None once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = [line.split() for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(fields[0][1]) * 1024 if fields else None


def follow(command: list[str], log: Path, folder: Path) -> tuple[list[tuple[int, int]], int]:
    """Run a command; return records written and resident bytes over time, and the exit code."""
    samples: list[tuple[int, int]] = []
    lines, offset = 0, 0
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            time.sleep(0.5)
            bytes_now = resident(process.pid)
            if log.exists():
                with log.open("rb") as file:
                    file.seek(offset)
                    while block := file.read(1 << 20):
                        lines += block.count(b"\n")
                        offset += len(block)
            if bytes_now is not None:
                samples.append((lines, bytes_now))
    return samples, process.returncode


@click.command()
@click.option("--items", default=100_000, show_default=True)
def main(items: int) -> None:
    """Measure resident memory over many items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, images = prepare(folder, items)
        log = folder / "out.jsonl"
        words = ["batch", str(images), "w1 w2", "--model", str(checkpoint), "-o", str(log)]
        command = [sys.executable, "-m", "mvw_cli", *words, "--max-new-tokens", "1", "-q"]
        begin = time.perf_counter()
        samples, code = follow(command, log, folder)
        seconds = time.perf_counter() - begin
        assert code == 0, code
        again = time.perf_counter()
        more, code = follow(command, log, folder)
        assert code == 0, code
        resumed = time.perf_counter() - again
    early = median(size for done, size in samples if 0.05 * items < done <= 0.15 * items)
    late = median(size for done, size in samples if done > 0.9 * items)
    listing = max((size for done, size in samples if not done), default=0)
    document: dict[str, Any] = {
        "items": items,
        "seconds": seconds,
        "seconds_of_finding_that_all_is_done": resumed,
        "rss_bytes": {
            "listing_peak": listing,
            "at_a_tenth": early,
            "at_the_end": late,
            "peak": max(size for _, size in samples),
            "peak_of_finding_that_all_is_done": max((size for _, size in more), default=0),
        },
        "growth": late / early,
        "samples": samples[:: max(1, len(samples) // 100)],
    }
    for key, value in document["rss_bytes"].items():
        print(f"{key}: {value / 2**20:,.0f} MiB")
    print(f"growth from a tenth of {items:,} items to the end: {late / early:.3f} x")
    print(f"{items / seconds:,.0f} items/s; nothing left to do, found in {resumed:.0f} s")
    print(write_result("batch_memory", document))


if __name__ == "__main__":
    main()
