"""Models spread over devices by accelerate or held in 8 or 4 bits: what a CPU allows of it.

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
from broken import set_config, write_checkpoint
from hints import parse_hint
from mvw_hf import loading
from mvw_hf.model import HuggingFace
from mvw_hf.tiny import tiny_llava
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import LlavaCot
from PIL import Image
from processes import Ran
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlavaConfig
from transformers.cache_utils import DynamicLayer

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec
from mvw_cli.cost.shape import shape_of
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
    decoder = model.get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    layers = [f"{name}.layers.{n}" for n in range(len(decoder.layers))]
    rest = [name for name in _leaves(model) if not name.startswith(tuple(f"{n}." for n in layers))]
    places = ("cpu", "disk") if first == "cpu" else ("disk", "cpu")
    dealt = {name: places[n % 2] for n, name in enumerate([*rest, *layers])}
    # Mllama's vision tower asks its weights for their device (`patch_embedding.weight`).
    staying = "vision_model" if model.config.model_type == "mllama" else "none"
    return {name: "cpu" if staying in name else place for name, place in dealt.items()}


def _leaves(model: Any) -> list[str]:
    held = [*model.named_parameters(), *model.named_buffers()]
    own = {name.rpartition(".")[0] for name, _ in held}
    return sorted(name for name in own if not any(name.startswith(f"{o}.") for o in own if o))


def answers(adapter: Adapter, loaded: LoadedModel, **engine: Any) -> list[Any]:
    requests = [
        question_of(adapter, loaded, [noise(64, 48, seed)], m=m, name=str(seed), new_tokens=8)
        for seed, m in ((0, 2), (1, None), (2, 4))
    ]
    return run(loaded, requests, **engine)[0]


def assert_same(expected: list[Any], found: list[Any]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.logits - other.logits).abs().max() <= 1e-5


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
    assert_same(expected, answers(adapter, apart, slots=slots))


def test_a_checkpoint_is_spread_while_it_is_read(folder: Path) -> None:
    tiny = HuggingFace().tiny()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=spread(tiny.model, "disk"), use_safetensors=True
    )
    assert model.device.type == "meta"
    assert loading.input_device(model) == torch.device("cpu")
    assert_same(answers(HuggingFace(), tiny), answers(HuggingFace(), replace(tiny, model=model)))


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
    layer.with_vision.remove(1)
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


def test_converted_weights_on_the_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = KimiVL().tiny()
    tiny.model.save_pretrained(tmp_path)
    parts = spread(tiny.model)
    monkeypatch.setattr("mvw_hf.loading.placing", lambda spec: {"device_map": parts})
    with pytest.raises(OutOfMemory, match="does not fit where its weights are placed"):
        loading.complete(type(tiny.model), ModelSpec(model=str(tmp_path), device_map="auto"))


def test_a_gpu_that_runs_full_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(Recorder, "from_pretrained", fail)
    with pytest.raises(OutOfMemory) as raised:
        asked(folder)
    assert raised.value.cause == "CUDA out of memory. Tried to allocate 2 GiB."


PACKAGES = ["is_accelerate_available", "is_bitsandbytes_available"]


@pytest.mark.parametrize(
    ("missing", "spec", "said", "extra"),
    [
        (PACKAGES[:1], {"device_map": "auto"}, "device_map: auto needs accelerate.", "multi-gpu"),
        (PACKAGES[:1], {}, "quantization: 4bit needs accelerate.", "quantization"),
        (PACKAGES[1:], {}, "quantization: 4bit needs bitsandbytes.", "quantization"),
        (PACKAGES, {}, "quantization: 4bit needs accelerate and bitsandbytes.", "quantization"),
        ([], {"random_weights": True}, "Random weights are neither quantised", ""),
        ([], {"random_weights": True, "device_map": "auto"}, "Random weights are neither", ""),
        (["cuda"], {}, "quantization: 4bit needs a CUDA device.", ""),
    ],
)
@pytest.mark.usefixtures("able")
def test_what_this_machine_can_not_do_is_refused(
    missing: list[str],
    spec: dict[str, Any],
    said: str,
    extra: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in missing:
        where, name = (torch.cuda, "is_available") if name == "cuda" else (loading, name)
        monkeypatch.setattr(where, name, lambda: False)
    quantization = None if "device_map" in spec else "4bit"
    error = refused(UsageProblem, ModelSpec(model=str(folder), quantization=quantization, **spec))
    assert error.message.startswith(said)
    if missing == ["cuda"]:  # the same command without it
        assert error.hint and "--set quantization=null" in error.hint
    if extra:
        assert error.hint == f'pip install --upgrade "mvw[{extra}]"'


def test_one_device_needs_no_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: False)
    HuggingFace().load(ModelSpec(model=str(folder), device="cpu"))


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
    command[-2:] = ["--quantization", "8bit"]
    ran = mvw(*command, "--device", "cpu")
    assert ran.code == ExitCode.USAGE
    assert "contradict each other" in ran.err
    assert mvw(*command[:-1], "2bit").code == ExitCode.USAGE


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


# -- 8 and 4 bits: what transformers is asked for, and the bytes --------------------------------
# bitsandbytes is not installed here, so what it makes of the request is not tested.


class Recorder:
    """Stands where a class of transformers is, and keeps what it is asked for."""

    config_class = LlavaConfig

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def from_pretrained(self, name: str, **options: Any) -> Any:
        self.options = options
        return tiny_llava()[0], {"missing_keys": set(), "mismatched_keys": set()}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make believe that there are two GPUs and every package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: True)
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: True)


def asked(folder: Path, **spec: Any) -> dict[str, Any]:
    recorder = Recorder()
    loading.complete(recorder, ModelSpec(model=str(folder), **spec))
    return recorder.options


def test_nothing_is_asked_for_without_the_key(folder: Path) -> None:
    assert not {"quantization_config", "device_map"} & set(asked(folder))


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [("auto", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)],
)
def test_four_bits(folder: Path, able: None, dtype: str, compute: torch.dtype) -> None:
    options = asked(folder, quantization="4bit", dtype=dtype)
    config = options["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == compute
    assert options["dtype"] == dtype
    assert options["use_safetensors"] is True


@pytest.mark.parametrize(
    ("device", "device_map", "wanted"),
    [
        ("auto", None, {"": torch.device("cuda", 0)}),
        ("cuda", None, {"": torch.device("cuda", 0)}),
        ("cuda:1", None, {"": torch.device("cuda", 1)}),
        ("auto", "auto", "auto"),
    ],
)
def test_the_weights_are_made_where_they_stay(
    folder: Path, able: None, device: str, device_map: str | None, wanted: Any
) -> None:
    options = asked(folder, quantization="8bit", device=device, device_map=device_map)
    config = options["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (False, True)
    assert options["device_map"] == wanted


def test_a_quantised_model_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava()[0].train()
    moved: list[Any] = []
    monkeypatch.setattr(model, "to", moved.append)
    model.quantization_method = "bitsandbytes"
    assert loading.place(model, torch.device("cpu"), "x") is model
    assert not model.training
    assert not moved
    del model.quantization_method
    loading.place(model, torch.device("cpu"), "x")
    assert moved == [torch.device("cpu")]


def test_the_bytes_are_those_of_the_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_of(HuggingFace(), HuggingFace().shape(ModelSpec(model=str(folder)))).weights
    total, linear = int(weights.total.numbers), int(weights.total.quantizable)
    assert 0 < linear < total
    expected = {
        "8bit": (total - linear) * 2 + linear,
        "4bit": (total - linear) * 2 + linear * 9 // 16,
    }
    free: dict[str, int | None] = {}
    monkeypatch.setattr(fit, "free_memory", free.get)
    monkeypatch.setattr(fit, "_small", lambda *arguments: False)
    for quantization, size in expected.items():
        bits = int(quantization[0])
        assert weights.total.bytes("bfloat16", bits) == size
        spec = ModelSpec(
            model=str(folder), device="cuda:0", dtype="bfloat16", quantization=quantization
        )
        free["cuda:0"] = size
        fit.check_fit(HuggingFace(), spec)
        free["cuda:0"] = size - 1
        with pytest.raises(OutOfMemory) as raised:
            fit.check_fit(HuggingFace(), spec)
        assert f"in bfloat16 and {quantization};" in (raised.value.cause or "")


def test_a_checkpoint_that_is_quantised_itself_is_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    monkeypatch.setattr(fit, "free_memory", lambda device: 1)
    fit.check_fit(HuggingFace(), ModelSpec(model=str(folder), device="cpu"))
