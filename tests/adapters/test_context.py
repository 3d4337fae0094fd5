"""Prompts beyond the context of a model whose positions are a table: refused, and told before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_folder import BY_PROFILE, write_hub_folder
from mvw_hf.tiny import tiny_llava
from processes import Ran
from transformers import GPT2Config, LlavaForConditionalGeneration, OPTConfig

from mvw_cli.oracle.equivalence import noise
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import model_spec, resolve
from mvw_cli.session import open_session

POSITIONS, BEFORE = 64, 17
"""Positions of the model; tokens of a prompt before its words: `<s>` and the image."""
TEXT = {
    "gpt2": GPT2Config(
        n_embd=16, n_head=2, n_layer=2, n_positions=POSITIONS, vocab_size=64, initializer_range=0.3
    ),
    "opt": OPTConfig(
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=POSITIONS,
        vocab_size=64,
        init_std=0.3,
    ),
}


@pytest.fixture(params=list(TEXT))
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint, and a picture beside it."""
    monkeypatch.chdir(tmp_path)
    whole, processor = tiny_llava()
    config = whole.config
    config.text_config = TEXT[request.param]
    config.text_config.eos_token_id, config.text_config.pad_token_id = 2, 0
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).eval().save_pretrained("model")
    processor.save_pretrained("model")
    noise(32, 32).save("a.png")
    return "model"


def question(tokens: int) -> str:
    """A question whose prompt has so many tokens."""
    return " ".join((["w1", "w2", "w3"] * tokens)[: tokens - BEFORE])


def test_a_prompt_may_take_the_last_position_and_none_beyond(
    folder: str, mvw: Callable[..., Ran]
) -> None:
    def infer(tokens: int) -> Ran:
        of = ("--model", folder, "--max-new-tokens", "8", "--set", "generation.temperature=0")
        return mvw("infer", "a.png", question(tokens), *of, "--json")

    for tokens, room in ((POSITIONS - 3, 4), (POSITIONS, 1)):
        ran = infer(tokens)
        assert ran.code == 0, ran.err
        found = json.loads(ran.out)
        assert found["prompt_tokens"] == tokens
        assert (found["generated_tokens"], found["finish_reason"]) in ((room, "length"), (1, "eos"))
        [remark] = found["remarks"]
        assert f"ends after {room} token" in remark and "end at 64" in remark
        assert "--max-new-tokens" not in ran.err
    ran = infer(POSITIONS + 1)
    assert (ran.code, ran.out) == (2, "")
    message, cause, hint = ran.err.splitlines()[-3:]
    assert message == "Error: The prompt is too long: 65 tokens, in a context of 64."
    assert "there are none beyond" in cause and hint == "Hint: mvw list profiles"
    assert json.loads(infer(30).out)["remarks"] == []


def test_a_dry_run_tells_it_and_the_run_fails_those_alone(
    folder: str, mvw: Callable[..., Ran]
) -> None:
    lengths = {"short": 30, "last": POSITIONS, "long": POSITIONS + 1, "longer": 90}
    Path("q.jsonl").write_text(
        "".join(
            json.dumps({"image": "a.png", "id": id, "question": question(tokens)}) + "\n"
            for id, tokens in lengths.items()
        )
    )
    words = ("batch", "--questions", "q.jsonl", "--model", folder, "--max-new-tokens", "4")
    told = mvw(*words, "--dry-run")
    assert told.code == 0, told.err
    [line] = [line for line in told.out.splitlines() if line.startswith("prompts too long")]
    assert "2 of 4 items, first long" in line and "they would fail" in line
    ran = mvw(*words)
    assert ran.code == 3, ran.err
    records = map(json.loads, Path("q.results.jsonl").read_text().splitlines())
    statuses = {record["id"]: record["status"] for record in records}
    assert statuses == {"short": "ok", "last": "ok", "long": "failed", "longer": "failed"}


@pytest.mark.parametrize("name", list(BY_PROFILE))
def test_a_prompt_is_counted_without_weights(name: str, tmp_path: Path) -> None:
    for package in BY_PROFILE[name].needs:
        pytest.importorskip(package)
    write_hub_folder(BY_PROFILE[name], tmp_path / "checkpoint")
    profile = resolve(name, {"model": str(tmp_path / "checkpoint")}).profile
    asked = "What is in the picture, and why?"
    # SmolVLM's prompt marks each tile: those of a square are counted, the most that there are.
    size = (200, 200) if name == "smolvlm2-2.2b" else (300, 200)
    request = open_session(profile).request([noise(*size)], asked)
    for weights in (tmp_path / "checkpoint").glob("*.safetensors"):
        weights.unlink()
    spec, adapter = model_spec(profile), load_adapter(profile.adapter)
    config = adapter.shape(spec)
    crossed = request.layout.cross_entries is not None  # one token stands for the image
    vision = 1 if crossed else adapter.image_tokens(config, *size)
    text = adapter.text_tokens(spec, config)(asked, 1)
    marks = 5 if name == "molmo2-8b" else 0  # a mark for each row of crops: those of a small image
    assert abs(text + vision - request.inputs["input_ids"].shape[1]) <= marks
