"""The attention probe: what policies see of the attention, and which vision tokens a step reads.

Kernels like SDPA and flash-attn return no weights, so those of one query a row are computed next to
the kernel, at the layers that were asked for. A map of the whole prompt is never made, and what
nobody asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mvw_cli.engine.rows import Entries, Part
from mvw_cli.engine.vision import Vision
from mvw_cli.policy import Attend, AttendView


def attention_scores(
    query: Tensor, key: Tensor, visible: Tensor | None, scaling: float | None
) -> Tensor:
    """Compute what the softmax takes for each row's newest query.

    Exact for grouped queries, latent attention (absorbed or expanded) and windows.

    Args:
        query: # (n, H, T, D); the last of T counts.
        key: # (n, K, L, D), K dividing H.
        visible: True where attended, or added to the scores.  # (n, 1 or H, 1, L)
        scaling: of the scores; None for 1 / sqrt(D).

    Returns:
        # (n, H, L) float32; -inf where nothing is attended
    """
    rows, heads, groups = query.shape[0], query.shape[1], query.shape[1] // key.shape[1]
    newest = query[:, :, -1].reshape(rows, key.shape[1], groups, -1)  # (n, K, G, D)
    # Scaled before the product, which could overflow in half precision.
    newest = newest * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.matmul(newest, key.transpose(2, 3)).reshape(rows, heads, -1).float()
    if visible is not None and visible.dtype == torch.bool:
        scores = scores.masked_fill(~visible[:, :, 0], -torch.inf)
    elif visible is not None:
        scores = scores + visible[:, :, 0]
    return scores


def share_added(before: Tensor, output: Tensor) -> Tensor:
    """Return by which part a layer changes one token's stream, 0 to 1.  before, output: # (D,)"""
    stream = before.to(output.device).float()
    added = (output.float() - stream).norm()
    share: Tensor = added / (stream.norm() + added)
    return share


def _by_token(weights: Tensor, columns: Tensor, numbers: Tensor, vision: Vision) -> Tensor:
    """Put the weights of some columns where their vision tokens are: # (N,) float32."""
    found = torch.zeros(vision.tokens, device=weights.device)
    found[numbers.to(weights.device)] = weights[columns.to(weights.device)]
    return found


# -- in the prefill -----------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class PrefillProbe:
    """The last prompt token's attention weights on the vision tokens, by layer."""

    vision: Vision
    layers: frozenset[int]
    """Those to look at."""
    present: Tensor
    """Which vision tokens the running layer reads.  # (N,) bool, on the host"""
    found: dict[int, Tensor] = field(default_factory=dict)
    """# (N,) float32, on the layer's device"""
    added: dict[int, Tensor] = field(default_factory=dict)
    """By cross-attention layer, the part by which it changes the stream: scalars."""

    def before(self, number: int) -> Tensor | None:
        """Return the weights of the last layer before this one that was looked at."""
        earlier = [layer for layer in self.found if layer < number]
        return self.found[max(earlier)] if earlier else None


prefill_probe: ContextVar[PrefillProbe | None] = ContextVar("prefill_probe", default=None)
"""That of the prefill that is running."""


def record_prefill(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    made: Tensor | None,
    scaling: float | None,
) -> None:
    """Let the probe of the running prefill, if any, see an attention call.

    query: # (1, H, T, D); key: # (1, K, L, D); mask: # (1, 1, T, L), bool or additive;
    made: # (1, H, T, L), where the kernel has made the weights.
    """
    probe, number = prefill_probe.get(), getattr(module, "layer_idx", None)
    if probe is None or not isinstance(number, int) or number not in probe.layers:
        return
    vision, present = probe.vision, probe.present
    if not vision.cross_attention and query.shape[2] != vision.prompt - int((~present).sum()):
        return  # another module that happens to bear this number
    numbers = present.nonzero()[:, 0]
    columns = (vision.places - (~present).cumsum(0))[numbers]  # what the layer reads closes up
    if made is not None:
        weights = made[0, :, -1].float().mean(0)
    else:
        visible = None if mask is None else mask[:, :, -1:, : key.shape[2]]
        scores = attention_scores(query[:, :, -1:], key, visible, scaling)
        weights = scores[0].softmax(-1).mean(0)
    probe.found[number] = _by_token(weights, columns, numbers, vision)


