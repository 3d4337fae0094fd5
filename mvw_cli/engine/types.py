"""What goes into the engine and what comes out: requests, events, and their sum, the completion.

Events are small dataclasses with a timestamp. A completion sums up those of one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mvw_cli.adapter import VisionLayout
from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.policy import WithdrawalPolicy

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FinishReason = Literal["eos", "stop", "length"]


class NotExact(Exception):
    """Why a model can't be served exactly, as the end of a sentence."""


class NotFinite(MvwError):
    """A forward pass gave no number to choose a token by: the answer of one request is lost."""

    exit_code = ExitCode.MODEL

    @classmethod
    def at(cls, step: int, dtype: str) -> NotFinite:
        """Make the error of a token, counted from 1, that was to be chosen in a model's dtype."""
        cause = f"the logits of token {step} are not finite in {dtype}"
        if dtype == "float32":
            return cls("The model gives no answer", cause=f"{cause}: weights or image are damaged")
        wider = "bfloat16" if dtype == "float16" else "float32"
        hint = f"mvw infer IMAGE QUESTION --dtype {wider}"
        return cls("The model gives no answer", cause=f"{cause}, which they overflow", hint=hint)


class EngineDied(MvwError):
    """The processes of an engine that is not in this one have ended: it serves nothing more."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How tokens are chosen and when to stop. None means: as the model's own configuration says."""

    max_new_tokens: int = 512
    temperature: float | None = None
    """0 is greedy; None takes the model's generation config."""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    """Seeds this request's own random generator: its samples do not depend on its neighbours."""
    stop: tuple[str, ...] = ()
    """Generation ends once one of these has been written; it stays in the text."""
    ignore_eos: bool = False
    """Go on past the end token, for measurements of a fixed length."""


@dataclass(frozen=True, slots=True)
class Request:
    """One image question, encoded."""

    id: str
    inputs: Mapping[str, Tensor]
    """Model inputs for one sequence, batch axis included; `input_ids` is  # (1, P)."""
    layout: VisionLayout
    policy: WithdrawalPolicy
    settings: GenerationSettings
    images: Sequence[Image] = ()
    """The pictures themselves, for an engine that prepares them itself."""
    forced: tuple[int, ...] | None = None
    """The whole output, where it is given: its tokens are read and none is chosen, so that other
    conditions can be seen along the same output; at least one token. Settings count for nothing
    then."""

    @property
    def text_tokens(self) -> int:
        """Prompt tokens that are no vision tokens."""
        return int(self.inputs["input_ids"].shape[1]) - int(self.layout.entries.sum())


@dataclass(frozen=True, slots=True)
class _Event:
    request: str
    at: float
    """Seconds on the monotonic clock (`time.perf_counter`)."""


@dataclass(frozen=True, slots=True)
class Admitted(_Event):
    """The request has got a slot; its prefill starts now."""


@dataclass(frozen=True, slots=True)
class Prefilled(_Event):
    """The prompt is in the KV cache and the first token has been chosen."""

    prompt_tokens: int
    vision_tokens: int
    kv_bytes: int
    """Bytes of this request's cache entries and recurrent states, over all layers."""
    vision_by_layer: tuple[int, ...] = ()
    """Vision tokens that each layer with entries of its own holds; fewer than `vision_tokens` where
    a policy has taken some in the prefill."""


@dataclass(frozen=True, slots=True)
class Token(_Event):
    """A token has been generated."""

    step: int
    """1 for the token that comes out of the prefill."""
    id: int
    text: str
    """What became readable with it; empty while a character is incomplete."""
    vision_attended: float = 0.0
    """Vision tokens that the newest query of the pass which chose it attended to, mean over the
    layers that would attend to any without any withdrawal."""


@dataclass(frozen=True, slots=True)
class Withdrawn(_Event):
    """Vision tokens of the request have left the KV cache."""

    step: int
    """Number of tokens that were generated with vision visible."""
    vision_tokens: int
    """Vision tokens that no layer holds any more, those that were gone before included."""
    entries: int
    """Cache entries that are gone, summed over the layers."""
    kv_bytes_before: int
    kv_bytes_after: int
    duration_s: float | None
    """Seconds that the withdrawal itself took; None where the engine does not tell."""
    complete: bool = True
    """Whether no layer holds any vision token now; recurrent states hold none apart."""
    offloaded_bytes: int = 0
    """Bytes of the copies in host memory."""
    kv_blocks_freed: int | None = None
    """Blocks of a paged cache that went back to its pool; None where the cache has none."""
    recurrent_layers: int = 0
    """Layers whose recurrent state keeps what it has taken in of the vision, freeing nothing."""
    state_bytes: int = 0
    """Bytes of these states, in `kv_bytes_before` and in `kv_bytes_after`."""


@dataclass(frozen=True, slots=True)
class Restored(_Event):
    """Vision tokens that were offloaded are back in the KV cache."""

    step: int
    """Number of tokens that were generated before."""
    entries: int
    """Cache entries that are back, summed over the layers."""
    kv_bytes_before: int
    kv_bytes_after: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Finished(_Event):
    """The request is complete and its slot is free."""

    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    kv_bytes: int
    """Bytes of the request's cache entries and recurrent states at the end, over all layers."""
    kv_allocated_bytes: int
    """Bytes of the storages behind the whole cache at the end, all slots together."""


