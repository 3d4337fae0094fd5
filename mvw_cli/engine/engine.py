"""A loaded model, ready to serve requests: checks that it can be exactly, and patches it for that.

One loop serves one image and a thousand; what happens in it is in `slots.py`. It does not know
adapters, profiles or terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from mvw_cli.adapter import LoadedModel
from mvw_cli.engine.attention import attention_kernel, decode_look, decoded_cache
from mvw_cli.engine.cross_attention import CrossAttention, cross_attention_layers, skipping
from mvw_cli.engine.exact import NotExact, check_architecture
from mvw_cli.engine.kernels import choose_kernel
from mvw_cli.engine.slots import Observe, Slots
from mvw_cli.engine.types import Event, Failed, Request
from mvw_cli.errors import ModelProblem


class Engine:
    """Runs requests on one loaded model.

    Args:
        slots: how many requests decode at the same time.
        attention: `auto`, `sdpa`, `eager` or `flash`.
        cross_attention: what withdrawal leaves of a cross-attention layer: nothing (`skip`), or
            its gated MLP (`mlp`).
        observe: sees the logits of every step, for oracles and measurements.

    Raises:
        ModelProblem: the model can't be served exactly, or not with this attention kernel.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        slots: int = 1,
        attention: str = "auto",
        cross_attention: CrossAttention = "skip",
        observe: Observe | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError("slots must be 1 or more")
        self._loaded = loaded
        self._model = loaded.model
        self._slots = slots
        self._observe = observe
        self._cross_layers = cross_attention_layers(loaded.model)
        self.cross_attention = cross_attention
        self._tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        with self._refusing():
            check_architecture(self._model)
            self.attention = choose_kernel(self._model, attention)

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Serve the requests, refilling a slot as soon as one is free; yield what happens.

        A request's tokens do not depend on which others share the slots. The model is restored
        when the iterator ends, is closed or raises.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        waiting = iter(requests)
        with self.serving() as slots:
            while True:
                while len(slots.active) < self._slots:
                    request = next(waiting, None)
                    if request is None:
                        break
                    yield from slots.admit(request)
                if not slots.active:
                    return
                for event in slots.step():
                    if isinstance(event, Failed):
                        raise event.error
                    yield event

    @contextmanager
    def serving(self, *, observe: Observe | None = None) -> Iterator[Slots]:
        """Patch the model for the slots that it gives, and restore it on the way out.

        For whoever decides by himself what is admitted when; `run` is its plain use.

        Args:
            observe: sees the logits of every step, in place of the engine's own observer.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        with ExitStack() as stack:
            stack.enter_context(self._refusing())
            stack.enter_context(attention_kernel(self._model, self.attention))
            stack.enter_context(
                skipping(self._model, self._cross_layers, decoded_cache, decode_look)
            )
            stack.enter_context(self._loaded.serving(self._model))
            yield Slots(
                self._model,
                self._tokenizer,
                cross_layers=self._cross_layers,
                cross_attention=self.cross_attention,
                observe=observe or self._observe,
            )

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn "can't be served exactly" into the user's sentence."""
        try:
            yield
        except NotExact as error:
            raise ModelProblem(
                f"{type(self._model).__name__} can't be served exactly, so it is not served.",
                cause=f"In {self._loaded.name}: {error}.",
                hint="mvw list adapters",
            ) from error
