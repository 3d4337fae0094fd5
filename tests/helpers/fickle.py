"""A plugin with a fickle model: all of it is real, what goes wrong is made up.

What goes wrong is in the variable FICKLE, a JSON object; see `_Plan`. The checkpoint `refuse` can't
be loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mvw_hf.model import HuggingFace

from mvw_cli import AdapterInfo, Answer, LoadedModel, ModelProblem, ModelSpec, hookimpl


@dataclass
class _Plan:
    pace_s: float = 0.0
    """Each forward pass takes that much longer."""
    kill_at: int | None = None
    """SIGKILL at this forward pass."""
    encode_fails: list[int] = field(default_factory=list)
    """Pictures, by the red of their first pixel, that can't be encoded."""
    most_rows: int | None = None
    """More sequences in one forward pass are out of memory."""
    most_pixels: int | None = None
    """A larger picture is out of memory."""
    unlink: str | None = None
    """File that disappears once the model is loaded."""
    fill: str | None = None
    """File that takes all the space there is but for a few records, once the model is loaded."""
    kills: str | None = None
    """Folder that remembers who died. A question's word `kill` kills the process that encodes it;
    `kill-once` does so unless somebody has been killed by that question before."""
    rewrite: tuple[str, str] | None = None
    """File that gets the content of another one once the model is loaded."""


def plan() -> _Plan:
    return _Plan(**json.loads(os.environ.get("FICKLE", "{}")))


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="fickle", target="fickle:Fickle", summary="for tests", checkpoints=("none",)
        )
    )


class Fickle(HuggingFace):
    name = "fickle"

    def load(self, spec: ModelSpec) -> LoadedModel:
        if spec.model == "refuse":
            raise ModelProblem("It will not load.", cause="It is a test.", hint="mvw doctor")
        torch.set_num_threads(1)
        loaded = super().tiny()
        loaded.model.register_forward_pre_hook(_Hook(plan()), with_kwargs=True)
        if plan().unlink:
            Path(plan().unlink or "").unlink()
        if rewrite := plan().rewrite:
            Path(rewrite[0]).write_bytes(Path(rewrite[1]).read_bytes())
        if plan().fill:
            _fill(Path(plan().fill or ""))
        if not plan().kills:
            sys.stderr.write("loaded\n")
        return replace(loaded, adapter=self.name, name="fickle", spec=spec, revision="c0ffee")

    def shape(self, spec: ModelSpec) -> Any:
        return super().tiny().model.config

    def encode(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> Any:
        most, words = plan().most_pixels, question.split()
        if "kill" in words or ("kill-once" in words and _first_time(question)):
            os.kill(os.getpid(), signal.SIGKILL)
        if images[0].getpixel((0, 0))[0] in plan().encode_fails:
            raise ValueError("this picture is not to my liking")
        if most is not None and any(image.width * image.height > most for image in images):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().encode(loaded, images, question)

    def parse(self, text: str) -> Answer:
        return Answer(text)


def _first_time(question: str) -> bool:
    name = hashlib.sha256(question.encode()).hexdigest()
    try:
        Path(plan().kills or ".", name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(1024))
        file.truncate(file.tell() - 3 * 4096)


class _Hook:
    def __init__(self, plan: _Plan) -> None:
        self._plan, self._calls = plan, 0

    def __call__(self, model: Any, args: Any, kwargs: Any) -> None:
        self._calls += 1
        time.sleep(self._plan.pace_s)
        if self._calls == self._plan.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = kwargs["input_ids"].shape[0]
        if self._plan.most_rows is not None and rows > self._plan.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
