"""`mvw infer` with a real, tiny model: answer, document, options, refusals."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hints import parse_hint
from PIL import Image
from processes import Ran

Infer = Callable[..., Ran]

ANSWER = re.compile(r"(w\d+ ?)+\n")


def refused(result: Ran, code: int) -> list[str]:
    """Check the three lines of an error and return them."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = result.err.splitlines()
    assert len(lines) == 3, result.err
    assert lines[0].startswith("Error: ") and lines[2].startswith("Hint: ")
    hint = lines[2].removeprefix("Hint: ")
    if hint.startswith("mvw "):
        parse_hint(hint)
    return lines


def document(result: Ran) -> dict[str, Any]:
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def test_stdout_holds_the_answer_and_nothing_else(infer: Infer) -> None:
    result = infer()
    assert result.code == 0, result.err
    assert ANSWER.fullmatch(result.out)
    assert "\x1b" not in result.err and "\r" not in result.err


def test_stderr_holds_the_withdrawal_and_the_figures(infer: Infer) -> None:
    lines = infer("--m", "4").err.splitlines()
    assert lines[0] == (
        "vision withdrawn after token 4: 16 vision tokens (32 cache entries), "
        "2.0 KiB of 2.8 KiB freed"
    )
    assert lines[1] == "The text was cut at 12 tokens: --max-new-tokens 24 allows more."
    number = r"\d+(\.\d)?"
    assert re.fullmatch(
        rf"TTFT \d+ ms \| {number} tokens/s before the withdrawal, {number} tokens/s after \| "
        r"KV cache 2\.8 KiB before, 768 B after",
        lines[2],
    )
    assert len(lines) == 3


def test_without_withdrawal_the_figures_say_so(infer: Infer) -> None:
    last = infer("--no-withdrawal").err.splitlines()[-1]
    assert "no withdrawal (no withdrawal)" not in last
    assert re.search(r"tokens/s, vision kept to the end \(no withdrawal\)", last)


def test_the_text_can_be_shown_without_a_terminal(infer: Infer) -> None:
    hidden, shown = infer("--m", "4"), infer("--m", "4", "--show-reasoning")
    lines = shown.err.splitlines()
    assert lines[1] == hidden.err.splitlines()[0]  # the mark, where the vision went
    assert f"{lines[0]} {lines[2]}\n" == hidden.out == shown.out
    assert lines[0] not in hidden.err


def test_quiet_says_nothing(infer: Infer) -> None:
    result = infer("-q", "--m", "4", "--show-reasoning")
    assert (result.code, result.err) == (0, "")
    assert ANSWER.fullmatch(result.out)


def test_verbose_says_what_runs_and_how_long(infer: Infer, tiny: str) -> None:
    err = infer("-v", "--temperature", "0").err
    assert f"model = '{tiny}'  (--model)" in err
    assert "generation.temperature = 0.0  (--temperature)" in err
    assert re.search(r"profile \d+ ms, image \d+ ms, load \d+ ms, preprocess \d+ ms", err)


# --- the document ---

KEYS: dict[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "question": str,
    "images": list,
    "answer": str,
    "reasoning": str,
    "stages": dict,
    "text": str,
    "finish_reason": str,
    "prompt_tokens": int,
    "vision_tokens": int,
    "generated_tokens": int,
    "withdrawal": dict,
    "vision": dict,
    "timings": dict,
    "memory": dict,
    "remarks": list,
    "model": dict,
    "profile": dict,
    "environment": dict,
}


