"""What `mvw profile` finds out: one tree of figures, as it lies in the JSON file.

Units are in the names. What was not measured is None or empty. Renderers read it and add nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mvw_cli.bench.stats import Ratio, Summary
from mvw_cli.cost.bounds import ArmBound, Plan
from mvw_cli.environment import Environment
from mvw_cli.errors import UsageProblem
from mvw_cli.files import free_name
from mvw_cli.text import error_line, escaped

SCHEMA_VERSION = 2
BASELINE = "baseline"
"""Name of the arm that keeps the vision tokens to the end."""
NO_IMAGE = "no image"
"""Name of the control that is asked without any image."""

Mode = Literal["fixed", "natural"]
"""Fixed: so many tokens, whatever the model writes. Natural: until the model ends."""
ItemSource = Literal["given", "folder", "generated"]


@dataclass(frozen=True, slots=True)
class Model:
    """Which weights were run, and how they were held."""

    adapter: str
    name: str
    revision: str | None
    dtype: str
    device: str
    attention: str
    random_weights: bool


@dataclass(frozen=True, slots=True)
class Workload:
    """What was run."""

    mode: Mode
    new_tokens: int
    """Of each answer; at most so many in the natural mode."""
    items: int
    source: ItemSource
    prompt_tokens: int
    """Of the first item, vision tokens included where they lie in the sequence."""
    vision_tokens: int
    """Of the first item."""
    image_width_px: int
    image_height_px: int
    seed: int
    warm_up: int
    runs: int
    """Pairs that were asked for, at least."""
    min_time_s: float


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the time of one run goes, all sequences of the batch together.

    Each is None where it can't be told apart.
    """

    read_ms: Summary | None
    """Reading and decoding the image files."""
    preprocess_ms: Summary | None
    """Processor and chat template, up to tensors on the device."""
    vision_ms: Summary | None
    """The vision encoder and projector, a part of the prefill."""
    prefill_ms: Summary | None
    """All of the prompt, vision encoder included, up to the first token: the TTFT of a single
    sequence. The prompts of a batch are read one after the other, and this is their sum."""
    decode_before_ms: Summary | None
    """All steps in which a sequence still holds vision tokens, if only at some layers."""
    withdrawal_ms: Summary | None
    """All withdrawals while decoding, and all that brought vision back."""
    decode_after_ms: Summary | None
    """All steps in which none does, without the withdrawal itself."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A withdrawal, or what brought vision back: the n-th of each sequence that has so many, all of
    them together."""

    step: int
    """Tokens generated before it, by the first of them; 0 for the prefill."""
    kv_bytes_before: int
    """Held just before it, without what earlier stages have taken; in the prefill what the baseline
    holds after its own."""
    kv_bytes_after: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one arm. Peaks are reached at the prefill: the curves show what withdrawal does."""

    weight_bytes: int | None
    """None where they are in another process, as vLLM's; so with the peaks."""
    kv_bytes_before: int
    """Just before the withdrawal, or at the end where none is made while decoding. Of several
    withdrawals: at the last one, together with all that has gone before and not come back."""
    kv_bytes_after: int
    """At the same moment, without what has gone."""
    kv_formula_bytes_before: int | None
    """The same from the model's configuration; they have to agree. None where a policy leaves a
    part of the vision, or a sliding window is full: what a layer holds is not known beforehand."""
    kv_formula_bytes_after: int | None
    device_allocated_peak_bytes: int | None
    device_reserved_peak_bytes: int | None
    process_peak_bytes: int | None
    kv_bytes_along: list[int] = field(default_factory=list)
    """Entries in use once a token has been generated, all sequences of the batch together. What is
    withdrawn after a token is gone at its place; the last token takes the sequences with it."""
    kv_allocated_along: list[int] = field(default_factory=list)
    """Storages behind them."""
    kv_bytes_prefilled: int | None = None
    """Entries after the prefills, without what was withdrawn in them."""
    kv_blocks_freed: int | None = None
    """Blocks that withdrawals gave back to the pool; None where the cache has none."""
    host_offloaded_peak_bytes: int = 0
    """The most that waits in host memory at one moment, to come back to the KV cache."""
    stages: list[Stage] = field(default_factory=list)
    """What was withdrawn and what came back, one after the other."""


@dataclass(frozen=True, slots=True)
class Vision:
    """What of the image an arm holds and looks at.

    Layers are those that hold vision tokens where nothing is withdrawn.
    """

    attended: float
    """Vision tokens that a generated token's query attends to, mean over the layers, the tokens of
    an answer and the answers."""
    attended_along: list[float]
    """The same by generated token, mean over the answers that got so far; the first is that of the
    prompt's last token."""
    held_by_layer: list[float]
    """Vision tokens in the KV cache after the prefill, layer by layer, mean over the answers."""
    entries_held: float
    """Sum of these over the layers."""
    withdrawals: float
    """Of an answer while it is decoded, on average; more than 1 where the vision goes bit by bit or
    comes back."""
    look_backs: float
    """How often vision comes back in an answer, on average."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy at one batch size."""

    name: str
    """`baseline`, `m=16`, `no image`, or the policy as `--policy` has it."""
    withdrawn_after: int | None
    """Tokens generated before no layer held vision any more, of the first item: 0 where the prefill
    has left none, None where some was left to the end."""
    generated_tokens: Summary
    """Of each answer."""
    ttft_ms: Summary
    """From the start of the prefill to the first token, of the batch's first sequence; those that
    follow it wait for the prefills before theirs."""
    tpot_ms: Summary
    """Time per output token, of each step after the first token: a step gives a token to every
    sequence of the batch."""
    tpot_before_ms: Summary | None
    tpot_after_ms: Summary | None
    """Without the withdrawal itself, which `tpot_ms` includes."""
    tokens_per_s: Summary
    """Of all sequences of the batch together, over the decode steps."""
    answer_s: Summary
    """From the images in memory to the last token of the batch."""
    phases: Phases
    memory: Memory
    step_ms: list[float]
    """Median time of each step along the output; the first is the second token's."""
    ratios: dict[str, Ratio]
    """Against the baseline, as rates, so that above 1 is better: `ttft`, `tpot`, `tokens_per_s`,
    `answer`; empty for the baseline itself. Of `tpot` the medians of each run are compared, of
    `tokens_per_s` the means."""
    bound: ArmBound | None
    vision: Vision | None = None
    """None for an arm without any vision tokens."""


