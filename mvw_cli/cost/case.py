"""One model under one workload: what its decode steps must move and compute, one by one and summed.

A decode step at small batch is limited by memory bandwidth: it reads the active weights once and
the whole KV cache of each sequence. Withdrawal leaves the weights and takes the vision tokens'
part of the cache; the ratio of the bytes is the speed-up that no implementation can pass. What is
left out (activations, launches, work between the kernels) only lowers it.

Step `j` of an answer reads its token `j` and attends to the prompt and to tokens 1…j; the first
token comes out of the prefill, so that `n` tokens take `n - 1` steps. Withdrawal after `m` tokens
leaves `m - 1` steps with the vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mvw_cli.cost.flops import Flops
from mvw_cli.cost.shape import DTYPE_BYTES, Shape, held_bytes, weight_bytes


@dataclass(frozen=True, slots=True)
class Device:
    """How fast a device is, measured or published."""

    name: str
    source: Literal["measured", "published"]
    bandwidth_bytes_per_s: float
    flops_per_s: float
    """In the dtype of the model, dense."""
    launch_s: float | None
    """Time of the smallest kernel; None where it was not measured."""
    memory_bytes: int | None
    reference: str
    """When it was measured, or where it was published."""


@dataclass(frozen=True, slots=True)
class StepBound:
    """What a decode step must move and compute, and the time that this takes at the least."""

    weight_bytes: int
    kv_bytes: int
    flops: float
    seconds: float | None
    """The larger of bytes over bandwidth and FLOPs over rate; None without a calibration."""

    @property
    def bytes_moved(self) -> int:
        """Weights and cache together."""
        return self.weight_bytes + self.kv_bytes

    @property
    def cost(self) -> float:
        """What the step takes: seconds where there is a device, else bytes."""
        return self.bytes_moved if self.seconds is None else self.seconds


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences alike: one image each, a question, and an answer of so many tokens."""

    flops: Flops
    """Of the model; its shape with it."""
    dtype: str
    """Of weights and cache."""
    question_tokens: int
    """Prompt tokens besides the vision."""
    vision_tokens: int
    new_tokens: int
    keep_mlp: bool = False
    """Whether withdrawn cross-attention layers keep their gated MLP (`cross_attention: mlp`)."""
    bits: int | None = None
    """8 or 4 where linear layers are quantised."""
    device: Device | None = None
    """Its bandwidth and rate turn bytes and FLOPs into seconds."""

    @property
    def shape(self) -> Shape:
        """Weights and cache of the model."""
        return self.flops.shape

    @property
    def middle(self) -> int:
        """Text in the cache at the middle of the output."""
        return self.question_tokens + self.new_tokens // 2

    def with_vision(self, tokens: int) -> Case:
        """Return the same with another number of vision tokens."""
        return replace(self, vision_tokens=tokens)

    def steps(self, batch: int, text: int) -> tuple[StepBound, StepBound]:
        """Bound a step with the vision, and the same step without it.

        Args:
            batch: sequences in the step.
            text: entries besides the vision in each, the newest token's included.
        """
        read, gone = self._weight_bytes(batch)
        size = DTYPE_BYTES[self.dtype] * batch
        keep = self.keep_mlp and self.vision_tokens > 0
        elements, flops, vision = self.shape.kv_elements, self.flops, self.vision_tokens
        return (
            self._bound(
                round(read), elements(text, vision) * size, flops.step(text, vision, batch)
            ),
            self._bound(
                round(read - gone),
                elements(text, 0) * size,
                flops.step(text, 0, batch, keep_mlp=keep),
            ),
        )

    def _weight_bytes(self, batch: int) -> tuple[float, float]:
        """Count the bytes of weights that a step reads, and those that withdrawal leaves out.

        Cross-attention layers are skipped once no sequence holds vision.
        """
        weights = self.shape.weights
        taken = weights.experts_taken(batch)
        quantizable = weights.step_quantizable + weights.experts_quantizable * taken
        read = held_bytes(weights.read(batch), quantizable, self.dtype, self.bits)
        layers = held_bytes(weights.cross, weights.cross_quantizable, self.dtype, self.bits)
        if not self.vision_tokens:  # a sequence that never had an image skips them as a whole
            return read - layers, 0.0
        if not self.keep_mlp:
            return read, layers
        attention = weights.cross_attention, weights.cross_attention_quantizable
        return read, held_bytes(*attention, self.dtype, self.bits)

    def step_with_share(
        self, batch: int, text: int, share: float, layers: float | None = None
    ) -> StepBound:
        """Bound a step that attends to a part of the vision, mean over the layers.

        Args:
            share: 1 is all of it, 0 none.
            layers: part of the layers that hold any, which cross-attention layers' weights go by;
                `share` itself without it, as it can't be less.
        """
        whole, none = self.steps(batch, text)
        held = share if layers is None else layers
        gone = self.flops.cross_attention if self.keep_mlp else self.flops.cross
        # Where cross-attention layers hold the vision, one without any computes nothing else.
        fixed = 2.0 * batch * gone if self._cross_attention and self.vision_tokens else 0.0
        attended = whole.flops - none.flops - fixed
        return self._bound(
            round(none.weight_bytes + held * (whole.weight_bytes - none.weight_bytes)),
            round(none.kv_bytes + share * (whole.kv_bytes - none.kv_bytes)),
            none.flops + held * fixed + share * attended,
        )

    def _bound(self, weight_bytes: int, kv_bytes: int, flops: float) -> StepBound:
        seconds = None
        if self.device is not None:
            moving = (weight_bytes + kv_bytes) / self.device.bandwidth_bytes_per_s
            seconds = max(moving, flops / self.device.flops_per_s)
        return StepBound(weight_bytes, kv_bytes, flops, seconds)

    def step_speedup(self, batch: int, text: int | None = None) -> float:
        """Bound the speed-up of one step by the withdrawal: in time on a device, else in bytes."""
        before, after = self.steps(batch, self.middle if text is None else text)
        return ratio(before.cost, after.cost)

    def answer_speedup(self, batch: int, withdrawn_after: int | None) -> float:
        """Bound the speed-up of all decode steps of an answer, those before the withdrawal too.

        Args:
            withdrawn_after: tokens generated before the withdrawal, 0 where the prefill has left
                no vision; None for never.
        """
        baseline = taken = 0.0
        for step in range(1, self.new_tokens):
            before, after = self.steps(batch, self.question_tokens + step)
            baseline += before.cost
            sees = withdrawn_after is None or step < withdrawn_after
            taken += before.cost if sees else after.cost
        return ratio(baseline, taken)

    def speedup_with_shares(
        self, batch: int, shares: Sequence[float], layers: float | None = None
    ) -> float:
        """Bound the speed-up of all decode steps of an answer that attends to part of the vision.

        Args:
            shares: by generated token, as `step_with_share`; the first comes out of the prefill.
            layers: as in `step_with_share`.
        """
        baseline = taken = 0.0
        for step, share in enumerate(shares[1 : self.new_tokens], start=1):
            text = self.question_tokens + step
            baseline += self.steps(batch, text)[0].cost
            taken += self.step_with_share(batch, text, share, layers).cost
        return ratio(baseline, taken)

    def prefill_flops(self, read: Sequence[int] | None = None) -> float:
        """Count the FLOPs of reading one prompt.  read: as in `Flops.prefill`"""
        return self.flops.prefill(
            self.question_tokens, self.vision_tokens, read, keep_mlp=self.keep_mlp
        )

    def prefill_seconds(self, read: Sequence[int] | None = None) -> float | None:
        """Bound the time of reading one prompt; None without a device.  read: as above"""
        if self.device is None:
            return None
        fewest = self.vision_tokens if read is None else min(read, default=0)
        sequence = self.question_tokens + (0 if self._cross_attention else fewest)
        weights = self.shape.weights
        passed = weights.read(sequence) + (weights.vision if self.vision_tokens else 0)
        if read is not None and self._cross_attention:
            skipped = weights.cross_attention if self.keep_mlp else weights.cross
            passed -= skipped * sum(not states for states in read) / len(read)
        part = passed / weights.total  # what is read is taken to be as much quantised as the rest
        read_bytes = part * weight_bytes(weights, self.dtype, self.bits)
        moving = read_bytes / self.device.bandwidth_bytes_per_s
        return max(moving, self.prefill_flops(read) / self.device.flops_per_s)

    @property
    def _cross_attention(self) -> bool:
        """Whether cross-attention layers hold the vision."""
        return any(layer.cross for layer in self.shape.layers)


def ratio(before: float, after: float) -> float:
    """Compute how many times less `after` is; 1 where there is nothing to do."""
    return before / after if after else 1.0
