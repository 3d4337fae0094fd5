"""Every place where the plugin touches vLLM: what it overrides, and what it checks beforehand.

vLLM calls these interfaces private, so all of them are here: the next version is one file's work.
Written against 0.32; paths in comments are below `vllm/v1/`.

Withdrawal in a paged cache: before the pass that reads token m, the entries behind the vision
tokens move up, the blocks that become empty go back to the pool, and from then on slots and lengths
count entries while rotary positions stay as they are. The scheduler decides by counts alone and
tells the workers each step (`plan.py`), so preemption, resumption and parallel workers need nothing
of their own.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor

from mvw_cli.engine.sequence import readable
from mvw_cli.policies.mvw import Mvw
from mvw_cli.vllm.plugin.layout import move_layers
from mvw_cli.vllm.plugin.plan import Asked, Move, Plan, Span, asked_of, vision_spans
from mvw_cli.vllm.plugin.settings import (
    ALLOW_UNTESTED,
    KEY,
    LEADER,
    asks,
    request_policy,
    server_default,
    server_settings,
)

TESTED_VERSIONS = ("0.32",)
TESTED_BACKENDS = ("CPU_ATTN", "CPU_MLA")
"""Attention backends through which the oracle has been run. One that reads lengths from where the
plugin doesn't shorten them would be wrong without a word, so others are refused."""
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "CPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "GPUWorker",
}

logger = init_logger("vllm.mvw")

# What is overridden or called, with the parameters that it had in the tested versions.
_SIGNATURES: dict[Any, str] = {
    EngineArgs.create_engine_config: "self usage_context headless",
    ChatCompletionRequest.to_sampling_params: "self max_tokens default_sampling_params",
    InputProcessor.process_inputs: "self request_id prompt params supported_tasks arrival_time "
    "lora_request tokenization_kwargs trace_headers priority data_parallel_rank resumable "
    "session_id kv_hints",
    OutputProcessor.process_outputs: "self engine_core_outputs engine_core_timestamp "
    "iteration_stats weight_version",
    Scheduler.add_request: "self request",
    Scheduler.schedule: "self throttle_prefills",
    Scheduler._reserve_prefill_lookahead: "self request num_computed_tokens num_new_tokens",
    Scheduler._get_local_prefix_cache_hit: "self request",
    Scheduler._preempt_request: "self request timestamp drop_stale_output",
    Scheduler._free_request: "self request delay_free_blocks",
    Scheduler._update_request_with_output: "self request new_token_ids is_stale",
    Scheduler.update_from_output: "self scheduler_output model_runner_output",
    FullAttentionManager.get_num_blocks_to_allocate: "self request_id num_tokens "
    "new_computed_blocks total_computed_tokens num_local_computed_tokens "
    "num_tokens_main_model apply_admission_cap prefill_end",
    FullAttentionManager.allocate_new_blocks: "self request_id num_tokens num_tokens_main_model",
    FullAttentionManager.cache_blocks: "self request num_tokens retention_interval "
    "replay_boundaries",
    FullAttentionManager.pop_blocks_for_free: "self request_id",
}


