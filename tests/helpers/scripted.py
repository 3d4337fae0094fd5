"""A plugin with the scripted model: network, processor and engine are real, the logits are not.

Its text, its control characters and its pace come from SCRIPT_* variables.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mvw_hf.model import HuggingFace

from mvw_cli import AdapterInfo, Answer, LoadedModel, ModelSpec, hookimpl, parse_stages


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    target = "scripted:Scripted"
    register(AdapterInfo("scripted", target, summary="for tests", checkpoints=("none",)))


class Scripted(HuggingFace):
    name = "scripted"

    def load(self, spec: ModelSpec) -> LoadedModel:
        torch.set_num_threads(1)
        if os.environ.get("SCRIPT_BUSY_LOAD"):
            os.write(2, b"busy\n")
            torch.linalg.svd(torch.randn(6000, 6000))  # far longer than any test waits
        if os.environ.get("SCRIPT_OUT_OF_MEMORY"):
            torch.empty(1 << 60)
        loaded = super().tiny()
        words = os.environ.get("SCRIPT_TEXT", "<CONCLUSION> 3 </CONCLUSION>").split(" ")
        ids = _teach(loaded.processor, words)
        loaded.model.register_forward_hook(_Script([*ids, 2]))
        return replace(loaded, adapter=self.name, name="scripted", spec=spec)

    def parse(self, text: str) -> Answer:
        return parse_stages(text)

    def remarks(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> list[str]:
        remark = os.environ.get("SCRIPT_REMARK")
        return [remark] if remark else []


class _Script:
    """Make the n-th forward pass of the model choose the n-th word."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)
        self._pace = float(os.environ.get("SCRIPT_PACE_S", "0"))

    def __call__(self, model: Any, inputs: Any, output: Any) -> None:
        time.sleep(self._pace)
        output.logits[:, -1] = 0
        output.logits[:, -1, next(self._ids)] = 100


def _teach(processor: Any, words: Sequence[str]) -> list[int]:
    """Give the tokenizer these words; return their ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    old: Mapping[str, int] = processor.tokenizer.get_vocab()
    special = sorted((word for word in old if word.startswith("<")), key=lambda word: old[word])
    known = list(dict.fromkeys(words))
    assert len(special) == 5 and len(known) <= len(old) - len(special)
    vocabulary = {word: number for number, word in enumerate([*special, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    return [vocabulary[word] for word in words]
