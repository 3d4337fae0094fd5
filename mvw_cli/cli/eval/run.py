"""One `mvw eval` from the command line to its exit code: arms answered, then scored.

Each arm is one batch with a log of its own; the model is loaded once where the engine lets its
withdrawal be changed. Scoring reads the logs alone, so that it can be done again without a model.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli import __version__, console
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.fingerprint import (
    Fingerprint,
    describe_difference,
    files_of,
    fingerprint,
    read_sidecar,
)
from mvw_cli.batch.store.output import Output
from mvw_cli.bench.documents import BASELINE
from mvw_cli.cli.batch import run as batch
from mvw_cli.cli.batch.view import BatchView
from mvw_cli.cli.process import exit_on_interrupt
from mvw_cli.cli.stderr_view import StderrView
from mvw_cli.console import deliver
from mvw_cli.errors import ExitCode, UsageProblem
from mvw_cli.evaluate.dataset import Dataset, load
from mvw_cli.evaluate.judge import Judge, prompt_of
from mvw_cli.evaluate.report import page, sections, summary, title, to_json
from mvw_cli.evaluate.results import (
    NEVER,
    NO_IMAGE,
    Arm,
    EvalReport,
    item_lines,
    read_arm,
    score_arm,
    slug,
    summed,
    undecided,
)
from mvw_cli.evaluate.rules import find_rule
from mvw_cli.files import check_not_input, check_writable, free_name, replacing
from mvw_cli.render import terminal
from mvw_cli.text import check_paths, escaped, plural

if TYPE_CHECKING:
    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.worker import Worker
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.profiles.schema import Profile

ARMS, REPORT, ITEMS = "arms.json", "report.json", "items.jsonl"
_OWN = (".json", ".jsonl", ".damaged")
_BY_LETTER = ("choice", "wemath", "mmmu", "yes-no")
"""Rules whose reading is the answer: a judge is asked only where they could read none."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    data: str
    moments: tuple[int | str, ...] | None
    until: tuple[str, ...]
    policies: tuple[tuple[str, ...], ...]
    no_image: bool
    profile: str | None
    flags: Mapping[str, object]
    limit: int | None
    scorer: str | None
    judge: str | None
    judge_model: str | None
    output: str | None
    rescore: bool
    html: str | None
    as_json: bool
    verbose: bool
    columns: Mapping[str, str | None]
    serving: Mapping[str, Any]
    """Options that `mvw batch` has as well."""
    unused: tuple[str, ...] = ()
    """Options that were given and say nothing to --rescore."""


def run(task: Task) -> int:
    """Answer what is left, score, and return the exit code.

    Raises:
        MvwError: something is missing or wrong; what was answered is in the folder.
    """
    check_paths((task.data, task.output, task.html))
    if (task.judge is None) != (task.judge_model is None):
        raise UsageProblem(
            "--judge and --judge-model go together",
            cause="one is the address, the other the model to ask there",
            hint="mvw eval --help",
        )
    if task.scorer is not None:
        find_rule(task.scorer)
    if task.unused:
        unused = ", ".join(task.unused)
        console.warn(f"--rescore scores what is there, and goes by none of {unused}")
    view = StderrView()
    with exit_on_interrupt(view.on_interrupt), view.making_room():
        view.loading(task.data)
        dataset = load(task.data, task.columns, task.limit)
        if task.scorer is not None:
            dataset = replace(dataset, rule=task.scorer)
        folder = Folder(Path(task.output or f"{dataset.name}.eval"), dataset, task)
        judge = None
        if task.judge is not None and task.judge_model is not None:
            judge = Judge(task.judge, task.judge_model, folder.path)
    code: int = ExitCode.OK
    remarks: list[str] = []
    if not task.rescore:
        code = _answer(task, dataset, folder, remarks)
    if code == ExitCode.INTERRUPTED:
        return code
    with exit_on_interrupt(view.on_interrupt), view.making_room():
        report = _score(dataset, folder, judge, view, remarks)
    text = to_json(report)
    deliver(text, str(folder.path / REPORT))
    if task.html is not None:
        deliver(page(report), task.html)
    if task.as_json:
        console.write(text)
    else:
        shown = sections(report) if task.verbose else summary(report, terminal.width())
        terminal.show(title(report), shown)
    console.note(f"wrote {folder.path / REPORT}")
    failed = any(arm.failed for arm in report.arms)
    return ExitCode.ITEMS_FAILED if failed else code