def install() -> None:
    """Wrap the doors of vLLM's front end, once in a process."""
    if getattr(EngineArgs, "mvw_installed", False):
        return
    EngineArgs.mvw_installed = True
    create, process = EngineArgs.create_engine_config, InputProcessor.process_inputs
    receive, convert = OutputProcessor.process_outputs, ChatCompletionRequest.to_sampling_params

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        settings = server_settings(config.additional_config)
        if settings is not None:
            withdraw_with(config, server_default(settings))
        return config

    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = convert(self, *args, **kwargs)
        # vLLM's server keeps what it does not know of a request, and passes over it.
        asked = (self.model_extra or {}).get(KEY)
        if asked not in (None, {}):
            params.extra_args = {**(params.extra_args or {}), KEY: asked}
        return params

    def process_inputs(
        self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if isinstance(params, SamplingParams):
            check_request(self.vllm_config, params, resumable=bool(kwargs.get("resumable")))
        return process(self, request_id, prompt, params, *args, **kwargs)

    def process_outputs(
        self: Any, engine_core_outputs: Sequence[Any], *args: Any, **kwargs: Any
    ) -> Any:
        for output in engine_core_outputs:
            _count(output.kv_transfer_params)
        return receive(self, engine_core_outputs, *args, **kwargs)

    EngineArgs.create_engine_config = create_engine_config
    ChatCompletionRequest.to_sampling_params = to_sampling_params
    InputProcessor.process_inputs = process_inputs
    OutputProcessor.process_outputs = process_outputs


# -- start-up ------------------------------------------------------------------------------------


def changed_interfaces() -> list[str]:
    """List the interfaces that are not what they were in the tested versions."""
    return [
        f"{function.__qualname__} takes {found}, not {expected}"
        for function, expected in _SIGNATURES.items()
        if (found := " ".join(inspect.signature(inspect.unwrap(function)).parameters)) != expected
    ]


def problems(config: Any) -> list[str]:
    """List what of an engine's configuration withdrawal would not be exact with."""
    parallel, speculative = config.parallel_config, config.speculative_config
    scheduling = config.scheduler_config
    found = {
        "images that are attended to both ways": config.model_config.is_mm_prefix_lm,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "a KV connector": config.kv_transfer_config is not None,
        "a scheduler of its own": scheduling.scheduler_cls is not None,
        f"the worker {parallel.worker_cls}": parallel.worker_cls not in WORKERS,
        "speculative decoding other than ngram": speculative is not None
        and speculative.method != "ngram",
        "speculative decoding with asynchronous scheduling": speculative is not None
        and scheduling.async_scheduling,
    }
    return [name for name, present in found.items() if present]


def untested(config: Any) -> list[str]:
    """List what of an engine's configuration has not been held against the oracle."""
    found = {
        f"vLLM {vllm.__version__} (tested: {', '.join(TESTED_VERSIONS)})": not any(
            vllm.__version__.startswith(version + ".") for version in TESTED_VERSIONS
        ),
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        f"a KV cache in {config.cache_config.cache_dtype}": config.cache_config.cache_dtype
        not in ("auto", "float32", "bfloat16", "float16"),
    }
    return [name for name, present in found.items() if present]


def withdraw_with(config: Any, default: Mvw | None) -> None:
    """Give an engine's configuration the plugin's scheduler and worker.

    Raises:
        ValueError: withdrawal would not be exact, or was never held against the oracle.
    """
    changed = changed_interfaces()
    if changed:
        raise ValueError(
            f"mvw can't withdraw in vLLM {vllm.__version__}, whose interfaces differ from "
            f"{', '.join(TESTED_VERSIONS)}: {'; '.join(changed)}"
        )
    if wrong := problems(config):
        raise ValueError(f"mvw: withdrawal is not exact with {', nor with '.join(wrong)}")
    _refuse_untested(config, untested(config))
    asynchronous = bool(config.scheduler_config.async_scheduling)
    if default is not None:
        _check_tag(default, config)
    kind = "MVWAsyncScheduler" if asynchronous else "MVWScheduler"
    config.scheduler_config.scheduler_cls = f"mvw_cli.vllm.plugin.touchpoints.{kind}"
    worker = WORKERS[config.parallel_config.worker_cls]
    config.parallel_config.worker_cls = f"mvw_cli.vllm.plugin.touchpoints.{worker}"
    logger.info(
        "mvw: vision tokens are withdrawn %s",
        "where a request asks for it" if default is None else default.describe(),
    )


def _refuse_untested(config: Any, found: Sequence[str]) -> None:
    settings = server_settings(config.additional_config) or {}
    if found and not settings.get(ALLOW_UNTESTED):
        raise ValueError(
            f"mvw: withdrawal was never held against the oracle with {', nor with '.join(found)}; "
            "wrong answers would show in nothing. `mvw doctor --engine vllm --equivalence` holds "
            f'it against it here; {{"mvw": {{"{ALLOW_UNTESTED}": true}}}} lets it pass.'
        )
    for one in found:
        logger.warning("mvw: not held against the oracle: %s", one)


def _check_tag(policy: Mvw, config: Any) -> None:
    """A tag is known once its token has been read back: too late where a pass is already begun."""
    if policy.until is None:
        return
    if config.scheduler_config.async_scheduling:
        raise ValueError(
            "mvw: `until` needs synchronous scheduling, else the withdrawal would come one pass "
            "late: start with --no-async-scheduling, or give `m`"
        )
    if config.speculative_config is not None:
        raise ValueError(
            "mvw: `until` can't be had with speculative decoding, whose passes go past the tag"
        )


def check_request(config: Any, params: SamplingParams, *, resumable: bool = False) -> None:
    """Refuse a wrong request in the front end: an exception in the scheduler ends the engine.

    Raises:
        VLLMValidationError: which a server answers with status 400.
    """
    settings = server_settings(config.additional_config)
    if settings is None and not asks(params.extra_args):
        return
    try:
        if settings is None:
            raise ValueError(
                "this engine withdraws nothing: start it with --additional-config '{\"mvw\": {}}'"
            )
        policy = request_policy(params.extra_args, server_default(settings))
        if policy is not None:
            _check_tag(policy, config)
            if resumable:
                raise ValueError("mvw: withdrawal can't be had in a streaming session")
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter="vllm_xargs") from error


