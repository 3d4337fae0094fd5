"""Generate with vLLM as a JSON file says, and write what came of it: run in a process of its own.

usage: drive.py SPEC RESULT. The spec has the engine's arguments and runs, each with its cases.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 126) -> Image.Image:
    """Make a picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


_SWITCHED_OFF = (
    ("scheduler_config", "async_scheduling"),
    ("scheduler_config", "enable_chunked_prefill"),
    ("scheduler_config", "max_num_batched_tokens"),
    ("cache_config", "enable_prefix_caching"),
)


def main(spec_file: str, result_file: str) -> None:
    with open(spec_file) as stream:
        spec = json.load(stream)
    if os.environ.get("TRITON_INTERPRET"):
        _give_triton_a_cpu()
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    _let_the_cpu_have(spec["engine"])
    llm = LLM(**spec["engine"])
    core = llm.llm_engine.engine_core.engine_core
    scheduler, pool = core.scheduler, core.scheduler.kv_cache_manager.block_pool
    preempted: list[bool] = []
    plain_preempt = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
        blocks = getattr(scheduler, "mvw_blocks", None)
        preempted.append(blocks is not None and request.request_id in blocks.removed)
        plain_preempt(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    FAULTS[spec.get("fault", "none")](scheduler, pool)
    results = []
    for run in spec["runs"]:
        preempted.clear()
        before = pool.get_num_free_blocks()
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=case["tokens"],
                ignore_eos=True,
                logit_bias=case["bias"] and {int(one): off for one, off in case["bias"].items()},
                extra_args=case.get("extra"),
            )
            for case in run["cases"]
        ]
        prompts = [
            TokensPrompt(
                prompt_token_ids=case["prompt"],
                multi_modal_data={"image": [picture(seed) for seed in case["images"]]},
            )
            for case in run["cases"]
        ]
        outputs = _generate(llm, prompts, params, [case.get("abort") for case in run["cases"]])
        results.append(
            {
                "outputs": [
                    {
                        "ids": list(output.outputs[0].token_ids),
                        "prompt": list(output.prompt_token_ids),
                        "report": (output.kv_transfer_params or {}).get("mvw"),
                    }
                    for output in outputs
                ],
                "preempted": list(preempted),
                "free": [before, pool.get_num_free_blocks()],
                "cached": [output.num_cached_tokens for output in outputs],
            }
        )
        with open(result_file, "w") as stream:
            json.dump({"scheduler": type(scheduler).__name__, "runs": results}, stream)


def _generate(llm: Any, prompts: Any, params: Any, aborts: list[int | None]) -> list[Any]:
    """Generate all at once; abort those that are to be once they have written so many tokens."""
    if not any(aborts):
        return llm.generate(prompts, params, use_tqdm=False)
    engine, found = llm.llm_engine, {}
    for number, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(number), prompt, one)
    aborting = {str(number): tokens for number, tokens in enumerate(aborts) if tokens}
    while engine.has_unfinished_requests():
        for output in engine.step():
            name = output.request_id
            before = found.get(name)
            found[name] = output
            if before is not None:  # what is told of a withdrawal comes with one output
                output.kv_transfer_params = output.kv_transfer_params or before.kv_transfer_params
            if len(output.outputs[0].token_ids) >= aborting.get(name, 1 << 20):
                del aborting[name]
                engine.abort_request([name])
    assert not aborting, "what was to be aborted has ended before"
    return [found[str(number)] for number in range(len(prompts))]


def _no_room_at_first(scheduler: Any, pool: Any) -> None:
    """The first try of each withdrawal finds no room, so the request preempts itself."""
    real, tried = scheduler.mvw_blocks.withdraw, set()

    def withdraw(key: str, *rest: Any) -> Any:
        if key in tried:
            return real(key, *rest)
        tried.add(key)
        return None

    scheduler.mvw_blocks.withdraw = withdraw


def _no_stand_ins(scheduler: Any, pool: Any) -> None:
    """No block is ever free for a stand-in, so hashed ones are evicted."""
    real = scheduler.mvw_blocks.withdraw

    def withdraw(*args: Any) -> Any:
        pool.get_num_free_blocks = lambda: 0
        try:
            return real(*args)
        finally:
            del pool.get_num_free_blocks

    scheduler.mvw_blocks.withdraw = withdraw


def _let_the_cpu_have(asked: dict[str, Any]) -> None:
    """Switch on again what vLLM switches off for CPUs, or for latent attention on them."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    check = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        check(cls, vllm_config)
        for part, name in _SWITCHED_OFF:
            if asked.get(name):
                setattr(getattr(vllm_config, part), name, asked[name])

    platform.check_and_update_config = classmethod(check_and_update_config)


def _give_triton_a_cpu() -> None:
    """Let Triton's interpreter stand for a device: vLLM disables Triton where it has no backend."""
    import triton.backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backend = {"driver": Driver, "compiler": None}
    triton.backends.backends["cpu"] = type("Backend", (), backend)()


FAULTS: dict[str, Callable[[Any, Any], None]] = {
    "none": lambda scheduler, pool: None,
    "no room": _no_room_at_first,
    "no stand-ins": _no_stand_ins,
}

if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main(sys.argv[1], sys.argv[2])
