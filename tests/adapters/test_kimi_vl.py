"""Kimi-VL from a checkpoint under its original names, against plain PyTorch and the oracle."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from kimi_checkpoint import BASE, CONFIG, IDS, ranks, write_checkpoint
from kimi_reference import Reference
from mvw_kimi_vl.model import KimiVL
from mvw_kimi_vl.modeling import absorbed
from mvw_kimi_vl.processing import ImageProcessor
from mvw_kimi_vl.tokenizer import TEMPLATE, build_tokenizer
from PIL import Image
from processes import Ran
from torch import Tensor, nn

from mvw_cli import BadImage, LoadedModel, ModelProblem, ModelSpec
from mvw_cli.adapter import unchanged
from mvw_cli.images.reading import fit
from mvw_cli.oracle.equivalence import Trial, noise, question_of, run

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("kimi") / "checkpoint"
    return folder, write_checkpoint(folder)


@pytest.fixture(scope="module")
def loaded(checkpoint: tuple[Path, dict[str, Tensor]]) -> LoadedModel:
    return KimiVL().load(ModelSpec(model=str(checkpoint[0]), device="cpu"))


@pytest.fixture(scope="module")
def reference(checkpoint: tuple[Path, dict[str, Tensor]]) -> Reference:
    return Reference(checkpoint[1], CONFIG)


@pytest.mark.parametrize("sizes", [[(112, 112)], [(60, 40)], [(40, 30), (90, 20), (15, 20)], []])
@torch.inference_mode()
def test_logits(loaded: LoadedModel, reference: Reference, sizes: list[tuple[int, int]]) -> None:
    """With images at the learned grid of positions, and at others, which interpolate it."""
    layers = loaded.model.get_decoder().layers
    assert [hasattr(layer.mlp, "experts") for layer in layers] == [False, True, True]
    images = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    inputs = KimiVL().encode(loaded, images, "how the cat sat in")
    logits = loaded.model(**inputs).logits[0]
    patches = []
    if sizes:
        grids = inputs["image_grid_thw"].tolist()
        parts = inputs["pixel_values"].split([math.prod(grid) for grid in grids])
        patches = [(part, *grid[1:]) for part, grid in zip(parts, grids, strict=True)]
    expected = reference.logits(inputs["input_ids"][0].tolist(), patches)
    assert (logits - expected).abs().max() < TOLERANCE


# -- latent attention in absorbed form ---------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return KimiVL().tiny()


def answers(tiny: LoadedModel, kernel: str) -> list[Trial]:
    plan = [((60, 40), 2, 12), ((30, 90), None, 9), ((28, 28), 5, 12), ((90, 30), 1, 7)]
    requests = [
        question_of(KimiVL(), tiny, [noise(*size)], m=m, name=str(number), new_tokens=length)
        for number, (size, m, length) in enumerate(plan)
    ]
    trials, _ = run(tiny, requests, slots=3, attention=kernel)
    return sorted(trials, key=lambda trial: trial.events[0].request)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_it_equals_the_expanded_form(tiny: LoadedModel, kernel: str) -> None:
    """Over slots of different lengths, before and after withdrawal."""
    assert tiny.serving is absorbed
    folded = answers(tiny, kernel)
    expanded = answers(replace(tiny, serving=unchanged), kernel)
    for one, other in zip(folded, expanded, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.logits - other.logits).abs().max() < 1e-4
        assert not torch.equal(one.logits, other.logits)  # they are two computations


def test_a_step_expands_nothing(tiny: LoadedModel) -> None:
    """Counted at `kv_b_proj`: once a layer for each prefill, and never for a step."""
    calls: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append(args[0].shape[-2])

    layers = tiny.model.get_decoder().layers
    handles = [layer.self_attn.kv_b_proj.register_forward_hook(count) for layer in layers]
    try:
        request = question_of(KimiVL(), tiny, [noise(28, 28)], m=3)
        run(tiny, [request])
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [request.inputs["input_ids"].shape[1]] * len(layers)


# -- images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limit", "tokens"),
    [
        ((28, 28), 4096, 1),
        ((1, 1), 4096, 1),
        ((29, 28), 4096, 2),
        ((336, 336), 4096, 144),
        ((1000, 700), 4096, 36 * 25),
        ((5, 3000), 4096, 108),
        # Over the limit: 142 x 142 patches become sqrt(4096 / 20164) as many a side, then padded.
        ((2000, 2000), 4096, 33 * 33),
        ((2000, 2000), 16384, 65 * 65),
        ((4000, 500), 4096, 92 * 12),
    ],
)
def test_vision_tokens_of_an_image(size: tuple[int, int], limit: int, tokens: int) -> None:
    preparation = ImageProcessor(in_token_limit=limit)
    assert preparation.vision_tokens(*size) == tokens
    inputs = preparation([Image.new("RGB", size)])
    assert len(inputs["pixel_values"]) == 4 * tokens
    assert inputs["image_grid_thw"].prod() == 4 * tokens
    assert inputs["pixel_values"].shape[1:] == (3, 14, 14)


def test_pixels_are_those_of_the_image_padded_with_black() -> None:
    image = noise(30, 20)
    inputs = ImageProcessor()([image])
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert (rows, columns) == (2, 4)
    patches = inputs["pixel_values"].view(rows, columns, 3, 14, 14)
    whole = patches.permute(2, 0, 3, 1, 4).reshape(3, 28, 56)
    for x, y in ((0, 0), (29, 19), (13, 14), (14, 13)):
        expected = torch.tensor(image.getpixel((x, y))) / 255 * 2 - 1
        assert (whole[:, y, x] - expected).abs().max() < 1e-6
    assert (whole[:, 20:] == -1).all()
    assert (whole[:, :, 30:] == -1).all()


# -- tokenizer ----------------------------------------------------------------------------


def merged(piece: bytes, known: dict[bytes, int]) -> list[int]:
    """Merge as tiktoken does: always the neighbours that make the token of lowest rank."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [known.get(a + b, math.inf) for a, b in pairwise(parts)]
        if min(pairs) == math.inf:
            break
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [known[part] for part in parts]


