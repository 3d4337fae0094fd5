"""Models spread over devices by accelerate: what a CPU allows of it, and the refusals.

Parts that wait in memory or on the disk go the way that parts on several GPUs go: through hooks
that bring inputs and weights to the device of each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from broken import write_checkpoint
from hints import parse_hint
from mvw_hf import loading
from mvw_hf.model import HuggingFace
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import LlavaCot
from PIL import Image
from processes import Ran
from transformers import AutoModelForImageTextToText
from transformers.cache_utils import DynamicLayer

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec
from mvw_cli.engine.layers import CrossLayer
from mvw_cli.errors import ExitCode, MvwError, OutOfMemory, UsageProblem
from mvw_cli.machine import fit
from mvw_cli.oracle.equivalence import noise, question_of, run

RED = Image.new("RGB", (40, 30), "red")
ALTERNATING = ("cpu", "disk")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def spread(model: Any, first: str = "cpu") -> dict[str, str]:
    """Deal the parts of a model out, so that neighbouring layers lie in different places."""
    layers = [f"{_name(model, model.get_decoder())}.layers.{n}" for n in range(_depth(model))]
    rest = [name for name in _leaves(model) if not name.startswith(tuple(f"{n}." for n in layers))]
    places = ("cpu", "disk") if first == "cpu" else ("disk", "cpu")
    dealt = {name: places[n % 2] for n, name in enumerate([*rest, *layers])}
    # Mllama's vision tower asks its weights for their device (`patch_embedding.weight`).
    staying = "vision_model" if model.config.model_type == "mllama" else "none"
    return {name: "cpu" if staying in name else place for name, place in dealt.items()}


def _leaves(model: Any) -> list[str]:
    own = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    own |= {name.rpartition(".")[0] for name, _ in model.named_buffers()}
    return sorted(name for name in own if not any(name.startswith(f"{o}.") for o in own if o))


def _name(model: Any, wanted: Any) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _depth(model: Any) -> int:
    return len(model.get_decoder().layers)


def answers(adapter: Adapter, loaded: LoadedModel, **engine: Any) -> list[Any]:
    requests = [
        question_of(adapter, loaded, [noise(64, 48, seed)], m=m, name=str(seed), new_tokens=8)
        for seed, m in ((0, 2), (1, None), (2, 4))
    ]
    return run(loaded, requests, **engine)[0]


@cache
def answers_of_the_whole(adapter: HuggingFace, slots: int) -> list[Any]:
    return answers(adapter, adapter.tiny(), slots=slots)


@pytest.mark.parametrize("first", ALTERNATING)
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("adapter", [HuggingFace(), LlavaCot(), KimiVL()], ids=lambda a: a.name)
def test_a_spread_model_answers_as_the_whole_one(
    adapter: HuggingFace, first: str, slots: int, tmp_path: Path
) -> None:
    apart = adapter.tiny()
    expected = answers_of_the_whole(adapter, slots)
    dispatch_model(
        apart.model,
        spread(apart.model, first),
        main_device="cpu",
        offload_dir=tmp_path,
        skip_keys=apart.model._skip_keys_device_placement,
        force_hooks=True,
    )
    assert {p.device.type for p in apart.model.parameters()} == {"cpu", "meta"}
    assert loading.place(apart.model, torch.device("cpu"), "x") is apart.model
    for one, other in zip(expected, answers(adapter, apart, slots=slots), strict=True):
        assert one.token_ids == other.token_ids
        assert (one.logits - other.logits).abs().max() <= 1e-5


def test_a_checkpoint_is_spread_while_it_is_read(folder: Path) -> None:
    adapter = HuggingFace()
    tiny = adapter.tiny()
    expected = answers(adapter, tiny)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=spread(tiny.model, "disk"), use_safetensors=True
    )
    assert model.device.type == "meta"
    assert loading.input_device(model) == torch.device("cpu")
    for one, other in zip(expected, answers(adapter, replace(tiny, model=model)), strict=True):
        assert one.token_ids == other.token_ids
        assert (one.logits - other.logits).abs().max() <= 1e-5


def test_the_device_map_of_the_spec_is_handed_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = AutoModelForImageTextToText.from_pretrained

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options.get("device_map"))
        return real(*args, **options)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", watched)
    for device_map in (None, "auto"):
        spec = ModelSpec(model=str(folder), device="auto", device_map=device_map)
        loaded = HuggingFace().load(spec)
        assert not loaded.model.training
        answers(HuggingFace(), loaded)
    assert seen == [None, "auto"]


def test_inputs_go_where_the_outermost_hook_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = HuggingFace().tiny()
    assert loading.input_device(loaded.model) == torch.device("cpu")

    class Hook:
        execution_device = "meta"

    monkeypatch.setattr(loaded.model, "hf_device_map", {"model": 0, "lm_head": 1}, raising=False)
    monkeypatch.setattr(loaded.model, "_hf_hook", Hook(), raising=False)
    assert loading.input_device(loaded.model) == torch.device("meta")


def test_a_withdrawn_cross_layer_takes_its_input_from_another_device() -> None:
    layer = CrossLayer(keep_mlp=False, memo={})
    prefilled = DynamicLayer()
    states = torch.zeros(1, 1, 3, 4, device="meta")  # (1, H, V, D)
    prefilled.update(states, states)
    for _ in range(2):
        layer.load(prefilled, None, 1, True, torch.ones(3, dtype=torch.bool))
    layer.withdraw(1, torch.arange(0))
    layer.remove(1, True)
    before, output = torch.zeros(2, 1, 8), torch.zeros(2, 1, 8, device="meta")
    merged = layer.without_skipped(before, output)
    assert (merged.device.type, merged.shape) == ("meta", output.shape)


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"a": 0, "b": 1}, []),
        ({"a": "cpu", "b": "cpu"}, []),
        ({"a": 0, "b": "cpu", "c": "cpu"}, ["2 of 3 parts"]),
    ],
)
def test_parts_that_wait_in_memory_are_told_of(device_map: dict[str, Any], said: list[str]) -> None:
    loaded = HuggingFace().tiny()
    loaded.model.hf_device_map = device_map
    remarks = HuggingFace().remarks(loaded, [RED], "w1")
    assert len(remarks) == len(said)
    assert all(part in remark for part, remark in zip(said, remarks, strict=True))


def refused(kind: type[MvwError], spec: ModelSpec) -> MvwError:
    with pytest.raises(kind) as raised:
        HuggingFace().load(spec)
    assert raised.value.cause
    parse_hint(raised.value.hint or "")
    return raised.value


def test_weights_on_the_disk_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = spread(HuggingFace().tiny().model)
    monkeypatch.setattr("mvw_hf.loading.placing", lambda spec: {"device_map": parts})
    error = refused(OutOfMemory, ModelSpec(model=str(folder), device="cpu", device_map="auto"))
    assert "disk" in (error.cause or "")


def test_converted_weights_on_the_disk_are_refused(tmp_path: Path) -> None:
    tiny = KimiVL().tiny()
    tiny.model.save_pretrained(tmp_path)
    with pytest.raises(OutOfMemory), loading.room_for("kimi"):
        type(tiny.model).from_pretrained(tmp_path, device_map=spread(tiny.model))


def test_a_gpu_that_runs_full_while_loading() -> None:
    with pytest.raises(OutOfMemory) as raised, loading.room_for("a/b"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
    assert raised.value.cause == "CUDA out of memory. Tried to allocate 2 GiB."
    with pytest.raises(ValueError, match="else"), loading.room_for("a/b"):
        raise ValueError("something else")


def test_without_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: False)
    HuggingFace().load(ModelSpec(model=str(folder), device="cpu"))
    error = refused(UsageProblem, ModelSpec(model=str(folder), device_map="auto"))
    assert error.message == "device_map: auto needs accelerate."
    assert error.hint == 'pip install --upgrade "mvw[multi-gpu]"'


def test_random_weights_are_made_on_one_device(folder: Path) -> None:
    spec = ModelSpec(model=str(folder), device_map="auto", random_weights=True)
    assert "Random weights" in refused(UsageProblem, spec).message


def test_by_the_command(folder: Path, mvw: Callable[..., Ran], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    RED.save(picture)
    command = ["infer", str(picture), "w1", "--model", str(folder), "--max-new-tokens", "6"]
    command += ["--set", "generation.temperature=0", "--device-map", "auto"]
    ran = mvw(*command)
    assert ran.code == ExitCode.OK, ran.err
    for device in ("cpu", "cuda:1", "mps"):
        ran = mvw(*command, "--device", device)
        assert ran.code == ExitCode.USAGE
        lines = ran.err.splitlines()
        assert lines[-3] == (f"Error: device: {device} and device_map: auto contradict each other")
        parse_hint(lines[-1].removeprefix("Hint: "))


def test_the_memory_of_all_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    free: dict[str, int | None] = {"cuda:0": 30, "cuda:1": 12, "cpu": 100, "auto": 30}
    monkeypatch.setattr(fit, "free_memory", free.get)
    monkeypatch.setattr(fit, "gpu_count", lambda: 2)
    spread_out = ModelSpec(model="a/b", device_map="auto")
    assert fit._free(ModelSpec(model="a/b")) == 30
    assert fit._free(spread_out) == 30 + 12 + 90
    free["cuda:1"] = None
    assert fit._free(spread_out) is None
    monkeypatch.setattr(fit, "gpu_count", lambda: 0)
    assert fit._free(spread_out) == 30
