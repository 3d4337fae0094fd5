"""LoRA folders, as peft writes them: loaded over their base model, and merged into its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import write_checkpoint
from mvw_hf.model import HuggingFace
from PIL import Image
from processes import Ran
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mvw_cli.adapter import ModelSpec
from mvw_cli.errors import ExitCode, ModelProblem

peft = pytest.importorskip("peft")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVW_OFFLINE", "1")
    Image.new("RGB", (40, 30), "red").save("red.png")
    return write_checkpoint(tmp_path / "base")


def train(base: Path, folder: Path, **options: Any) -> Any:
    """Make an adapter with changes of some size, and write it; return the model that it makes."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    tuned = peft.get_peft_model(model, peft.LoraConfig(**settings | options)).eval()
    tuned.save_pretrained(folder)
    return tuned


def load(folder: Path, **options: Any) -> Any:
    return HuggingFace().load(ModelSpec(model=str(folder), device="cpu", **options)).model


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[1, 7, 9, 11]])
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_it_is_the_model_that_peft_makes(base: Path, options: dict[str, Any]) -> None:
    tuned = train(base, base.parent / "lora", **options)
    if "modules_to_save" in options:
        tuned.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
        tuned.save_pretrained(base.parent / "lora")
    loaded = load(base.parent / "lora")
    torch.testing.assert_close(logits(loaded), logits(tuned), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(loaded), logits(load(base)), atol=1e-2)
    kinds = {type(part).__module__.partition(".")[0] for part in loaded.modules()}
    assert "peft" not in kinds  # no step costs more than the base's


def test_the_commands_serve_it(base: Path, mvw: Callable[..., Ran]) -> None:
    train(base, base.parent / "lora")
    answers = []
    for model in ("base", "lora"):
        ran = mvw("infer", "red.png", "w1", "--model", model, "--max-new-tokens", "12", "--json")
        assert ran.code == ExitCode.OK, ran.err
        answers.append(json.loads(ran.out)["text"])
    assert answers[0] != answers[1]
    costs = [
        json.loads(mvw("show", "--cost", "--set", f"model={model}", "--json").out)
        for model in ("base", "lora")
    ]
    assert costs[0]["parameters"] == costs[1]["parameters"]
    document = json.loads(mvw("doctor", "--set", "model=lora", "--json").out)
    [weights] = [one for one in document["findings"] if one["check"] == "weights"]
    assert weights["status"] == "ok" and weights["found"].startswith("1 files")


def test_its_own_processor_comes_first(base: Path) -> None:
    """A trainer saves it beside the adapter; the template may be another one."""
    train(base, base.parent / "lora")
    spec = ModelSpec(model=str(base.parent / "lora"), device="cpu")
    assert HuggingFace().load_processor(spec).chat_template.startswith("{{ '<s>' }}")
    processor = HuggingFace().load_processor(ModelSpec(model=str(base)))
    processor.chat_template = "mine: " + processor.chat_template
    processor.save_pretrained(base.parent / "lora")
    assert HuggingFace().load_processor(spec).chat_template.startswith("mine: ")


def of_another_model(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    renamed = {name.replace("q_proj", "x_proj"): one for name, one in load_file(file).items()}
    save_file(renamed, file)


def of_another_size(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.cat([one, one]) for name, one in load_file(file).items()}, file)


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def gone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickled(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def base_elsewhere(folder: Path) -> None:
    file = folder / "adapter_config.json"
    told = json.loads(file.read_text()) | {"base_model_name_or_path": "/srv/models/base"}
    file.write_text(json.dumps(told))


def prompt_tuning(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    options = {"num_virtual_tokens": 4, "base_model_name_or_path": str(folder.parent / "base")}
    peft.PromptTuningConfig(task_type="CAUSAL_LM", **options).save_pretrained(folder)


@pytest.mark.parametrize(
    ("break_", "said", "cause", "hint"),
    [
        (of_another_model, "is a LoRA adapter of another model than", "x_proj", "mvw list"),
        (of_another_size, "is a LoRA adapter of another model than", "_proj", "mvw list"),
        (cut, "is damaged", "adapter_model.safetensors is cut", "mvw list"),
        (gone, "has no weights as safetensors", "Nor has it any", "mvw list"),
        (pickled, "has no weights as safetensors", "Pickled", "--allow-pickle"),
        (base_elsewhere, "base model of the LoRA adapter", "/srv/models/base", "cat "),
        (prompt_tuning, "changes the prompt", "PROMPT_TUNING", "mvw list adapters"),
    ],
)
def test_what_is_wrong_with_it(
    base: Path, break_: Callable[[Path], None], said: str, cause: str, hint: str
) -> None:
    folder = base.parent / "lora"
    train(base, folder)
    break_(folder)
    with pytest.raises(ModelProblem) as raised:
        load(folder)
    error = raised.value
    assert said in error.message and cause in (error.cause or "") and hint in (error.hint or "")


def test_a_pickled_one_is_read_where_the_user_says_so(base: Path) -> None:
    tuned = train(base, base.parent / "lora")
    pickled(base.parent / "lora")
    loaded = load(base.parent / "lora", allow_pickle=True)
    torch.testing.assert_close(logits(loaded), logits(tuned), rtol=1e-4, atol=1e-4)


def test_beside_a_whole_model(base: Path) -> None:
    tuned = train(base, base)
    torch.testing.assert_close(logits(load(base)), logits(tuned), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_not_on_this_machine(base: Path) -> None:
    folder = base.parent / "lora"
    train(base, folder)
    file = folder / "adapter_config.json"
    told = json.loads(file.read_text()) | {"base_model_name_or_path": "org/not-here"}
    file.write_text(json.dumps(told))
    with pytest.raises(ModelProblem) as raised:
        load(folder)
    assert "org/not-here" in raised.value.message
    assert raised.value.hint == "hf download org/not-here"
