"""A profile brought to life: adapter, model, engine and policy, ready for questions.

The road that every command takes from a resolved profile to the engine's events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mvw_cli.adapter import Adapter, Answer, LoadedModel
from mvw_cli.engine.types import Event, GenerationSettings, Request
from mvw_cli.errors import OutOfMemory
from mvw_cli.machine.fit import check_fit
from mvw_cli.plugins import load_adapter
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.resolution import generation_settings, model_spec
from mvw_cli.profiles.withdrawal import withdrawal_policy

if TYPE_CHECKING:
    from PIL.Image import Image

    from mvw_cli.engine.engine import Engine
    from mvw_cli.engine.slots import Observe, Slots
    from mvw_cli.profiles.schema import Profile


_PLACEHOLDER = re.compile(r"\A\s*<image>\s*|\s*<image>\s*\Z")


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model with the settings that its requests share."""

    adapter: Adapter
    loaded: LoadedModel
    engine: Engine
    policy: WithdrawalPolicy
    settings: GenerationSettings

    def request(self, images: Sequence[Image], question: str, *, id: str = "0") -> Request:
        """Encode one question about one or more images.

        Raises:
            OutOfMemory: the device has no room for the encoded images.
        """
        with _explained(self.loaded.name):
            inputs = self.adapter.encode(self.loaded, images, without_placeholder(question))
            layout = self.adapter.vision(self.loaded, inputs)
        return Request(id, inputs, layout, self.policy, self.settings)

    def parse(self, text: str) -> Answer:
        """Take a generated text apart, with what the prompt had written of it."""
        return self.adapter.parse(self.adapter.opening(self.loaded) + text)

    def remarks(self, images: Sequence[Image], question: str, request: Request) -> list[str]:
        """List, one line each, where a question lies outside what the model can answer."""
        remarks = self.adapter.remarks(self.loaded, images, without_placeholder(question))
        most = getattr(self.loaded.model.config.get_text_config(), "max_position_embeddings", None)
        prompt = int(request.inputs["input_ids"].shape[1])
        if most is None or prompt < most:
            return remarks
        return [
            *remarks,
            f"The prompt is too long: {prompt:,} tokens, in a context of {most:,}. The model was "
            "not trained for that.",
        ]

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Serve requests; yield the engine's events.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
            OutOfMemory: the device has too little memory for a request.
        """
        with _explained(self.loaded.name):
            yield from self.engine.run(requests)

    @contextmanager
    def serving(self, *, observe: Observe | None = None) -> Iterator[Slots]:
        """Serve with slots that the caller fills and steps, as `Engine.serving`.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
            OutOfMemory: the device has too little memory for a request.
        """
        with _explained(self.loaded.name), self.engine.serving(observe=observe) as slots:
            yield slots

    def facts(self) -> dict[str, Any]:
        """Return which weights answer, and how they are held: for reports."""
        model = self.loaded.model
        return {
            "adapter": self.loaded.adapter,
            "name": self.loaded.name,
            "revision": self.loaded.revision,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attention": self.engine.attention,
        }


def open_session(
    profile: Profile,
    *,
    policy: WithdrawalPolicy | None = None,
    slots: int = 1,
    allow_pickle: bool = False,
    random_weights: bool = False,
) -> Session:
    """Load what a resolved profile names; this imports PyTorch and reads the weights.

    Args:
        policy: that of the profile, where it has been made already (`Resolved.policy`).
        allow_pickle: whether weights may be read from pickles, where there is nothing else.
        random_weights: whether to make weights up instead of reading any.

    Raises:
        UsageProblem: the profile names no model, or one that it can't have.
        PluginProblem: its adapter or policy can't be used.
        ModelProblem: the weights can't be loaded, or not served exactly.
        OutOfMemory: the weights do not fit.
    """
    # What is wrong with the settings shows before the weights are read, which may take minutes.
    policy, settings = policy or withdrawal_policy(profile), generation_settings(profile)
    spec = replace(model_spec(profile), allow_pickle=allow_pickle, random_weights=random_weights)
    adapter = load_adapter(profile.adapter)
    if random_weights and type(adapter).build is Adapter.build:
        adapter.build(None)  # says that it can't; `load` would have to read weights
    check_fit(profile.adapter, adapter, spec)
    with _explained(spec.model or profile.adapter):
        loaded = adapter.load(spec)
    from mvw_cli.engine.engine import Engine

    engine = Engine(
        loaded,
        slots=slots,
        attention=profile.attention,
        cross_attention=profile.cross_attention,
    )
    return Session(adapter, loaded, engine, policy, settings)


def without_placeholder(question: str) -> str:
    """Take off the `<image>` by which question files of LLaVA's form say where the image stands."""
    return _PLACEHOLDER.sub("", question, count=1)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn PyTorch's ways of running out of memory into one error with a way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from mvw_cli.engine.memory import ran_out

        if not ran_out(error):
            raise
        text = str(error)
        raise OutOfMemory(
            f"out of memory while running {model}",
            cause=next(iter(text.splitlines()), "") or "the machine has no more to give",
            hint="mvw infer IMAGE QUESTION --dtype bfloat16 --set images.max_pixels=250000",
        ) from error