def test_json_is_one_document(infer: Infer, picture: Path, tiny: str) -> None:
    result = infer("--m", "4", "--json")
    found = document(result)
    assert {key: type(found[key]) for key in KEYS} == KEYS
    assert list(found) == list(KEYS)
    assert found["schema_version"] == 1
    assert found["finish_reason"] == "length"
    assert (found["vision_tokens"], found["generated_tokens"]) == (16, 12)
    assert found["withdrawal"] == {
        "step": 4,
        "vision_tokens": 16,
        "entries": 32,
        "kv_bytes_before": 2816,
        "kv_bytes_after": 768,
        "kv_blocks_freed": None,
        "recurrent_layers": 0,
        "state_bytes": 0,
    }
    # 2 layers × 1 key-value head × 8 numbers × 4 bytes, for key and value: 128 bytes an entry.
    entries = found["prompt_tokens"] + 11 - 16  # the last token is never read
    assert found["memory"]["kv_bytes_prefill"] == 128 * found["prompt_tokens"]
    assert found["memory"]["kv_bytes_end"] == 128 * entries
    assert found["vision"] == {
        "entries_prefill": 32,
        "attended_per_token": 16 * 4 / 12,
        "withdrawals": 1,
        "restores": 0,
        "offloaded_bytes_peak": 0,
    }
    assert found["images"] == [
        {
            "path": str(picture),
            "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
            "width_px": 40,
            "height_px": 30,
            "original_width_px": 40,
            "original_height_px": 30,
        }
    ]
    assert found["model"]["name"] == tiny
    assert found["model"]["attention"] == "sdpa"
    assert found["profile"]["values"]["withdrawal"] == {
        "policy": "mvw",
        "m": 4,
        **dict.fromkeys(("until", "min", "max")),
    }
    assert found["environment"]["transformers"]


def test_timings_carry_units_and_add_up(infer: Infer) -> None:
    timings = document(infer("--m", "4", "--json"))["timings"]
    assert set(timings) == {
        *("profile_ms", "image_ms", "load_ms", "preprocess_ms", "ttft_ms", "decode_ms"),
        *("tokens_per_s", "tokens_per_s_before", "tokens_per_s_after", "withdrawal_ms"),
        "total_ms",
    }
    assert all(isinstance(value, float) and value > 0 for value in timings.values())
    parts = ("profile_ms", "image_ms", "load_ms", "preprocess_ms", "ttft_ms", "decode_ms")
    assert sum(timings[part] for part in parts) <= timings["total_ms"]


def test_no_withdrawal_in_the_document(infer: Infer) -> None:
    found = document(infer("--json", "--no-withdrawal"))
    assert found["withdrawal"] is None
    assert found["vision"]["attended_per_token"] == found["vision_tokens"]
    assert found["timings"]["tokens_per_s_after"] is None
    assert found["timings"]["withdrawal_ms"] is None


# --- options ---


def test_options_reach_the_engine(infer: Infer) -> None:
    found = document(
        infer(
            *("--temperature", "0.8", "--top-p", "0.9", "--seed", "3", "--dtype", "bfloat16"),
            *("--device", "cpu", "--attention", "eager", "--set", "generation.top_k=5", "--json"),
        )
    )
    generation = found["profile"]["values"]["generation"]
    assert generation["temperature"] == 0.8
    assert (generation["top_p"], generation["top_k"], generation["seed"]) == (0.9, 5, 3)
    assert (found["model"]["dtype"], found["model"]["attention"]) == ("bfloat16", "eager")


def test_an_option_that_is_not_given_leaves_the_profile_alone(
    infer: Infer, tiny: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"adapter: hf\nmodel: {tiny}\nwithdrawal: {{m: 3}}\n"
        "generation: {max_new_tokens: 7, seed: 5}\n"
    )
    found = document(infer("--profile", str(path), "-m", "2", "--json", model=False))
    generation = found["profile"]["values"]["generation"]
    assert found["withdrawal"]["step"] == 2
    assert (generation["max_new_tokens"], generation["seed"]) == (7, 5)


def test_further_images_are_scaled_as_the_first(infer: Infer, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (10, 10)).save(other)
    found = document(infer("--image", str(other), "--set", "images.max_pixels=300", "--json"))
    one, two = found["images"]
    assert [Path(image["path"]).name for image in (one, two)] == ["picture.png", "other.png"]
    assert (one["width_px"], one["height_px"], one["original_width_px"]) == (20, 15, 40)
    assert found["vision_tokens"] == 32