def _count(transfer: Any) -> None:
    """Count a withdrawal that an output tells of, for `/metrics`, unless it has been before."""
    report = transfer.get("mvw") if isinstance(transfer, dict) else None
    if report is None or report.pop("repeated", False):
        return
    for name, value in (
        ("withdrawals", 1),
        ("withdrawn_tokens", report["vision_tokens"]),
        ("freed_blocks", report["blocks_freed"]),
    ):
        _counter(name).inc(value)


_COUNTERS: dict[str, Any] = {}


def _counter(name: str) -> Any:
    from prometheus_client import Counter  # vLLM may have to set its registry up first

    if name not in _COUNTERS:
        text = {
            "withdrawals": "Requests whose vision tokens were withdrawn.",
            "withdrawn_tokens": "Vision tokens withdrawn.",
            "freed_blocks": "KV cache blocks that withdrawals gave back to the pool.",
        }
        _COUNTERS[name] = Counter(f"vllm:mvw_{name}", text[name])
    return _COUNTERS[name]


# -- the scheduler's half ------------------------------------------------------------------------


class WithdrawingManager(FullAttentionManager):
    """Block bookkeeping that counts entries in place of positions for those that withdrew."""

    removed: dict[str, int]

    def get_num_blocks_to_allocate(self, request_id, num_tokens, *args, **kwargs):
        num_tokens -= self.removed.get(request_id, 0)
        return super().get_num_blocks_to_allocate(request_id, num_tokens, *args, **kwargs)

    def allocate_new_blocks(self, request_id, num_tokens, *args, **kwargs):
        num_tokens -= self.removed.get(request_id, 0)
        return super().allocate_new_blocks(request_id, num_tokens, *args, **kwargs)

    def cache_blocks(self, request, *args, **kwargs):
        # What a block holds no longer follows from the tokens up to its end.
        if request.request_id not in self.removed:
            super().cache_blocks(request, *args, **kwargs)

    def pop_blocks_for_free(self, request_id):
        self.removed.pop(request_id, None)  # finished, aborted or preempted
        return super().pop_blocks_for_free(request_id)

    def withdraw(self, request_id: str, spans: Sequence[Span], length: int) -> Move | None:
        """Drop the spans' entries; None if there is no room to do it (shared blocks only)."""
        blocks, pool = self.req_to_blocks[request_id], self.block_pool
        removed = sum(stop - start for start, stop in spans)
        first, kept = spans[0][0] // self.block_size, -(-(length - removed) // self.block_size)
        old = [block.block_id for block in blocks]
        # Written to: blocks `first` to `kept`. One that others read or that the prefix cache may
        # still serve gets a stand-in, so that its content stays what its hash says.
        written = range(first, kept)
        shared = [i for i in written if blocks[i].ref_cnt > 1]
        hashed = [i for i in written if blocks[i].ref_cnt == 1 and blocks[i].block_hash is not None]
        free = pool.get_num_free_blocks() + sum(block.ref_cnt == 1 for block in blocks[kept:])
        if len(shared) > free:
            return None
        pool.free_blocks(reversed(blocks[kept:]))
        del blocks[kept:]
        if len(shared) + len(hashed) > pool.get_num_free_blocks():
            # Better a hit less for others than a request that has to be computed again.
            pool.evict_blocks({blocks[i].block_id for i in hashed})
            hashed = []
        stand_ins = [*shared, *hashed]
        for i, fresh in zip(stand_ins, pool.get_new_blocks(len(stand_ins)), strict=True):
            pool.free_blocks([blocks[i]])
            blocks[i] = fresh
        self.removed[request_id] = removed
        new = [block.block_id for block in blocks]
        return Move(old, new, tuple(spans), length, stand_ins=len(stand_ins))


