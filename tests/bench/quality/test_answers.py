"""Answers under every arm: what the engine says by itself, the control, stopping, and the
embedded model, whose answers are known to need the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mvw_hf.model import HuggingFace
from mvw_shapes.samples import write_samples
from PIL.Image import Image
from sessions import GREEDY, answered, at, opened, tiny

from mvw_cli import LoadedModel, VisionLayout
from mvw_cli.bench.documents import Answers, Comparison
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality.answers import ALONG, compare_answers
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Request
from mvw_cli.oracle.equivalence import noise
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import Session, open_session

ARMS = {"m=2": at(2), "m=12": at(12)}
NATURAL = replace(GREEDY, ignore_eos=False)


@pytest.fixture
def items(tmp_path: Path) -> list[ItemSpec]:
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        noise(40, 30, seed=number).save(path)
        made.append(ItemSpec((str(path),), f"w1 w{number}", "w1" if number else None))
    return made


def by_name(answers: Answers) -> dict[str, Comparison]:
    return {arm.name: arm for arm in answers.arms}


def test_they_are_the_engines_own(items: list[ItemSpec]) -> None:
    session = tiny("hf")
    answers = compare_answers(session, items, ARMS)
    assert [arm.name for arm in answers.arms] == ["baseline", "m=2", "m=12", "no image"]
    assert (answers.items, answers.references, answers.remarks) == (4, 3, [])
    from mvw_cli.images.reading import open_image

    for name, policy in {"baseline": at(None), **ARMS}.items():
        written = []
        for item in items:
            request = session.request([open_image(item.images[0]).image], item.question)
            written.append(answered(session, replace(request, policy=policy, settings=NATURAL)))
        own = by_name(answers)[name]
        assert own.generated_tokens.samples == [len(tokens) for tokens in written]
        if name == "baseline":
            base = written
        assert own.identical == sum(a == b for a, b in zip(base, written, strict=True))
    without = by_name(answers)["no image"]
    blind = [
        answered(session, replace(session.request([], item.question), settings=NATURAL))
        for item in items
    ]
    assert without.generated_tokens.samples == [len(tokens) for tokens in blind]
    assert without.identical == sum(a == b for a, b in zip(base, blind, strict=True))
    # Twelve tokens are all there are, so nothing is withdrawn before the last has been chosen.
    assert by_name(answers)["m=12"].identical == 4 and by_name(answers)["m=12"].agreement == 1
    assert by_name(answers)["m=2"].identical < 4


def test_the_end_token_counts_whatever_the_session_says(items: list[ItemSpec]) -> None:
    session = tiny("hf")
    assert session.settings.ignore_eos
    free = answered(session, session.request([noise(40, 30)], "w1 w0"))
    session.loaded.model.generation_config.eos_token_id = free[3]
    answers = compare_answers(session, items[:1], {})
    assert by_name(answers)["baseline"].generated_tokens.samples == [free.index(free[3]) + 1]


def test_all_arms_of_an_item_before_the_next_in_a_turning_order(items: list[ItemSpec]) -> None:
    calls: list[tuple[int, str]] = []
    compare_answers(
        tiny("hf"),
        items[:3],
        {"m=2": at(2)},
        progress=lambda item, doing: calls.append((item, doing)),
    )
    assert calls == [
        *((1, name) for name in ("baseline", "m=2", "no image", ALONG)),
        *((2, name) for name in ("m=2", "no image", "baseline", ALONG)),
        *((3, name) for name in ("no image", "baseline", "m=2", ALONG)),
    ]


def test_stopping_returns_the_items_that_are_whole(items: list[ItemSpec]) -> None:
    doing: list[str] = []
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return len(doing) == 7  # in the midst of the second item

    answers = compare_answers(
        tiny("hf"),
        items,
        {"m=2": at(2)},
        progress=lambda item, name: doing.append(name),
        stopping=stopping,
    )
    assert answers.items == 1 and [arm.items for arm in answers.arms] == [1, 1, 1]
    assert answers.remarks == ["Stopped early. Items compared until then: 1."]
    nothing = compare_answers(tiny("hf"), items, ARMS, stopping=lambda: True)
    assert (nothing.items, nothing.arms) == (0, [])


def test_items_that_can_not_be_answered_are_left_out_of_all_arms(
    items: list[ItemSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ItemSpec((str(tmp_path / "missing.png"),), "w1 w2")
    admit = Slots.admit

    def short_of_memory(slots: Slots, request: Request) -> Any:
        if request.inputs["input_ids"].shape[1] > 30:
            raise torch.OutOfMemoryError("planted")
        return admit(slots, request)

    monkeypatch.setattr(Slots, "admit", short_of_memory)
    large = replace(items[1], question=" ".join(["w1"] * 40))
    answers = compare_answers(tiny("hf"), [missing, items[0], large, items[2]], {"m=2": at(2)})
    assert answers.items == 2 and [arm.items for arm in answers.arms] == [2, 2, 2]
    [remark] = answers.remarks
    assert remark.startswith("Items left out: 2. ")
    assert "missing.png" in remark and "out of memory" in remark
    alone = compare_answers(tiny("hf"), [items[0], items[2]], {"m=2": at(2)})
    for one, other in zip(answers.arms, alone.arms, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert (one.identical, one.agreement) == (other.identical, other.agreement)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_answer_differs_before_its_withdrawal(items: list[ItemSpec], temperature: float) -> None:
    """Also where tokens are drawn: every arm draws from the same seed."""
    settings = replace(NATURAL, temperature=temperature, seed=4)
    answers = compare_answers(
        tiny("hf"), items, {f"m={m}": at(m) for m in (1, 3, 6)}, settings=settings
    )
    arms = by_name(answers)
    for m in (1, 3, 6):
        first = arms[f"m={m}"].first_difference
        assert first is None or min(first.samples) > m
    assert arms["m=1"].identical < 4


class NeedsImages(HuggingFace):
    """Fails without an image, as a processor does that was never asked for that."""

    def encode(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> Any:
        return super().encode(loaded, [images[0]], question)


class Blank(HuggingFace):
    """Puts a blank picture where none is given."""

    def encode(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> Any:
        return super().encode(loaded, images or [noise(8, 8)], question)


class Unaware(HuggingFace):
    """Says that there is no vision where there is none, and its model can't do without."""

    def encode(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> Any:
        inputs = super().encode(loaded, images, question)
        return inputs if images else {**inputs, "unheard_of": inputs["input_ids"]}

    def vision(self, loaded: LoadedModel, inputs: Any) -> VisionLayout:
        return super().vision(loaded, inputs)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (NeedsImages, "adapter `hf`: IndexError: list index out of range."),
        (Blank, "adapter `hf` puts vision tokens into a question without one."),
        (Unaware, "ValueError: The following `model_kwargs` are not used"),
    ],
)
def test_where_there_is_no_control_a_remark_says_why(
    items: list[ItemSpec], adapter: type[HuggingFace], reason: str
) -> None:
    session = tiny("hf")
    session = opened(adapter(), session.loaded)
    answers = compare_answers(session, items[:2], {"m=2": at(2)})
    assert [arm.name for arm in answers.arms] == ["baseline", "m=2"]
    [remark] = answers.remarks
    assert remark.startswith(f"The control without an image is left out: {reason}")


