"""Is a class of transformers served exactly, or refused with a sentence? Nothing else may be.

Held against `generate`, the oracle and shared slots, on a tiny random model.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import families
import tiny_models
import torch
import transformers
from families import BY_NAME, Family
from mvw_hf.loading import APART
from mvw_hf.model import check_image_token
from running import Run, loaded, request, run
from tiny_models import Inputs
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mvw_cli.adapter import VisionLayout
from mvw_cli.engine.engine import Engine
from mvw_cli.errors import ModelProblem
from mvw_cli.oracle.masked import oracle_logits

TOLERANCE = 1e-5
"""Of the largest logit."""
TOKENS = 8
STEPS = (1, 3)
PLAN = ((0, 2, 8), (1, None, 5), (2, 1, 7), (3, 4, 8))
"""Seed, m and length of the requests that share two slots."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of a class."""

    kind: str
    status: str
    """`exact`, `refused`, `wrong` or `crash`."""
    why: str = ""


def judge(name: str) -> Outcome:
    """Judge a class by its name, as far as it can get: configuration, engine, answers."""
    if name == "MllamaForConditionalGeneration":  # cross-attention: its vision is in no sequence
        family = BY_NAME["mllama"]
        return judge_model(families.build(family), name, family)
    kind = getattr(transformers, name)
    try:
        config = tiny_models.configuration(kind)
        thinker = getattr(config, "thinker_config", None)
        if thinker is not None:
            kind = AutoModelForImageTextToText._model_mapping[type(thinker)]
            config = tiny_models.configuration(kind)
        if config.model_type in APART:
            return Outcome(name, "refused", APART[config.model_type])
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return Outcome(name, "refused", "It is not a vision-language model.")
        check_image_token(SimpleNamespace(config=config), name)
        model = tiny_models.build(kind)
    except ModelProblem as refusal:
        return Outcome(name, "refused", str(refusal.cause))
    except Exception as error:
        return Outcome(name, "crash", f"not built: {_told(error)}")
    return judge_model(model, name)


def _told(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]} at {place}"


def judge_model(model: Any, name: str, family: Family | None = None) -> Outcome:
    """Judge a model; prompts are those of its family, or found out."""
    fresh = deepcopy(model)  # rotary frequencies may go on from what a model has seen
    try:
        Engine(loaded(model))
        make = partial(tiny_models.prompt, model) if family is None else family.prompt
        prompts = [make(seed) for seed, *_ in PLAN]
        layout = partial(_in_sequence, model) if family is None else family.layout
        wrong = _wrong(model, fresh, prompts, layout)
    except ModelProblem as refusal:
        return Outcome(name, "refused", str(refusal.cause))
    except tiny_models.NoImage as error:
        return Outcome(name, "crash", f"no image: {error}")
    except Exception as error:
        return Outcome(name, "crash", _told(error))
    return Outcome(name, "wrong" if wrong else "exact", "; ".join(wrong))


def _in_sequence(model: Any, inputs: Inputs) -> VisionLayout:
    return VisionLayout(inputs["input_ids"][0] == tiny_models.image_token(model.config))


def _wrong(
    model: Any,
    fresh: Any,
    prompts: Sequence[Inputs],
    layout: Callable[[Inputs], VisionLayout],
) -> list[str]:
    """List what is not as it should be."""
    found: list[str] = []
    tolerance = 0.0

    def compare(what: str, one: Tensor, other: Tensor, allowed: float = 0.0) -> None:
        difference = float((one - other).abs().max())
        if not difference <= max(tolerance, allowed):
            found.append(f"{what}: {difference:.1e}")

    def ask(inputs: Inputs, m: int | None, name: str = "a", length: int = TOKENS) -> Any:
        return request(inputs, layout(inputs), m, name=name, max_new_tokens=length)

    first = prompts[0]
    vision = layout(first).entries
    told = fresh.generate(
        **first,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(told.logits)
    tolerance = TOLERANCE * max(1.0, float(logits.abs().max()))
    for m in (None, 100):
        late = run(model, [ask(first, m)])["a"]
        if list(late.completion.token_ids) != told.sequences[0, -TOKENS:].tolist():
            found.append(f"other tokens than generate, m = {m}")
        else:
            compare(f"generate, m = {m}", late.logits, logits)
    # Of some recurrent states: a scan of all tokens and one token after the other are rounded
    # otherwise by transformers itself, without any withdrawal.
    whole = oracle_logits(model, first, told.sequences[0, -TOKENS:].tolist(), vision, None)
    allowed = min(3 * float((whole - logits).abs().max()), 10 * tolerance)
    for m in STEPS:
        early: Run = run(model, [ask(first, m)])["a"]
        ids = early.completion.token_ids
        expected = oracle_logits(model, first, ids, vision, m)
        compare(f"oracle, m = {m}", early.logits, expected, allowed)
        visible = oracle_logits(model, first, ids, vision, None)
        if float((expected[m:] - visible[m:]).abs().max()) < 100 * tolerance:
            found.append(f"withdrawal changes nothing, m = {m}")
    requests = [
        ask(inputs, m, str(seed), length)
        for inputs, (seed, m, length) in zip(prompts, PLAN, strict=True)
    ]
    together = run(model, requests, slots=2)
    for one in requests:
        alone = run(model, [one])[one.id]
        if alone.completion.token_ids != together[one.id].completion.token_ids:
            found.append(f"other tokens in shared slots, request {one.id}")
        else:
            compare(f"shared slots, request {one.id}", together[one.id].logits, alone.logits)
    return found
