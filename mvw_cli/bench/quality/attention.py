"""How much of the attention goes to vision tokens, token by token, while a model answers.

The picture is figure 1 of "Reasoning with Fewer Eyes", for the user's own image and model. The
attention function that serves the model keeps serving it. Beside it, in some layers and for the
newest query alone, the weights are computed once more, summed over the vision tokens and let go.

Models that read vision by cross-attention have no such share: in those layers all of it goes to
vision. What such a layer adds to the newest token's hidden state is told instead.

It does not know withdrawal: it looks at what withdrawal would take away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mvw_cli.bench.documents import AttentionMass
from mvw_cli.bench.quality.asking import ask
from mvw_cli.engine.types import Failed, GenerationSettings, Request

if TYPE_CHECKING:
    from torch import Tensor

    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.bench.quality.attention_watch import Watch
    from mvw_cli.session import Session

MOST_LAYERS = 12


def attention_mass(
    session: Session,
    item: ItemSpec,
    *,
    settings: GenerationSettings | None = None,
    output_ids: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> AttentionMass:
    """Answer an item without withdrawal, and say where the attention goes.

    Args:
        settings: how tokens are chosen; the session's own without it.
        output_ids: the answer, where it is known already: it is read instead of being chosen.
        layers: which layers to look at; all without it, or 12 that are evenly spaced.
        tick: called before every token; what it raises ends the measurement.

    Raises:
        BadImage: an image can't be read.
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
        ValueError: the item has no vision tokens, or there is no such layer.
    """
    asked = ask(session, item, settings or session.settings)
    forced = None if output_ids is None else tuple(output_ids)
    return mass_of(session, replace(asked, forced=forced), layers=layers, tick=tick)


def mass_of(
    session: Session,
    request: Request,
    *,
    layers: Sequence[int] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> AttentionMass:
    """Serve an encoded request alone and say where its attention goes; see `attention_mass`.

    Cost, counted: in each watched layer a step reads the keys once more and makes one weight in
    float32 for each query head and entry, a few times over; 8 bytes stay for each token and
    layer. The first token comes out of the prefill, whose last query counts for it.
    """
    from mvw_cli.bench.quality.attention_watch import Watch
    from mvw_cli.engine.cross_attention import cross_attention_layers

    if not request.layout.vision_tokens:
        raise ValueError("the request holds no vision tokens")
    model = session.loaded.model
    cross_layers = cross_attention_layers(model) if request.layout.cross_entries is not None else ()
    holding = cross_layers or tuple(range(model.config.get_text_config().num_hidden_layers))
    chosen = spread(holding) if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(holding):
        raise ValueError(f"layers {chosen} are not all among those that hold vision, {holding}")
    tokens = len(request.forced) if request.forced else request.settings.max_new_tokens
    watch = Watch(chosen, tokens, request.layout.entries, model.get_decoder())
    with session.serving() as slots, ExitStack() as stack:
        if cross_layers:
            stack.enter_context(_adding(model, chosen, watch))
        else:
            stack.enter_context(beside(model, watch.see))
        tick()
        events = slots.admit(request)
        while slots.active:
            tick()
            events += slots.step()
            if isinstance(events[-1], Failed):
                raise events[-1].error
    by_layer, uniform = watch.figures()
    return AttentionMass(
        layers=chosen,
        mass=_mean(by_layer),
        by_layer=by_layer,
        vision_share_of_entries=[] if cross_layers else _mean(uniform),
        measure="cross-attention" if cross_layers else "attention",
    )


def spread(layers: Sequence[int], most: int = MOST_LAYERS) -> list[int]:
    """Choose evenly spaced layers, the first and the last among them; all where they are few."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


See = Callable[..., None]
"""Gets what the attention function got, and the weights that it returned or None."""


@contextmanager
def beside(model: Any, see: See) -> Iterator[None]:
    """Let `see` look at each attention call of the language model, after it has been served.

    It is put around the function under which the model is served now, and taken off again.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    name = model.config.get_text_config()._attn_implementation
    normal = ALL_ATTENTION_FUNCTIONS[name]

    def watched(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        attended: tuple[Tensor, Tensor | None] = normal(module, query, key, value, mask, **options)
        see(module, query, key, mask, attended[1], options.get("scaling"))
        return attended

    try:
        AttentionInterface.register(name, watched)
        yield
    finally:
        AttentionInterface.register(name, normal)


@contextmanager
def _adding(model: Any, layers: Sequence[int], watch: Watch) -> Iterator[None]:
    """Let the watch see what goes into cross-attention layers and what comes out."""
    with ExitStack() as stack:
        for number in layers:
            layer = model.get_decoder().layers[number]
            hook = partial(_added, number, watch)
            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _added(
    number: int, watch: Watch, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> None:
    from mvw_cli.engine.attention_probe import share_added

    before = args[0] if args else kwargs["hidden_states"]  # (1, T, D)
    watch.note(number, share_added(before[0, -1], out[0, -1]), 0.0)


def _mean(rows: list[list[float]]) -> list[float]:
    """Mean over the layers, token by token."""
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
