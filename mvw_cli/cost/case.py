"""One model under one workload: what its decode steps must move and compute, one by one and summed.

A decode step at small batch is limited by memory bandwidth: it reads the active weights once and
the whole KV cache of each sequence. Withdrawal leaves the weights and takes the vision tokens'
part of the cache, and nothing of what recurrent layers keep; the ratio of the bytes is the speed-up
that no implementation can pass. What is left out (activations, launches, work between the kernels)
only lowers it.

Step `j` of an answer reads its token `j` and attends to the prompt and to tokens 1…j; the first
token comes out of the prefill, so that `n` tokens take `n - 1` steps. Withdrawal after `m` tokens
leaves `m - 1` steps with the vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mvw_cli.cost.flops import Flops
from mvw_cli.cost.shape import DTYPE_BYTES, Shape


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
        """Bound a step with the vision, and the same step without it; arguments as in `step`."""
        return self.step(batch, text, 1.0), self.step(batch, text, 0.0)

    def step(self, batch: int, text: int, share: float) -> StepBound:
        """Bound a step that attends to a part of the vision, mean over the layers.

        Args:
            batch: sequences in the step.
            text: entries besides the vision in each, the newest token's included.
            share: 1 is all of it, 0 none. At least as many of the cross-attention layers hold any.
        """
        weights, flops, vision = self.shape.weights, self.flops, self.vision_tokens
        # Cross-attention layers are skipped where they hold no vision, all but their MLP perhaps;
        # those of a sequence that never had an image as a whole.
        keep = self.keep_mlp and vision > 0
        skipped = weights.cross_attention if keep else weights.cross
        read = weights.read(batch).plus(skipped, -1.0).bytes(self.dtype, self.bits)
        holding = share * skipped.bytes(self.dtype, self.bits) if vision else 0.0
        without, all_of_it = (self.shape.kv_elements_read(text, one) for one in (0, vision))
        each = DTYPE_BYTES[self.dtype]
        size, states = each * batch, 2 * batch * self.shape.state_bytes(each)
        none = flops.step(text, 0, batch, keep_mlp=keep)
        weight_bytes = round(read + holding)
        # A recurrent state is read and written anew.
        kv_bytes = round(size * (without + share * (all_of_it - without))) + states
        computed = none + share * (flops.step(text, vision, batch) - none)
        seconds = None
        if self.device is not None:
            moving = (weight_bytes + kv_bytes) / self.device.bandwidth_bytes_per_s
            seconds = max(moving, computed / self.device.flops_per_s)
        return StepBound(weight_bytes, kv_bytes, computed, seconds)

    def step_speedup(self, batch: int) -> float:
        """Bound the speed-up of one step by the withdrawal: in time on a device, else in bytes."""
        before, after = self.steps(batch, self.middle)
        return ratio(before.cost, after.cost)

    def answer_speedup(self, batch: int, shares: Sequence[float]) -> float:
        """Bound the speed-up of all decode steps of an answer that attends to part of the vision.

        Args:
            shares: by generated token, as in `step`; the first comes out of the prefill.
        """
        baseline = taken = 0.0
        for step, share in enumerate(shares[1 : self.new_tokens], start=1):
            text = self.question_tokens + step
            before = self.step(batch, text, 1.0).cost
            baseline += before
            taken += before if share == 1 else self.step(batch, text, share).cost
        return ratio(baseline, taken)

    def all_until(self, withdrawn_after: int | None) -> list[float]:
        """List the shares of an answer that attends to all vision until it is withdrawn.

        Args:
            withdrawn_after: tokens generated before, 0 where the prefill has left no vision; None
                for never.
        """
        last = self.new_tokens if withdrawn_after is None else withdrawn_after
        return [float(step < last) for step in range(self.new_tokens)]

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
        sequence = self.question_tokens + (0 if self.shape.has_cross_attention else fewest)
        weights = self.shape.weights
        passed = weights.read(sequence).numbers + (weights.vision if self.vision_tokens else 0)
        if read is not None and self.shape.has_cross_attention:
            skipped = weights.cross_attention if self.keep_mlp else weights.cross
            passed -= skipped.numbers * sum(not states for states in read) / len(read)
        # What is read is taken to be as much quantised as the rest.
        part = passed / weights.total.numbers
        moving = part * weights.total.bytes(self.dtype, self.bits)
        return max(
            moving / self.device.bandwidth_bytes_per_s,
            self.prefill_flops(read) / self.device.flops_per_s,
        )


def ratio(before: float, after: float) -> float:
    """Compute how many times less `after` is; 1 where there is nothing to do."""
    return before / after if after else 1.0
