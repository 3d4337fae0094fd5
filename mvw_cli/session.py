"""A profile brought to life: adapter, model, engine and policy, ready for questions.

The road that every command takes from a resolved profile to the engine's events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.adapter import Adapter, Answer, LoadedModel, ModelSpec, VisionLayout
from mvw_cli.engine.types import Event, GenerationSettings, Request
from mvw_cli.errors import (
    ModelProblem,
    MvwError,
    OutOfMemory,
    PluginProblem,
    UsageProblem,
    raised_in,
)
from mvw_cli.machine.fit import check_fit
from mvw_cli.plugins import comes_with_adapter, faulty, load_adapter
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.resolution import generation_settings, model_spec
from mvw_cli.profiles.withdrawal import withdrawal_policy
from mvw_cli.text import error_line, plural

if TYPE_CHECKING:
    from PIL.Image import Image

    from mvw_cli.engine.engine import Engine
    from mvw_cli.engine.slots import Observe
    from mvw_cli.engine.slots import Slots as OwnSlots
    from mvw_cli.profiles.schema import Profile
    from mvw_cli.vllm.engine import VllmEngine, VllmSlots

    Slots = OwnSlots | VllmSlots

_POSITIONS = re.compile("position|wpe")
_PLACEHOLDER = re.compile(r"\A\s*<image>\s*|\s*<image>\s*\Z")


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model with the settings that its requests share."""

    adapter: Adapter
    loaded: LoadedModel
    engine: Engine | VllmEngine
    policy: WithdrawalPolicy
    settings: GenerationSettings
    chosen: str = ""
    """Which engine `engine: auto` has taken, and why; one line."""

    def close(self) -> None:
        """End what the engine has started."""
        self.engine.close()

    def request(self, images: Sequence[Image], question: str, *, id: str = "0") -> Request:
        """Encode one question about one or more images.

        Raises:
            OutOfMemory: the device has no room for the encoded images.
            PluginProblem: the adapter does not keep to its contract.
            UsageProblem: the prompt is longer than the model has positions.
        """
        asked = without_placeholder(question)
        with _explained(self.loaded.name):
            if self.engine.prepares_images:
                inputs = self.adapter.prompt(self.loaded, images, asked)
                layout = self.adapter.vision(self.loaded, inputs)
                return Request(id, inputs, layout, self.policy, self.settings, tuple(images))
            inputs = self.adapter.encode(self.loaded, images, asked)
            self._check_inputs(inputs)
            layout = self.adapter.vision(self.loaded, inputs)
            length = inputs["input_ids"].shape[1]
            right = isinstance(layout, VisionLayout) and _is_tensor(layout.entries, "bool", length)
            given = layout.entries if isinstance(layout, VisionLayout) else layout
            self._check("vision", given, right, f"a VisionLayout of {length} bools, one per token")
        settings, model = self.settings, self.loaded.model
        most, prompt = context_of(model.config), int(length)
        # The last token is not read.
        room = settings.max_new_tokens if most is None else most - prompt + 1
        if room < settings.max_new_tokens and ends_at_context(model):
            settings = replace(settings, max_new_tokens=room)
        if settings.max_new_tokens < 1:
            raise UsageProblem(
                f"The prompt is too long: {prompt:,} tokens, in a context of {most:,}.",
                cause=f"The positions of {self.loaded.name} are a table; there are none beyond.",
                hint="mvw list profiles",
            )
        return Request(id, inputs, layout, self.policy, settings)

    def with_system(self, system: str) -> Session:
        """Return the same with another system prompt.

        Raises:
            UsageProblem: the model's prompt has no place for one.
        """
        spec = replace(self.loaded.spec, system=system)
        told = replace(self, loaded=replace(self.loaded, spec=spec))
        try:
            one, other = (s.request([], "?").inputs["input_ids"].tolist() for s in (self, told))
            fits = one != other
        except Exception:  # of a template that refuses it
            fits = False
        if not fits and system != self.loaded.spec.system:
            raise UsageProblem(
                f"The prompt of {self.loaded.name} has no place for a system prompt",
                cause="with one and without, it is the same or none",
                hint="mvw show --schema",
            )
        return told

    def parse(self, text: str) -> Answer:
        """Take a generated text apart, with what the prompt had written of it."""
        opening = self.adapter.opening(self.loaded)
        self._check("opening", opening, isinstance(opening, str), "text")
        answer = self.adapter.parse(opening + text)
        self._check("parse", answer, isinstance(answer, Answer), "an Answer")
        return answer

    def remarks(self, images: Sequence[Image], question: str, request: Request) -> list[str]:
        """List, one line each, where a question lies outside what the model can answer."""
        told = self.adapter.remarks(self.loaded, images, without_placeholder(question))
        lines = isinstance(told, list | tuple) and all(isinstance(one, str) for one in told)
        self._check("remarks", told, lines, "a list of texts")
        remarks = list(told)
        most = context_of(self.loaded.model.config)
        prompt, room = int(request.inputs["input_ids"].shape[1]), request.settings.max_new_tokens
        if room < self.settings.max_new_tokens:
            remarks.append(
                f"The text ends after {plural(room, 'token')}: the prompt has {prompt:,}, and the "
                f"model's positions end at {most:,}."
            )
        elif most is not None and prompt >= most:
            remarks.append(
                f"The prompt is too long: {prompt:,} tokens, in a context of {most:,}. The model "
                "was not trained for that."
            )
        return remarks

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

    def _check_inputs(self, inputs: Any) -> None:
        right = isinstance(inputs, Mapping) and "input_ids" in inputs
        self._check("encode", inputs, right, "a dict with `input_ids` in it")
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        right = _is_tensor(ids, "int", 1, None) and ids.shape[1] > 0
        self._check("encode", ids, right, "whole numbers of shape (1, P) as `input_ids`")
        right = mask is None or _is_tensor(mask, "", *ids.shape)
        wanted = f"a tensor of shape {tuple(ids.shape)} as `attention_mask`"
        self._check("encode", mask, right, wanted)

    def _check(self, method: str, value: object, right: bool, wanted: str) -> None:
        if not right:
            raise _wrong_return(self.loaded.adapter, method, value, wanted)

    def facts(self) -> dict[str, Any]:
        """Return which weights answer, and how they are held: for reports."""
        return {
            "adapter": self.loaded.adapter,
            "name": self.loaded.name,
            "revision": self.loaded.revision,
            "dtype": str(self.engine.dtype).removeprefix("torch."),
            "device": str(self.engine.device),
            "attention": self.engine.attention,
        }


