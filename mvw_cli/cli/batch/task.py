"""What `mvw batch` is asked for, and what follows from the command line alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mvw_cli.batch.source.spec import Source
from mvw_cli.batch.store.output import Output
from mvw_cli.errors import UsageProblem

_ONCE = ("--overwrite", "--retry-failed", "--dry-run", "--json")
"""Switches that are about one run, not about what is asked."""


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

    def again(self, *more: str) -> str:
        """Write the command that was typed with other switches, for hints."""
        return again(self.words, *more)

    def source(self, question: str | None) -> Source:
        """Where the items come from.

        Args:
            question: the profile's, asked where the command line asks none.
        """
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

    def default_name(self) -> str:
        """Name the output after what is asked about."""
        first = self.paths[0] if self.paths else self.questions or "batch"
        name = "stdin" if first == "-" else os.path.basename(first.rstrip("/"))
        if name in ("", ".", ".."):
            name = os.path.basename(os.path.realpath(first)) or "batch"
        stem = name if os.path.isdir(first) else os.path.splitext(name)[0]
        part = "" if self.shard is None else ".{}-of-{}".format(*self.shard)
        return f"{stem}.results{part}.jsonl"

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageProblem: it does.
        """
        if self.ray_address is not None and self.executor != "ray":
            raise UsageProblem(
                "--ray-address goes with --executor ray",
                cause=f"the executor is {self.executor}",
                hint=self.again("--executor", "ray"),
            )
        if self.overwrite and self.retry_failed:
            raise UsageProblem(
                "--overwrite and --retry-failed contradict each other",
                cause="one starts afresh, the other goes on",
                hint=self.again("--retry-failed"),
            )
        if self.question is not None and not self.question.strip():
            raise UsageProblem(
                "the question is empty",
                cause="a model needs to be asked something",
                hint='mvw batch ./images "What is in the picture?"',
            )

    def check_table(self, output: Output) -> None:
        """Keep a table that this command did not write: there is no log next to it.

        Raises:
            UsageProblem: it would be replaced, or can't be written.
        """
        from mvw_cli.batch.store.export import check_table

        table = output.table
        if table is None:
            return
        check_table(table, "mvw batch --help")
        if self.overwrite or output.log.exists() or not table.exists():
            return
        if table.stat().st_size:
            raise UsageProblem(
                f"{output.name} is there already",
                cause=f"no {output.log.name} lies next to it, so it comes from something else",
                hint=self.again("--overwrite"),
            )


def again(words: Sequence[str], *more: str) -> str:
    """Write the same `mvw batch` with other switches.

    Args:
        words: what came after `mvw batch`.
    """
    kept = [word for word in words if word not in _ONCE]
    return shlex.join(["mvw", "batch", *kept, *more])
