"""`mvw doctor --engine vllm`: what it makes of the vLLM that is there, faked as the machine is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hints import parse_hint
from processes import Ran
from transformers import AutoConfig

from mvw_cli.doctor import vllm
from mvw_cli.doctor.vllm import Seen
from mvw_cli.errors import ModelProblem
from mvw_cli.machine import facts as facts_module
from mvw_cli.oracle.equivalence import Equivalence
from mvw_cli.vllm import start

Doctor = Callable[..., tuple[int, dict[str, Any], dict[str, Any]]]
HERE = Seen(
    version="0.32.0+cpu",
    tested_versions=("0.32",),
    platform="cpu",
    device_name="AMD EPYC",
    backend="CPU_ATTN",
    tested_backends=("CPU_ATTN", "CPU_MLA"),
)
EQUAL = Equivalence(4e-6, 1e-4, 2.7, 48, 144, 3, "vllm:CPU_ATTN", "cpu", "float32")


@pytest.fixture
def doctor(mvw: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run it on a CPU with a vLLM like HERE, with differences; None where there is none."""
    gathered = replace(facts_module.gather(), gpus=(), driver=None)
    monkeypatch.setattr(facts_module, "gather", lambda: gathered)

    def run(*words: str, seen: Seen | None = HERE) -> tuple[int, dict[str, Any], dict[str, Any]]:
        monkeypatch.setattr(start, "installed", lambda: seen is not None)
        monkeypatch.setattr(vllm, "look", lambda *given: seen)
        if seen is not None:
            monkeypatch.setattr(start, "unsupported", lambda config: None)
        ran = mvw("doctor", "--json", *words)
        document = json.loads(ran.out)
        found = {one["check"]: one for one in document["findings"]}
        for one in found.values():
            assert (one["status"] == "ok") == (one["advice"] is None), one
            if one["advice"] not in (None, "unset VLLM_PLUGINS"):
                parse_hint(one["advice"])
        return ran.code, found, document

    return run


def test_a_vllm_as_it_was_tested(doctor: Doctor) -> None:
    code, found, _ = doctor("--engine", "vllm")
    assert code == 0
    told = {name: (one["status"], one["found"]) for name, one in found.items() if "vLLM" in name}
    assert told == {
        "vLLM": ("ok", "0.32.0+cpu"),
        "vLLM plugin": ("ok", "loaded; vLLM's interfaces are as tested"),
        "vLLM platform": ("ok", "cpu (AMD EPYC)"),
        "vLLM attention": ("ok", "CPU_ATTN, held against the oracle"),
    }
    assert "engine" not in found and "profile" not in found  # no model was asked about


@pytest.mark.parametrize(
    ("differs", "check", "status", "says", "advice"),
    [
        ({"version": "0.33.1"}, "vLLM", "problem", "0.33.1 was not tested; 0.32 was",
         "pip install 'mvw[vllm]'"),
        ({"version": "0.320.1"}, "vLLM", "problem", "was not tested", "pip install 'mvw[vllm]'"),
        ({"problem": "OSError: no libcuda"}, "vLLM", "problem", "can't be imported: OSError",
         "pip install 'mvw[vllm]' --force-reinstall"),
        ({"plugin": "VLLM_PLUGINS=lora leaves it out"}, "vLLM plugin", "problem", "not loaded",
         "unset VLLM_PLUGINS"),
        ({"plugin": "mvw is not installed beside this vLLM"}, "vLLM plugin", "problem",
         "not loaded", "pip install 'mvw[vllm]'"),
        ({"changed": ("Scheduler.schedule takes self, not self throttle",)}, "vLLM plugin",
         "problem", "not as tested: Scheduler.schedule takes self", "pip install 'mvw[vllm]'"),
        ({"platform": None}, "vLLM platform", "problem", "finds no device", "mvw doctor"),
        ({"platform": "cuda"}, "vLLM platform", "problem", "built for cuda, the profile's device "
         "is cpu", "mvw doctor --engine vllm --set device=cuda"),
        ({"backend": "FLASHINFER"}, "vLLM attention", "warning", "FLASHINFER is refused: it was "
         "never held", "mvw doctor --equivalence --engine vllm"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it(
    doctor: Doctor, differs: dict[str, Any], check: str, status: str, says: str, advice: str
) -> None:
    code, found, _ = doctor("--engine", "vllm", seen=replace(HERE, **differs))
    assert (code, found[check]["status"]) == (20 if status == "problem" else 0, status)
    assert says in found[check]["found"] and found[check]["advice"] == advice


def test_a_backend_that_is_not_known_is_not_claimed(doctor: Doctor) -> None:
    assert "vLLM attention" not in doctor("--engine", "vllm", seen=replace(HERE, backend=None))[1]


def test_without_vllm(doctor: Doctor) -> None:
    code, found, document = doctor("--engine", "vllm", "--equivalence", seen=None)
    assert code == 20 and document["equivalence"] is None
    for check in ("vLLM", "equivalence"):
        assert found[check]["status"] == "problem" and "not installed" in found[check]["found"]
        assert found[check]["advice"] == "pip install 'mvw[vllm]'"
    code, found, _ = doctor("--engine", "auto", seen=None)
    assert code == 0 and found["vLLM"]["found"] == "not installed: engine auto takes mvw's own"


def test_the_engine_of_a_profile_is_looked_at_without_the_option(doctor: Doctor) -> None:
    assert "vLLM" in doctor("--set", "engine=vllm")[1]
    assert "vLLM" not in doctor()[1]


def test_said_twice(mvw: Callable[..., Ran]) -> None:
    ran = mvw("doctor", "--json", "--engine", "vllm", "--set", "engine=mvw")
    assert ran.code == 20 and "contradict each other" in ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["withdrawal.policy=vtw:layer=2"], "the policy vtw is had in mvw's own engine only"),
        (["attention=eager"], "attention is for mvw's own engine"),
    ],
)
def test_what_is_refused_of_a_profile(doctor: Doctor, words: list[str], says: str) -> None:
    given = ["--profile", "qwen2.5-vl-7b", *(one for word in words for one in ("--set", word))]
    code, found, _ = doctor("--engine", "vllm", *given)
    assert code == 20 and says in found["engine"]["found"]
    assert "--engine mvw" in found["engine"]["advice"]
    _, found, _ = doctor("--engine", "auto", *given)
    assert found["engine"]["status"] == "ok"
    assert found["engine"]["found"].startswith("auto takes mvw: ")