def test_an_image_from_standard_input(infer: Infer, picture: Path) -> None:
    data = picture.read_bytes()
    found = document(infer("--json", image="-", stdin=data))
    assert found["images"][0]["path"] == "-"
    assert found["images"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["answer"] + "\n" == infer().out


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--m", "4", "--set", "withdrawal.m=5"), 2),
        (("--no-withdrawal", "--m", "4"), 2),
        (("--set", "generation.sede=3"), 2),
        (("--dtype", "float12"), 2),
        (("--device", "cuda:99"), 2),
        (("--profile", "nowhere"), 2),
        (("--policy", "nothing"), 4),
        (("--adapter", "unknown"), 4),
    ],
)
def test_wrong_values(infer: Infer, options: tuple[str, ...], code: int) -> None:
    refused(infer(*options), code)


def test_bad_images_are_found_before_the_model_is_loaded(infer: Infer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    refused(infer("--model", "nobody/nothing", image=path, model=False), 6)
    refused(infer(image="nothing.png"), 6)
    refused(infer("--image", str(path)), 6)
    assert refused(infer(image="-"), 6)[0] == "Error: Standard input is empty"


def test_what_asks_nothing_or_too_much_is_refused(infer: Infer) -> None:
    refused(infer(question="  "), 2)
    refused(infer(question="caf\udce9"), 2)
    refused(infer("--image", "-", image="-"), 2)


# --- -o ---


def test_output_file_is_replaced_with_its_permissions(infer: Infer, tmp_path: Path) -> None:
    path, link = tmp_path / "answer.json", tmp_path / "link.json"
    path.write_text("x" * 100_000)
    path.chmod(0o600)
    link.symlink_to(path)
    result = infer("--json", "-o", str(link))
    assert (result.code, result.out) == (0, "")
    assert link.is_symlink()
    assert path.read_text().startswith("{\n") and path.read_text().endswith("}\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_output_to_stdout_and_to_a_device(infer: Infer) -> None:
    assert ANSWER.fullmatch(infer("-o", "-").out)
    assert infer("-o", "/dev/null").out == ""
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("place", ["missing/answer.txt", ""])
def test_output_that_can_not_be_written_is_refused_before_loading(
    infer: Infer, tmp_path: Path, place: str
) -> None:
    result = infer("-o", f"{tmp_path}/{place}", "--model", "nobody/nothing", model=False)
    assert "Cannot write" in refused(result, 2)[0]


def test_output_over_the_image_is_refused(infer: Infer, picture: Path) -> None:
    before = picture.read_bytes()
    refused(infer("-o", str(picture)), 2)
    assert picture.read_bytes() == before


def test_an_answer_whose_file_fails_goes_to_stdout(infer: Infer) -> None:
    full = infer("-o", "/dev/full")
    assert full.code == 1
    assert ANSWER.fullmatch(full.out)
    assert "Error: Cannot write /dev/full\n  No space left on device" in full.err


# --- the notices ---


def test_the_embedded_model_answers_and_introduces_itself(
    infer: Infer, mvw: Callable[..., Ran], tmp_path: Path
) -> None:
    assert mvw("samples", str(tmp_path / "drawn"), "--count", "1").code == 0
    scene = next((tmp_path / "drawn").glob("*.png"))
    question = "How many red circles are there?"
    result = infer(image=scene, question=question, model=False)
    assert result.code == 0, result.err
    assert result.out.count("\n") == 1 and result.out.strip()
    notice, mark, figures = result.err.splitlines()
    assert "the embedded `shapes` answers" in notice
    assert "--model ORG/NAME or --profile NAME" in notice
    assert "144 vision tokens" in mark and figures.startswith("TTFT ")
    named = infer("--profile", "shapes", image=scene, question=question, model=False)
    assert named.out == result.out
    assert notice not in named.err


def test_the_embedded_model_says_where_its_world_ends(infer: Infer) -> None:
    result = infer("-m", "1", "--max-new-tokens", "2", question="Who is this?", model=False)
    assert result.code == 0
    assert "do not trust this answer" in result.err.splitlines()[1]


def test_sampling_follows_the_seed(infer: Infer) -> None:
    def text(seed: int) -> str:
        return infer("--temperature", "5", "--seed", str(seed)).out

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_the_coldest_temperature_is_greedy(infer: Callable[..., Ran]) -> None:
    greedy, coldest = (infer("--temperature", one, "-q") for one in ("0", "1e-300"))
    assert coldest.code == 0 and coldest.out == greedy.out
