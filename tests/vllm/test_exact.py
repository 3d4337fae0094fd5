"""Withdrawal in vLLM equals the masked-attention oracle, token for token, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from vllm_running import Case, Judge

FAMILIES = ("llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "kimi-vl")
CACHES = pytest.mark.parametrize("judge", ["llava", "kimi-vl"], indirect=True)
"""Keys and values of all heads, and the latents of MLA."""
TOGETHER = [
    Case((1,), 5),
    Case((2,), 23, "Tell me what there is to see in this picture, and nothing else."),
    Case((3,), None),
    Case((4,), 1),
    Case((0, 1), 9, "Which?"),
]


BLOCK = 3 * 2 * 2 * 32 * 4 * 32
"""Bytes of a block: layers, keys and values, heads, width, bytes of a number, tokens."""
LATENT_BLOCK = 3 * 576 * 4 * 16


def small(judge: Judge) -> dict[str, int]:
    """A pool that is too small for several requests."""
    latent = "kimi" in judge.loaded.adapter
    room = 22 * LATENT_BLOCK if latent else 14 * BLOCK
    return {"kv_cache_memory_bytes": room, "max_model_len": 256}


@pytest.fixture(scope="module")
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    name = getattr(request, "param", "llava")
    return Judge.of(name, tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("judge", FAMILIES, indirect=True)
def test_each_family_alone_and_together(judge: Judge, tmp_path: Path) -> None:
    runs = [[Case((0,), 16)], TOGETHER]
    judge.check_all(runs, judge.generate(tmp_path, runs, enable_prefix_caching=False))


@CACHES
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_prefix_cache_stays_right_for_others(
    judge: Judge, tmp_path: Path, asynchronous: bool
) -> None:
    again = [Case((0,), 16), Case((0,), 7), Case((0,), None), Case((1,), None)]
    runs = [TOGETHER, again, again]
    result = judge.generate(
        tmp_path, runs, enable_prefix_caching=True, async_scheduling=asynchronous
    )
    assert result["scheduler"] == ("MVWAsyncScheduler" if asynchronous else "MVWScheduler")
    judge.check_all(runs, result)
    assert any(result["runs"][2]["cached"]), "nothing was shared"


@CACHES
@pytest.mark.parametrize("asynchronous", [False, True])
def test_preempted_before_and_after_the_withdrawal(
    judge: Judge, tmp_path: Path, asynchronous: bool
) -> None:
    steps = (8, 20, None, 3, 14, 33)
    run = [Case((k % 5,), steps[k], tokens=80) for k in range(6)]
    result = judge.generate(
        tmp_path,
        [run],
        enable_prefix_caching=False,
        async_scheduling=asynchronous,
        **small(judge),
    )
    judge.check_all([run], result)
    assert set(result["runs"][0]["preempted"]) == {True, False}


@CACHES
def test_shared_blocks_in_a_pool_that_is_too_small(judge: Judge, tmp_path: Path) -> None:
    first = [Case((1,), None, tokens=8)]
    shared = [Case((1,), m, tokens=80) for m in (2, 3, 9, 20, None, 33, 5, 28)]
    result = judge.generate(tmp_path, [first, shared], enable_prefix_caching=True, **small(judge))
    judge.check_all([first, shared], result)


@pytest.mark.parametrize("fault", ["no room", "no stand-ins"])
def test_without_room_for_the_withdrawal_itself(judge: Judge, tmp_path: Path, fault: str) -> None:
    runs = [[Case((0,), 40)], [Case((1,), 5), Case((2,), 30), Case((3,), None)], [Case((0,), None)]]
    result = judge.generate(tmp_path, runs, fault=fault, enable_prefix_caching=True)
    judge.check_all(runs, result)
    assert bool(result["runs"][0]["preempted"]) == (fault == "no room")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_aborted_in_the_middle(judge: Judge, tmp_path: Path, asynchronous: bool) -> None:
    """Before its withdrawal, at it and after it; blocks are those of others at once."""
    aborted = [Case((1,), 20, abort=9), Case((2,), 9, abort=8), Case((3,), 5, abort=12)]
    run = [Case((0,), 16), *aborted, Case((4,), None), Case((0,), 30), Case((1,), 2, tokens=60)]
    again = [Case((k,), None) for k in range(4)]
    result = judge.generate(
        tmp_path,
        [run, again],
        enable_prefix_caching=True,
        async_scheduling=asynchronous,
        max_num_seqs=4,
    )
    judge.check_all([run, again], result)
    lengths = [len(output["ids"]) for output in result["runs"][0]["outputs"]]
    assert all(8 <= length < 24 for length in lengths[1:4]) and min(lengths[4:]) == 48


@CACHES
def test_chunked_prefill(judge: Judge, tmp_path: Path) -> None:
    options = {"max_num_batched_tokens": 128, "long_prefill_token_threshold": 40}
    options["enable_chunked_prefill"] = True
    result = judge.generate(tmp_path, [TOGETHER], enable_prefix_caching=False, **options)
    judge.check_all([TOGETHER], result)


@CACHES
def test_ngram_speculation(judge: Judge, tmp_path: Path) -> None:
    draft = {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    }
    result = judge.generate(tmp_path, [TOGETHER], speculative_config=draft, async_scheduling=False)
    judge = replace(judge, silent={})
    judge.check_all([TOGETHER], result)


@CACHES
def test_a_tag_ends_the_sight(judge: Judge, tmp_path: Path) -> None:
    """The tag is text that the model writes anyway, whole with the token that completes it."""
    tokenizer = judge.loaded.processor.tokenizer
    half = [one for one in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([one])]
    # Halves of characters that a random model writes are no text to look for.
    judge = replace(judge, silent=judge.silent | {str(one): -100.0 for one in half})
    plain = [Case((seed,), None, tokens=40) for seed in range(5, 9)]
    [run] = judge.generate(tmp_path / "plain", [plain])["runs"]

    def written(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    seed, m, tag = next(
        (case.images[0], step, tag)
        for case, output in zip(plain, run["outputs"], strict=True)
        for step in range(6, 30)
        if len(tag := written(output["ids"][:step])[-2:]) == 2
        and tag not in written(output["ids"][: step - 1])
    )
    asked = [
        ({"mvw_until": tag}, m),
        ({"mvw_until": tag, "mvw_m": m - 2}, m - 2),
        ({"mvw_until": tag, "mvw_max": m + 9}, m),
        ({"mvw_until": tag, "mvw_min": m + 4}, m + 4),
        ({"mvw_until": "never written"}, None),
    ]
    runs = [[Case((seed,), m, extra=extra) for extra, m in asked]]
    judge.check_all(runs, judge.generate(tmp_path, runs, async_scheduling=False))


def test_server_settings_hold_for_requests_that_say_nothing(judge: Judge, tmp_path: Path) -> None:
    runs = [[Case((0,), 6, extra={}), Case((1,), None, extra={"mvw_m": -1}), Case((2,), 11)]]
    judge.check_all(runs, judge.generate(tmp_path, runs, settings={"m": 6}))


@CACHES
def test_model_runner_v2(judge: Judge, tmp_path: Path) -> None:
    """What GPUs run; its Triton kernels go through Triton's interpreter here."""
    environment = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    runs = [[Case((0,), 4, tokens=12), Case((1,), None, tokens=12), Case((2,), 7, tokens=12)]]
    judge.check_all(runs, judge.generate(tmp_path, runs, environment=environment))


@CACHES
def test_two_tensor_parallel_processes(judge: Judge, tmp_path: Path) -> None:
    runs = [[Case((0,), 16)], TOGETHER]
    result = judge.generate(tmp_path, runs, tensor_parallel_size=2, enable_prefix_caching=True)
    judge.check_all(runs, result)


def test_compiled(judge: Judge, tmp_path: Path) -> None:
    """With torch.compile, as it is without `enforce_eager`."""
    judge.check_all([TOGETHER], judge.generate(tmp_path, [TOGETHER], enforce_eager=False))
