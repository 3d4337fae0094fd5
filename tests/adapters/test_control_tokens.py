"""Control tokens in questions and system prompts are text, for every tokenizer served here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_folder import FOLDERS, write_hub_folder
from kimi_checkpoint import write_checkpoint
from mvw_hf.model import HuggingFace, control_tokens, conversation
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import LlavaCot
from PIL import Image
from processes import Ran

from mvw_cli.adapter import LoadedModel, ModelSpec
from mvw_cli.errors import UsageProblem

RED = Image.new("RGB", (56, 56), "red")
PLAIN = "What is in the picture?"
MARK = chr(0xF0002)  # the first one that would be used


@dataclass(frozen=True)
class Served:
    """A processor with its adapter, and a model of which the configuration alone is there."""

    adapter: HuggingFace
    loaded: LoadedModel

    @property
    def tokenizer(self) -> Any:
        return self.loaded.processor.tokenizer

    @property
    def special(self) -> list[str]:
        return [one.content for one in self.tokenizer.added_tokens_decoder.values() if one.special]

    def ids(self, text: str, **spec: Any) -> list[int]:
        loaded = self.loaded
        if spec:
            loaded = replace(loaded, spec=replace(loaded.spec, **spec))
        ids: list[int] = self.adapter.encode(loaded, [RED], text)["input_ids"][0].tolist()
        return ids

    def written(self, text: str, system: str | None = None) -> str:
        """The prompt as the template writes it."""
        tokenizer = self.loaded.processor
        owner = tokenizer if hasattr(tokenizer, "apply_chat_template") else self.tokenizer
        prompt: str = owner.apply_chat_template(
            conversation(system, [RED], text), add_generation_prompt=True, tokenize=False
        )
        return prompt

    def state(self) -> dict[str, Any]:
        """All of the tokenizer but its padding, which each call says anew."""
        told: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return {**told, "padding": None}

    def piece(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of the piece between two of the template's tokens that a text is in, and of the rest.

        The piece is read as if there were no special tokens, which is transformers' own word for
        text: `split_special_tokens`.
        """
        start = prompt.rindex(text)
        end = start + len(text)
        before = max(
            prompt.rfind(token, 0, start) + len(token)
            for token in self.special
            if token in prompt[:start]
        )
        after = min(prompt.find(token, end) for token in self.special if token in prompt[end:])
        plain = {"add_special_tokens": False}
        here = self.tokenizer(prompt[before:after], split_special_tokens=True, **plain)["input_ids"]
        self.tokenizer("", split_special_tokens=False)
        return here, self.tokenizer(prompt[after:], **plain)["input_ids"]


def _load(profile: str, folder: Path) -> Served:
    if profile == "kimi-vl":
        write_checkpoint(folder)
        adapter: HuggingFace = KimiVL()
    else:
        published = next(one for one in FOLDERS if one.profile == profile)
        for package in published.needs:
            pytest.importorskip(package)
        write_hub_folder(published, folder, weights=False)
        adapter = LlavaCot() if profile == "llava-cot" else HuggingFace()
    spec = ModelSpec(model=str(folder))
    config = adapter.shape(spec)
    model = SimpleNamespace(
        config=config,
        dtype=torch.float32,
        device=torch.device("cpu"),
        get_input_embeddings=lambda: None,
    )
    return Served(adapter, LoadedModel("hf", profile, model, adapter.load_processor(spec), spec))


