"""The command that was typed, written again with keys of the profile changed: for hints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvw_cli.cli.model_options import written

if TYPE_CHECKING:
    from mvw_cli.cli.infer.run import Task


def retry(task: Task, changes: Mapping[str, str | None]) -> str:
    """Write the `mvw infer` of a task, with the changes made and all else as it was given."""
    first, *more = task.images
    words = ["mvw", "infer", first, task.question]
    for image in more:
        words += ["--image", image]
    words += written(task.profile, {**task.flags, **changes})
    if task.show_reasoning is not None:
        words.append("--show-reasoning" if task.show_reasoning else "--hide-reasoning")
    switches = {
        "--allow-pickle": task.allow_pickle,
        "--random-weights": task.random_weights,
        "--json": task.as_json,
        "--verbose": task.verbose,
    }
    words += [name for name, given in switches.items() if given]
    words += [] if task.output is None else ["--output", task.output]
    words += [] if task.explain is None else ["--explain", task.explain]
    return shlex.join(words)
