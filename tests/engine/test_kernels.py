"""Which kernel serves a model: on this machine's model, with the facts that decide made up."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mvw_cli.engine.attention import choose_kernel
from mvw_cli.errors import UsageProblem


def model(**differences: Any) -> Any:
    """What is asked of a model, on a GPU in half precision."""
    around = {"device": torch.device("cuda"), "dtype": torch.float16}
    around |= {name: differences.pop(name) for name in around if name in differences}
    text = {
        "config": SimpleNamespace(attn_logit_softcapping=None),
        "modules": list,
        "_supports_flash_attn": True,
        "_supports_sdpa": True,
        **differences,
    }
    return SimpleNamespace(
        get_decoder=lambda: SimpleNamespace(**text),
        # Of the model around it, which does not attend.
        _supports_flash_attn=True,
        _supports_sdpa=True,
        **around,
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """flash-attn is installed, and there is an Ampere GPU."""
    made = ModuleType("flash_attn")
    made.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", made)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    return made


def test_flash_is_the_choice_where_it_can_be(library: ModuleType) -> None:
    assert choose_kernel(model(), "auto") == choose_kernel(model(), "flash") == "flash"
    for kernel in ("sdpa", "eager"):
        assert choose_kernel(model(), kernel) == kernel


def fail(name: str) -> ModuleType:
    raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c10\nmore")


KERNELS = "mvw_cli.engine.attention"
BEFORE_AMPERE = ("torch.cuda.get_device_capability", lambda device: (7, 5))


@pytest.mark.parametrize(
    ("differences", "patch", "says"),
    [
        ({"device": torch.device("mps")}, None, "needs a CUDA device, this is mps"),
        ({"dtype": torch.float32}, None, "float16 or bfloat16, this is torch.float32"),
        ({"_supports_flash_attn": False}, None, "the model does not support"),
        ({}, BEFORE_AMPERE, "compute capability 8.0"),
        ({}, (f"{KERNELS}.import_module", fail), "ImportError: flash_attn_2_cuda.so: undefined"),
        ({}, (f"{KERNELS}.find_spec", lambda name: None), "not installed"),
    ],
)
def test_flash_is_refused_with_its_reason(
    library: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    differences: dict[str, Any],
    patch: Any,
    says: str,
) -> None:
    if patch is not None:
        monkeypatch.setattr(*patch)
    made = model(**differences)
    assert choose_kernel(made, "auto") == "sdpa"
    with pytest.raises(UsageProblem, match="attention: flash is not to be had") as raised:
        choose_kernel(made, "flash")
    assert says in str(raised.value.cause) and "\n" not in str(raised.value.cause)


def test_amd_counts_otherwise(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BEFORE_AMPERE)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose_kernel(model(), "auto") == "flash"


OWN = {
    "caps its attention logits": {"config": SimpleNamespace(attn_logit_softcapping=50.0)},
    "has attention sinks": {"modules": lambda: [SimpleNamespace(sinks=torch.zeros(4))]},
}


@pytest.mark.parametrize("says", OWN)
def test_what_only_its_own_attention_does_leaves_eager(library: ModuleType, says: str) -> None:
    own = model(**OWN[says])
    assert choose_kernel(own, "auto") == choose_kernel(own, "eager") == "eager"
    for kernel in ("sdpa", "flash"):
        with pytest.raises(UsageProblem, match=f"attention: {kernel}") as raised:
            choose_kernel(own, kernel)
        assert says in str(raised.value.cause)


def test_the_text_model_is_asked() -> None:
    assert choose_kernel(model(_supports_sdpa=False, dtype=torch.float32), "auto") == "eager"
