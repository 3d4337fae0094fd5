"""The search for DyVTE's gates: label every question, train, and judge on images held out.

Answers are the model's own, written with the vision to the end, or the references that the user
has. What a gate reads of a question is too large for a line of the store, so it has a file of its
own, which is written before the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mvw_cli import __version__
from mvw_cli.batch.items import item_key
from mvw_cli.batch.store.jsonl import cannot_write
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.calibrate.dyvte import report as reporting
from mvw_cli.calibrate.dyvte.gates import Gate, write_gates
from mvw_cli.calibrate.dyvte.labels import label_question, labels
from mvw_cli.calibrate.dyvte.training import PUBLISHED_LR, Dataset, split, train
from mvw_cli.calibrate.profile import beside
from mvw_cli.calibrate.search import Outcome, Search, SearchRun
from mvw_cli.cost.flops import flops_of
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.types import Finished, Request
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import replacing
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section
from mvw_cli.session import Session

GATES = ".safetensors"


@dataclass
class DyvteSearch(Search):
    """The options of `mvw calibrate dyvte`."""

    doing: ClassVar[str] = "Labelling: question"
    files: ClassVar[tuple[str, ...]] = (GATES,)
    measured_by: ClassVar[tuple[str, ...]] = ("along",)

    along: Literal["own", "reference"] = "own"
    """Whose answers are followed."""
    agreement: float = 0.99
    loss_ratio: float = 1.03
    lr: float = PUBLISHED_LR
    epochs: int = 30
    batch: int = 16
    held_out: float = 0.2
    """Part of the images."""
    gate_dtype: str = "model"
    slots: int = 8
    _answers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the questions that are about to be labelled, by key."""

    @property
    def together(self) -> int:
        return self.slots

    def check(self, run: SearchRun) -> None:
        for item in run.items if self.along == "reference" else ():
            if not item.reference:
                raise UsageProblem(
                    f"{', '.join(item.images)} has no reference answer",
                    cause="--along reference follows the answers of the questions file",
                    hint="mvw calibrate dyvte --along own",
                )

    def key_of(self, item: ItemSpec, key: str) -> str:
        return key if self.along == "own" else item_key([key], item.reference or "")

    def known(self, run: SearchRun, key: str) -> dict[str, Any] | None:
        return run.store.get(key) if _features(run, key).exists() else None

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
        if self.along == "own":
            answer = self._answers[request.id]
        else:
            limit = run.session.settings.max_new_tokens
            answer = _tokens(run.session, item.reference or "")[:limit]
        with run.session.serving():
            example = label_question(
                run.session.loaded.model,
                request.inputs,
                request.layout,
                answer,
                cross_attention=run.session.engine.cross_attention,
            )
        path = _features(run, request.id)
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
        dataset, remarks = read_dataset(run, samples), [f"Left out: {one}" for one in run.left_out]
        cross_layers = cross_attention_layers(run.session.loaded.model)
        shares = None
        try:
            shares = _vision_shares(run.session, dataset)
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
            None if shares is None else [shares[row] for row in held_out],
            cross_layers=cross_layers,
        )
        data = _counted(dataset, training, held_out, len(run.left_out))
        gates_file = beside(run.output, GATES)
        about = {
            "mvw_version": __version__,
            "model": run.facts["name"],
            **{name: run.facts[name] for name in ("revision", "adapter", "dtype")},
            "layers": dataset.features.shape[1] + 1,
            "hidden_size": dataset.features.shape[2] // 2,
            "profile": run.profile.get("values"),
            "settings": {**self.settings(), "seed": run.seed},
            "data": data,
        }
        with _writing(gates_file):
            write_gates(gates, about, Path(os.path.realpath(gates_file)))
        figures = asdict(found)
        curve = figures.pop("gates")
        verdict = reporting.verdict(found, len(held_out), learnable=bool(truth.any()))
        return Outcome(
            curve,
            {"policy": "dyvte", "gates": os.path.abspath(gates_file)},
            " ".join(verdict),
            remarks,
            {"data": data, **figures},
        )

    def _trained(self, run: SearchRun, features: Tensor, truth: Tensor) -> list[Gate]:
        """Train the gates and round them as the file will hold them."""

        def tick(done: int, total: int, loss: float) -> None:
            run.tick()
            if done % 50 == 0:
                run.progress(f"Training: loss {loss:.3f}, batch", done, total)

        gates = train(
            features,
            truth,
            lr=self.lr,
            epochs=self.epochs,
            batch=self.batch,
            seed=run.seed,
            device=run.device,
            tick=tick,
        )
        kind = getattr(torch, self.gate_dtype)
        return [(one.to(kind), two.to(kind), three.to(kind)) for one, two, three in gates]

    def tables(self, outcome: Outcome, samples: int) -> list[Section]:
        return reporting.tables(outcome)

    def charts(self, outcome: Outcome) -> list[Chart]:
        return reporting.charts(outcome)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make room for a file, and tell of a disk that does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        kept = "what was measured is kept, and the same command goes on"
        raise cannot_write(str(path), error, kept) from None


def _features(run: SearchRun, key: str) -> Path:
    """Name the file with what gates read of a question."""
    return beside(run.output, ".work") / f"{run.store.run}-{key}.safetensors"


def read_dataset(run: SearchRun, samples: Sequence[dict[str, Any]]) -> Dataset:
    """Put the questions together, each once, in an order that no interruption changes."""
    by_key = {sample["key"]: sample for sample in samples}
    ordered = [by_key[key] for key in sorted(by_key)]
    read = [load_file(_features(run, one["key"]))["features"] for one in ordered]
    return Dataset(
        tuple(ordered),
        torch.stack(read),
        torch.tensor([one["agreement"] for one in ordered]),
        torch.tensor([one["loss_nats"] for one in ordered]),
        torch.tensor([one["full_loss_nats"] for one in ordered]),
    )


def _counted(
    dataset: Dataset, training: Sequence[int], held_out: Sequence[int], left_out: int
) -> dict[str, Any]:
    """Count the questions and images that gates were trained on and judged by."""
    return {
        "questions": len(dataset.questions),
        "left_out": left_out,
        "training_questions": len(training),
        "training_images": len({dataset.images(row) for row in training}),
        "held_out_questions": len(held_out),
        "held_out_images": len({dataset.images(row) for row in held_out}),
    }


def _vision_shares(session: Session, dataset: Dataset) -> list[float]:
    flops = flops_of(session.adapter, session.loaded.model.config)
    keep_mlp = session.engine.cross_attention == "mlp"
    return [
        reporting.vision_share(flops, one["text_tokens"], one["vision_tokens"], keep_mlp=keep_mlp)
        for one in dataset.questions
    ]


def _tokens(session: Session, text: str) -> tuple[int, ...]:
    """Write a reference as the model would: its tokens and the one that ends an answer."""
    processor: Any = session.loaded.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    end = session.loaded.model.generation_config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)[:1]
    return (*tokenizer(text, add_special_tokens=False)["input_ids"], *ends)