def test_pieces_are_merged_by_rank() -> None:
    draw = random.Random(0)
    known = ranks()
    for _ in range(60):  # more tokens, made of two that are there
        known.setdefault(draw.choice([*known]) + draw.choice([*known]), len(known))
    tokenizer = build_tokenizer(known, {}, template=TEMPLATE, names={})
    for _ in range(300):
        piece = "".join(draw.choice("thecawoinm") for _ in range(draw.randint(1, 12)))
        assert tokenizer(piece).input_ids == (
            [known[piece.encode()]] if piece.encode() in known else merged(piece.encode(), known)
        )


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("I've 12345 cats!", ["I've", " ", "123", "45", " cats", "!"]),
        ("漢字kana", ["漢字", "kana"]),
        ("CamelCase\n\n x", ["Camel", "Case", "\n\n", " x"]),
        ("a  b", ["a", " ", " b"]),
        ("été, ÉTÉ", ["été", ",", " ÉTÉ"]),
    ],
)
def test_text_is_cut_as_published(text: str, pieces: list[str]) -> None:
    tokenizer = build_tokenizer(ranks(), {}, template=TEMPLATE, names={})
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    spans = [span for _, span in cut]
    assert [text[start:end] for start, end in spans] == pieces


def test_text_comes_back_whole(loaded: LoadedModel) -> None:
    tokenizer = loaded.processor.tokenizer
    for text in ("the cat now", "naïve 漢字 \U0001f600\n", "<|im_end|>", "a\t b"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("the").input_ids == [ranks()[b"the"]]
    assert tokenizer("<|im_end|>").input_ids == [IDS["<|im_end|>"]]
    assert IDS["<|im_end|>"] == BASE + 2


# -- the adapter --------------------------------------------------------------------------


def test_the_prompt(loaded: LoadedModel) -> None:
    inputs = KimiVL().encode(loaded, [noise(56, 28), noise(28, 28)], "the cat")
    media = "<|media_start|>image<|media_content|>{}<|media_end|>"
    assert loaded.processor.tokenizer.decode(inputs["input_ids"][0]) == (
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
        "<|im_user|>user<|im_middle|>"
        + media.format("<|media_pad|>" * 2)
        + media.format("<|media_pad|>")
        + "the cat<|im_end|><|im_assistant|>assistant<|im_middle|>"
    )


def test_the_checkpoints_own_template_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_checkpoint(folder)
    (folder / "chat_template.jinja").write_text("{{ 'the <|media_pad|>' }}")
    told = KimiVL().load(ModelSpec(model=str(folder), device="cpu"))
    ids = KimiVL().encode(told, [noise(28, 28)], "x")["input_ids"][0]
    assert told.processor.tokenizer.decode(ids) == "the <|media_pad|>"


def test_the_prompt_alone_has_one_placeholder_for_each_image(loaded: LoadedModel) -> None:
    """For engines that prepare images themselves, which write it out as `encode` does."""
    images = [noise(56, 28), noise(28, 28)]
    told = KimiVL().prompt(loaded, images, "the cat")["input_ids"]
    whole = KimiVL().encode(loaded, images, "the cat")["input_ids"]
    place = IDS["<|media_pad|>"]
    assert told[0][told[0] != place].tolist() == whole[0][whole[0] != place].tolist()
    assert int((told == place).sum()) == 2
    assert KimiVL().vision(loaded, {"input_ids": whole}).entries.sum() == 3


def test_a_system_prompt_is_taken(checkpoint: tuple[Path, dict[str, Tensor]]) -> None:
    spec = ModelSpec(model=str(checkpoint[0]), device="cpu", system="the cat")
    told = KimiVL().load(spec)
    ids = KimiVL().encode(told, [noise(28, 28)], "in")["input_ids"][0]
    written = told.processor.tokenizer.decode(ids)
    assert written.startswith("<|im_system|>system<|im_middle|>the cat<|im_end|><|im_user|>")


def test_a_template_without_a_place_for_the_image_is_refused(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loaded.processor.tokenizer
    told = tokenizer.chat_template.replace("<|media_pad|>", "")
    monkeypatch.setattr(tokenizer, "chat_template", told)
    for question in ("what is it?", "what is <|media_pad|>?"):
        with pytest.raises(ModelProblem, match="does not say where the images stand") as caught:
            KimiVL().encode(loaded, [noise(28, 28)], question)
        assert caught.value.cause == "It writes <|media_pad|> 0 times for 1 images."


def test_thinking_is_no_answer() -> None:
    answer = KimiVL().parse("◁think▷One and one.◁/think▷ 2")
    assert (answer.answer, answer.reasoning) == ("2", "One and one.")
    assert KimiVL().parse("◁think▷One and").answer == ""


@pytest.mark.parametrize("name", ["tiktoken.model", "preprocessor_config.json"])
def test_a_file_that_a_checkpoint_lacks_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelProblem) as refusal:
        KimiVL().load(ModelSpec(model=str(tmp_path), device="cpu"))
    assert refusal.value.message == f"{tmp_path} can't be loaded."
    assert name in (refusal.value.cause or "")


def test_the_published_shape() -> None:
    """16.4 B parameters and, in latents, 27 layers x 576 numbers a token; no network."""
    config = KimiVL().shape(ModelSpec())
    with torch.device("meta"):
        model = KimiVL().build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 16_407_654_384
    text = config.text_config
    assert text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) == 15_552
    assert KimiVL().image_tokens(config, 1000, 700) == 36 * 25
    assert KimiVL().image_tokens(config, 2000, 2000) == 65 * 65


