"""Loading fails in many ways; each has its own three lines, by the adapter and by the command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from broken import Hub, set_config, write_checkpoint
from hints import parse_hint
from huggingface_hub import constants
from mvw_hf.model import HuggingFace
from mvw_hf.problems import known_of
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import LlavaCot
from PIL import Image
from processes import Ran

from mvw_cli.adapter import ModelSpec
from mvw_cli.errors import ExitCode, ModelProblem

Breaks = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights in three shards or more, with an index."""
    made = write_checkpoint(tmp_path / "model", max_shard_size="20KB")
    assert len(list(made.glob("*.safetensors"))) >= 3
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path / "hub")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def all_gone(folder: Path) -> None:
    for file in shards(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()


def one_gone(folder: Path) -> None:
    shards(folder)[1].unlink()


def cut(folder: Path) -> None:
    shards(folder)[1].write_bytes(shards(folder)[1].read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    from mvw_hf.tiny import tiny_llava

    all_gone(folder)
    torch.save(tiny_llava()[0].state_dict(), folder / "pytorch_model.bin")


def text_only(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


BROKEN: list[tuple[Breaks, str, str]] = [
    (all_gone, "has no weights as safetensors", "Nor has it any"),
    (one_gone, "is incomplete", "model-00002-of-"),
    (cut, "is damaged", "model-00002-of-"),
    (pickle_only, "has no weights as safetensors", "Pickled ones"),
    (text_only, "is not a vision-language model", "llama"),
    (no_config, "is not a checkpoint", "config.json"),
    (lambda folder: set_config(folder, model_type="llava9000"), "does not know", "llava9000"),
    (
        lambda folder: set_config(folder, image_token_id="x"),
        "names no image token",
        "no token that stands",
    ),
]


@pytest.mark.parametrize(("break_", "said", "cause"), BROKEN)
def test_each_broken_folder_says_what_is_wrong_with_it(
    folder: Path, break_: Breaks, said: str, cause: str, mvw: Callable[..., Ran]
) -> None:
    break_(folder)
    picture = folder / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    ran = mvw("infer", str(picture), "w1", "--model", str(folder), "--device", "cpu")
    assert (ran.code, ran.out) == (ExitCode.MODEL, "")
    message, told, hint = [line for line in ran.err.splitlines() if line.strip()][-3:]
    assert message.startswith("Error: ") and said in message
    assert cause in told
    hint = hint.removeprefix("Hint: ")
    parse_hint(hint)
    assert not hint.startswith("mvw infer") or str(picture) in hint  # the command that was typed


def test_what_may_not_be_read_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_] = sorted(folder.glob("*.safetensors"))
    may = os.access  # root may read all
    monkeypatch.setattr(os, "access", lambda path, *how: path != first and may(path, *how))
    error = problem(str(folder))
    assert error.message == f"{folder} can't be read."
    assert error.cause == f"Permission denied: {first.name}."
    assert error.hint == f"ls -l {first}"


def test_an_unknown_architecture_names_the_version_and_the_upgrade(folder: Path) -> None:
    set_config(folder, model_type="llava9000")
    error = problem(str(folder))
    assert transformers.__version__ in (error.cause or "")
    assert error.hint == "pip install --upgrade transformers"


@pytest.mark.parametrize("random_weights", [False, True])
@pytest.mark.parametrize("kind", ["llava", "llava9000"])
def test_code_beside_the_weights_is_neither_run_nor_asked_about(
    folder: Path, kind: str, random_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "y")
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    own = {f"Auto{part}": f"own.{part}" for part in ("Config", "ModelForImageTextToText")}
    set_config(folder, model_type=kind, auto_map=own)
    for name in ("processor_config.json", "tokenizer_config.json"):
        told = json.loads((folder / name).read_text())
        told["auto_map"] = {"AutoProcessor": "own.P", "AutoTokenizer": ["own.T", None]}
        (folder / name).write_text(json.dumps(told))
    spec = ModelSpec(model=str(folder), device="cpu", random_weights=random_weights)
    if kind == "llava":
        assert type(HuggingFace().load(spec).model).__module__.startswith("transformers.")
        assert not questions and not ran.exists()
        return
    with pytest.raises(ModelProblem) as raised:
        HuggingFace().load(spec)
    assert not questions and not ran.exists()
    assert "code of its own lies beside it, which is not run" in (raised.value.cause or "")
    assert raised.value.hint == "mvw list adapters"


def test_a_folder_that_is_none(folder: Path) -> None:
    assert problem("./no/such/folder").message == "There is no folder ./no/such/folder."
    (folder.parent / "notes").write_text("none")
    assert problem(str(folder.parent / "notes")).cause == "It is a file."


@pytest.mark.parametrize(("adapter", "kind"), [(LlavaCot, "mllama"), (KimiVL, "kimi_vl")])
def test_the_adapter_of_another_architecture(
    folder: Path, adapter: type[HuggingFace], kind: str
) -> None:
    with pytest.raises(ModelProblem) as raised:
        adapter().load(ModelSpec(model=str(folder), device="cpu"))
    assert "architecture" in raised.value.message
    assert raised.value.cause == f"Its model_type is llava, and {kind} is needed."
    assert raised.value.hint == "mvw list adapters"


def problem(
    model: str, revision: str | None = None, adapter: type[HuggingFace] = HuggingFace
) -> ModelProblem:
    with pytest.raises(ModelProblem) as raised:
        adapter().load(ModelSpec(model=model, revision=revision, device="cpu"))
    error = raised.value
    assert error.cause
    assert "\n" not in error.message + error.cause
    parse_hint(error.hint or "")
    return error


@pytest.mark.parametrize("adapter", [HuggingFace, KimiVL])
@pytest.mark.parametrize(
    ("status", "code", "said", "hint"),
    [
        (403, "GatedRepo", "is gated", "hf auth login"),
        (404, "RepoNotFound", "There is no model some/model on the hub", "mvw list profiles"),
        (404, "RevisionNotFound", "has no revision v9", "revision=main"),
        (503, "", "the hub does not answer", "hf download some/model"),
        (0, "", "the hub does not answer", "hf download some/model"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, adapter: type[HuggingFace], status: int, code: str, said: str, hint: str
) -> None:
    """Whoever does not get the configuration asks for nothing else."""
    if status:  # else there is no network
        hub.refuses(status, code)
    error = problem("some/model", "v9", adapter)
    assert said in error.message
    assert hint in (error.hint or "")
    files = {url.rpartition("/resolve/")[2] for url in hub.requests if "/resolve/" in url}
    assert files == {"v9/config.json"}


def full(kind: str) -> BaseException:
    """What a write to a full disk comes to: of Python, of hf-xet, and inside of another error."""
    plain = OSError(28, "No space left on device")
    if kind == "plain":
        return plain
    if kind == "rust":
        return RuntimeError("Data processing error: I/O error: No space left (os error 28)")
    outer = OSError("Can't load the configuration.")
    outer.__cause__ = plain
    return outer


@pytest.mark.parametrize("kind", ["plain", "rust", "chained"])
@pytest.mark.parametrize("part", ["load_processor", "load_model"])
def test_no_space_left_on_the_disk(
    kind: str, part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: Any) -> None:
        raise full(kind)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HuggingFace, "load_processor", lambda *arguments: None)
    monkeypatch.setattr(HuggingFace, part, fail)
    error = problem("some/model")
    assert error.message == "some/model can't be stored: the disk is full."
    assert error.cause == f"It was being written to {tmp_path}."
    assert error.hint == "hf cache ls"


def test_another_error_of_the_system_is_not_a_full_disk() -> None:
    assert known_of(OSError(13, "Permission denied")) is None
    assert known_of(RuntimeError("os error 2")) is None


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = problem("some/model")
    assert "is not on this machine" in error.message
    assert not hub.requests


@pytest.mark.parametrize("part", ["shape", "load_processor", "load_model"])
def test_the_revision_is_the_one_that_is_asked_for(hub: Hub, part: str) -> None:
    hub.refuses(404, "RevisionNotFound")
    with pytest.raises((ModelProblem, OSError)):
        getattr(HuggingFace(), part)(ModelSpec(model="some/model", revision="v9"))
    assert hub.requests
    assert all("/v9/" in f"{url}/" for url in hub.requests), hub.requests


def test_pickled_weights_are_read_where_the_user_says_so(
    folder: Path, mvw: Callable[..., Ran], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    command = ["infer", str(picture), "w1", "--model", str(folder), "--device", "cpu"]
    command += ["--max-new-tokens", "8", "--set", "generation.temperature=0"]
    whole = mvw(*command)
    pickle_only(folder)
    refused = mvw(*command)
    assert refused.code == ExitCode.MODEL
    assert refused.err.splitlines()[-1].endswith("--allow-pickle")
    read = mvw(*command, "--allow-pickle")
    assert (whole.code, read.code) == (ExitCode.OK, ExitCode.OK)
    assert read.out == whole.out != ""


def test_a_profile_can_not_allow_pickles(mvw: Callable[..., Ran]) -> None:
    ran = mvw("infer", "no.png", "w1", "--set", "allow_pickle=true")
    assert ran.code == ExitCode.USAGE
    assert "allow_pickle" in ran.err


class Evil:
    """Writes a file when it is unpickled by the unrestricted means."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_even_an_allowed_pickle_runs_no_code(folder: Path, tmp_path: Path) -> None:
    all_gone(folder)
    target = tmp_path / "was-run"
    torch.save({"lm_head.weight": Evil(target)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelProblem) as raised:
        HuggingFace().load(ModelSpec(model=str(folder), device="cpu", allow_pickle=True))
    assert "pickled weights that can't be read" in raised.value.message
    assert not target.exists()


def test_a_cut_pickle(folder: Path) -> None:
    pickle_only(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ModelProblem) as raised:
        HuggingFace().load(ModelSpec(model=str(folder), device="cpu", allow_pickle=True))
    assert "pickled weights that can't be read" in raised.value.message


def test_a_repository_without_safetensors(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_gone(folder)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    asked: list[str] = []  # a service, to convert the repository, which is not ours to ask

    def convert(name: str, **_: Any) -> tuple[None, str, bool]:
        asked.append(name)
        return None, "main", False

    monkeypatch.setattr("transformers.modeling_utils.auto_conversion", convert)
    hub.has("some/model", folder, tmp_path / "hub")
    error = problem("some/model")
    assert error.message == "some/model has no weights as safetensors."
    assert error.hint == "mvw infer IMAGE QUESTION --allow-pickle"
    assert not asked
