"""What people name as a model and is none, as it lies on their disks: each command says what."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from broken import write_checkpoint
from hints import parse_hint
from PIL import Image
from processes import Ran

from mvw_cli.errors import ExitCode

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4976698672\n"
)
"""As `git clone` leaves it where Git LFS is not installed."""
BASE = "./base"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in shards; the folder of the test is the current one, as for who types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVW_OFFLINE", "1")
    return write_checkpoint(tmp_path / "model", max_shard_size="20KB")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def emptied(folder: Path) -> Path:
    for file in folder.iterdir():
        file.unlink()
    return folder


def gguf_file(folder: Path) -> str:
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF\3\0\0\0")
    return "model/model-q4_k_m.gguf"


def gguf_folder(folder: Path) -> str:
    gguf_file(emptied(folder))
    return "./model"


def training_run(folder: Path) -> str:
    """As transformers' Trainer leaves it: only the numbers tell which is the newest."""
    run = folder.parent / "run"
    for step in (500, 90, 1500):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "config.json").write_bytes(
            (folder / "config.json").read_bytes()
        )
        os.utime(run / f"checkpoint-{step}", (step == 90, step == 90))
    (run / "runs").mkdir()
    (run / "training_args.bin").write_bytes(b"PK\3\4")
    return "./run"


def training_run_of_an_adapter(folder: Path) -> str:
    run = folder.parent / "run"
    (run / "checkpoint-500").mkdir(parents=True)
    (run / "checkpoint-500" / "adapter_config.json").write_text("{}")
    return "./run"


def file_of_weights(folder: Path) -> str:
    return f"./model/{shards(folder)[0].name}"


def hub_cache(folder: Path) -> str:
    """Links to blobs, and a branch that names a commit."""
    kept = folder.parent / "models--org--name"
    for commit in ("0" * 40, "1" * 40):
        (kept / "snapshots" / commit).mkdir(parents=True)
        for file in folder.iterdir():
            (kept / "snapshots" / commit / file.name).symlink_to(file)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1" * 40)
    return "./models--org--name"


def authors_own(folder: Path) -> str:
    """As Meta's repositories have it."""
    own = folder / "original"
    own.mkdir()
    (own / "params.json").write_text("{}")
    (own / "consolidated.00.pth").write_bytes(b"PK\3\4")
    return "./model/original"