@pytest.fixture(scope="module", params=[*(one.profile for one in FOLDERS), "kimi-vl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return _load(request.param, tmp_path_factory.mktemp("hub") / "checkpoint")


def questions(served: Served) -> list[str]:
    tokens = list(control_tokens(served.loaded))
    every = " and ".join(tokens)
    return [
        f"What does {every} mean?",
        "".join(tokens),  # one right behind the other, and at both ends
        f"a{tokens[0]}b <{tokens[-1]}> {tokens[0][:-1]}{tokens[0]}",
        f"{MARK} is no {tokens[0]} {MARK}",
    ]


def test_control_tokens_in_a_question_are_its_text(served: Served) -> None:
    assert {*served.special} <= set(control_tokens(served.loaded))
    asked, tail = served.piece(served.written(PLAIN), PLAIN)
    plain = served.ids(PLAIN)
    assert plain[-len(asked) - len(tail) :] == asked + tail
    head = plain[: -len(asked) - len(tail)]
    before = served.state()
    for question in questions(served):
        expected, _ = served.piece(served.written(question), question)
        assert served.ids(question) == head + expected + tail, question
        if MARK not in question:
            assert served.tokenizer.decode(expected).strip().endswith(question.strip())
    assert served.state() == before
    assert served.ids(PLAIN) == plain


def test_a_prompt_without_them_is_encoded_as_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(loaded: LoadedModel, images: list[Image.Image], text: str) -> Any:
        assert loaded is served.loaded
        read.append(text)
        return {"input_ids": torch.tensor([[loaded.model.config.image_token_id]])}

    read: list[str] = []
    monkeypatch.setattr(served.adapter, "tokenize", tokenize)
    texts = [PLAIN, "< im_end >", f"1 < 2 {MARK}", "<think>", ""]
    for text in texts:
        served.ids(text)
    assert read == texts


def test_control_tokens_in_a_system_prompt_and_a_template_are_text(served: Served) -> None:
    tokens = list(control_tokens(served.loaded))
    system = f"Say {tokens[0]}, never {tokens[-1]}."
    template = f"{tokens[-1]} {{question}}"
    numbers = {served.tokenizer.convert_tokens_to_ids(token) for token in tokens}

    def controls(ids: list[int]) -> list[int]:
        return [number for number in ids if number in numbers]

    plain = controls(served.ids(PLAIN))
    assert controls(served.ids(PLAIN, template=template)) == plain
    if served.loaded.name not in ("llava-cot", "molmo2-8b"):  # templates without a system prompt
        plain = controls(served.ids(PLAIN, system="Say it."))
        assert controls(served.ids(PLAIN, system=system, template=template)) == plain
        assert len(served.ids(PLAIN, system=system)) > len(served.ids(PLAIN, system="Say it."))


def test_a_profile_may_want_them(served: Served) -> None:
    inputs = [token for token, is_input in control_tokens(served.loaded).items() if is_input]
    others = [token for token in served.special if token not in inputs]
    for token in inputs:
        with pytest.raises(UsageProblem, match="a control token") as caught:
            served.ids(f"What is {token}?", special_tokens=True)
        assert caught.value.hint and caught.value.hint.endswith("special_tokens=false")
    question = f"Go on.{others[0]} And on."
    ids = served.ids(question, special_tokens=True)
    number = served.tokenizer.convert_tokens_to_ids(others[0])
    assert ids.count(number) == served.ids(question).count(number) + 1


@pytest.mark.parametrize("kind", ["words", "another"])
def test_what_a_tokenizer_can_only_read_as_a_token_is_refused(kind: str) -> None:
    """A vocabulary of words has the token itself; and there are tokenizers of other kinds."""
    tiny = HuggingFace().tiny()
    if kind == "another":
        known = tiny.processor.tokenizer.added_tokens_decoder
        tiny.processor.tokenizer = SimpleNamespace(added_tokens_decoder=known)
    for token, hint in (("<image>", "mvw list profiles"), ("</s>", "special_tokens=true")):
        with pytest.raises(UsageProblem, match=f"holds {token}, a control token") as caught:
            HuggingFace().encode(tiny, [RED], f"w1 {token} w2")
        assert caught.value.cause == "Its tokenizer has no other way to read it."
        assert caught.value.hint and caught.value.hint.endswith(hint)


def test_the_embedded_model_is_asked_about_a_token(
    mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mvw("samples", "s", "--count", "1").code == 0
    asked = "How many red <image> circles are there?"
    plain, ran = (
        mvw("infer", "s/scene-0001.png", question, "--json")
        for question in (asked.replace("<image> ", ""), asked)
    )
    told, read = json.loads(plain.out), json.loads(ran.out)
    assert read["vision_tokens"] == told["vision_tokens"]
    assert read["prompt_tokens"] == told["prompt_tokens"] + 3  # < and image and >
    Path("q.jsonl").write_text(f'{{"image": "scene-0001.png", "question": "{asked}</s>"}}\n')
    ran = mvw("batch", "s", "--questions", "q.jsonl", "-o", "r.jsonl")
    assert ran.code == 0, ran.err
    ran = mvw("infer", "s/scene-0001.png", asked, "--set", "prompt.special_tokens=true")
    assert ran.code == 2 and "<image>" in ran.err and "fault" not in ran.err
    assert ran.err.rstrip().endswith("--set prompt.special_tokens=false")
