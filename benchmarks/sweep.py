"""Which classes of transformers are served exactly, and which are refused and why.

Every class of its mappings for images and text, and for more than these, on a tiny random model
of its own: exact, against `generate`, the oracle and shared slots, or refused with a sentence.
Anything else is a fault, and ends with exit code 1.
"""

from __future__ import annotations

import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import click
import transformers
from measuring import write_result
from transformers.models.auto import modeling_auto

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"


def classes() -> dict[str, list[str]]:
    """List the model types of each class."""
    found: dict[str, list[str]] = {}
    for kind, name in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.items():
        found.setdefault(name, []).append(kind)
    return found


def judged(name: str) -> tuple[dict[str, str], float]:
    """Judge a class; return what became of it, and the seconds that it took."""
    sys.path.insert(0, str(HELPERS))
    import torch
    from sweep import judge

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    start = perf_counter()
    outcome = judge(name)
    return asdict(outcome), perf_counter() - start


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--workers", default=os.cpu_count(), show_default=True, help="Processes.")
def main(names: tuple[str, ...], workers: int) -> None:
    """Judge the classes NAMES, or all of them, and then write what became of them."""
    kinds = classes()
    found = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for outcome, took in pool.map(judged, names or kinds):
            click.echo(f"{outcome['status']:8} {outcome['kind']} {took:.1f} s  {outcome['why']}")
            found.append({**outcome, "model_types": kinds.get(outcome["kind"], [])})
    bad = [one["kind"] for one in found if one["status"] not in ("exact", "refused")]
    if not names:
        click.echo(write_result("families", {"classes": found}))
    if bad:
        cause = ", ".join(bad)
        raise SystemExit(f"Neither exact nor refused: {cause}")


if __name__ == "__main__":
    main()
