"""From logits to token ids: greedy or sampled, one random generator for each request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Sampler:
    """How one request's tokens are chosen."""

    processors: Any
    """`LogitsProcessorList` of the request."""
    sample: bool
    seed: int
    ids: Tensor
    """Prompt and output so far; kept up only where a processor reads it.  # (1, T)"""
    forced: Iterator[int] | None = None
    """Tokens that are taken in place of any choice."""
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(device=self.ids.device).manual_seed(self.seed)

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the one with the highest logit."""
        return self.forced is None and not self.sample and not self.processors

    def choose(self, logits: Tensor) -> int:
        """Choose the next token.  logits: # (V,)"""
        if self.forced is not None:
            return next(self.forced)
        if self.plain:
            return int(logits.argmax())
        # float32, as `generate` does: the order of half-precision ties must be the same.
        scores = self.processors(self.ids, logits[None].to(dtype=torch.float32, copy=True))
        if not self.sample:
            token = scores.argmax(-1)
        else:
            weights = torch.softmax(scores, dim=-1)
            token = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        self.ids = torch.cat([self.ids, token[:, None]], dim=1)
        return int(token)


def choose_tokens(logits: Tensor, samplers: list[Sampler]) -> list[int | Exception]:
    """Choose one token for each row, or say what its sampler raised.  logits: # (n, V)

    Plain rows are decided together, with one transfer from the device.
    """
    if all(sampler.plain for sampler in samplers):
        return [int(token) for token in logits.argmax(-1).tolist()]
    return [_chosen(sampler, row) for sampler, row in zip(samplers, logits, strict=True)]


def _chosen(sampler: Sampler, logits: Tensor) -> int | Exception:
    try:
        return sampler.choose(logits)
    except Exception as error:  # of one request; the others have drawn their random numbers
        return error