class WithdrawalMixin:
    """Lies over Scheduler or AsyncScheduler; overrides methods only."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _follow_the_leader()
        super().__init__(*args, **kwargs)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        spec = managers[0].kv_cache_spec
        kind = type(managers[0])
        if len(managers) != 1 or kind is not FullAttentionManager:
            kinds = ", ".join(sorted({type(one).__name__ for one in managers}))
            raise ValueError(f"mvw: withdrawal is not exact with caches of several kinds ({kinds})")
        # A window counts entries: once vision is gone, older text would come back into it.
        if getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None):
            raise ValueError("mvw: withdrawal is not exact with sliding windows or chunks")
        managers[0].__class__ = WithdrawingManager
        managers[0].removed = {}
        self.mvw_blocks = managers[0]
        self._default = server_default(server_settings(self.vllm_config.additional_config) or {})
        self._asked: dict[str, Asked] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self._untold: set[str] = set()
        groups = self.kv_cache_config.kv_cache_groups
        ranks = self.vllm_config.parallel_config.tensor_parallel_size
        self._layers = len(groups[0].layer_names)
        self._block_bytes = spec.page_size_bytes * self._layers * ranks
        self._tokenizer: Any = None

    def add_request(self: Any, request: Any) -> None:
        params = request.sampling_params
        policy = None if params is None else request_policy(params.extra_args, self._default)
        spans = vision_spans(request.mm_features)
        if policy is not None and spans:
            key = request.request_id
            self._asked[key] = asked_of(policy, request.num_prompt_tokens, spans)
        super().add_request(request)

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        moves = self._withdraw()
        output = super().schedule(*args, **kwargs)
        removed = self.mvw_blocks.removed  # without those that were preempted in this very step
        output.mvw = Plan(
            {key: removed[key] for key in output.num_scheduled_tokens if key in removed},
            {key: move for key, move in moves.items() if key in removed},
        )
        return output

    def _withdraw(self: Any) -> dict[str, Move]:
        moves = {}
        for request in list(self.running):
            key = request.request_id
            asked = self._asked.get(key)
            due = asked is not None and request.num_computed_tokens >= asked.boundary
            if not due or key in self.mvw_blocks.removed:
                continue
            assert request.num_computed_tokens == asked.boundary, "a pass went past the withdrawal"
            before = len(self.mvw_blocks.req_to_blocks[key])
            move = self.mvw_blocks.withdraw(key, asked.spans, asked.boundary)
            if move is None:  # comes back by recomputation, once there is room
                self.running.remove(request)
                self._preempt_request(request, 0.0)
                continue
            moves[key] = move
            self._note(request, asked, before, move)
        return moves

    def _note(self: Any, request: Any, asked: Asked, before: int, move: Move) -> None:
        """Keep what is told of a withdrawal; after a preemption it is the same again."""
        key, after = request.request_id, len(move.new_blocks)
        if key not in self._reports:
            vision = self.mvw_blocks.removed[key]
            self._untold.add(key)
            self._reports[key] = {
                "step": asked.boundary - request.num_prompt_tokens + 1,
                "vision_tokens": vision,
                "entries": vision * self._layers,
                "blocks_before": before,
                "blocks_after": after,
                "blocks_freed": before - after,
                "kv_bytes_before": before * self._block_bytes,
                "kv_bytes_after": after * self._block_bytes,
            }

    def update_from_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        if self._untold:
            for one in (one for some in outputs.values() for one in some.outputs):
                if one.request_id in self._untold:
                    self._untold.discard(one.request_id)
                    told = {"mvw": self._reports[one.request_id]}
                    one.kv_transfer_params = {**(one.kv_transfer_params or {}), **told}
        return outputs

    def _update_request_with_output(
        self: Any, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> Any:
        found = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        asked = self._asked.get(request.request_id)
        if asked is not None and asked.tags and new_token_ids:
            written = self._decoded(request.output_token_ids[-asked.tail() :])
            if any(tag in written for tag in asked.tags):
                boundary = max(request.num_tokens - 1, asked.earliest)
                boundary = min(boundary, asked.boundary)
                self._asked[request.request_id] = replace(asked, boundary=boundary, tags=())
        return found

    def _decoded(self: Any, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            from vllm.tokenizers import cached_tokenizer_from_config

            self._tokenizer = cached_tokenizer_from_config(self.vllm_config.model_config)
        return readable(self._tokenizer, list(ids))

    def _reserve_prefill_lookahead(
        self: Any, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """End a pass where the withdrawal is due: no chunk, draft or recomputation crosses it."""
        new: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        asked = self._asked.get(request.request_id)
        if asked is not None and num_computed_tokens < asked.boundary:
            new = min(new, asked.boundary - num_computed_tokens)
        return new

    def _get_local_prefix_cache_hit(self: Any, request: Any) -> Any:
        """Take nothing from the prefix cache behind the withdrawal: it was computed with vision."""
        blocks, hit, shared, diverged = super()._get_local_prefix_cache_hit(request)
        asked = self._asked.get(request.request_id)
        if asked is not None and hit > asked.boundary:
            hit = asked.boundary // self.mvw_blocks.block_size * self.mvw_blocks.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
        return blocks, hit, shared, diverged

    def _free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        transfer, encoder = super()._free_request(request, *args, **kwargs)
        key = request.request_id
        self._asked.pop(key, None)
        report = self._reports.pop(key, None)
        if report is not None:
            # Told once when it happened, and once more with the last output, which may be the
            # only one that the user gets.
            repeated = {} if key in self._untold else {"repeated": True}
            transfer = {**(transfer or {}), "mvw": report | repeated}
            self._untold.discard(key)
        return transfer, encoder


class MVWScheduler(WithdrawalMixin, Scheduler):
    """For synchronous scheduling: a tag may set the boundary too."""


class MVWAsyncScheduler(WithdrawalMixin, AsyncScheduler):
    """For asynchronous scheduling: withdrawal depends on counts only, never on a token's value."""