@dataclass(frozen=True, slots=True)
class Cell:
    """All arms at one batch size, run in turn."""

    batch: int
    pairs: int
    arms: list[Arm]
    unstable: list[str]
    """Sentences: which figure spreads how much, and what to do."""
    ended: str | None = None
    """What ended it before all pairs were there, where something went wrong."""
    device_busy: float | None = None
    """Part of the time of a step of the baseline in which the device ran kernels; None where that
    can't be told."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of one arm beside those of the baseline."""

    name: str
    items: int
    identical: int
    generated_tokens: Summary
    seconds: Summary
    """Of each answer: its length changes, so speed alone does not tell."""
    first_difference: Summary | None = None
    """Place of the first token that differs, of the answers that do."""
    agreement: float | None = None
    """Part of the next tokens that stay the likeliest, along the baseline's output; None for the
    baseline itself, as all that compares an arm with it."""
    agreement_interval_95: tuple[float, float] | None = None
    """Bootstrap over the answers."""
    kl_nats: Summary | None = None
    """KL divergence of the next token's distribution, mean of each answer, along the same."""
    same_answer: int | None = None
    """Answers that come out as those of the baseline, once the reasoning is taken off and judged
    as a right answer is."""
    correct: int | None = None
    """Right answers, where the items have a reference."""
    accuracy_interval_95: tuple[float, float] | None = None
    """Wilson's."""
    lost: int | None = None
    """Items that the baseline has right and this arm wrong, where they have a reference."""
    won: int | None = None
    """The reverse."""
    p_value: float | None = None
    """McNemar's exact test against the baseline."""
    drop_interval_95: tuple[float, float] | None = None
    """Of the accuracy against that of the baseline, as a share; above 0 is worse. Tango's."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What withdrawal changes in what the model says."""

    items: int
    references: int
    arms: list[Comparison]
    remarks: list[str] = field(default_factory=list)
    """What was left out, and why."""


@dataclass(frozen=True, slots=True)
class AttentionMass:
    """How much vision counts for each generated token, without withdrawal.

    The share of the attention that goes to vision tokens; or, in models that read vision by
    cross-attention, whose share there is 1 by definition, what these layers add to the stream.
    Source of the picture: "Reasoning with Fewer Eyes", figure 1.
    """

    layers: list[int]
    mass: list[float]
    """Mean over heads and layers, by generated token: of the query of the token before it, whose
    forward pass has chosen it."""
    by_layer: list[list[float]]
    vision_share_of_entries: list[float]
    """What uniform attention would give; empty for cross-attention."""
    measure: Literal["attention", "cross-attention"] = "attention"
    """`cross-attention`: ‖added‖ / (‖stream‖ + ‖added‖), with all that a cross-attention layer adds
    to the newest token's hidden state, gated attention and gated MLP."""


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """One run of `mvw profile`."""

    environment: Environment
    model: Model
    profile: dict[str, Any]
    workload: Workload
    command: list[str]
    started: str
    """ISO 8601, UTC."""
    seconds: float
    plan: Plan | None
    cells: list[Cell]
    answers: Answers | None = None
    attention: AttentionMass | None = None
    verdicts: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION
    kind: Literal["profile"] = "profile"


def to_json(report: ProfileReport) -> str:
    """Write a report as JSON."""
    from pydantic import TypeAdapter

    document = TypeAdapter(ProfileReport).dump_python(report, mode="json")
    return escaped(json.dumps(document, indent=2, ensure_ascii=False))


@contextmanager
def showing(*paths: str) -> Iterator[None]:
    """Within it, reports that were read are shown; they may have been changed by hand.

    Raises:
        UsageProblem: their figures contradict each other.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageProblem(
            f"Cannot show {' and '.join(paths)}",
            cause=f"its figures are none that mvw writes: {error_line(error)}",
            hint=f"mvw profile --m 16 -o {free_name('report.json')}",
        ) from error


def read_report(path: str) -> ProfileReport:
    """Read a report.

    Raises:
        UsageProblem: the file is not there, or is no report of this version.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        document = json.loads(Path(path).read_text("utf-8"))
        return TypeAdapter(ProfileReport).validate_python(document)
    except OSError as error:
        cause = error.strerror or str(error)
    except ValidationError as error:
        first = error.errors()[0]
        cause = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError):
        cause = "it is no JSON"
    raise UsageProblem(
        f"Cannot read the report {path}",
        cause=cause,
        hint=f"mvw profile --m 16 -o {free_name('report.json')}",
    )
