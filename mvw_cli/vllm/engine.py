"""vLLM behind the interface of `engine.engine.Engine`: requests in, the same events out.

vLLM schedules by itself: what is admitted here waits in its queue until it has blocks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from mvw_cli.adapter import Adapter, LoadedModel
from mvw_cli.cost.shape import shape_of_model
from mvw_cli.engine.engine import serve_all
from mvw_cli.engine.layers import CrossAttention
from mvw_cli.engine.sequence import Detokenizer
from mvw_cli.engine.types import (
    Admitted,
    EngineDied,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationSettings,
    Prefilled,
    Request,
    Token,
    Withdrawn,
)
from mvw_cli.errors import BadImage, ExitCode, ModelProblem, MvwError
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.text import error_line
from mvw_cli.vllm.start import start, withdrawal_settings

AHEAD = 8
"""Requests that wait in vLLM's queue beside those that it decodes, so that none waits for us."""


class Refused(MvwError):
    """A request that vLLM does not take, as one that is too long; it may take others."""

    exit_code = ExitCode.USAGE


@dataclass(slots=True)
class _Progress:
    """One request on its way."""

    request: Request
    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    vision_tokens: int = 0
    withdrawn: int = 0
    """Vision tokens that are gone."""


class VllmEngine:
    """Serves requests through vLLM in processes of its own.

    Raises:
        MvwError: as `start`; or the plugin that withdraws was not loaded.
    """

    cross_attention: CrossAttention = "skip"
    prepares_images = True
    in_process = False

    def __init__(self, adapter: Adapter, loaded: LoadedModel, arguments: Mapping[str, Any]) -> None:
        self._adapter, self._loaded = adapter, loaded
        self.vllm, self._log = start(arguments, loaded.spec.device)
        config = self.vllm.vllm_config
        self.dtype: torch.dtype = config.model_config.dtype
        self.device = torch.device(config.device_config.device_type)
        self.slots = int(config.scheduler_config.max_num_seqs) + AHEAD
        self._layers = int(loaded.model.config.get_text_config().num_hidden_layers)
        elements = shape_of_model(loaded.model).kv_elements_per_token()
        self._token_bytes: int = elements * self.dtype.itemsize
        self._block_size = int(config.cache_config.block_size)
        blocks = int(config.cache_config.num_gpu_blocks or 0)
        self._pool_bytes = blocks * self._block_size * self._token_bytes
        self._defaults: dict[str, Any] = config.model_config.try_get_generation_config()
        if not str(config.scheduler_config.scheduler_cls).startswith("mvw_cli."):
            self.close()
            raise ModelProblem(  # and would keep the vision to the end, without a word
                "vLLM has not loaded mvw's plugin",
                cause="VLLM_PLUGINS leaves it out, or mvw is not installed beside this vLLM",
                hint="mvw doctor --engine vllm",
            )
        backends = {one for told in self.vllm.collective_rpc("mvw_attention") for one in told}
        self.attention = f"vllm:{'+'.join(sorted(backends))}"
        """The attention backend that vLLM has chosen."""

    def run(self, requests: Iterable[Request], *, observe: Any = None) -> Iterator[Event]:
        """Serve requests; yield the engine's events.

        Raises:
            Exception: what befell a request.
        """
        assert observe is None, "vLLM does not give its logits"
        with self.serving() as slots:
            yield from serve_all(slots, requests, self.slots)

    @contextmanager
    def serving(self, *, observe: Any = None) -> Iterator[VllmSlots]:
        """Give slots for whoever decides by himself what is admitted when."""
        slots = VllmSlots(self)
        try:
            yield slots
        finally:
            for name in slots.active:
                slots.drop(name)

    def close(self) -> None:
        """End vLLM's processes."""
        self.vllm.engine_core.shutdown()

    def died(self) -> EngineDied:
        """Make the error of processes that have ended; what they wrote last says why."""
        cause = "a process of it was killed, as the system does where memory runs out"
        if self._log.handle is None:
            cause = "a process of it died; what it wrote to stderr says why"
        return EngineDied(
            "vLLM's engine has ended",
            cause=self._log.last_error() or cause,
            hint="mvw doctor --engine vllm",
        )

    def refused(self, request: Request, error: Exception) -> MvwError:
        """Make the error of a request that vLLM does not take; what was raised first says why."""
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        if own := next((one for one in chain if isinstance(one, MvwError)), None):
            return own  # of an adapter that prepares images there
        why, hint = error_line(chain[-1]), "mvw doctor --engine vllm"
        if isinstance(chain[-1], (ValueError, type(error))):  # a sentence by itself
            why = next(iter(str(chain[-1]).strip().splitlines()), "no reason given")
        # From `multimodal/processing/context.py`. The text that a processor gets there is not the
        # request's, so it is the images that it fails at.
        if str(error).startswith("Failed to apply"):
            sizes = " and ".join(f"{one.width} x {one.height}" for one in request.images)
            what = f"{self._loaded.name} takes no image of {sizes} pixels."
            return BadImage(what, cause=why, hint="mvw list profiles")
        if "maximum context length" in why or "maximum model length" in why:
            hint = "mvw infer IMAGE QUESTION --set images.max_pixels=500000"
        return Refused("vLLM refuses the request", cause=why, hint=hint)

    def sampling(self, settings: GenerationSettings, policy: WithdrawalPolicy) -> Any:
        """Turn settings into vLLM's; what is None is as the checkpoint's generation config says."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        told = {name: getattr(settings, name) for name in names}
        given = {name: value for name, value in told.items() if value is not None}
        chosen = self._defaults | given
        # As `generate` decides it: a setting of sampling means sampling, else the model says.
        if not self._defaults.get("do_sample") and not given.keys() - {"repetition_penalty"}:
            chosen["temperature"] = 0.0
        own = withdrawal_settings(policy)
        return SamplingParams(
            **{name: chosen[name] for name in names if name in chosen},
            max_tokens=settings.max_new_tokens,
            seed=settings.seed,
            stop=list(settings.stop) or None,
            detokenize=bool(settings.stop),  # else the text is made here, as everywhere
            include_stop_str_in_output=True,
            ignore_eos=settings.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
            extra_args={f"mvw_{key}": value for key, value in (own or {"m": -1}).items()},
        )

    def begun(self, request: Request) -> _Progress:
        """Begin to follow a request."""
        tokenizer = getattr(self._loaded.processor, "tokenizer", self._loaded.processor)
        return _Progress(request, Detokenizer(tokenizer))

    def kv_bytes(self, entries: int) -> int:
        """Return the bytes of so many entries, over all layers."""
        return entries * self._token_bytes

    def prefilled(self, progress: _Progress, prompt: list[int], at: float) -> Prefilled:
        """Note that a prompt has been read; vLLM tells it with its vision tokens written out."""
        vision = self._adapter.vision(self._loaded, {"input_ids": torch.tensor([prompt])})
        progress.prompt_tokens, progress.vision_tokens = len(prompt), vision.vision_tokens
        return Prefilled(
            progress.request.id,
            at,
            prompt_tokens=progress.prompt_tokens,
            vision_tokens=progress.vision_tokens,
            kv_bytes=self.kv_bytes(progress.prompt_tokens),
            vision_by_layer=(progress.vision_tokens,) * self._layers,
        )

    def finished(self, progress: _Progress, reason: FinishReason, at: float) -> Finished:
        """Note that a request is complete."""
        entries = progress.prompt_tokens + len(progress.ids) - 1 - progress.withdrawn
        return Finished(
            progress.request.id,
            at,
            reason=reason,
            text=progress.detokenizer.text,
            token_ids=tuple(progress.ids),
            kv_bytes=self.kv_bytes(entries),
            kv_allocated_bytes=self._pool_bytes,
        )


class VllmSlots:
    """What is in vLLM's hands, as `engine.slots.Slots` for the own engine."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine, self._progress = engine, dict[str, _Progress]()
        self.kv_allocated_bytes = engine._pool_bytes

    @property
    def active(self) -> list[str]:
        """Names of the requests that are not complete."""
        return list(self._progress)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the entries of all requests whose prompts have been read."""
        return sum(
            self._engine.kv_bytes(one.prompt_tokens + len(one.ids) - 1 - one.withdrawn)
            for one in self._progress.values()
            if one.ids
        )

    def room_bytes(self, request: Request | None, *, ahead: int, withdrawing: bool) -> int:
        """Return 0: vLLM's own pool decides who is admitted."""
        return 0

    def admit(self, request: Request) -> list[Event]:
        """Hand a request to vLLM.

        Raises:
            BadImage: the processor that prepares images there has failed at one.
            Refused: vLLM does not take it for another reason.
            EngineDied: vLLM's processes have ended.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = TokensPrompt(prompt_token_ids=request.inputs["input_ids"][0].tolist())
        if request.images:
            prompt["multi_modal_data"] = {"image": list(request.images)}
        try:
            params = self._engine.sampling(request.settings, request.policy)
            self._engine.vllm.add_request(request.id, prompt, params)
        except EngineDeadError as error:
            raise self._engine.died() from error
        except (ValueError, VLLMClientError) as error:
            raise self._engine.refused(request, error) from error
        self._progress[request.id] = self._engine.begun(request)
        return [Admitted(request.id, perf_counter())]

    def drop(self, name: str) -> None:
        """Abort a request."""
        from vllm.v1.engine.exceptions import EngineDeadError

        del self._progress[name]
        with suppress(EngineDeadError):  # which ends all of them
            self._engine.vllm.abort_request([name])

    def step(self) -> list[Event]:
        """Wait for vLLM's next pass; return what came of it.

        Raises:
            EngineDied: vLLM's processes have ended.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs = self._engine.vllm.step()
        except EngineDeadError as error:
            raise self._engine.died() from error
        at = perf_counter()
        return [event for output in outputs for event in self._events(output, at)]

    def _events(self, output: Any, at: float) -> Iterator[Event]:
        progress = self._progress.get(output.request_id)
        if progress is None:
            return  # dropped meanwhile
        name, [part] = output.request_id, output.outputs
        if not progress.prompt_tokens:
            yield self._engine.prefilled(progress, list(output.prompt_token_ids), at)
        report = (output.kv_transfer_params or {}).get("mvw")
        if report is not None and not progress.withdrawn:
            progress.withdrawn = report["vision_tokens"]
            entries = progress.prompt_tokens + report["step"] - 1
            yield Withdrawn(
                name,
                at,
                step=report["step"],
                vision_tokens=report["vision_tokens"],
                entries=report["entries"],
                kv_bytes_before=self._engine.kv_bytes(entries),
                kv_bytes_after=self._engine.kv_bytes(entries - progress.withdrawn),
                duration_s=None,
                kv_blocks_freed=report["blocks_freed"],
            )
        attended = float(progress.vision_tokens - progress.withdrawn)
        for number, token in enumerate(part.token_ids, start=1):
            progress.ids.append(token)
            text = progress.detokenizer.add(token)
            if output.finished and number == len(part.token_ids):
                text += progress.detokenizer.finish()
            yield Token(name, at, len(progress.ids), token, text, attended)
        if output.finished:
            del self._progress[name]
            yield self._end(progress, part, at)

    def _end(self, progress: _Progress, part: Any, at: float) -> Event:
        if part.finish_reason == "length":
            return self._engine.finished(progress, "length", at)
        if part.finish_reason == "stop":
            reason: FinishReason = "stop" if isinstance(part.stop_reason, str) else "eos"
            return self._engine.finished(progress, reason, at)
        problem = ModelProblem(
            "vLLM gave a request up",
            cause=f"it ended with `{part.finish_reason}`",
            hint="mvw doctor --engine vllm",
        )
        return Failed(progress.request.id, at, error=problem)
