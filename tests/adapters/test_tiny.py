"""The default of `tiny()`: a checkpoint's configuration made small, of which the contract holds."""

from __future__ import annotations

from typing import Any

import pytest
from contract_checks import failures
from mvw_hf.model import HuggingFace
from mvw_hf.tiny import shrunk
from narrowed import KINDS, published

from mvw_cli import ModelProblem, ModelSpec
from mvw_cli.oracle.equivalence import equivalence
from mvw_cli.testing import AdapterContract


def made_of(name: str) -> type[HuggingFace]:
    return type("Made", (HuggingFace,), {"checkpoint": name})


@pytest.mark.parametrize("name", KINDS)
def test_the_engine_equals_the_oracle_on_it(name: str) -> None:
    result = equivalence(made_of(name)(), m=3)
    assert result.passed and result.vision_tokens > 0, result


def test_it_holds_the_contract() -> None:
    adapter = made_of("google/gemma-3-12b-it")
    assert failures(type("Contract", (AdapterContract,), {"adapter": adapter})()) == set()


@pytest.mark.parametrize("name", KINDS)
def test_what_makes_a_family_is_left(name: str) -> None:
    whole, small = published(name), shrunk(published(name))
    before, after = whole.get_text_config(), small.get_text_config()

    def kinds(text: Any) -> list[Any]:
        sections = (text.rope_parameters or {}).get("mrope_section", [])
        grouped = text.num_key_value_heads < text.num_attention_heads
        return [set(getattr(text, "layer_types", None) or ()), grouped, len(sections)]

    assert kinds(after) == kinds(before)
    shared = bool(getattr(before, "num_kv_shared_layers", 0))
    assert shared == bool(getattr(after, "num_kv_shared_layers", 0))
    assert after.num_hidden_layers == (4 if shared else 2) and after.vocab_size < 100
    told = {key: one for key, one in vars(small).items() if key[0] != "_" and one}
    # Older releases make a padding token for SmolVLM that lies beyond any vocabulary.
    ids = [one for key, one in told.items() if "_token_i" in key and key != "pad_token_id"]
    rows = after.vocab_size + getattr(after, "additional_vocab_size", 0)
    assert len(set(ids)) == len(ids) and max(ids) < rows


@pytest.mark.parametrize(
    ("checkpoint", "known", "told"),
    [
        ("nobody/nothing", False, "put its config.json into your package as published/nobody/"),
        ("nobody/nothing", True, "How idefics3 prepares images is not known here"),
    ],
)
def test_it_says_what_to_do_where_it_can_not(checkpoint: str, known: bool, told: str) -> None:
    class Other(HuggingFace):
        def published_config(self, spec: ModelSpec) -> dict[str, Any] | None:
            return {"model_type": "idefics3", "pad_token_id": 2} if known else None

    Other.checkpoint = checkpoint
    with pytest.raises(ModelProblem) as caught:
        Other().tiny()
    assert caught.value.cause and told in caught.value.cause
    assert "override tiny()" in caught.value.cause
