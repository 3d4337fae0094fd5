"""Run vLLM in a process of its own, and hold what it wrote against the masked-attention oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm_checkpoints import write_vllm_checkpoint

from mvw_cli.adapter import ModelSpec
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.plugins import load_adapter

VLLM_TESTS = Path(__file__).parents[1] / "vllm"
ENVIRONMENT = {
    "PYTHONPATH": str(VLLM_TESTS / "site"),
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 32,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "mm_processor_cache_gb": 0,
    "limit_mm_per_prompt": {"image": 2, "video": 0},
}

ARGUMENTS = {
    "kimi-vl": {"tokenizer_mode": "kimi_vl", "attention_backend": "CPU_MLA", "block_size": 16}
}
"""By family. On CPUs with AMX, vLLM has another backend for latent attention."""

TIE = 1e-4
"""Two logits that differ by less may change places by the rounding of another kernel's sums."""


@dataclass(frozen=True)
class Case:
    """One request, and the m that its output has to show by the oracle."""

    images: Sequence[int] = (0,)
    m: int | None = None
    question: str = "What is in the picture?"
    tokens: int = 48
    extra: Mapping[str, Any] | None = None
    """What the request says of withdrawal; None says `mvw_m` as `m` is."""
    abort: int | None = None
    """Tokens after which it is aborted."""

    def asked(self) -> Mapping[str, Any] | None:
        if self.extra is not None:
            return self.extra
        return {} if self.m is None else {"mvw_m": self.m}


@dataclass(frozen=True)
class Judge:
    """A checkpoint, and the same weights in transformers for the oracle."""

    folder: Path
    adapter: Any
    loaded: Any
    silent: dict[str, float] = field(default_factory=dict)
    """Bias on tokens that a random model must not write: by id, as text."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM that the family needs."""

    @classmethod
    def of(cls, name: str, folder: Path) -> Judge:
        write_vllm_checkpoint(name, folder)
        adapter = load_adapter("kimi-vl" if name == "kimi-vl" else "hf")
        loaded = adapter.load(ModelSpec(model=str(folder), dtype="float32", device="cpu"))
        config = loaded.model.config
        names = ("image_token_id", "video_token_id")
        ids = {getattr(config, one, None) for one in names} - {None, -1}
        silent = {str(one): -100.0 for one in ids}
        return cls(folder, adapter, loaded, silent, ARGUMENTS.get(name, {}))

    def prompt(self, case: Case) -> list[int]:
        """Return the prompt's ids, one placeholder for each image."""
        processor = self.loaded.processor
        content = [{"type": "image"} for _ in case.images]
        messages = [
            {"role": "user", "content": [*content, {"type": "text", "text": case.question}]}
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(one) for one in ids]

    def generate(
        self,
        folder: Path,
        runs: Sequence[Sequence[Case]],
        *,
        settings: Mapping[str, Any] | None = None,
        fault: str = "none",
        environment: Mapping[str, str] | None = None,
        **engine: Any,
    ) -> dict[str, Any]:
        """Run vLLM; return its result, and each output held against the oracle."""
        spec = {
            "engine": ENGINE
            | {"model": str(self.folder), "additional_config": {"mvw": dict(settings or {})}}
            | dict(self.engine)
            | engine,
            "fault": fault,
            "runs": [
                {
                    "cases": [
                        {
                            "images": list(case.images),
                            "prompt": self.prompt(case),
                            "tokens": case.tokens,
                            "extra": case.asked(),
                            "abort": case.abort,
                            "bias": None if "speculative_config" in engine else self.silent,
                        }
                        for case in run
                    ]
                }
                for run in runs
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(spec))
        done = subprocess.run(
            [sys.executable, str(VLLM_TESTS / "drive.py"), "spec.json", "result.json"],
            cwd=folder,
            env={
                **os.environ,
                **ENVIRONMENT,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            timeout=580,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result

    def check(self, case: Case, output: Mapping[str, Any]) -> None:
        """Assert that an output is what the oracle writes with its m, and that it shows."""
        import sys as _sys

        _sys.path.insert(0, str(VLLM_TESTS))
        from drive import picture

        images = [picture(seed) for seed in case.images]
        inputs = self.adapter.encode(self.loaded, images, case.question)
        assert inputs["input_ids"][0].tolist() == output["prompt"], "another prompt"
        vision = self.adapter.vision(self.loaded, inputs).entries
        assert self._short(inputs, vision, output["ids"], case.m) < TIE
        if case.m is None or case.m < len(output["ids"]):
            other = None if case.m is not None else 1
            assert self._short(inputs, vision, output["ids"], other) > 100 * TIE
        report = output["report"]
        assert (report is None) == (case.m is None or case.m >= len(output["ids"])), report
        if report is not None:
            assert (report["step"], report["vision_tokens"]) == (case.m, int(vision.sum()))

    def _short(self, inputs: Any, vision: Any, ids: Sequence[int], m: int | None) -> float:
        """Return by how much the oracle's likeliest tokens were missed, 0 where they were not."""
        logits = oracle_logits(self.loaded.model, inputs, ids, vision, m).clone()
        logits[:, [int(one) for one in self.silent]] = -torch.inf
        chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
        return float((logits.max(-1).values - chosen).max())

    def check_all(self, runs: Sequence[Sequence[Case]], result: Mapping[str, Any]) -> None:
        """Assert it of every output, and that each run gave the pool back whole."""
        for run, came in zip(runs, result["runs"], strict=True):
            for case, output in zip(run, came["outputs"], strict=True):
                self.check(case, output)
            assert came["free"][0] == came["free"][1], "blocks were not given back"