# -- the worker's half ---------------------------------------------------------------------------


def _follow_the_leader() -> None:
    """Live as long as the mvw that has started this engine, and no longer.

    Ctrl-C reaches the group of processes, so this one leaves it: mvw ends its engine itself, once
    it has all. Where mvw is killed, nobody else would end what holds a GPU's memory.
    """
    leader = int(os.environ.get(LEADER) or 0)
    if leader in (0, os.getpid()):
        return
    with suppress(OSError):
        if os.getpgrp() == os.getpgid(leader):
            os.setpgid(0, 0)

    def watch() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(leader, 0)  # sends nothing; raises once there is no such process
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="mvw-leader", daemon=True).start()


def _plan(scheduler_output: Any) -> Plan:
    return getattr(scheduler_output, "mvw", None) or Plan()


class RunnerV1:
    """Lies over worker/gpu_model_runner.py: GPUModelRunner and what derives from it."""

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        # First of all: blocks that are freed here may be another request's in this step.
        for key, move in _plan(scheduler_output).moves.items():
            state = self.requests.get(key)
            if state is None:
                continue
            move_layers(self, move)
            state.block_ids = (list(move.new_blocks),)
            row = self.input_batch.req_id_to_index.get(key)
            if row is not None:
                self.input_batch.block_table.clear_row(row)
                self.input_batch.block_table.add_row(state.block_ids, row)
        return super()._update_states(scheduler_output)

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        plan = _plan(scheduler_output)
        if not plan.removed:
            return result
        # Positions are left as they are: the rotary embedding reads them. Slots and lengths, which
        # only the attention reads from here on, count entries.
        rows = self.input_batch.num_reqs
        short = [plan.removed.get(key, 0) for key in self.input_batch.req_ids[:rows]]
        removed = torch.tensor(short, dtype=torch.int32)
        self.optimistic_seq_lens_cpu[:rows] -= removed
        removed = removed.to(self.device)
        self.seq_lens[:rows] -= removed
        tokens = scheduler_output.total_num_scheduled_tokens
        by_token = removed[self.req_indices.gpu[:tokens].long()]
        self.input_batch.block_table.compute_slot_mapping(
            rows, self.query_start_loc.gpu[: rows + 1], self.positions[:tokens] - by_token
        )
        return result