def record_prefill_added(number: int, before: Tensor, output: Tensor) -> None:
    """Record what a cross-attention layer adds to the prompt's last token, for the probe if any.

    before, output: # (1, P, D)
    """
    probe = prefill_probe.get()
    if probe is not None and number in probe.layers:
        probe.added[number] = share_added(before[0, -1], output[0, -1])


# -- in a decode step ---------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class AttentionProbe:
    """What one sequence's policy asks to see, and what the last pass has shown."""

    vision: Vision
    holding: frozenset[int]
    """Layers that hold vision."""
    left: Mapping[int, Tensor]
    """Which vision tokens a layer would hold if it did not slide, by layer.  # (N,) bool"""
    layers: frozenset[int]
    """Whose weights are wanted, for the mass or by themselves."""
    attend: Attend | None = None
    attend_layer: int | None = None
    found: dict[int, Tensor] = field(default_factory=dict)
    """By layer, the weights on the vision tokens, mean over the heads.  # (N,) float32"""
    added: dict[int, Tensor] = field(default_factory=dict)
    """By cross-attention layer, the part by which it changes the stream: scalars."""
    chosen: Tensor | None = None
    """Which vision tokens the layers after `attend_layer` attend to.  # (N,) bool, on the host"""
    error: Exception | None = None
    """What the policy's own function has raised: its request fails, its neighbours don't."""
    _columns: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def limits(self, number: int) -> bool:
        """Whether a layer attends to nothing but the chosen vision tokens."""
        after = self.attend_layer is not None and number > self.attend_layer
        return self.chosen is not None and after and number in self.holding

    def columns(self, number: int, entry: Entries, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return in which places of a row the vision tokens lie, and which they are: # (K,) long.

        Found once and kept until a withdrawal replaces `entry.kept`: tokens that are appended
        meanwhile are text.
        """
        known = self._columns.get(number)
        if known is None or known[0] is not entry.kept:
            known = (entry.kept, *_vision_among(self.vision.of(entry.kept), device))
            self._columns[number] = known
        return known[1:]

    def take(
        self, number: int, scores: Tensor, weights: Tensor, columns: Tensor, numbers: Tensor
    ) -> None:
        """Take in the scores of a row at a layer, and the weights that come of them.

        scores, weights: # (H, L) float32; columns, numbers: # (K,) long, as `columns` gives them.
        """
        if number in self.layers:
            self.found[number] = _by_token(weights.mean(0), columns, numbers, self.vision)
        if number != self.attend_layer or self.attend is None:
            return
        heads, device = scores.shape[0], scores.device
        # Those that a sliding layer has let go of are there for the layers after it.
        present = self.left[number].to(device)
        vision = torch.full((heads, self.vision.tokens), -torch.inf, device=device)
        vision[:, numbers] = scores[:, columns]
        text = torch.ones(scores.shape[1], dtype=torch.bool, device=device)
        text[columns] = False
        try:
            chosen = self.attend(AttendView(vision, scores[:, text], present))
            self.chosen = (chosen & present).cpu()
        except Exception as error:
            self.error = error

    def masses(self, layers: Sequence[int]) -> dict[int, float]:
        """By layer, the sum of the weights, or what a cross-attention layer adds to the stream."""
        if self.vision.cross_attention:
            return {layer: float(self.added.get(layer, 0.0)) for layer in layers}
        return {layer: float(weights.sum()) for layer, weights in self.weights(layers).items()}

    def weights(self, layers: Sequence[int]) -> Mapping[int, Tensor]:
        """By layer: # (N,) float32."""
        nothing = torch.zeros(self.vision.tokens)
        return {layer: self.found.get(layer, nothing) for layer in layers}


class StepProbes:
    """The probes of one decode step.

    Args:
        probes: by row of the batch; None for a row whose policy asks for nothing.
    """

    def __init__(self, probes: Sequence[AttentionProbe | None]) -> None:
        self._probes = probes
        self._places: dict[tuple[int, int, int], Tensor] = {}
        for probe in probes:
            if probe is not None:
                probe.found, probe.added, probe.chosen = {}, {}, None

    def narrowed(self, number: int, part: Part) -> Part:
        """Gather what the rows of a part attend to at a layer, where a policy has chosen."""
        probes = self._probes[part.first : part.first + len(part.rows)]
        limited = [one is not None and one.limits(number) for one in probes]
        if not any(limited):
            return part
        places = [
            self._attended(row + part.first, entry) if limit else torch.arange(entry.length)
            for row, (entry, limit) in enumerate(zip(part.rows.entries, limited, strict=True))
        ]
        longest = max(map(len, places))
        device = part.keys.device
        padded = torch.nn.utils.rnn.pad_sequence(places, batch_first=True).to(device)  # (n, K)
        keys, values = (
            one.gather(2, padded[:, None, :, None].expand(-1, one.shape[1], -1, one.shape[3]))
            for one in (part.keys, part.values)
        )
        visible = part.rows.attendable()
        if visible is not None:
            visible = visible.gather(3, padded[:, None, None])
        if min(map(len, places)) < longest:
            ends = part.rows.on_device([len(one) for one in places])[:, None]
            filled = (torch.arange(longest, device=device)[None] < ends)[:, None, None]
            visible = filled if visible is None else visible & filled
        return replace(part, keys=keys, values=values, places=places, visible=visible)

    def record(
        self,
        number: int,
        query: Tensor,
        part: Part,
        made: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Take in the attention of a part's rows at a layer.

        query: # (rows, H, 1, D); made: # (rows, H, 1, L), where the kernel has made the weights.
        """
        probes = self._probes[part.first : part.first + len(part.rows)]
        wanted = [
            (row, one)
            for row, one in enumerate(probes)
            if one is not None and (number in one.layers or number == one.attend_layer)
        ]
        if not wanted or not part.keys.shape[2]:
            return
        rows = [row for row, _ in wanted]
        if made is not None:
            # As good as scores: they differ by one number for each head. Attention sinks have their
            # share of the weights, so these are taken as they are.
            weights = made[rows][:, :, -1].float()
            scores = weights.log()
        else:
            visible = part.attendable()
            scores = attention_scores(
                query[rows], part.keys[rows], None if visible is None else visible[rows], scaling
            )
            weights = scores.softmax(-1)
        for (row, probe), *lines in zip(wanted, scores, weights, strict=True):
            entry, length = part.rows.entries[row], part.lengths[row]
            if not length:
                continue
            line, share = (one[:, :length] for one in lines)
            if part.places is None:
                columns, numbers = probe.columns(number, entry, line.device)
            else:
                of = probe.vision.of(entry.indices(entry.length)[part.places[row]])
                columns, numbers = _vision_among(of, line.device)
            probe.take(number, line, share, columns, numbers)

    def record_added(self, number: int, before: Tensor, output: Tensor) -> None:
        """Take in what a cross-attention layer adds to each row.  before, output: # (n, 1, D)"""
        for row, probe in enumerate(self._probes):
            if probe is not None and number in probe.layers:
                probe.added[number] = share_added(before[row, -1], output[row, -1])

    def _attended(self, row: int, entry: Entries) -> Tensor:
        """List the places of a row's text and of the vision tokens chosen for it: # (K,) long."""
        key = (row, id(entry.kept), entry.length)
        if key not in self._places:
            probe = self._probes[row]
            assert probe is not None and probe.chosen is not None
            of = probe.vision.of(entry.indices(entry.length))
            kept = of < 0
            kept[~kept] = probe.chosen[of[~kept]]
            self._places[key] = kept.nonzero()[:, 0]
        return self._places[key]


def _vision_among(of: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the places of the vision tokens, and their numbers.  of: as `Vision.of`, # (K,)"""
    places = (of >= 0).nonzero()[:, 0]
    return places.to(device), of[places].to(device)
