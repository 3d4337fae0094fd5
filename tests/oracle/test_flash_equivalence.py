"""`--equivalence` with flash-attn: the comparison in half precision, on a stand-in for the library.

Attention by plain PyTorch stands in for the kernels, right or with a mistake in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_library import FlashLibrary, installed
from hints import parse_hint
from processes import Ran
from transformers.models.mllama.modeling_mllama import MllamaPreTrainedModel

from mvw_cli.engine.cache import SlotCache
from mvw_cli.machine import facts as facts_module
from mvw_cli.oracle.equivalence import ALLOWED, equivalence
from mvw_cli.plugins import load_adapter

FLASH = ("--set", "device=cpu", "--set", "attention=flash")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FlashLibrary:
    def on_this_device(model: Any) -> str | None:
        if model.dtype == torch.float32:
            return "flash-attn needs float16 or bfloat16"
        return None if model._supports_flash_attn else "the model does not support flash-attn"

    return installed(monkeypatch, on_this_device)


@pytest.fixture
def compared(
    mvw: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """Run `mvw doctor --equivalence` with flash-attn among the installed packages."""
    monkeypatch.setattr(
        facts_module, "installed_version", lambda name: {"flash-attn": "2.8.1"}.get(name, "99")
    )

    def run(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
        document = json.loads(mvw("doctor", "--equivalence", "--json", *arguments).out)
        return document, {one["check"]: one for one in document["findings"]}

    return run


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
@pytest.mark.parametrize("adapter", ["hf", "shapes"])
def test_the_engine_is_as_near_as_half_precision_allows(
    library: FlashLibrary, compared: Any, adapter: str, dtype: str
) -> None:
    chosen = ("--set", f"adapter={adapter}", "--set", f"dtype={dtype}")
    document, found = compared(*FLASH, *chosen)
    finding, figures = found["equivalence"], document["equivalence"]
    assert finding["status"] == "ok", finding
    assert (figures["attention"], figures["device"]) == ("flash", "cpu")
    assert figures["dtype"] == ("bfloat16" if dtype == "bfloat16" else "float16")
    assert figures["tolerance"] == ALLOWED * figures["rounding"]
    assert 0 < figures["difference"] <= figures["tolerance"] <= figures["effect"] / 10
    # Two layers, the prefill and eleven decode steps.
    assert figures["flash_calls"] == 24
    assert "24 calls of flash-attn on cpu" in finding["found"]
    assert f"rounding alone makes {figures['rounding']:.1e}" in finding["found"]
    assert document["equivalence_flash"] is None


def test_what_auto_would_choose_is_compared_too(library: FlashLibrary, compared: Any) -> None:
    document, found = compared("--set", "device=cpu", "--set", "adapter=hf")
    assert found["equivalence"]["status"] == found["equivalence, flash"]["status"] == "ok"
    sharp, flash = document["equivalence"], document["equivalence_flash"]
    assert (sharp["attention"], sharp["dtype"], sharp["flash_calls"]) == ("sdpa", "float32", None)
    assert (flash["attention"], flash["dtype"], flash["flash_calls"]) == ("flash", "float16", 24)
    document, found = compared(
        "--set", "device=cpu", "--set", "adapter=hf", "--set", "dtype=float32"
    )
    assert "equivalence, flash" not in found and document["equivalence_flash"] is None


def test_a_kernel_with_a_mistake_is_caught(library: FlashLibrary, compared: Any) -> None:
    library.extra = 1
    document, found = compared(*FLASH, "--set", "adapter=hf")
    figures = document["equivalence"]
    assert found["equivalence"]["status"] == "problem"
    assert figures["difference"] > 10 * figures["tolerance"]
    parse_hint(found["equivalence"]["advice"])


def test_an_engine_that_withdraws_nothing_is_caught(
    library: FlashLibrary, compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotCache, "withdraw", lambda *args, **kwargs: 0)
    document, found = compared(*FLASH, "--set", "adapter=hf")
    assert found["equivalence"]["status"] == "problem"
    assert document["equivalence"]["difference"] > 10 * document["equivalence"]["tolerance"]


def test_a_kernel_that_fails_on_this_gpu(library: FlashLibrary, compared: Any) -> None:
    library.failure = RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")
    document, found = compared(*FLASH, "--set", "adapter=hf")
    assert found["equivalence"]["status"] == "problem"
    assert found["equivalence"]["found"] == (
        "flash-attn fails here: RuntimeError: FlashAttention only supports Ampere GPUs or newer."
    )
    assert document["equivalence"] is None
    assert library.flash_attn_with_kvcache == library._decode  # what was wrapped is put back


@pytest.mark.parametrize(
    ("adapter", "says"),
    [("kimi-vl", "gives all of this model's attention to SDPA"), ("llava-cot", "does not support")],
)
def test_flash_is_not_claimed_where_it_has_not_run(
    library: FlashLibrary,
    compared: Any,
    adapter: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MllamaPreTrainedModel, "_supports_flash_attn", False)
    document, found = compared(*FLASH, "--set", f"adapter={adapter}")
    assert found["equivalence"]["status"] == "warning"
    assert found["equivalence"]["found"].startswith("not run with flash: ")
    assert says in found["equivalence"]["found"]
    assert document["equivalence"] is None


def test_flash_is_exact_where_older_releases_give_it_to_mllama(
    library: FlashLibrary, compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MllamaPreTrainedModel, "_supports_flash_attn", True)
    document, found = compared(*FLASH, "--set", "adapter=llava-cot")
    assert found["equivalence"]["status"] == "ok", found["equivalence"]
    assert document["equivalence"]["flash_calls"] > 0


def test_the_library_is_as_it_was(library: FlashLibrary) -> None:
    before = dict(vars(library), calls=None)
    equivalence(load_adapter("hf"), attention="flash", dtype="float16")
    assert dict(vars(library), calls=None) == before