@pytest.mark.parametrize(
    ("limit", "tokens"),
    # The limits of Thinking-2506 and of the releases before it; the published code's default.
    [(16384, 65 * 65), (4096, 33 * 33), (None, 33 * 33)],
)
def test_each_checkpoint_has_its_own_limit_of_patches(
    tmp_path: Path, limit: int | None, tokens: int
) -> None:
    write_checkpoint(tmp_path)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    del told["in_token_limit"]
    if limit is not None:
        told["in_token_limit"] = limit
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    spec = ModelSpec(model=str(tmp_path), device="cpu")
    loaded = KimiVL().load(spec)
    for config in (KimiVL().shape(spec), loaded.model.config):
        assert KimiVL().image_tokens(config, 2000, 2000) == tokens
    assert loaded.processor.image_processor.vision_tokens(2000, 2000) == tokens
    loaded.model.config.save_pretrained(tmp_path / "saved")
    saved = KimiVL().shape(ModelSpec(model=str(tmp_path / "saved")))
    assert KimiVL().image_tokens(saved, 2000, 2000) == tokens
    (tmp_path / "preprocessor_config.json").unlink()
    assert KimiVL().image_tokens(KimiVL().shape(spec), 2000, 2000) == 33 * 33


def test_an_image_that_is_too_long_is_refused(loaded: LoadedModel) -> None:
    """Also by its size alone; the hint's limit of pixels is about the largest that works."""
    config = KimiVL().shape(ModelSpec())
    for ask in (
        lambda: KimiVL().encode(loaded, [Image.new("RGB", (8000, 5))], "the cat"),
        lambda: KimiVL().image_tokens(config, 9000, 20),
    ):
        with pytest.raises(BadImage, match="can't be read by Kimi-VL") as refusal:
            ask()
        assert "511 a side" in (refusal.value.cause or "")
    pixels = int((refusal.value.hint or "").rpartition("=")[2])
    assert 100_000 < pixels < 9000 * 20
    assert KimiVL().image_tokens(config, *fit((9000, 20), pixels)) == 255


def test_it_answers_from_the_command_line(
    checkpoint: tuple[Path, Any], tmp_path: Path, mvw: Callable[..., Ran]
) -> None:
    noise(60, 40).save(tmp_path / "picture.png")
    options = ["--adapter", "kimi-vl", "--model", str(checkpoint[0]), "--device", "cpu"]
    options += ["--m", "2", "--max-new-tokens", "6", "--json"]
    done = mvw("infer", str(tmp_path / "picture.png"), "the cat", *options)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["withdrawal"]["step"] == 2
    assert told["withdrawal"]["vision_tokens"] == 6
    # Latents stay compressed in the cache: 3 layers x 6 tokens x (16 + 8) numbers x 4 bytes.
    freed = told["withdrawal"]["kv_bytes_before"] - told["withdrawal"]["kv_bytes_after"]
    assert freed == 3 * 6 * 24 * 4
