"""VLMEvalKit's own rules, out of an installed `ms-vlmeval`, without the imports of its models.

    python tests/helpers/harness.py > tests/evaluate/wemath_expected.json

writes what its code says of the synthetic run below, in an environment with pandas and with
`pip install --no-deps ms-vlmeval` (0.0.20).
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import logging
import random
import re
import string
import sys
from pathlib import Path
from typing import Any

ANSWERS = (
    *("The steps add up to 9.\nAnswer: {}", "Answer: <<{}>>.", "({})", "{}", "Answer {}: the sum"),
    *("Based on the picture I can't tell.", "I cannot tell.", "A triangle, so the answer is {}."),
)
"""Forms of answers, with the letter that is answered."""
PROBLEMS = {2: 360, 3: 165}
COLUMNS = ("index", "ID", "key", "answer", "prediction", "knowledge concept")


def synthetic_run(seed: int = 0) -> list[dict[str, str]]:
    """Answer each problem of a whole WeMath, some rightly."""
    draw = random.Random(seed)
    rows = []
    for steps, count in PROBLEMS.items():
        for number in range(count):
            for part in [*map(str, range(1, steps + 1)), "multi"]:
                right = draw.choice("ABCDEFG")
                letter = right if draw.random() < 0.7 else draw.choice("ABCDEFGH")
                values = (
                    *(str(len(rows)), f"{steps}-{number}", f"{steps}steps_{part}", right),
                    *(draw.choice(ANSWERS).format(letter), "Area of Triangles"),
                )
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def folder() -> Path | None:
    """Find the harness, without importing it; None where it or pandas is not installed."""
    found = importlib.util.find_spec("vlmeval")
    if found is None or found.origin is None or importlib.util.find_spec("pandas") is None:
        return None
    return Path(found.origin).parent


def module(path: str, *names: str, **given: Any) -> dict[str, Any]:
    """Run a file of the harness without what it imports of the harness itself.

    Args:
        names: keep only these functions; of a class `Class.function`.
        given: stands in for what is not imported.
    """
    home = folder()
    assert home is not None
    tree = ast.parse((home / path).read_text("utf-8"))
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or "vlmeval" in str(node.module)):
            continue
        if isinstance(node, ast.ClassDef) and names:
            body += [
                one
                for one in node.body
                if isinstance(one, ast.FunctionDef) and f"{node.name}.{one.name}" in names
            ]
        elif not names or (isinstance(node, ast.FunctionDef) and node.name in names):
            body.append(node)
    space = {"re": re, "string": string, "get_logger": logging.getLogger, "__name__": "h", **given}
    exec(compile(ast.Module(body, []), path, "exec"), space)
    return space


def wemath_figures(rows: list[dict[str, str]]) -> dict[str, str]:
    """Let the harness's own code sum up a run of WeMath."""
    import pandas

    code = module("dataset/utils/wemath.py", load=lambda _: pandas.DataFrame(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        found = {**code["wemath_evaluate_models"](""), **code["wemath_accuracy"]("")}
    return {name: str(value[0]) for name, value in found.items() if name.strip() != "Model"}


if __name__ == "__main__":
    figures = {
        name: text for name, text in wemath_figures(synthetic_run()).items() if "nan" not in text
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
