"""One `mvw batch` from the command line to its exit code.

Puts the parts together: paths to items, items to an executor, records to the log. What can be
wrong cheaply is found out before the model is loaded, and a record is on disk before it is shown.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from threading import Event
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.output import Output, check_table, export, plan_output
from mvw_cli.batch.store.record import cause_of
from mvw_cli.cli.batch.view import BatchView
from mvw_cli.cli.process import exit_on_interrupt, finish_on_interrupt, mute_libraries
from mvw_cli.errors import ExitCode, MvwError, UsageProblem
from mvw_cli.files import check_not_input, free_name
from mvw_cli.text import check_paths, is_unicode

if TYPE_CHECKING:  # PyTorch and pydantic come after the first sign of life
    from mvw_cli.batch.items import Item
    from mvw_cli.batch.serve.server import Record
    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.worker import Worker
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.profiles.schema import Profile

    Executing = Callable[[Profile], AbstractContextManager[Worker | Dispatcher]]

ALIKE = 20
"""Items at the start of a run that end it if they all fail for one cause."""
_ONCE = ("--overwrite", "--retry-failed", "--dry-run", "--json")
"""Switches that are about one run, not about what is asked."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    """The arguments as they were typed, for hints."""
    source: Source
    profile: str | None
    flags: Mapping[str, object]
    limit: int | None
    output: str | None
    overwrite: bool
    retry_failed: bool
    keep_going: bool
    dry_run: bool
    slots: int | None
    kv_memory: int | None
    workers: int | None
    executor: str
    ray_address: str | None
    shard: tuple[int, int] | None
    readers: int
    read_timeout: float
    allow_pickle: bool
    random_weights: bool
    as_json: bool
    command: str = "batch"
    elsewhere: str | None = None
    """The command that does the same with other records, for hints."""

    def again(self, *more: str) -> str:
        """Write the command that was typed with other switches, for hints."""
        kept = [word for word in self.words if word not in _ONCE]
        return shlex.join(["mvw", self.command, *kept, *more])

    def default_name(self) -> str:
        """Name the output after what is asked about."""
        paths, questions = self.source.paths, self.source.questions
        first = paths[0] if paths else questions or "batch"
        name = "stdin" if first == "-" else os.path.basename(os.path.abspath(first)) or "batch"
        stem = name if os.path.isdir(first) else os.path.splitext(name)[0]
        part = "" if self.shard is None else ".{}-of-{}".format(*self.shard)
        return f"{stem}.results{part}.jsonl"

    def check(self) -> None:
        """Raise a UsageProblem for what contradicts itself."""
        check_paths((*self.source.paths, self.source.questions))
        if self.overwrite and self.retry_failed:
            raise UsageProblem(
                "--overwrite and --retry-failed contradict each other",
                cause="one starts afresh, the other goes on",
                hint=self.again("--retry-failed"),
            )
        question = self.source.question
        if question is not None and not question.strip():
            raise UsageProblem(
                "the question is empty",
                cause="a model needs to be asked something",
                hint='mvw batch ./images "What is in the picture?"',
            )
        if question is not None and not is_unicode(question):
            raise UsageProblem(
                "the question is not valid UTF-8",
                cause="it holds bytes that are no characters",
                hint="mvw batch --help",
            )

    def check_table(self, output: Output) -> None:
        """Keep a table that this command did not write: there is no log next to it.

        Raises:
            UsageProblem: it would be replaced, or can't be written.
        """
        table = output.table
        if table is None:
            return
        check_table(table)
        ours = self.overwrite or output.log.exists()
        if not ours and table.exists() and table.stat().st_size:
            raise UsageProblem(
                f"{output.name} is there already",
                cause=f"no {output.log.name} lies next to it, so it comes from something else",
                hint=_elsewhere(output),
            )


def _elsewhere(output: Output) -> str:
    """Write the command that was typed with records that go to a file of their own."""
    return f"mvw batch IMAGES QUESTION -o {shlex.quote(free_name(output.name))}"


class FailedAlike(MvwError):
    """The first items of a run have all failed for one cause, which the others will meet too."""

    exit_code = ExitCode.ITEMS_FAILED


def run(task: Task) -> int:
    """Do what the command line asks for, and return the exit code.

    Raises:
        MvwError: what stops all items. What stops one is in its record.
    """
    task.check()
    output = plan_output(task.output, task.default_name())
    view = BatchView()
    with ExitStack() as held:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            batch = Batch(task, output, view, held)
        return batch.plan() if task.dry_run else batch.serve()


class Batch:
    """One run: what is known of it before a model is loaded, and what is done with that."""

    def __init__(
        self,
        task: Task,
        output: Output,
        view: BatchView,
        held: ExitStack,
        *,
        resolved: Resolved | None = None,
        items: Iterable[Item] | None = None,
    ) -> None:
        """List the items, and find out which of them are left to do.

        Args:
            held: what is to be let go of at the end.
            resolved, items: instead of those that the task names.
        """
        self._task, self._output, self._view = task, output, view
        source = task.source
        name = source.paths[0] if source.paths else source.questions
        view.loading(f"the list of items from {name}" if name else "the list of items")
        from mvw_cli.batch.store.fingerprint import files_of, fingerprint
        from mvw_cli.batch.store.log import RecordLog
        from mvw_cli.batch.store.worklist import WorkList, pending
        from mvw_cli.profiles.resolution import resolve

        mute_libraries()
        self._resolved = resolved or resolve(task.profile, task.flags)
        if source.question is None:
            source = replace(source, question=self._resolved.profile.prompt.question)
        listed = list_items(source) if items is None else items
        self._worklist = WorkList(listed, limit=task.limit, shard=task.shard)
        view.tally.listed = len(self._worklist)
        check_not_input(output.files, chain(self._named(), files_of(self._resolved)))
        task.check_table(output)
        if source.left_out:
            kinds = (f"{n:,} {end or 'without ending'}" for end, n in source.left_out.most_common())
            view.note(f"Left out, since they are no images: {', '.join(kinds)}")
        self._settings = fingerprint(self._resolved, random_weights=task.random_weights)
        self._log = held.enter_context(
            RecordLog(
                output.log,
                self._settings,
                listed=self._worklist,
                shards={} if task.shard is None else {task.shard: len(self._worklist)},
                overwrite=task.overwrite,
                retry_failed=task.retry_failed,
                hint=task.elsewhere or _elsewhere(output),
            )
        )
        view.clean_up = self._log.leave
        for line in self._log.recovered:
            view.warn(line)
        items = pending(
            self._worklist,
            self._log,
            threads=task.readers,
            timeout_s=task.read_timeout,
            skipped=view.tally.skip,
        )
        held.callback(_close, items)
        self._first: list[str] = []
        """The first `ALIKE` items of this run, by their ids, once they are known."""
        self._failed_first = 0
        """How many of them have failed; none has been answered."""
        self._errors: dict[str, Mapping[str, Any]] = {}
        """What they failed of, by cause."""
        self._failed_alike: FailedAlike | None = None
        first = next(items, None)
        self._items = None if first is None else self._noted(chain([first], items))
        """What is left to do; None: nothing."""

    def _noted(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if len(self._first) < ALIKE:
                self._first.append(item.id)
            yield item

    def _named(self) -> Iterator[str]:
        """Yield what the command line names, and the files that folders and lists have named."""
        yield from filter(None, (*self._task.source.paths, self._task.source.questions))
        # Each once: the rows of a table have one in common.
        yield from {image.path for item in self._worklist for image in item.images}

    def plan(self) -> int:
        """Look at a sample of the items, and write what a run would take."""
        from mvw_cli.batch.serve.capacity import survey
        from mvw_cli.cli.batch.plan import write_plan

        task, listed = self._task, self._worklist
        write_plan(
            survey(listed, self._resolved.profile, slots=task.slots, kv_bytes=task.kv_memory),
            listed=len(listed),
            to_do=sum(1 for _ in self._items or ()),
            output=self._output.name,
            as_json=task.as_json,
        )
        return ExitCode.OK

    def serve(self, executing: Executing | None = None) -> int:
        """Answer what is left, and tell how it went.

        Args:
            executing: gets a profile, and lends who serves it for as long as this takes.
        """
        task, view, log, output = self._task, self._view, self._log, self._output
        shutdown, state = Event(), None
        stopped: MvwError | None = None
        if self._items is None:
            listed = len(self._worklist)
            nothing = f"each of {listed:,} items has its record" if listed else "there are no items"
            view.note(f"There is nothing left to do: {nothing}.")
        else:
            self._introduce()
            with ExitStack() as held:
                with exit_on_interrupt(view.on_interrupt), view.making_room():
                    profile = self._resolved.profile
                    name = profile.model or self._resolved.name or profile.adapter
                    view.loading_model(name, profile.revision)
                    lend = executing or (lambda profile: make_executor(task, profile))
                    executor = held.enter_context(lend(profile))
                    log.settle(self._settings.with_revision(executor.revision))
                with (
                    finish_on_interrupt(view.on_interrupt) as shutdown,
                    view.following(lambda: executor.state, shutdown.is_set),
                ):
                    try:
                        for record in executor.records(
                            self._items,
                            run=log.run,
                            draining=lambda: shutdown.is_set() or self._failed_alike is not None,
                        ):
                            log.append(record)
                            view.show(record)
                            self._failed_alike = self._failed_alike or self._failing_alike(record)
                    except MvwError as error:
                        stopped = error
                    except RuntimeError as error:
                        stopped = self._lost(error)
                state = executor.state
        log.flush()
        stopped = stopped or self._failed_alike
        going = ["--keep-going"] if self._failed_alike else []
        facts = {
            "schema_version": 1,
            "output": output.name,
            "log": str(output.log),
            **view.tally.facts(),
            "left_out": dict(task.source.left_out),
            "failed_in_log": log.failed,
            "interrupted": shutdown.is_set(),
            "kv_allocated_bytes_peak": None if state is None else state.kv_allocated_bytes_peak,
            "retry": task.again("--retry-failed") if log.failed else None,
            "go_on": task.again(*going) if view.tally.remaining else None,
        }
        try:
            if output.table is not None and output.log.exists():
                export(output.log, output.table)
        except MvwError as error:
            stopped = stopped or error
        view.summary(facts)
        if task.as_json:
            console.write_json(facts)
        if stopped is not None:
            raise stopped
        if shutdown.is_set() and view.tally.remaining:
            return ExitCode.INTERRUPTED
        return ExitCode.ITEMS_FAILED if log.failed else ExitCode.OK

    def _introduce(self) -> None:
        view, log = self._view, self._log
        if self._resolved.is_default:
            view.note_embedded()
        if self._task.random_weights:
            view.warn("The weights are random: answers are noise. Time and memory are real.")
        if log.done or log.failed:
            view.note(
                f"Going on with {self._output.log}: {log.done:,} answered, "
                f"{log.failed:,} failed before."
            )

    def _failing_alike(self, record: Record) -> FailedAlike | None:
        """Make the error that ends a run whose first items have all failed for one cause."""
        task, tally = self._task, self._view.tally
        if task.keep_going or tally.answered or record["id"] not in self._first:
            return None
        self._failed_first += 1
        error = self._errors.setdefault(cause_of(record), record["error"])
        if self._failed_first < ALIKE or len(self._errors) > 1 or not tally.remaining:
            return None
        cause, hint = error["cause"], error["hint"] or task.again("--retry-failed")
        if hint.startswith("mvw ") and " IMAGE" in hint and not task.overwrite:
            hint = f"{hint.removesuffix(' --retry-failed')} --retry-failed"
        return FailedAlike(
            f"The first {ALIKE} items have failed alike, and no more was begun: {error['message']}",
            cause=f"{cause + '; ' if cause else ''}--keep-going goes on with the others",
            hint=hint,
        )

    def _lost(self, error: RuntimeError) -> MvwError:
        """Make the error of an accelerator that serves this process no more; raise any other."""
        from mvw_cli.engine.memory import lost_device

        if not lost_device(error):
            raise error
        reason = next(iter(str(error).splitlines()), "it gives no reason")
        return MvwError(
            "The accelerator has failed, and this process can't use it any more",
            cause=f"{reason}; {self._view.tally.served:,} records were written, none is lost",
            hint=self._task.again(),
        )


def make_executor(task: Task, profile: Profile) -> Worker | Dispatcher:
    """Choose who serves the items: by default one process for each GPU.

    Raises:
        UsageProblem: there are not so many GPUs as workers.
    """
    from mvw_cli.batch.workers.worker import Job, Worker

    job = Job(
        profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
        slots=task.slots,
        kv_bytes=task.kv_memory,
        readers=task.readers,
        read_timeout_s=task.read_timeout,
    )
    workers = task.workers
    if task.executor == "ray" or task.ray_address is not None:
        from mvw_cli.batch.workers.dispatcher import Dispatcher
        from mvw_cli.batch.workers.ray import RayActors

        return Dispatcher(RayActors(job, workers, task.ray_address))
    if workers is None:
        from mvw_cli.machine.facts import gpu_count
        from mvw_cli.vllm.start import over_ray, replica_gpus

        # Unless the profile names one GPU or spreads a model over all.
        spread = profile.device_map is not None or over_ray(profile)
        all_gpus = profile.device in ("auto", "cuda") and not spread
        workers = gpu_count() // replica_gpus(profile) if all_gpus else 1
    if workers <= 1:
        return Worker(job)
    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.local import LocalProcesses

    return Dispatcher(LocalProcesses(job, workers))


def _close(items: Iterator[Item]) -> None:
    """Let go of what a generator holds, unless a reader that hangs is still inside."""
    with suppress(ValueError):
        items.close()  # type: ignore[attr-defined]
