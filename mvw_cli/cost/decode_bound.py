"""The physical bound of what withdrawal can win: bytes that a decode step must read.

A decode step at small batch is limited by memory bandwidth: it reads the active weights once and
the whole KV cache of each sequence. Withdrawal leaves the weights and takes the vision tokens'
part of the cache; the ratio of the bytes is the speed-up that no implementation can pass. What the
bound leaves out (activations, launches, the prefill, arithmetic at large batch) only lowers it.

It does not know how a model is counted (`cost.py`) or shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvw_cli.cost import DTYPE_BYTES, Shape, held_bytes

MATTERS = 1.1
"""A bound from which withdrawal is taken to matter for speed: a tenth."""
_MOST_SEQUENCES = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences alike: one image each, and text around it."""

    vision_tokens: int
    text_tokens: int
    """Question and output so far."""


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What one decode step over some sequences must read, before and after withdrawal."""

    sequences: int
    weight_bytes_before: int
    weight_bytes_after: int
    """Less where cross-attention layers are skipped once they are empty."""
    kv_bytes_before: int
    kv_bytes_after: int

    @property
    def before(self) -> int:
        return self.weight_bytes_before + self.kv_bytes_before

    @property
    def after(self) -> int:
        return self.weight_bytes_after + self.kv_bytes_after

    @property
    def speedup(self) -> float:
        """The bound: bytes before over bytes after."""
        return self.before / self.after if self.after else 1.0


@dataclass(frozen=True, slots=True)
class DecodeBound:
    """The bounds of one model under one workload."""

    shape: Shape
    workload: Workload
    dtype: str
    keep_mlp: bool = False
    """Whether withdrawn cross-attention layers keep their gated MLP (`cross_attention: mlp`)."""
    expanded: int = 0
    """Numbers that each entry of the cache becomes, over all layers, where a step expands them
    first: written once and read once more. 0 where the cache is attended to as it is."""
    bits: int | None = None
    """8 or 4 where linear layers are quantised, as `cost.weight_bytes` has it."""

    def step(self, sequences: int) -> StepBytes:
        """Count the bytes of a step over so many sequences, all before or all after withdrawal."""
        size = DTYPE_BYTES[self.dtype]
        weights, load = self.shape.weights, self.workload
        taken = weights.experts_taken(sequences)
        quantizable = weights.step_quantizable + weights.experts_quantizable * taken
        read = self._held(weights.read(sequences), quantizable)
        layers = self._held(weights.cross, weights.cross_quantizable)
        attention = self._held(weights.cross_attention, weights.cross_attention_quantizable)
        # A sequence that never had an image skips its cross-attention layers as a whole.
        missing = 0 if load.vision_tokens else layers
        gone = attention if self.keep_mlp and load.vision_tokens else layers
        held = self._moved(load.text_tokens, load.vision_tokens)
        left = self._moved(load.text_tokens, 0)
        return StepBytes(
            sequences=sequences,
            weight_bytes_before=round(read - missing),
            weight_bytes_after=round(read - gone),
            kv_bytes_before=held * size * sequences,
            kv_bytes_after=left * size * sequences,
        )

    def _held(self, count: float, quantizable: float) -> float:
        return held_bytes(count, quantizable, self.dtype, self.bits)

    def _moved(self, text: int, vision: int) -> int:
        """Count the numbers that a step moves for the cache of one sequence."""
        return self.shape.kv_elements(text, vision) + 2 * self.expanded * (text + vision)

    @property
    def limit(self) -> float:
        """The bound for ever more sequences: that of the KV cache alone; 1 for an empty one."""
        one = self.step(1)
        return one.kv_bytes_before / one.kv_bytes_after if one.kv_bytes_after else 1.0

    def matters_from(self) -> int | None:
        """The fewest sequences at which the bound reaches `MATTERS`, or None."""
        if self.step(1).speedup >= MATTERS:
            return 1
        if self.limit <= MATTERS:
            return None
        high = 1
        while self.step(high).speedup < MATTERS:
            high *= 2
            if high > _MOST_SEQUENCES:
                return None
        low = high // 2
        while high - low > 1:  # weights per sequence only fall with their number
            middle = (low + high) // 2
            low, high = (low, middle) if self.step(middle).speedup >= MATTERS else (middle, high)
        return high