@pytest.mark.parametrize("adapter", ["llava-cot", "kimi-vl"])
def test_other_families_have_the_control_too(items: list[ItemSpec], adapter: str) -> None:
    answers = compare_answers(tiny(adapter), items[:1], {"m=2": at(2)})
    assert [arm.name for arm in answers.arms] == ["baseline", "m=2", "no image"]
    assert answers.remarks == []
    kl = {arm.name: arm.kl_nats.median for arm in answers.arms if arm.kl_nats is not None}
    assert kl["m=2"] > 1e-4 and kl["no image"] > 1e-4


@pytest.fixture(scope="module")
def embedded() -> Session:
    return open_session(resolve("shapes", {}).profile)


def test_the_embedded_model_needs_its_image_at_first_and_not_later(
    embedded: Session, tmp_path: Path
) -> None:
    records = map(json.loads, write_samples(tmp_path, 8, 7).read_text().splitlines())
    scenes = [
        ItemSpec((str(tmp_path / one["image"]),), one["question"], one["answer"]) for one in records
    ]
    answers = compare_answers(embedded, scenes, {"m=1": at(1), "m=64": at(64)})
    baseline, early, late, blind = (
        by_name(answers)[n] for n in ("baseline", "m=1", "m=64", "no image")
    )
    assert baseline.correct is not None and baseline.correct >= 7
    assert late.agreement is not None and late.agreement > 0.99
    assert late.correct == baseline.correct and late.same_answer == 8
    assert late.kl_nats is not None and late.kl_nats.median < 0.001
    for arm in (early, blind):
        assert arm.correct is not None and arm.correct <= baseline.correct - 3
        assert arm.agreement is not None and arm.agreement < 0.95
        assert arm.kl_nats is not None and arm.kl_nats.median > 0.1
        assert arm.identical == 0 and arm.lost is not None and arm.lost >= 3
