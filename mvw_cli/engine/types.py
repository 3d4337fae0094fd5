"""What goes into the engine and what comes out: requests and events.

Events are small dataclasses with a timestamp. They know nothing about terminals, files or
reports, which are made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mvw_cli.adapter import VisionLayout
from mvw_cli.policy import WithdrawalPolicy

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["eos", "stop", "length"]


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
    forced: tuple[int, ...] | None = None
    """The whole output, where it is given: its tokens are read and none is chosen, so that other
    conditions can be seen along the same output. Settings count for nothing then."""

    def __post_init__(self) -> None:
        if self.forced == ():
            raise ValueError("a forced output has at least one token")

    @property
    def text_tokens(self) -> int:
        """Prompt tokens that are no vision tokens."""
        return int(self.inputs["input_ids"].shape[1]) - int(self.layout.entries.sum())


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request has got a slot; its prefill starts now."""

    request: str
    at: float
    """Seconds on the monotonic clock (`time.perf_counter`), as in every event."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is in the KV cache and the first token has been chosen."""

    request: str
    at: float
    prompt_tokens: int
    vision_tokens: int
    kv_bytes: int
    """Bytes of this request's cache entries, over all layers."""
    vision_by_layer: tuple[int, ...] = ()
    """Vision tokens that each layer holds; fewer than `vision_tokens` where a policy has taken some
    in the prefill."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token has been generated."""

    request: str
    at: float
    step: int
    """1 for the token that comes out of the prefill."""
    id: int
    text: str
    """What became readable with it; empty while a character is incomplete."""
    vision_attended: float = 0.0
    """Vision tokens that the newest query of the pass which chose it attended to, mean over the
    layers that would hold vision without any withdrawal."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Vision tokens of the request have left the KV cache."""

    request: str
    at: float
    step: int
    """Number of tokens that were generated with vision visible."""
    vision_tokens: int
    """Vision tokens that no layer holds any more, those that were gone before included."""
    entries: int
    """Cache entries that are gone, summed over the layers."""
    kv_bytes_before: int
    kv_bytes_after: int
    duration_s: float
    """Seconds the withdrawal itself took."""
    complete: bool = True
    """Whether no layer holds any vision token now."""
    offloaded_bytes: int = 0
    """Bytes of the copies in host memory."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Vision tokens that were offloaded are back in the KV cache."""

    request: str
    at: float
    step: int
    """Number of tokens that were generated before."""
    entries: int
    """Cache entries that are back, summed over the layers."""
    kv_bytes_before: int
    kv_bytes_after: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is complete and its slot is free."""

    request: str
    at: float
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    kv_bytes: int
    """Bytes of the request's cache entries at the end, over all layers."""
    kv_allocated_bytes: int
    """Bytes of the storages behind the whole cache at the end, all slots together."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request raised, and is out of its slot; the others go on."""

    request: str
    at: float
    error: Exception


Event = Admitted | Prefilled | Token | Withdrawn | Restored | Finished | Failed