@dataclass(frozen=True, slots=True)
class Failed(_Event):
    """The request raised, and is out of its slot; the others go on."""

    error: Exception


Event = Admitted | Prefilled | Token | Withdrawn | Restored | Finished | Failed


# -- summed up -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timings:
    """When things happened. A rate is None where too few tokens were generated to give one."""

    ttft_ms: float
    """From the start of the prefill to the first token; reading the image comes before it."""
    decode_ms: float
    """From the first token to the last."""
    tokens_per_s: float | None
    """Over the decode steps, withdrawal included."""
    tokens_per_s_before: float | None
    """Over the decode steps before the withdrawal; all of them where there was none."""
    tokens_per_s_after: float | None
    """Over the decode steps after the withdrawal; None where there was none."""
    withdrawal_ms: float | None
    """All withdrawals, and what came back in between; None where there was none."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was withdrawn, and when: by the first that left no vision, else the first of some.

    What stages before it have taken, and what has not come back, is in all of its figures.
    """

    step: int
    vision_tokens: int
    entries: int
    kv_bytes_before: int
    kv_bytes_after: int
    kv_blocks_freed: int | None = None
    recurrent_layers: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VisionStats:
    """What there was to see, over the whole output."""

    entries_prefill: int
    """Vision entries in the cache after the prefill, summed over the layers."""
    attended_per_token: float
    """Vision tokens that a generated token's query attended to: mean over the tokens, and over the
    layers that would attend to any without any withdrawal."""
    withdrawals: int
    """How often vision was taken, all of it or a part."""
    restores: int
    """How often it came back."""
    offloaded_bytes_peak: int
    """Largest size of the copies in host memory."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    vision_tokens: int
    generated_tokens: int
    withdrawal: Withdrawal | None
    vision: VisionStats
    timings: Timings
    kv_bytes_prefill: int
    kv_bytes_end: int
    kv_allocated_bytes_end: int


def summarise(events: Iterable[Event]) -> Completion:
    """Sum up the events of one finished request.

    Raises:
        ValueError: the events are not those of one whole request.
    """
    events = list(events)
    admitted = next((event for event in events if isinstance(event, Admitted)), None)
    prefilled = next((event for event in events if isinstance(event, Prefilled)), None)
    finished = next((event for event in events if isinstance(event, Finished)), None)
    tokens = [event for event in events if isinstance(event, Token)]
    if admitted is None or prefilled is None or finished is None or not tokens:
        raise ValueError("the events do not make up one whole request")
    taken = [event for event in events if isinstance(event, Withdrawn)]
    restored = [event for event in events if isinstance(event, Restored)]
    withdrawn = next((event for event in taken if event.complete), next(iter(taken), None))
    stamps = [token.at for token in tokens]
    seeing = stamps if withdrawn is None else stamps[: withdrawn.step]
    last, withdrawal, rate_after, withdrawal_ms = stamps[-1], None, None, None
    if withdrawn is not None:
        rate_after = _rate(len(stamps) - withdrawn.step, last - withdrawn.at)
        changes = [event for event in events if isinstance(event, Withdrawn | Restored)]
        took = [event.duration_s for event in changes if event.duration_s is not None]
        withdrawal_ms = sum(took) * 1e3 if len(took) == len(changes) else None
        stages = changes[: changes.index(withdrawn) + 1]
        freed = sum(one.kv_bytes_before - one.kv_bytes_after for one in stages)
        withdrawal = Withdrawal(
            step=withdrawn.step,
            vision_tokens=withdrawn.vision_tokens,
            entries=sum(
                one.entries if isinstance(one, Withdrawn) else -one.entries for one in stages
            ),
            kv_bytes_before=withdrawn.kv_bytes_after + freed,
            kv_bytes_after=withdrawn.kv_bytes_after,
            kv_blocks_freed=withdrawn.kv_blocks_freed,
            recurrent_layers=withdrawn.recurrent_layers,
            state_bytes=withdrawn.state_bytes,
        )
    return Completion(
        text=finished.text,
        token_ids=finished.token_ids,
        finish_reason=finished.reason,
        prompt_tokens=prefilled.prompt_tokens,
        vision_tokens=prefilled.vision_tokens,
        generated_tokens=len(finished.token_ids),
        withdrawal=withdrawal,
        vision=VisionStats(
            entries_prefill=sum(prefilled.vision_by_layer),
            attended_per_token=sum(token.vision_attended for token in tokens) / len(tokens),
            withdrawals=len(taken),
            restores=len(restored),
            offloaded_bytes_peak=max((event.offloaded_bytes for event in taken), default=0),
        ),
        timings=Timings(
            ttft_ms=(stamps[0] - admitted.at) * 1e3,
            decode_ms=(last - stamps[0]) * 1e3,
            tokens_per_s=_rate(len(stamps) - 1, last - stamps[0]),
            tokens_per_s_before=_rate(len(seeing) - 1, seeing[-1] - seeing[0]),
            tokens_per_s_after=rate_after,
            withdrawal_ms=withdrawal_ms,
        ),
        kv_bytes_prefill=prefilled.kv_bytes,
        kv_bytes_end=finished.kv_bytes,
        kv_allocated_bytes_end=finished.kv_allocated_bytes,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