def test_a_profile_that_it_can_serve(doctor: Doctor) -> None:
    _, found, _ = doctor("--engine", "vllm", "--profile", "qwen2.5-vl-7b")
    assert found["engine"]["found"] == "vLLM has the model and can be exact"
    _, found, _ = doctor("--engine", "auto", "--profile", "qwen2.5-vl-7b")
    assert found["engine"]["found"] == "auto takes vllm"


@pytest.mark.parametrize(
    ("kind", "text", "refused"),
    [
        ("qwen2_5_vl", {}, False),
        ("gemma3", {}, True),
        ("qwen2_5_vl", {"use_sliding_window": True, "sliding_window": 64,
                        "max_window_layers": 0}, True),
        ("llava", {"model_type": "mistral", "sliding_window": 4096}, True),
        ("llava", {"model_type": "mistral", "sliding_window": None}, False),
    ],
)  # fmt: skip
def test_windows_are_told_from_the_configuration(
    kind: str, text: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "installed", lambda: False)
    config = AutoConfig.for_model(kind, text_config=text)
    assert (start.unsupported(config) is not None) == refused


# -- against the oracle ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differs", "status"),
    [
        ({}, "ok"),
        ({"difference": 0.3}, "problem"),
        ({"difference": float("nan")}, "problem"),
        ({"effect": 1e-3}, "warning"),
    ],
)
def test_a_comparison_is_judged(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, differs: dict[str, Any], status: str
) -> None:
    given: list[Any] = []

    def compare(*asked: Any) -> Equivalence:
        given.extend(asked)
        return replace(EQUAL, **differs)

    monkeypatch.setattr("mvw_cli.vllm.equivalence.vllm_equivalence", compare)
    words = ("--engine", "vllm", "--equivalence", "--set", "engine_args.block_size=32")
    code, found, document = doctor(*words)
    assert given == ["auto", "float32", {"block_size": 32}]
    assert found["equivalence"]["status"] == status
    assert "vllm:CPU_ATTN on cpu, float32" in found["equivalence"]["found"]
    assert code == (20 if status == "problem" else 0)
    assert document["equivalence"]["tokens"] == 48


def test_a_vllm_that_does_not_start_is_a_finding(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*asked: Any) -> Equivalence:
        raise ModelProblem("vLLM does not start with x", cause="no room", hint="mvw doctor")

    monkeypatch.setattr("mvw_cli.vllm.equivalence.vllm_equivalence", fail)
    code, found, document = doctor("--engine", "vllm", "--equivalence")
    assert code == 20 and document["equivalence"] is None
    assert found["equivalence"]["found"] == "not run: vLLM does not start with x: no room"
