"""Is vLLM, with the plugin, equal to the masked-attention oracle on this machine?

Three questions at once about a made-up picture, to a small checkpoint that both read: two that
withdraw at different tokens and one that does not. vLLM tells the log-probability of every token of
the vocabulary at each step, through the attention backend that it takes here; those of the oracle
have to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import LoadedModel, ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.oracle.equivalence import ALLOWED, Equivalence, noise
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.vllm.engine import VllmEngine
from mvw_cli.vllm.start import engine_arguments

TOLERANCE = 1e-4
"""Largest difference of log-probabilities in float32 that counts as equal: kernels that are not
those of PyTorch add up in another order."""
MOMENTS = (3, 9, None)
"""When each of the questions withdraws."""
_TOKENS = 16
_QUESTION = "Why?"
_PICTURE = (336, 336)
_ARGUMENTS = {
    "max_model_len": 512,
    "kv_cache_memory_bytes": 64 << 20,
    "max_logprobs": -1,
    "limit_mm_per_prompt": {"image": 1, "video": 0},
}
Heard = tuple[list[int], Tensor]
"""Tokens of an answer, and the log-probabilities they were chosen by: # (T, V)"""


def vllm_equivalence(device: str, dtype: str, engine_args: Mapping[str, Any]) -> Equivalence:
    """Run vLLM and oracle on a small Qwen2.5-VL, and compare every log-probability.

    Args:
        device: `auto`, or as in a profile.
        dtype: what vLLM computes in: float32, bfloat16 or float16.
        engine_args: arguments of vLLM's engine that the user gives, as its attention backend.

    Raises:
        MvwError: vLLM can't be started here.
    """
    adapter = load_adapter("hf")
    with TemporaryDirectory(prefix="mvw-doctor-") as folder:
        adapter.tiny_checkpoint(Path(folder))
        spec = ModelSpec(model=folder, device="cpu", dtype="float32")
        loaded = adapter.load(spec)
        with _started(loaded, replace(spec, device=device, dtype=dtype), engine_args) as engine:
            inputs = adapter.prompt(loaded, [noise(*_PICTURE)], _QUESTION)
            answers = _answers(engine, loaded, inputs["input_ids"][0].tolist())
            backend, where = engine.attention, str(engine.device)
    inputs = adapter.encode(loaded, [noise(*_PICTURE)], _QUESTION)
    vision = adapter.vision(loaded, inputs).entries
    half = None if dtype == "float32" else deepcopy(loaded.model).to(getattr(torch, dtype))
    difference, effect, rounding = 0.0, float("inf"), 0.0

    def oracle(model: Any, ids: list[int], m: int | None) -> Tensor:
        given = {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        return oracle_logits(model, given, ids, vision, m).float().log_softmax(-1)

    for m, (ids, heard) in zip(MOMENTS, answers, strict=True):
        exact = oracle(loaded.model, ids, m)
        off = float((heard - exact).abs().max())
        difference = off if off != off else max(difference, off)  # what is no number stays
        other = oracle(loaded.model, ids, 1 if m is None else None)
        effect = min(effect, float((other - exact).abs().max()))
        if half is not None:
            rounding = max(rounding, float((oracle(half, ids, m) - exact).abs().max()))
    return Equivalence(
        difference=difference,
        tolerance=TOLERANCE if half is None else ALLOWED * rounding,
        effect=effect,
        tokens=sum(len(ids) for ids, _ in answers),
        vision_tokens=int(vision.sum()),
        m=min(m for m in MOMENTS if m is not None),
        attention=backend,
        device=where,
        dtype=dtype,
        rounding=None if half is None else rounding,
    )


@contextmanager
def _started(
    loaded: LoadedModel, spec: ModelSpec, engine_args: Mapping[str, Any]
) -> Iterator[VllmEngine]:
    given = {**_ARGUMENTS, **engine_args}
    arguments = engine_arguments(spec, NoWithdrawal(), slots=len(MOMENTS), engine_args=given)
    # A backend that was never tested is what this is for.
    arguments["additional_config"] = {"mvw": {"allow_untested": True}}
    engine = VllmEngine(load_adapter("hf"), replace(loaded, spec=spec), arguments)
    try:
        yield engine
    finally:
        engine.close()


def _answers(engine: VllmEngine, loaded: LoadedModel, prompt: list[int]) -> list[Heard]:
    from vllm.inputs import TokensPrompt

    config = loaded.model.config
    settings = GenerationSettings(max_new_tokens=_TOKENS, temperature=0, ignore_eos=True)
    for number, m in enumerate(MOMENTS):
        params = engine.sampling(settings, NoWithdrawal() if m is None else Mvw(m=m))
        params.logprobs = -1
        # A random model writes any token, and no forward pass can read a placeholder as one.
        params.logit_bias = dict.fromkeys((config.image_token_id, config.video_token_id), -100.0)
        asked = TokensPrompt(prompt_token_ids=prompt)
        asked["multi_modal_data"] = {"image": [noise(*_PICTURE)]}
        engine.vllm.add_request(str(number), asked, params)
    ids: dict[str, list[int]] = {}
    rows: dict[str, list[Tensor]] = {}
    while engine.vllm.has_unfinished_requests():
        for output in engine.vllm.step():
            part = output.outputs[0]
            ids.setdefault(output.request_id, []).extend(part.token_ids)
            for told in part.logprobs or ():
                row = torch.full((config.get_text_config().vocab_size,), float("nan"))
                for token, one in told.items():
                    row[token] = one.logprob
                rows.setdefault(output.request_id, []).append(row)
    names = [str(number) for number in range(len(MOMENTS))]
    return [(ids[name], torch.stack(rows[name])) for name in names]