class Folder:
    """The folder of an evaluation: which arms it has, and their logs."""

    def __init__(self, path: Path, dataset: Dataset, task: Task) -> None:
        """Make or read it.

        Raises:
            UsageProblem: it can't be written, is of another data set, or has nothing to rescore.
        """
        self.path, self._data = path, dataset.name
        # Of what was typed, --rescore finds nothing in another folder.
        typed = shlex.quote(task.data) if task.rescore else "DATA"
        self.elsewhere = f"mvw eval {typed} -o {shlex.quote(_free(path))}"
        """The command that answers into another folder."""
        self.arms: dict[str, str] = {}
        """Names of their files by their own."""
        check_writable(str(path / REPORT if path.exists() else path))
        if task.html is not None:
            check_writable(task.html)
        images = (image.path for one in dataset.questions for image in one.item.images)
        written = [task.html, *(str(path / name) for name in (REPORT, ITEMS, ARMS))]
        check_not_input(written, chain([dataset.path], images))
        self._check_own(task.html)
        self._read()
        if task.rescore and not self.arms:
            raise UsageProblem(
                f"There are no answers in {path}",
                cause=f"--rescore scores those that an earlier run has left, by its {ARMS}",
                hint=shlex.join(["mvw", "eval", task.data, "--m", "8,16,never"]),
            )

    def _check_own(self, page: str | None) -> None:
        """Refuse to write a page over what is kept here, or will be."""
        if page is None or page == "-":
            return
        file = Path(os.path.realpath(page))
        if file.parent == self.path.resolve() and file.suffix in _OWN:
            raise UsageProblem(
                f"{page} is a file of the evaluation itself",
                cause="answers and figures are kept under such names, and would be written over",
                hint=f"mvw eval DATA --html {shlex.quote(free_name(f'{self._data}.html'))}",
            )
        check_not_input([page], (str(one) for one in self.path.glob("*") if one.suffix in _OWN))

    def _read(self) -> None:
        file = self.path / ARMS
        try:
            known = json.loads(file.read_bytes())
            data, arms = known["data"], known["arms"]
            if not all(isinstance(one, str) and slug(one) == one for one in arms.values()):
                raise ValueError(arms)
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UsageProblem(
                f"{file} is no list of arms",
                cause="it holds something else than what mvw eval writes there",
                hint=f"head -c 300 {shlex.quote(str(file))}",
            ) from None
        if data != self._data:
            raise UsageProblem(
                f"{self.path} holds answers to {data}",
                cause=f"this is {self._data}",
                hint=self.elsewhere,
            )
        self.arms = arms

    def add(self, arms: Sequence[str]) -> None:
        """Take arms in, before anything of them is written."""
        self.path.mkdir(exist_ok=True)
        for name in arms:
            stem, number = slug(name), 1
            while name not in self.arms and stem in {*self.arms.values(), "items", "judge"}:
                number += 1
                stem = f"{slug(name)}-{number}"
            self.arms.setdefault(name, stem)
        content = {"schema_version": 1, "data": self._data, "arms": self.arms}
        with replacing(self.path / ARMS) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def log(self, arm: str, shard: tuple[int, int] | None) -> Path:
        """Name the log that an arm's records go to."""
        part = "" if shard is None else ".{}-of-{}".format(*shard)
        return self.path / f"{self.arms[arm]}{part}.jsonl"

    def logs(self, arm: str) -> list[Path]:
        """List the logs of an arm that are there, those of its shards as well, the newest last."""
        stem = glob.escape(str(self.path / self.arms[arm]))
        found = (glob.glob(f"{stem}{one}.jsonl") for one in ("", ".*-of-*"))
        return sorted(map(Path, chain(*found)), key=lambda log: (log.stat().st_mtime, log))

    def model(self, own: Fingerprint | None = None) -> Fingerprint | None:
        """Return what all its answers come from.

        Args:
            own: what this run's are to come from.

        Raises:
            UsageProblem: they come from different models or settings.
        """
        found = [] if own is None else [("this run", own)]
        for arm in self.arms:
            sidecars = filter(None, map(read_sidecar, self.logs(arm)))
            found += [(f"arm {arm}", sidecar.fingerprint) for sidecar in sidecars]
        settings = [(of, _without_withdrawal(one)) for of, one in found]
        for (first_of, first), (of, one) in pairwise(settings):
            if difference := one.difference(first):
                raise UsageProblem(
                    f"{self.path} holds answers of other settings",
                    cause=describe_difference(difference, f"in {of}", f"in {first_of}"),
                    hint=self.elsewhere,
                )
        return settings[-1][1] if settings else None


def _free(path: Path) -> str:
    names = (f"{path}-{number}" for number in range(2, 10**6))
    return next(name for name in names if not Path(name).exists())


def _without_withdrawal(settings: Fingerprint) -> Fingerprint:
    kept = {key: v for key, v in settings.profile.items() if not key.startswith("withdrawal.")}
    return replace(settings, profile=kept, policy_version="")


# -- answering ----------------------------------------------------------------------------------


