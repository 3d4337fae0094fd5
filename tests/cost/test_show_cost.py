"""`mvw show --cost`: figures of real models from their configurations, as text and as JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from docs_pages import first_cells
from families import BY_NAME, build
from hints import parse_hint
from PIL import Image
from processes import Ran

from mvw_cli.adapter import ModelSpec
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.store import known_profiles

Run = Callable[..., Ran]

VISION_TOKENS = {  # of 1024 x 768 pixels
    "shapes": 144,  # one size
    "llava-cot": 4 * 1601,  # tiles of 560 px, with their class tokens
    "kimi-vl": 37 * 28,  # squares of 28 px
    "kimi-k2.5": 37 * 28,
    "gemma-3-12b": 256,  # one size
    "glm-4.1v-9b-thinking": 37 * 27,
    "glm-4.6v": 37 * 27,
    "molmo2-8b": 14 * 14 + 23 * 33,  # a view of 378 px, and 2 x 3 crops that overlap
    "glm-4.6v-flash": 37 * 27,
    "qwen2.5-vl-7b": 37 * 27,
    "qwen3-vl-8b-instruct": 32 * 24,  # squares of 32 px
    "qwen3-vl-8b-thinking": 32 * 24,
    "internvl3-8b": (4 * 3 + 1) * 256,  # tiles of 448 px, and a thumbnail
    "internvl3.5-8b": (4 * 3 + 1) * 256,
    "qwen3.5-9b": 32 * 24,
    "minicpm-v-4.6": 9 * 7 + 2 * 2 * 9 * 7,  # views of 504 x 392 px, squares of 56 px
    "gemma-4-e4b": 19 * 14,  # squares of 48 px, at most 280
    "smolvlm2-2.2b": (4 * 3 + 1) * 81,  # tiles of 384 px, and the whole
    "llava-onevision-7b": 729 + 54 * (73 + 1),  # a view of 27 x 27, and a grid with line ends
}


def test_the_figures_of_one_model(mvw: Run) -> None:
    ran = mvw("show", "qwen2.5-vl-7b", "--cost", "--image", "1024x768", "--json")
    assert (ran.code, ran.err) == (0, "")
    figures = json.loads(ran.out)
    parameters, vision, lookup = 8292166656, 676550144, 152064 * 3584
    per_token, tokens = 2 * 28 * 4 * 128 * 2, 27 * 37  # 756 x 1036 pixels in squares of 28
    assert figures["schema_version"] == 1
    assert (figures["profile"], figures["adapter"]) == ("qwen2.5-vl-7b", "hf")
    assert (figures["model"], figures["dtype"]) == ("Qwen/Qwen2.5-VL-7B-Instruct", "bfloat16")
    assert figures["parameters"] == parameters
    assert figures["parameters_vision"] == vision
    assert figures["parameters_active"] == parameters - vision - lookup
    assert figures["weight_bytes"]["float32"] == 4 * parameters
    assert figures["weight_bytes"]["bfloat16"] == 2 * parameters
    assert figures["vision_tokens"] == tokens
    assert figures["kv_bytes_per_token"] == per_token
    assert figures["kv_bytes_per_image"] == figures["kv_bytes_freed"] == tokens * per_token
    weights = 2 * figures["parameters_active"]
    for step in figures["decode_steps"]:
        before = step["sequences"] * (512 + tokens) * per_token
        after = step["sequences"] * 512 * per_token
        assert step["kv_bytes_before"] == before
        assert step["kv_bytes_after"] == after
        assert step["weight_bytes_before"] == step["weight_bytes_after"] == weights
        assert step["kv_share_before"] == before / (weights + before)
        assert step["speedup_bound"] == (weights + before) / (weights + after)
    assert [step["sequences"] for step in figures["decode_steps"]] == [1, 8, 64]
    assert figures["speedup_bound_limit"] == (512 + tokens) / 512
    assert figures["sequences_where_it_matters"] == 27


def test_every_key_is_documented(mvw: Run) -> None:
    figures = json.loads(mvw("show", "shapes", "--cost", "--json").out)
    keys = set(figures) - {"weight_bytes", "decode_steps"}
    keys |= {f"decode_steps[].{key}" for key in figures["decode_steps"][0]}
    cells = set(first_cells("cost.md"))
    assert keys <= cells
    assert cells - keys == {"weight_bytes.float32", "weight_bytes.8-bit"}
    assert set(figures["weight_bytes"]) == {"float32", "bfloat16", "float16", "8-bit", "4-bit"}


def test_the_same_as_text(mvw: Run) -> None:
    ran = mvw("show", "qwen2.5-vl-7b", "--cost")
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    for line in (
        "parameters 8.29 billion",
        "read per token 7.07 billion",
        "weights in float32 30.89 GiB",
        "weights in bfloat16 15.45 GiB",
        "KV per text token 56.0 KiB",
        "image of 1024 x 768 999 vision tokens",
        "KV per image 54.6 MiB",
        "freed by withdrawal 54.6 MiB",
        "1 13.25 GiB (0.6% KV) 13.20 GiB (0.2% KV) 1.004x",
        "64 18.33 GiB (28.2% KV) 14.92 GiB (11.7% KV) 1.229x",
    ):
        assert line in lines
    assert lines[-1].endswith("10% faster from 27 sequences on, and 2.95x at most.")


@pytest.mark.parametrize("name", sorted(known_profiles({"MVW_HOME": "/nowhere"})))
def test_every_packaged_profile(mvw: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    if name == "hf":
        ran = mvw("show", name, "--cost")
        assert ran.code == 2 and "no model is named" in ran.err
        return
    ran = mvw("show", name, "--cost", "--json")
    assert (ran.code, ran.err) == (0, "")
    figures = json.loads(ran.out)
    adapter = load_adapter(figures["adapter"])
    config = adapter.shape(ModelSpec(model=figures["model"]))
    with torch.device("meta"):
        model = adapter.build(config)
    held = sum(one.numel() for one in model.parameters())
    text = {one for part in (model.get_decoder(), model.lm_head) for one in part.parameters()}
    assert figures["parameters"] == held
    assert figures["parameters_vision"] == held - sum(one.numel() for one in text)
    assert figures["weight_bytes"]["bfloat16"] == 2 * held
    per_token, image = figures["kv_bytes_per_token"], figures["kv_bytes_per_image"]
    assert figures["vision_tokens"] == VISION_TOKENS[name]
    if name == "gemma-4-e4b":  # 4 of 24 layers see everything; the others held 511 entries with it
        assert figures["kv_bytes_freed"] == 2 * 4 * 2 * 2 * 512 * VISION_TOKENS[name]
    elif name not in ("gemma-3-12b", "llava-cot"):  # a window, too; layers with vision alone
        assert image == figures["kv_bytes_freed"] == per_token * VISION_TOKENS[name]


def test_it_is_what_a_run_frees(mvw: Run, tmp_path: Path) -> None:
    assert mvw("samples", str(tmp_path / "s"), "--count", "1").code == 0
    (image,) = (tmp_path / "s").glob("*.png")
    cost = json.loads(mvw("show", "shapes", "--cost", "--json", "--image", str(image)).out)
    asked = ("infer", str(image), "How many red circles are there?", "--profile", "shapes")
    run = json.loads(mvw(*asked, "--m", "2", "--max-new-tokens", "4", "--json").out)
    before, after = (run["withdrawal"][f"kv_bytes_{when}"] for when in ("before", "after"))
    assert run["vision_tokens"] == cost["vision_tokens"]
    assert before - after == cost["kv_bytes_per_image"] == cost["kv_bytes_freed"]
    assert before == cost["kv_bytes_per_token"] * (run["prompt_tokens"] + 1)


def test_an_image_file_counts_as_its_size_and_the_profile_scales_it(
    mvw: Run, tmp_path: Path
) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (1400, 700)).save(path)

    def tokens(*options: str) -> tuple[int, int, int]:
        figures = json.loads(mvw("show", "qwen2.5-vl-7b", "--cost", "--json", *options).out)
        width, height = figures["image_width_px"], figures["image_height_px"]
        return width, height, figures["vision_tokens"]

    assert tokens("--image", str(path)) == tokens("--image", "1400x700") == (1400, 700, 50 * 25)
    limit = ("--set", "images.max_pixels=245000")
    assert tokens("--image", str(path), *limit) == (700, 350, 25 * 12)
    assert tokens("--image", "1400x700", *limit) == (700, 350, 25 * 12)


def test_a_family_whose_vision_tokens_are_not_known(mvw: Run, tmp_path: Path) -> None:
    family = BY_NAME["idefics3"]
    build(family).config.save_pretrained(tmp_path)
    chosen = ("show", "--cost", "--set", f"model={tmp_path}")
    figures = json.loads(mvw(*chosen, "--json").out)
    assert figures["parameters"] > 0 and figures["kv_bytes_per_token"] > 0
    unknown = ("vision_tokens", "kv_bytes_per_image", "kv_bytes_freed", "speedup_bound_limit")
    assert [figures[key] for key in unknown] == [None] * 4
    assert figures["decode_steps"] == []
    ran = mvw(*chosen)
    assert ran.code == 0
    assert "vision tokens not known" in ran.out and "SEQUENCES" not in ran.out
    assert "idefics3" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--image", "0x480"), 2, "an image has at least one pixel a side"),
        (("--cost", "--image", "nothing.png"), 6, "There is no image nothing.png"),
        (
            ("--cost", "--set", "adapter=hf", "--set", "model=./none"),
            7,
            "There is no folder ./none",
        ),
    ],
)
def test_errors(mvw: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = mvw("show", *arguments)
    assert (ran.code, ran.out) == (code, "")
    what, cause, hint = ran.err.splitlines()
    assert message in what
    assert cause.strip()
    if not hint.startswith("Hint: ls"):
        parse_hint(hint.removeprefix("Hint: "))


def test_an_image_that_the_model_refuses_leaves_the_rest(mvw: Run) -> None:
    wide = ("--image", "7200x30", "--set", "dtype=float32")
    ran = mvw("show", "kimi-vl", "--cost", "--json", *wide)
    assert ran.code == 0, ran.err
    assert "7200 x 30 px" in ran.err
    figures = json.loads(ran.out)
    assert figures["vision_tokens"] is None
    assert figures["dtype"] == "float32"
    assert figures["kv_bytes_per_token"] == 27 * 576 * 4
