"""optimum-benchmark, driven without its command: its inference scenario on a loaded model.

Its own PyTorch backend runs `model.generate`; `EngineBackend` puts mvw's engine in the same place,
by the methods that its backends for vLLM and llama.cpp have. Both get the prompt and the image that
they are given, where the scenario would draw random ones. The scenario alone says what is timed,
and how.

Its release 0.6.0 is older than transformers 5, which has dropped a name that it imports for its
annotations. The name is supplied here, as its pull request 338 does; neither package is
changed. It also looks into a processor in a way that transformers 5 has changed, for the shapes of
the inputs that it draws, so it is pointed at a folder without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import transformers

if not hasattr(transformers, "SpecialTokensMixin"):
    transformers.SpecialTokensMixin = transformers.PreTrainedTokenizerBase

from optimum_benchmark.backends.base import Backend
from optimum_benchmark.backends.config import BackendConfig
from optimum_benchmark.backends.pytorch.backend import PyTorchBackend
from optimum_benchmark.backends.pytorch.config import PyTorchConfig
from optimum_benchmark.scenarios.inference.config import InferenceConfig
from optimum_benchmark.scenarios.inference.scenario import InferenceScenario

from mvw_cli.engine.types import Finished, Request, Token
from mvw_cli.session import Session


class Times(NamedTuple):
    """What an instrument says of one run at batch 1, in ms."""

    ttft: float
    tpot: float
    """Mean over the tokens after the first."""
    tpot_median: float


@dataclass
class EngineConfig(BackendConfig):
    name: str = "pytorch"
    """The one that the scenario times by tokens; the others it times by whole calls, so that their
    TTFT has the end of a call in it."""
    version: str = "0"
    _target_: str = "harness.EngineBackend"


class EngineBackend(Backend[EngineConfig]):
    """mvw's engine, which shows the scenario each token as it comes."""

    NAME = "pytorch"

    def __init__(self, folder: Path, session: Session, request: Request) -> None:
        super().__init__(EngineConfig(**_model(folder)))
        self.written: list[int] = []
        self._session, self._request = session, request

    def load(self) -> None:
        """The session is open already."""

    def prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        return {"request": self._request}

    def generate(self, inputs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        request = inputs["request"]
        settings = replace(request.settings, max_new_tokens=kwargs["max_new_tokens"])
        for event in self._session.run([replace(request, settings=settings)]):
            if isinstance(event, Token):
                kwargs["logits_processor"](None, None)
            elif isinstance(event, Finished):
                self.written = list(event.token_ids)


class GenerateBackend(PyTorchBackend):
    """The harness's own backend; its model is loaded once, and its inputs are the request's."""

    def __init__(self, folder: Path, request: Request) -> None:
        super().__init__(PyTorchConfig(torch_dtype="float32", **_model(folder)))
        self.written: list[int] = []
        self._request = request

    def load(self) -> None:
        if not hasattr(self, "pretrained_model"):
            super().load()

    def prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        return super().prepare_inputs(dict(self._request.inputs))

    def generate(self, inputs: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        output = super().generate(inputs, kwargs)
        self.written = output[0, inputs["input_ids"].shape[1] :].tolist()
        return output


def _model(folder: Path) -> dict[str, Any]:
    no_processor = folder / "no_processor"
    no_processor.mkdir(exist_ok=True)
    return {
        "model": str(folder),
        "processor": str(no_processor),
        "task": "image-text-to-text",
        "library": "transformers",
        "model_type": "llava",
        "device": "cpu",
    }


def times(backend: EngineBackend | GenerateBackend, new_tokens: int) -> Times:
    """Run the scenario once, without a warm-up of its own; return what its report says."""
    config = InferenceConfig(
        iterations=1,
        duration=0,
        warmup_runs=0,
        # Of the inputs that it draws, and `prepare_inputs` puts the request's in place of.
        input_shapes={
            "batch_size": 1,
            "sequence_length": 2,
            "num_channels": 3,
            "height": 14,
            "width": 14,
        },
        generate_kwargs={"max_new_tokens": new_tokens, "min_new_tokens": new_tokens},
    )
    report = InferenceScenario(config).run(backend)
    return Times(
        ttft=report.prefill.latency.mean * 1e3,
        tpot=1e3 / report.decode.throughput.value,
        tpot_median=median(report.per_token.latency.values) * 1e3,
    )
