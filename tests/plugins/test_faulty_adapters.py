"""Adapters of others that do not keep to their contract: named, with their distribution; code 4."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hints import parse_hint
from PIL import Image
from plugin_path import plugin_path
from processes import Ran

from mvw_cli.errors import ExitCode

MODEL = """
import os
from dataclasses import replace
import torch
from mvw_cli import LoadedModel, VisionLayout
from mvw_hf.model import HuggingFace

METHOD, _, FAULT = os.environ["FAULT"].partition(" ")

class Faulty(HuggingFace):
    name = "faulty"

    def load(self, spec):
        return self.tiny()

def wrong(self, *given):
    right = getattr(HuggingFace, METHOD)
    names = {"self": self, "right": lambda: right(self, *given)}
    return eval(FAULT, globals() | names)

setattr(Faulty, METHOD, wrong)
"""
INIT = """
from mvw_cli import AdapterInfo, hookimpl

@hookimpl
def mvw_register_adapters(register):
    register(AdapterInfo("faulty", "faulty.model:Faulty", "for tests", ("none",)))
"""


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mvw: Callable[..., Ran]
) -> Callable[..., Ran]:
    package = tmp_path / "site" / "faulty"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(INIT)
    (package / "model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(plugin_path(tmp_path / "site", "faulty").split(":")[0])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("picture.png")

    def run(fault: str, *command: str) -> Ran:
        monkeypatch.setenv("FAULT", fault)
        for name in ("faulty", "faulty.model"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        asked = ("picture.png", "w1 w2", "--adapter", "faulty", "--max-new-tokens", "4")
        return mvw(*(command or ("infer",)), *asked)

    return run


IDS = "dict(right(), input_ids={})"


@pytest.mark.parametrize(
    ("fault", "returned"),
    [
        ("load None", "None from load()"),
        ("load self.tiny().model", "LlavaForConditionalGeneration from load()"),
        ("load LoadedModel('faulty', 'x', None, None, spec=None)", "LoadedModel from load()"),
        ("load replace(self.tiny(), processor=object())", "LoadedModel from load()"),
        ("encode None", "None from encode()"),
        (f"encode {IDS.format('[1, 2]')}", "list from encode()"),
        (f"encode {IDS.format('torch.tensor([1, 2])')}", "int64 of shape (2,) from encode()"),
        (f"encode {IDS.format('torch.ones(1, 9)')}", "float32 of shape (1, 9) from encode()"),
        ("encode dict(right(), attention_mask=torch.ones(1, 2))", "float32 of shape (1, 2)"),
        ("vision [True]", "list from vision()"),
        ("vision VisionLayout(right().entries.long())", "int64 of shape"),
        ("vision VisionLayout(right().entries[1:])", "bool of shape"),
        ("parse None", "None from parse()"),
        ("opening None", "None from opening()"),
        ("remarks 'one'", "str from remarks()"),
    ],
)
def test_a_wrong_return_is_named(ask: Callable[..., Ran], fault: str, returned: str) -> None:
    ran = ask(fault)
    assert (ran.code, ran.out) == (ExitCode.PLUGIN, "")
    what, cause, hint = ran.err.splitlines()[-3:]
    assert what.startswith(f"Error: adapter `faulty` (mvw-faulty 1.0) returned {returned}")
    assert cause.endswith(" is wanted")
    assert hint == "Hint: pip install --upgrade mvw-faulty"


@pytest.mark.parametrize("method", ["load", "encode", "vision", "parse", "opening", "remarks"])
def test_what_an_adapter_raises_is_its_own_fault(ask: Callable[..., Ran], method: str) -> None:
    ran = ask(f"{method} {{}}['no such key']")
    assert (ran.code, ran.out) == (ExitCode.PLUGIN, "")
    what, cause, hint = ran.err.splitlines()[-3:]
    assert what == "Error: adapter `faulty` of mvw-faulty 1.0 has failed"
    assert cause == "  KeyError: 'no such key'"
    assert hint.startswith("Hint: mvw infer picture.png ") and hint.endswith(" --debug")
    parse_hint(hint.removeprefix("Hint: "))


def test_memory_that_runs_out_in_an_adapter_is_no_fault_of_it(ask: Callable[..., Ran]) -> None:
    ran = ask("remarks torch.empty(1 << 60)")
    assert ran.code == ExitCode.OUT_OF_MEMORY
    assert ran.err.splitlines()[-3] == "Error: out of memory"


def test_a_fault_of_mvw_stays_one(ask: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvw_cli.cli.infer.run.summarise", lambda events: {}["no such key"])
    ran = ask("opening right()")
    assert ran.code == ExitCode.FAILURE
    assert "this is a fault in mvw or in a plugin" in ran.err