class RunnerV2:
    """Lies over worker/gpu/model_runner.py, what vLLM runs on GPUs unless told otherwise."""

    _mvw_plan = Plan()
    _mvw_short: torch.Tensor | None = None

    def update_requests(self: Any, scheduler_output: Any) -> Any:
        self._mvw_plan = _plan(scheduler_output)
        for key, move in self._mvw_plan.moves.items():
            move_layers(self, move)
            row = self.req_states.req_id_to_index.get(key)
            if row is not None:
                self.block_tables.append_block_ids(row, (list(move.new_blocks),), overwrite=True)
        return super().update_requests(scheduler_output)

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        tables, slots = super().prepare_attn(input_batch)
        removed, rows = self._mvw_plan.removed, input_batch.num_reqs
        if not any(key in removed for key in input_batch.req_ids):
            return tables, slots
        short = np.array([removed.get(key, 0) for key in input_batch.req_ids], dtype=np.int64)
        by_token = np.repeat(short, input_batch.num_scheduled_tokens)
        positions = input_batch.positions.clone()  # the buffer itself is what RoPE reads
        positions[: len(by_token)] -= torch.from_numpy(by_token).to(self.device)
        slots = self.block_tables.compute_slot_mappings(
            input_batch.idx_mapping,
            input_batch.query_start_loc,
            positions,
            num_tokens_padded=input_batch.num_tokens_after_padding,
        )
        # In place: full CUDA graphs read this very buffer. The sampler takes it for the number of
        # tokens, so it gets it back in `sample`.
        self._mvw_short = torch.from_numpy(short.astype(np.int32))
        input_batch.seq_lens[:rows] -= self._mvw_short.to(self.device)
        # Some backends (FlashInfer) plan their pages from the host's copy.
        input_batch.seq_lens_cpu_upper_bound[:rows] -= self._mvw_short
        return tables, slots

    def sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        if self._mvw_short is not None:
            rows = input_batch.num_reqs
            input_batch.seq_lens[:rows] += self._mvw_short.to(self.device)
            input_batch.seq_lens_cpu_upper_bound[:rows] += self._mvw_short
            self._mvw_short = None
        return super().sample(hidden_states, input_batch, grammar_output)


class WorkerMixin:
    """Lies over a platform's worker: its model runner withdraws."""

    def init_device(self: Any) -> None:
        _follow_the_leader()
        super().init_device()
        kind = type(self.model_runner)
        second = kind.__module__.startswith(("vllm.v1.worker.gpu.", "vllm.v1.worker.cpu."))
        bases = (RunnerV2 if second else RunnerV1, kind)
        self.model_runner.__class__ = type(f"MVW{kind.__name__}", bases, {})

    def initialize_from_config(self: Any, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        context = self.vllm_config.compilation_config.static_forward_context
        names = [name for group in kv_cache_config.kv_cache_groups for name in group.layer_names]
        found = {context[name].get_attn_backend().get_name() for name in names}
        self.mvw_backends = sorted(found)
        others = sorted(found.difference(TESTED_BACKENDS))
        _refuse_untested(self.vllm_config, [f"the attention backend {one}" for one in others])

    def mvw_attention(self: Any) -> list[str]:
        """Name the attention backends that hold the cache."""
        return list(self.mvw_backends)


# -- mvw's own end of an engine ------------------------------------------------------------------


def tell_of_death(engine: Any) -> None:
    """Let `LLMEngine.step` raise where a process of the engine was killed.

    One that fails says so in its last message. One that is killed says nothing: vLLM's monitor then
    ends its client (engine/core_client.py, `start_engine_core_monitor`), but whoever waits in
    `get_output` for the next message waits for ever. It is sent one.
    """
    client = engine.engine_core
    waiting = getattr(client, "outputs_queue", None)
    if waiting is None:
        return  # all in this process
    shutdown = client.shutdown

    def shutdown_and_tell(*args: Any, **kwargs: Any) -> None:
        shutdown(*args, **kwargs)
        waiting.put_nowait(EngineDeadError())

    client.shutdown = shutdown_and_tell


def __getattr__(name: str) -> Any:
    """Make a worker class when vLLM asks for it: each platform's module needs its own platform."""
    if name == "CPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as Worker
    elif name == "GPUWorker":
        from vllm.v1.worker.gpu_worker import Worker
    else:
        raise AttributeError(name)
    return type(f"MVW{name}", (WorkerMixin, Worker), {"__module__": __name__})
