"""Which profiles vLLM is given, with which arguments; found out without importing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_folder import BY_PROFILE, write_hub_folder

from mvw_cli.adapter import ModelSpec
from mvw_cli.errors import ModelProblem, UsageProblem
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.vtw import Vtw
from mvw_cli.profiles.resolution import parse_set, resolve
from mvw_cli.session import open_session
from mvw_cli.vllm import start
from mvw_cli.vllm.plugin.settings import LEADER


def resolved(*settings: str) -> Any:
    return resolve(None, {"model": "org/name", **parse_set(settings)}, {})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("withdrawal.policy=vtw:layer=2", "the policy vtw is had in mvw's own engine only"),
        ("attention=eager", "attention is for mvw's own engine"),
        ("quantization=4bit", "quantization is for mvw's own engine"),
        ("images.min_pixels=4", "images.min_pixels is for mvw's own engine"),
        ("device=mps", "does not run on mps"),
    ],
)
def test_what_vllm_can_not_serve_is_told(
    setting: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "installed", lambda: True)
    asked = resolved(setting)
    assert said in (start.why_not(asked.profile, asked.policy) or "")
    with pytest.raises(UsageProblem, match="vLLM can't serve this profile"):
        start.check(asked.profile, asked.policy)
    assert start.choose(asked.profile, asked.policy)[0] == "mvw"


def test_a_tag_for_each_image_is_not_for_vllm() -> None:
    asked = resolved()
    assert start.why_not(asked.profile, Mvw(until=["a", "b"])) is not None
    assert start.why_not(asked.profile, Mvw(until="a")) is None


def test_vllm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "installed", lambda: False)
    asked = resolved("engine=vllm")
    with pytest.raises(UsageProblem, match="vLLM is not installed") as error:
        start.check(asked.profile, asked.policy)
    assert "pip install 'mvw\\[vllm]'".replace("\\", "") in (error.value.cause or "")
    assert start.choose(asked.profile, asked.policy) == ("mvw", "vLLM is not installed", None)


def test_arguments_are_the_profiles_and_then_the_users() -> None:
    asked = resolved("engine_args.max_model_len=4096", "engine_args.block_size=32")
    spec = ModelSpec(model="org/name", dtype="bfloat16")
    own = asked.profile.engine_args.given
    found = start.engine_arguments(spec, Mvw(m=4), slots=3, engine_args=own)
    expected = {
        "model": "org/name",
        "dtype": "bfloat16",
        "additional_config": {"mvw": {"m": 4}},
        "load_format": "safetensors",
        "max_num_seqs": 3,
        "max_model_len": 4096,
        "block_size": 32,
    }
    assert expected.items() <= found.items()
    assert "async_scheduling" not in found
    tagged = start.engine_arguments(spec, Mvw(until="a"), slots=None, engine_args={})
    assert tagged["async_scheduling"] is False
    never = start.engine_arguments(spec, NoWithdrawal(), slots=None, engine_args={})
    assert never["additional_config"] == {"mvw": {}}


def test_several_engines_on_one_device_take_a_part_each() -> None:
    spec = ModelSpec(model="org/name")

    def made(**options: Any) -> dict[str, Any]:
        given = {"slots": None, "engine_args": {}, **options}
        return start.engine_arguments(spec, Mvw(m=4), **given)

    assert made(sharers=2)["gpu_memory_utilization"] == 0.45
    assert "gpu_memory_utilization" not in made()
    pool = made(sharers=2, kv_bytes=1 << 30)
    assert pool["kv_cache_memory_bytes"] == 1 << 30 and "gpu_memory_utilization" not in pool


@pytest.mark.parametrize(
    ("seen", "device", "size", "shown"),
    [
        (None, "cuda:2", 1, "2"),
        (None, "cuda:2", 2, "2,3"),
        ("4,5,6,7", "cuda:2", 2, "6,7"),
        ("4,5", "auto", 2, "4,5"),
    ],
)
def test_vllm_is_shown_the_gpus_of_one_replica(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, device: str, size: int, shown: str
) -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "CUDA_VISIBLE_DEVICES", LEADER):
        monkeypatch.setenv(name, "kept")  # to be put back
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)  # nothing is started
    with pytest.raises(ModelProblem):
        start.start({"model": "org/name", "tensor_parallel_size": size}, device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shown


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`engine: auto` reads its configuration to choose; what is started does not read it again."""
    model = write_hub_folder(BY_PROFILE["qwen2.5-vl-7b"], tmp_path / "model", weights=False)
    profile = resolve(None, {"model": str(model), "engine": "auto", "device": "cpu"}, {}).profile
    read: list[str] = []
    kind = type(load_adapter("hf"))
    shape = kind.shape

    def counted(self: Any, spec: ModelSpec) -> Any:
        read.append(str(spec.model))
        return shape(self, spec)

    monkeypatch.setattr(kind, "shape", counted)
    monkeypatch.setattr(start, "installed", lambda: True)
    monkeypatch.setattr(start, "unsupported", lambda config: None)
    monkeypatch.setattr("mvw_cli.vllm.engine.VllmEngine", lambda *given: "vLLM")
    session = open_session(profile)
    assert (session.engine, read) == ("vLLM", [str(model)])
    assert session.chosen == "engine vllm: vLLM has the model and can be exact"