def mistrals(folder: Path) -> str:
    (emptied(folder) / "params.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"\0")
    return "./model"


def unpacked_twice(folder: Path) -> str:
    (folder.parent / "outer").mkdir()
    folder.rename(folder.parent / "outer" / "model")
    return "outer/"


def pointers(*patterns: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.write_text(POINTER)
        return "./model"

    return write


def pointers_to_pickles(folder: Path) -> str:
    for file in shards(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    for number in (1, 2):
        (folder / f"pytorch_model-0000{number}-of-00002.bin").write_text(POINTER)
    return "./model"


def lora(base: str | None) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        folder.rename(folder.parent / "base")
        folder.mkdir()
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": base, "r": 8})
        )
        (folder / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        return "./model"

    return write


def lora_over_itself(folder: Path) -> str:
    return lora("./model")(folder)


@dataclass(frozen=True)
class Kind:
    """What is named, what is said of it, and what is to be typed instead."""

    make: Callable[[Path], str]
    said: str
    cause: str
    hint: str
    free_of_cost: bool = True
    """Whether `mvw show --cost` can do without what is wrong."""


MODEL = "mvw infer IMAGE QUESTION --model "
KINDS = {
    "address": Kind(
        lambda _: "https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/tree/main",
        "is the address of a page",
        "name",
        MODEL + "Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    "too long a name": Kind(
        lambda _: "./" + "x" * 300,
        "There is no folder",
        "nothing of that name",
        "mvw list profiles",
    ),
    "gguf file": Kind(gguf_file, "is in the GGUF format", "llama.cpp", "mvw list profiles"),
    "gguf folder": Kind(gguf_folder, "is in the GGUF format", "llama.cpp", "mvw list profiles"),
    "training run": Kind(
        training_run,
        "is the folder of a training run",
        "checkpoint-1500",
        MODEL + "run/checkpoint-1500",
    ),
    "training run of an adapter": Kind(
        training_run_of_an_adapter, "training run", "checkpoint-500", MODEL + "run/checkpoint-500"
    ),
    "file of weights": Kind(
        file_of_weights, "is one file of a checkpoint", "folder", MODEL + "model"
    ),
    "hub cache": Kind(
        hub_cache,
        "is not a checkpoint",
        "no config.json; another",
        MODEL + f"models--org--name/snapshots/{'1' * 40}",
    ),
    "authors' own": Kind(
        authors_own, "is not a checkpoint", "config.json; another", MODEL + "model"
    ),
    "Mistral's": Kind(mistrals, "is not a checkpoint", "authors' own code", "mvw list profiles"),
    "unpacked twice": Kind(
        unpacked_twice, "is not a checkpoint", "config.json; another", MODEL + "outer/model"
    ),
    "pointer to a shard": Kind(
        pointers("model-00002*"),
        "pointers of Git LFS",
        "model-00002-of-",
        "cd model && git lfs pull",
        free_of_cost=False,
    ),
    "pointers to shards": Kind(
        pointers("*.safetensors"),
        "pointers of Git LFS",
        " and ",
        "cd model && git lfs pull",
        free_of_cost=False,
    ),
    "pointers to pickles": Kind(
        pointers_to_pickles,
        "pointers of Git LFS",
        "pytorch_model-00001-of-00002.bin and 1 more",
        "cd model && git lfs pull",
        free_of_cost=False,
    ),
    "pointer to the tokenizer": Kind(
        pointers("tokenizer.json"),
        "pointers of Git LFS",
        "tokenizer.json",
        "cd model && git lfs pull",
    ),
    "pointer to the template": Kind(
        pointers("*.jinja"),
        "pointers of Git LFS",
        "chat_template.jinja",
        "cd model && git lfs pull",
    ),
    "adapter, no peft": Kind(
        lora(BASE),
        "is a LoRA adapter, and can't be loaded without peft",
        f"weights of {BASE}.",
        'pip install "mvw[lora]"',
        free_of_cost=False,
    ),
    "adapter, no base": Kind(
        lora(None),
        "is a LoRA adapter without a base model",
        "base_model_name_or_path",
        "cat model/adapter_config.json",
    ),
    "adapter over itself": Kind(
        lora_over_itself,
        "is a LoRA adapter without a base model",
        "adapter_config.json",
        "cat model/adapter_config.json",
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_command_says_what_it_is(
    kind: Kind, folder: Path, mvw: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvw_cli.machine.checkpoint.find_spec", lambda name: None)
    model = kind.make(folder)
    images = folder.parent / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "red.png")
    commands = {
        "infer": ["images/red.png", "w1", "--model", model],
        "batch": ["images", "w1", f"--model={model}", "-o", "records.jsonl"],
        "profile": ["images/red.png", "w1", "--model", model],
        "calibrate": ["mvw", "w1", "--images", "images", "--model", model],
        "doctor": ["--set", f"model={model}"],
        "show": ["--cost", "--set", f"model={model}"],
    }
    for name, words in commands.items():
        if name == "show" and not kind.free_of_cost:
            continue
        if name == "doctor":
            document = json.loads(mvw("doctor", "--json", *words).out)
            [found] = [one for one in document["findings"] if one["check"] == "weights"]
            assert found["status"] == "problem"
            said, cause, hint = found["found"], found["found"], found["advice"]
        else:
            ran = mvw(name, *words)
            assert ran.code == ExitCode.MODEL, ran.err
            said, cause, hint = [line for line in ran.err.splitlines() if line.strip()][-3:]
        assert model in said and kind.said in said, (name, said)
        assert kind.cause in cause, (name, cause)
        hint = hint.removeprefix("Hint: ")
        if not kind.hint.startswith(MODEL):
            assert hint == kind.hint, (name, hint)
            continue
        parse_hint(hint)
        assert name in shlex.split(hint)[1:2], hint
        assert kind.hint.removeprefix(MODEL) in hint and "IMAGE" not in hint
    assert not (folder.parent / "records.jsonl").exists()


def test_what_the_hint_names_is_read(folder: Path, mvw: Callable[..., Ran]) -> None:
    """The newest checkpoint of a run, whole, by the command that was suggested."""
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "checkpoint-500")
    Image.new("RGB", (40, 30), "red").save("red.png")
    ran = mvw("infer", "red.png", "w1", "--model", "run", "--max-new-tokens", "2")
    words = shlex.split(ran.err.splitlines()[-1].removeprefix("Hint: "))
    assert mvw(*words[1:]).code == ExitCode.OK


def test_pointers_that_nobody_reads_are_left_alone(folder: Path, mvw: Callable[..., Ran]) -> None:
    for name in (
        "pytorch_model.bin",
        "consolidated.safetensors",
        "assets.png",
        "training_args.bin",
    ):
        (folder / name).write_text(POINTER)
    Image.new("RGB", (40, 30), "red").save("red.png")
    ran = mvw("infer", "red.png", "w1", "--model", "model", "--max-new-tokens", "2")
    assert ran.code == ExitCode.OK, ran.err


@pytest.mark.parametrize("how", ["--model", "--set", "profile", "environment"])
def test_a_home_folder(
    how: str, folder: Path, mvw: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    Image.new("RGB", (40, 30), "red").save("red.png")
    Path("mine.yaml").write_text("model: ~/model\n")
    if how == "environment":
        monkeypatch.setenv("MVW_MODEL", "~/model")
    options = {
        "--model": ["--model=~/model"],
        "--set": ["--set", "model=~/model"],
        "profile": ["--profile", "mine.yaml"],
        "environment": [],
    }[how]
    ran = mvw("infer", "red.png", "w1", *options, "--max-new-tokens", "2", "--json")
    assert ran.code == ExitCode.OK, ran.err
    assert json.loads(ran.out)["model"]["name"] == str(folder)


DAMAGE = {"empty": "", "cut": '{"a": ', "a list": "[]", "nothing in it": "{}", "no text": "\0\xff"}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_never_a_fault_in_mvw(
    damage: str, folder: Path, mvw: Callable[..., Ran]
) -> None:
    Image.new("RGB", (40, 30), "red").save("red.png")
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jinja")]):
        whole = file.read_bytes()
        file.write_text(damage, encoding="latin-1")
        ran = mvw("infer", "red.png", "w1", "--model", "model", "--max-new-tokens", "2")
        assert ran.code in (ExitCode.OK, ExitCode.MODEL), (file.name, ran.err)
        if ran.code == ExitCode.MODEL:
            lines = [line for line in ran.err.splitlines() if line.strip()]
            assert lines[-3].startswith("Error: ") and lines[-1].startswith("Hint: "), ran.err
            if file.suffix == ".json" and damage != "{}":
                assert "is damaged" in ran.err and file.name in ran.err
        file.write_bytes(whole)
