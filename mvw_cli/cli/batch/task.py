"""What `mvw batch` is asked for, and what is known of it before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.batch.source.spec import Source
from mvw_cli.batch.store.output import Output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.words import again
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from mvw_cli.batch.items import Item
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList
    from mvw_cli.profiles.resolution import Resolved


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    """The arguments as they were typed, for hints."""
    paths: tuple[str, ...]
    question: str | None
    questions: str | None
    profile: str | None
    flags: Mapping[str, object]
    recursive: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    limit: int | None
    output: str | None
    overwrite: bool
    retry_failed: bool
    dry_run: bool
    slots: int | None
    kv_memory: int | None
    workers: int | None
    executor: str
    ray_address: str | None
    shard: tuple[int, int] | None
    readers: int
    read_timeout: float
    image_column: str | None
    question_column: str | None
    id_column: str | None
    answer_column: str | None
    allow_pickle: bool
    random_weights: bool
    as_json: bool

    def source(self, question: str | None) -> Source:
        """Where the items come from."""
        return Source(
            self.paths,
            question=self.question if self.question is not None else question,
            questions=self.questions,
            recursive=self.recursive,
            include=self.include,
            exclude=self.exclude,
            image_column=self.image_column,
            question_column=self.question_column,
            id_column=self.id_column,
            answer_column=self.answer_column,
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known before a model is loaded."""

    resolved: Resolved
    output: Output
    worklist: WorkList
    log: RecordLog
    settle: Callable[[str | None], None]
    """Tells the log what was loaded."""
    items: Iterator[Item]
    """Those that are left to do."""
    first: Item | None
    """The first of them, taken out already."""
    tally: Tally


def check(task: Task) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageProblem: it does.
    """
    if task.ray_address is not None and task.executor != "ray":
        raise UsageProblem(
            "--ray-address goes with --executor ray",
            cause=f"the executor is {task.executor}",
            hint=again(task.words, "--executor", "ray"),
        )
    if task.overwrite and task.retry_failed:
        raise UsageProblem(
            "--overwrite and --retry-failed contradict each other",
            cause="one starts afresh, the other goes on",
            hint=again(task.words, "--retry-failed"),
        )
    if task.question is not None and not task.question.strip():
        raise UsageProblem(
            "the question is empty",
            cause="a model needs to be asked something",
            hint='mvw batch ./images "What is in the picture?"',
        )


def refuse_another_table(task: Task, output: Output) -> None:
    """Keep a table that this command did not write: there is no log beside it."""
    table = output.table
    if table is None or task.overwrite or output.log.exists() or not table.exists():
        return
    if not table.stat().st_size:
        return
    raise UsageProblem(
        f"{output.name} is there already",
        cause=f"no {output.log.name} lies beside it, so it comes from something else",
        hint=again(task.words, "--overwrite"),
    )


def default_name(task: Task) -> str:
    """Name the output after what is asked about."""
    first = task.paths[0] if task.paths else task.questions or "batch"
    name = "stdin" if first == "-" else os.path.basename(first.rstrip("/"))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.realpath(first)) or "batch"
    stem = name if os.path.isdir(first) else os.path.splitext(name)[0]
    part = "" if task.shard is None else ".{}-of-{}".format(*task.shard)
    return f"{stem}.results{part}.jsonl"