def test_an_argument_that_the_profile_has_a_key_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "installed", lambda: True)
    asked = resolved("engine_args.trust_remote_code=true")
    with pytest.raises(UsageProblem, match="engine_args has trust_remote_code"):
        start.check(asked.profile, asked.policy)


def test_the_cause_is_found_in_what_the_processes_wrote(tmp_path: Path) -> None:
    said = "(EngineCore pid=7) ERROR 11-28 23:14:28 [core.py:1510] "
    begun = f"{said}Traceback (most recent):\n{said}ValueError: mvw: no room\nProcess EngineCore:\n"
    ended = f"{said}Worker proc VllmWorker-0 died unexpectedly (exit code: 0), shutting down\n"
    killed = f"{said}Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down\n"
    with open(tmp_path / "log", "w+") as file:
        file.write(begun + ended)
        file.flush()
        log = start.Log(file.fileno())
        assert log.last_error() == "mvw: no room"
        log = start.Log(file.fileno(), len(begun + ended))  # what was before it is over
        assert log.last_error() is None
        file.write(f"{killed}{said}RuntimeError: Executor failed.\n")
        file.flush()
        assert log.last_error() == "Worker proc VllmWorker-1 died unexpectedly (exit code: -9)"
    assert start.Log(None).last_error() is None


def test_what_looks_inside_is_not_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration and explanations read logits and attention."""
    monkeypatch.setattr(start, "installed", lambda: True)
    with pytest.raises(UsageProblem, match="vLLM can't serve this profile") as error:
        open_session(resolved("engine=vllm").profile, looking_inside=True)
    assert error.value.cause == "this needs logits or attention, which vLLM does not give"
    profile = resolve("shapes", {"engine": "auto", "device": "cpu"}, {}).profile
    assert open_session(profile, looking_inside=True).engine.in_process


def test_a_policy_of_our_own_engine_is_never_taken_for_none() -> None:
    with pytest.raises(UsageProblem) as error:
        start.withdrawal_settings(Vtw(layer=2))
    assert error.value.cause == "the policy vtw is had in mvw's own engine only"
    assert start.withdrawal_settings(NoWithdrawal()) == {}


@pytest.mark.parametrize(
    ("settings", "shown"), [({}, False), ({"VLLM_LOGGING_LEVEL": "INFO"}, True)]
)
def test_what_is_logged_is_settled_where_vllm_is_imported_first(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], shown: bool
) -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with start.silenced():
        assert os.environ["VLLM_LOGGING_LEVEL"] == ("INFO" if shown else "ERROR")
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert ("VLLM_LOGGING_LEVEL" in os.environ) == shown