def _answer(task: Task, dataset: Dataset, folder: Folder, remarks: list[str]) -> int:
    """Answer every arm in turn; what can be wrong with any shows before the first."""
    from mvw_cli.bench.measure.arms import resolve_arms

    found = resolve_arms(
        task.profile,
        task.flags,
        moments=task.moments or (),
        until=task.until,
        policies=[one for given in task.policies for one in given],
    )
    arms = {NEVER if name == BASELINE else name: resolved for name, resolved in found.items()}
    if task.no_image:
        arms[NO_IMAGE] = arms[NEVER]
    folder.model(fingerprint(arms[NEVER], random_weights=False))
    check_not_input([task.html], files_of(arms[NEVER]))
    folder.add([*arms])
    code: int = ExitCode.OK
    with ExitStack() as held:
        models = _Models(task, held)
        for number, (name, resolved) in enumerate(arms.items(), 1):
            console.note(f"Arm {name}, {number} of {len(arms)}")
            if number > 1:  # who answers has been told
                resolved = replace(resolved, is_default=False)
            try:
                code = max(code, _serve(task, dataset, folder, name, resolved, models))
            except batch.FailedAlike as error:
                if name != NO_IMAGE:
                    raise
                remarks.append(f"The control without images is left out: {error.message}.")
            if code == ExitCode.INTERRUPTED:
                break
    return code


def _serve(
    task: Task,
    dataset: Dataset,
    folder: Folder,
    name: str,
    resolved: Resolved,
    models: _Models,
) -> int:
    shard = task.serving["shard"]
    log = folder.log(name, shard)
    items = [one.item for one in dataset.questions]
    if name == NO_IMAGE:
        items = [replace(item, images=()) for item in items]
    asked = batch.Task(
        task.words,
        Source((dataset.path,), command=("mvw", "eval")),
        profile=task.profile,
        flags=task.flags,
        limit=None,
        output=str(log),
        overwrite=False,
        dry_run=False,
        random_weights=False,
        as_json=False,
        command="eval",
        elsewhere=folder.elsewhere,
        **task.serving,
    )
    view = BatchView()
    with ExitStack() as held:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            one = batch.Batch(
                asked, Output(str(log), log), view, held, resolved=resolved, items=items
            )
        return one.serve(lambda profile: models.lend(asked, profile))


class _Models:
    """The model that serves one arm after the other: loaded once where that can be."""

    def __init__(self, task: Task, held: ExitStack) -> None:
        self._task, self._held = task, held
        self._worker: Worker | None = None

    @contextmanager
    def lend(self, asked: batch.Task, profile: Profile) -> Iterator[Worker | Dispatcher]:
        """Lend who serves a profile; what is kept is let go of at the end of all arms."""
        from mvw_cli.batch.workers.worker import Worker

        if self._worker is not None and self._worker.withdraw(profile):
            yield self._worker
            return
        executor = batch.make_executor(asked, profile)
        if not isinstance(executor, Worker):
            with executor:
                yield executor
            return
        self._held.close()  # an engine that has to be started anew
        self._worker = self._held.enter_context(executor)
        yield self._worker


# -- scoring ------------------------------------------------------------------------------------


def _score(
    dataset: Dataset, folder: Folder, judge: Judge | None, view: StderrView, remarks: list[str]
) -> EvalReport:
    rule = find_rule(dataset.rule)
    settings = folder.model()
    names = sorted(folder.arms, key=lambda name: name != NEVER)
    arms: list[Arm] = []
    for name in names:
        view.progress(f"Scoring {name}")
        baseline = arms[0] if arms and arms[0].name == NEVER else None
        arm = read_arm(name, folder.logs(name), dataset.questions, baseline)
        if arm.outdated:
            count = plural(arm.outdated, "answer")
            remarks.append(f"Arm {name}: {count} left out, to other images than those of {NEVER}.")
        if not arm.records:
            remarks.append(f"Arm {name} has no answers.")
            continue
        score_arm(arm, rule, dataset.questions)
        arms.append(arm)
    if judge is not None:
        _ask_judge(dataset, arms, judge, view)
    lines = (json.dumps(one, ensure_ascii=False) for one in item_lines(dataset, arms))
    deliver("\n".join(map(escaped, lines)), str(folder.path / ITEMS))
    facts = {} if settings is None else _without_withdrawal(settings).to_dict()
    profile = facts.pop("profile", {})
    return EvalReport(
        data=dataset.name,
        rule=dataset.rule,
        judge=None if judge is None else f"{judge.model} at {judge.url}",
        questions=len(dataset.questions),
        left_out=dict(dataset.left_out),
        circular=dataset.circular,
        model={**profile, **{key: facts[key] for key in ("revision", "adapter_version") if facts}},
        mvw=__version__,
        arms=summed(dataset, arms, [arm.name for arm in arms], judged=judge is not None),
        remarks=remarks,
    )


def _ask_judge(dataset: Dataset, arms: Sequence[Arm], judge: Judge, view: StderrView) -> None:
    letters = dataset.rule in _BY_LETTER
    by_id = {one.item.id: one for one in dataset.questions}
    prompts = {}
    for arm in arms:
        for id, score in arm.scores.items():
            answer = arm.records[id]["answer"]
            if undecided(score, letters=letters) and answer.strip():
                prompts[arm.name, id] = prompt_of(by_id[id], answer)
    told = judge.verdicts(prompts, lambda done, of: view.progress("Judging", done, of))
    for arm in arms:
        arm.verdicts = {id: told[name, id] for name, id in prompts if name == arm.name}
