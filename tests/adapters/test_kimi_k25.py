"""Kimi-K2.5 from a checkpoint as it lies on the hub: packed experts, tokenizer, images.

Where compressed-tensors is not installed, the same numbers under the names of plain weights.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hints import parse_hint
from kimi_k25_checkpoint import PLAIN, config, packed, unpacked, weights, write_checkpoint
from mvw_kimi_vl.model import KimiK25
from mvw_kimi_vl.processing import ScalingImageProcessor
from PIL import Image
from plain_install import Done, run_plain
from running import request, run

from mvw_cli import LoadedModel, ModelSpec
from mvw_cli.engine.sequence import Detokenizer
from mvw_cli.oracle.masked import oracle_logits

QUESTION = "What is in the cat?"


def load(folder: Path) -> LoadedModel:
    return KimiK25().load(ModelSpec(model=str(folder), device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("plain")
    write_checkpoint(folder, pack=False)
    return load(folder)


def test_the_engine_equals_the_oracle(plain: LoadedModel) -> None:
    """With its latents folded, a compressed query and YaRN."""
    adapter, picture = KimiK25(), Image.effect_noise((130, 90), 80)
    inputs = adapter.encode(plain, [picture], QUESTION)
    vision = adapter.vision(plain, inputs)
    assert vision.grids == ((4, 5),) and vision.vision_tokens == 4 * 5
    with plain.serving(plain.model):
        done = run(plain.model, [request(inputs, vision, 2, max_new_tokens=8)])["a"]
    ids = done.completion.token_ids
    seen, gone = (oracle_logits(plain.model, inputs, ids, vision.entries, m) for m in (None, 2))
    assert (done.logits - gone).abs().max() < 1e-4 * gone.abs().max()
    assert (seen - gone)[2:].abs().max() > 1e-2


def test_packed_experts_are_those_that_were_packed(plain: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    write_checkpoint(tmp_path)
    model, reference = load(tmp_path).model, plain.model.state_dict()
    assert model.state_dict().keys() == reference.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, reference[name]), name


def test_experts_lie_in_the_order_of_their_names(plain: LoadedModel) -> None:
    """Gate above up, rounded to sixteen steps of a group's largest."""
    told = weights(config())
    layer = plain.model.model.language_model.layers[1].mlp.experts
    name = "language_model.model.layers.1.mlp.experts.2.{}_proj.weight"
    three = [told[name.format(part)] for part in ("gate", "up", "down")]
    gate, up, down = (unpacked(*packed(one)).float() for one in three)
    assert torch.equal(layer.gate_up_proj[2], torch.cat((gate, up)))
    assert torch.equal(layer.down_proj[2], down)
    assert 0 < (gate - three[0].float()).abs().max() < three[0].abs().max() / 10


def test_what_is_thought_is_told_from_the_answer(plain: LoadedModel) -> None:
    """The tags are added tokens that are text; the template begins the thinking."""
    tokenizer = plain.processor.tokenizer
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer("the cat</think>an owl<|im_end|>", add_special_tokens=False).input_ids
    assert PLAIN["</think>"] in ids
    written = "".join(detokenizer.add(one) for one in ids) + detokenizer.finish()
    answer = KimiK25().parse(KimiK25().opening(plain) + written)
    assert (answer.answer, answer.reasoning) == ("an owl", "the cat")


SIZES = [(1, 1), (28, 28), (7168, 30), (20, 9000), (9000, 9000), (1024, 768)]
SIZES += [(random.Random(n).randint(1, 9000), random.Random(-n).randint(1, 9000)) for n in range(9)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_become_as_large_as_transformers_makes_them(size: tuple[int, int]) -> None:
    pytest.importorskip("torchvision", reason="transformers' image processor needs it")
    from transformers.models.kimi_k25.image_processing_kimi_k25 import navit_resize

    width, height = size
    scaled, whole = navit_resize(height, width, 14, 2, 16384, 512)
    assert ScalingImageProcessor().size(*size) == (*reversed(scaled), *reversed(whole))


def asked(folder: Path, *options: str) -> list[Done]:
    Image.effect_noise((130, 90), 80).save(folder / "picture.png")
    of = ("--adapter", "kimi-k2.5", "--model", "./checkpoint", "--dtype", "float32")
    infer = ("infer", "picture.png", QUESTION, *of, "--m", "3", "--max-new-tokens", "8", *options)
    doctor = ("doctor", "--set", "adapter=kimi-k2.5", "--set", "model=./checkpoint", "--json")
    return run_plain(folder, infer, doctor)


def test_without_the_package_that_unpacks_it_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    infer, doctor = asked(tmp_path)
    what, cause, hint = infer.err.splitlines()
    assert infer.code == 7
    assert what == "Error: ./checkpoint needs compressed-tensors, not installed here."
    assert "packed in four bits" in cause
    parse_hint(hint.removeprefix("Hint: "))
    [lack] = [one for one in json.loads(doctor.out)["findings"] if one["check"] == "packages"]
    assert (lack["status"], lack["advice"]) == ("problem", "pip install compressed-tensors")


def test_the_command_serves_what_is_not_packed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", pack=False)
    infer, doctor = asked(tmp_path, "--json")
    assert (infer.code, doctor.code) == (0, 0), infer.err + doctor.out
    answer = json.loads(infer.out)
    assert answer["withdrawal"]["vision_tokens"] == answer["vision_tokens"] == 4 * 5
    assert answer["reasoning"] and not answer["answer"]  # thinking that was cut
