"""A plugin with the tiny LLaVA. Words of the question kill the process that encodes it.

`kill`: always. `kill-once`: unless somebody has been killed by that question before, which a file
in MORTAL_FOLDER remembers. The checkpoint `refuse` can't be loaded. MORTAL_PACE_S slows every
forward pass down.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvw_hf.model import HuggingFace

from mvw_cli import AdapterInfo, LoadedModel, ModelProblem, ModelSpec, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="mortal", target="mortal:Mortal", summary="for tests", checkpoints=("none",)
        )
    )


class Mortal(HuggingFace):
    name = "mortal"

    def load(self, spec: ModelSpec) -> LoadedModel:
        if spec.model == "refuse":
            raise ModelProblem("It will not load.", cause="It is a test.", hint="mvw doctor")
        loaded = super().tiny()
        pace = float(os.environ.get("MORTAL_PACE_S", "0"))
        loaded.model.register_forward_hook(lambda *_: time.sleep(pace))
        return replace(loaded, adapter=self.name, name="mortal", spec=spec, revision="c0ffee")

    def shape(self, spec: ModelSpec) -> Any:
        return super().tiny().model.config

    def encode(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> Any:
        words = question.split()
        if "kill" in words or ("kill-once" in words and _first_time(question)):
            _die()
        return super().encode(loaded, images, question)


def _first_time(question: str) -> bool:
    name = hashlib.sha256(question.encode()).hexdigest()
    try:
        Path(os.environ["MORTAL_FOLDER"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
