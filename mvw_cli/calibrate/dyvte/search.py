"""The search for DyVTE's gates: label every question, train, and judge on images held out.

Answers are the model's own, written with the vision to the end, or the references that the user
has. What a gate reads of a question is too large for a line of the store, so it has a file of its
own, which is written before the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mvw_cli import __version__
from mvw_cli.batch.items import item_key
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.calibrate.dyvte import report as reporting
from mvw_cli.calibrate.dyvte.gates import Gate, write_gates
from mvw_cli.calibrate.dyvte.labels import label_question, labels
from mvw_cli.calibrate.dyvte.training import Dataset, Training, split, train
from mvw_cli.calibrate.search import CalibrationReport, Outcome, Search, SearchRun
from mvw_cli.cost.flops import flops_of
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.memory import ran_out
from mvw_cli.engine.types import Finished, NotExact, Request
from mvw_cli.errors import ModelProblem, MvwError, OutOfMemory, UsageProblem
from mvw_cli.files import check_writable, replacing, unwritable
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section
from mvw_cli.session import Session


@dataclass
class DyvteSearch(Search):
    """The options of `mvw calibrate dyvte`."""

    doing: ClassVar[str] = "Labelling: question"

    gates: Path
    """The file to write."""
    work: Path
    """A folder for what gates read, and for the state of the training."""
    training: Training = field(default_factory=Training)
    along: Literal["own", "reference"] = "own"
    """Whose answers are followed."""
    agreement: float = 0.99
    loss_ratio: float = 1.03
    held_out: float = 0.2
    """Part of the images."""
    gate_dtype: str = "model"
    slots: int = 8
    _answers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the questions that are about to be labelled, by key."""

    @classmethod
    def for_output(cls, output: Path, **options: Any) -> Self:
        gates, work = (output.with_name(output.stem + end) for end in (".safetensors", ".work"))
        lr, epochs, batch = (options.pop(name) for name in ("lr", "epochs", "batch"))
        return cls(gates, work, Training(lr, epochs, batch), **options)

    @property
    def together(self) -> int:
        return self.slots

    def settings(self) -> dict[str, Any]:
        trained = {name: getattr(self.training, name) for name in ("lr", "epochs", "batch")}
        names = ("along", "agreement", "loss_ratio", "held_out", "gate_dtype", "slots")
        return {**{name: getattr(self, name) for name in names}, **trained}

    def sample_settings(self) -> dict[str, Any]:
        return {"along": self.along}

    def check_items(self, items: Sequence[ItemSpec]) -> None:
        check_writable(str(self.gates))
        with _writing(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        for item in items if self.along == "reference" else ():
            if not item.reference:
                raise UsageProblem(
                    f"{', '.join(item.images)} has no reference answer",
                    cause="--along reference follows the answers of the questions file",
                    hint="mvw calibrate dyvte --along own",
                )

    def key_of(self, item: ItemSpec, key: str) -> str:
        return key if self.along == "own" else item_key([key], item.reference or "")

    def known(self, run: SearchRun, key: str) -> dict[str, Any] | None:
        return run.store.get(key) if self._features(run, key).exists() else None

    def prepare(self, run: SearchRun, requests: Sequence[Request]) -> None:
        """Let the model answer the questions, several at a time."""
        if self.along == "reference":
            return
        self._answers.clear()
        plain = [replace(request, policy=NoWithdrawal()) for request in requests]
        for event in run.session.run(plain):
            run.tick()
            if isinstance(event, Finished):
                self._answers[event.request] = event.token_ids

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        model = run.session.loaded.model
        if self.along == "own":
            answer = self._answers[request.id]
        else:
            limit = run.session.settings.max_new_tokens
            answer = _tokens(run.session, item.reference or "")[:limit]
        try:
            with _enough_memory("labelling"):
                example = label_question(
                    model,
                    request.inputs,
                    request.layout,
                    answer,
                    cross_attention=run.session.engine.cross_attention,
                )
        except NotExact as error:
            raise ModelProblem(
                f"{type(model).__name__} can't be run with its vision gone from a layer on.",
                cause=f"In {run.session.loaded.name}: {error}.",
                hint="mvw list adapters",
            ) from error
        path = self._features(run, request.id)
        with _writing(path), replacing(path) as file:
            file.write(save({"features": example.features}))
        return {
            "text_tokens": request.text_tokens,
            "vision_tokens": request.layout.vision_tokens,
            "answer_tokens": len(answer),
            "agreement": example.agreement.tolist(),
            "loss_nats": example.loss.tolist(),
            "full_loss_nats": example.full_loss,
        }

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        dataset, remarks = self.dataset(run, samples), [f"Left out: {one}" for one in run.left_out]
        cross_layers = cross_attention_layers(run.session.loaded.model)
        costs = None
        try:
            costs = _costs(run.session, dataset)
        except MvwError as error:
            remarks.append(f"FLOPs can't be counted: {error.message}")
        run.release_model()
        bounds = {"min_agreement": self.agreement, "loss_ratio": self.loss_ratio}
        truth = labels(dataset.agreement, dataset.loss, dataset.full_loss[:, None], **bounds)
        training, held_out = split(dataset, self.held_out, run.seed)
        if self.gate_dtype == "model":
            self.gate_dtype = run.facts["dtype"]
        gates = self._trained(run, dataset.features[training], truth[training])
        judged = dataset.of(held_out)
        found = reporting.evaluate(
            reporting.decisions(gates, judged.features.to(run.device)).cpu(),
            judged,
            truth[held_out],
            truth[training],
            None if costs is None else [costs[row] for row in held_out],
            cross_layers=cross_layers,
        )
        data = _counted(dataset, training, held_out, len(run.left_out))
        layers, width = dataset.features.shape[1] + 1, dataset.features.shape[2] // 2
        self._write(run, gates, data, layers=layers, hidden_size=width)
        figures = asdict(found)
        curve = figures.pop("gates")
        return Outcome(
            curve,
            {"policy": "dyvte", "gates": os.path.abspath(self.gates)},
            " ".join(reporting.verdict(found, len(held_out))),
            remarks,
            {"data": data, **figures},
        )

    def _features(self, run: SearchRun, key: str) -> Path:
        return self.work / f"{run.store.run}-{key}.safetensors"

    def dataset(self, run: SearchRun, samples: Sequence[dict[str, Any]]) -> Dataset:
        """Put the questions together, each once, in an order that no interruption changes."""
        by_key = {sample["key"]: sample for sample in samples}
        ordered = [by_key[key] for key in sorted(by_key)]
        read = [load_file(self._features(run, one["key"]))["features"] for one in ordered]
        return Dataset(
            tuple(ordered),
            torch.stack(read),
            torch.tensor([one["agreement"] for one in ordered]),
            torch.tensor([one["loss_nats"] for one in ordered]),
            torch.tensor([one["full_loss_nats"] for one in ordered]),
        )

    def _trained(self, run: SearchRun, features: Tensor, truth: Tensor) -> list[Gate]:
        """Train the gates and round them as the file will hold them."""

        def progress(done: int, total: int, loss: float) -> None:
            run.progress(f"Training: loss {loss:.3f}, batch", done, total)

        checkpoint = self.work / "training.safetensors"
        with _writing(checkpoint), _enough_memory("training the gates"):
            gates = train(
                features,
                truth,
                replace(self.training, seed=run.seed),
                checkpoint,
                device=run.device,
                progress=progress,
                stopping=run.stopping,
            )
        if gates is None:
            raise Stopped
        kind = getattr(torch, self.gate_dtype)
        return [(one.to(kind), two.to(kind), three.to(kind)) for one, two, three in gates]

    def _write(
        self, run: SearchRun, gates: Sequence[Gate], data: dict[str, Any], **shape: int
    ) -> None:
        """Write the gates, with what is to be known about them."""
        facts = {"model": run.facts["name"]}
        facts |= {name: run.facts[name] for name in ("revision", "adapter", "dtype")}
        about = {
            "mvw_version": __version__,
            **facts,
            **shape,
            "profile": run.profile.get("values"),
            "settings": {**self.settings(), "seed": run.seed},
            "data": data,
        }
        with _writing(self.gates):
            write_gates(gates, about, Path(os.path.realpath(self.gates)))

    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        return "dyvte"

    def tables(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        return reporting.tables(report.outcome, whole=whole)

    def hidden(self, report: CalibrationReport) -> str:
        return "every gate and every layer"

    def charts(self, report: CalibrationReport) -> list[Chart]:
        return reporting.charts(report.outcome)


def _counted(
    dataset: Dataset, training: Sequence[int], held_out: Sequence[int], left_out: int
) -> dict[str, Any]:
    """Count the questions and images that gates were trained on and judged by."""
    questions = dataset.questions

    def mean(of: str) -> float:
        return sum(int(one[of]) for one in questions) / len(questions)

    return {
        "questions": len(questions),
        "left_out": left_out,
        "training_questions": len(training),
        "training_images": len({dataset.images(row) for row in training}),
        "held_out_questions": len(held_out),
        "held_out_images": len({dataset.images(row) for row in held_out}),
        "answer_tokens_mean": mean("answer_tokens"),
        "vision_tokens_mean": mean("vision_tokens"),
    }


def _costs(session: Session, dataset: Dataset) -> list[reporting.Prefill]:
    flops = flops_of(session.adapter, session.loaded.model.config)
    keep_mlp = session.engine.cross_attention == "mlp"
    return [
        reporting.prefill(flops, one["text_tokens"], one["vision_tokens"], keep_mlp=keep_mlp)
        for one in dataset.questions
    ]


def _tokens(session: Session, text: str) -> tuple[int, ...]:
    """Write a reference as the model would: its tokens and the one that ends an answer."""
    processor: Any = session.loaded.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    end = session.loaded.model.generation_config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)[:1]
    return (*tokenizer(text, add_special_tokens=False)["input_ids"], *ends)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error with a way out."""
    try:
        yield
    except OSError as error:
        raise unwritable(str(path), error.strerror or str(error), "df -h .") from error


@contextmanager
def _enough_memory(doing: str) -> Iterator[None]:
    """Turn a lack of memory into an error with a way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(
            f"out of memory while {doing}",
            cause=next(iter(str(error).splitlines()), "") or "the machine has no more to give",
            hint="mvw calibrate dyvte --slots 1 --device cpu --dtype bfloat16",
        ) from error