def open_session(
    profile: Profile,
    *,
    policy: WithdrawalPolicy | None = None,
    slots: int | None = None,
    kv_bytes: int | None = None,
    sharers: int = 1,
    allow_pickle: bool = False,
    random_weights: bool = False,
    looking_inside: bool = False,
) -> Session:
    """Load what a resolved profile names; this imports PyTorch and reads the weights.

    Args:
        policy: that of the profile, where it has been made already (`Resolved.policy`).
        slots: requests that decode at the same time; None: one, and in vLLM as many as it takes.
        kv_bytes: bytes of vLLM's pool of KV blocks; None: as memory allows. Our own engine's cache
            grows as it is filled.
        sharers: sessions that have the free memory of the device in common; each takes its part.
        allow_pickle: whether weights may be read from pickles, where there is nothing else.
        random_weights: whether to make weights up instead of reading any.
        looking_inside: whether logits, attention or layers will be looked at: mvw's own engine.

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
    engine: str = profile.engine
    config, why = None, ""
    if looking_inside and engine != "mvw":
        if engine == "vllm":
            from mvw_cli.vllm.start import refused

            raise refused("this needs logits or attention, which vLLM does not give")
        engine = "mvw"
    if engine == "auto":
        from mvw_cli.vllm.start import choose

        engine, reason, config = choose(profile, policy)
        why = f"engine {engine}: {reason}"
    if engine == "vllm":
        try:
            opened = partial(_vllm_session, slots=slots, kv_bytes=kv_bytes, sharers=sharers)
            session = opened(profile, adapter, spec, policy, settings, config)
            return replace(session, chosen=why)
        except ModelProblem as error:
            if profile.engine == "vllm":
                raise
            why = f"engine mvw: {error.message}: {error.cause}"
    if random_weights and type(adapter).build is Adapter.build:
        adapter.build(None)  # says that it can't; `load` would have to read weights
    if not comes_with_adapter(spec.model or "", profile.adapter):
        check_fit(adapter, spec)
    with _explained(spec.model or profile.adapter), console.stdout_to_stderr():
        loaded = adapter.load(spec)
    if not (isinstance(loaded, LoadedModel) and _is_served(loaded)):
        wanted = "a LoadedModel with a model of transformers and its processor"
        raise _wrong_return(profile.adapter, "load", loaded, wanted)
    from mvw_cli.engine.engine import Engine

    own = Engine(
        loaded,
        slots=slots or 1,
        attention=profile.attention,
        cross_attention=profile.cross_attention,
    )
    return Session(adapter, loaded, own, policy, settings, why)


def _vllm_session(
    profile: Profile,
    adapter: Adapter,
    spec: ModelSpec,
    policy: WithdrawalPolicy,
    settings: GenerationSettings,
    config: Any,
    *,
    slots: int | None,
    kv_bytes: int | None,
    sharers: int,
) -> Session:
    """The same with vLLM's engine, which reads the weights itself.

    Args:
        config: of the model, where it was read and checked when the engine was chosen.
    """
    from mvw_cli.cost.shape import on_meta
    from mvw_cli.vllm import start

    start.check(profile, policy)
    if config is None:
        config = adapter.shape(spec)
        if reason := start.unsupported(config):
            raise start.refused(reason)
    with _explained(str(spec.model)):
        model, processor = on_meta(adapter, config), adapter.processor(spec)
    revision = getattr(config, "_commit_hash", None)
    loaded = LoadedModel(
        profile.adapter, str(spec.model), model, processor, spec, revision=revision
    )
    arguments = start.engine_arguments(
        spec,
        policy,
        slots=slots,
        kv_bytes=kv_bytes,
        sharers=sharers,
        engine_args={**adapter.vllm_arguments(), **profile.engine_args.given},
    )
    from mvw_cli.vllm.engine import VllmEngine

    return Session(adapter, loaded, VllmEngine(adapter, loaded, arguments), policy, settings)


def _wrong_return(adapter: str, method: str, value: object, wanted: str) -> PluginProblem:
    shape = getattr(value, "shape", None)
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    given = type(value).__name__ if shape is None else f"{dtype} of shape {tuple(shape)}"
    what = f"returned {'None' if value is None else given} from {method}()"
    return faulty("adapter", adapter, what, f"{wanted} is wanted")


def _is_served(loaded: LoadedModel) -> bool:
    """Whether it has what the engine needs of a model and a tokenizer."""
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    return hasattr(loaded.model, "get_decoder") and hasattr(tokenizer, "decode")


def _is_tensor(value: object, kind: str, *shape: int | None) -> bool:
    """Whether a value is a tensor of such numbers and sizes; None stands for any."""
    sizes, dtype = getattr(value, "shape", ()), str(getattr(value, "dtype", ""))
    fits = all(want in (None, size) for want, size in zip(shape, sizes, strict=False))
    return dtype.startswith(f"torch.{kind}") and len(sizes) == len(shape) and fits


def context_of(config: Any) -> int | None:
    """Return how many positions a model of this configuration was trained for, where it is told."""
    most: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most


def ends_at_context(model: Any) -> bool:
    """Whether a model has no other positions: they are learned, rows of a table as GPT-2's."""
    named = model.get_decoder().named_modules()
    return any(hasattr(one, "num_embeddings") and _POSITIONS.search(name) for name, one in named)


def without_placeholder(question: str) -> str:
    """Take off the `<image>` by which question files of LLaVA's form say where the image stands."""
    return _PLACEHOLDER.sub("", question, count=1)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn PyTorch's ways of running out of memory, and errors in a model's own code, into errors
    with a way out."""
    try:
        yield
    except MvwError:
        raise
    except Exception as error:
        from mvw_cli.engine.memory import ran_out

        if raised_in(error, "transformers") and not ran_out(error):
            raise ModelProblem(
                f"{model} has failed in its own code.",
                cause=error_line(error),
                hint="mvw infer IMAGE QUESTION --debug",
            ) from error
        if not ran_out(error):
            raise
        text = str(error)
        raise OutOfMemory(
            f"out of memory while running {model}",
            cause=next(iter(text.splitlines()), "") or "the machine has no more to give",
            hint="mvw infer IMAGE QUESTION --dtype bfloat16 --set images.max_pixels=250000",
        ) from error
