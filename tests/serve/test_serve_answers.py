"""What a real `mvw serve` answers a real client: the same as `mvw infer`, whole or as it grows."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai import APIStatusError, OpenAI
from processes import Ran
from serving_process import QUESTION, Served, body, content, data_url

from mvw_cli.engine.types import Finished, Withdrawn
from mvw_cli.images.reading import open_image
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import Session, open_session

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def session() -> Session:
    return open_session(resolve(None, {}).profile)


def ask(client: OpenAI, *urls: str, question: str = QUESTION, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": content(*urls, question=question)}]
    return client.chat.completions.create(model="shapes", messages=messages, **more)


def joined(chunks: list[Any], key: str) -> str:
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    return "".join(getattr(delta, key, None) or "" for delta in deltas)


def test_the_answer_is_that_of_infer_whole_and_streamed(
    server: Served, urls: list[str], scenes: list[Path], mvw: Run
) -> None:
    ran = mvw("infer", str(scenes[0]), QUESTION, "--json")
    assert ran.code == 0, ran.err
    own = json.loads(ran.out)
    with server.client() as client:
        whole = ask(client, urls[0])
        chunks = list(ask(client, urls[0], stream=True, stream_options={"include_usage": True}))
    message = whole.choices[0].message
    assert message.content == own["answer"] != ""
    assert message.reasoning_content == own["reasoning"] != ""
    assert whole.choices[0].finish_reason == "stop"
    for key in ("withdrawal", "vision", "stages", "remarks"):
        assert whole.mvw[key] == own[key], key
    assert own["withdrawal"]["vision_tokens"] == own["vision_tokens"] > 0
    usage = whole.usage
    counts = usage.prompt_tokens, usage.completion_tokens, usage.vision_tokens
    assert counts == (own["prompt_tokens"], own["generated_tokens"], own["vision_tokens"])
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert joined(chunks, "content") == own["answer"]
    assert joined(chunks, "reasoning_content") == own["reasoning"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 10  # it grew
    *_, last, counted = chunks
    assert last.choices[0].finish_reason == "stop"
    assert last.mvw["withdrawal"] == own["withdrawal"]
    assert (counted.choices, counted.usage, counted.mvw) == ([], usage, last.mvw)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_64_at_once_each_with_a_withdrawal_of_its_own(
    server: Served, urls: list[str], scenes: list[Path], session: Session
) -> None:
    tokens, late = 24, (1, 4, 12, None)
    cases = [(number % 4, late[number // 4 % 4]) for number in range(64)]
    expected = {}
    for scene, m in set(cases):
        policy = NoWithdrawal() if m is None else Mvw(m=m)
        own = replace(
            session, policy=policy, settings=replace(session.settings, max_new_tokens=tokens)
        )
        picture = open_image(scenes[scene]).image
        events = list(own.run([own.request([picture], QUESTION)]))
        [text] = [event.text for event in events if isinstance(event, Finished)]
        steps = [event.step for event in events if isinstance(event, Withdrawn)]
        expected[scene, m] = own.parse(text), steps

    def one(number: int) -> tuple[Any, Any, Any]:
        scene, m = cases[number]
        ways = [{"mvw": {"m": m or -1}}, {"vllm_xargs": {"mvw_m": m or -1}}]
        more = {"max_tokens": tokens, "extra_body": ways[number % 2]}
        if number % 3:
            answer = ask(client, urls[scene], **more)
            message = answer.choices[0].message
            return message.content, message.reasoning_content, answer.mvw["withdrawal"]
        chunks = list(ask(client, urls[scene], stream=True, **more))
        texts = joined(chunks, "content"), joined(chunks, "reasoning_content")
        return *texts, chunks[-1].mvw["withdrawal"]

    with server.client(timeout=120) as client, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(64)))
    for (answer, reasoning, withdrawal), case in zip(answers, cases, strict=True):
        wanted, steps = expected[case]
        assert answer == wanted.answer
        # Early withdrawals make the model write stages twice; what was sent can't be taken back.
        assert (reasoning or "") == wanted.reasoning or (
            reasoning.endswith(f"\n{wanted.reasoning}") and case[1]
        )
        assert ([withdrawal["step"]] if withdrawal else []) == steps
    assert [steps for _, steps in expected.values() if steps] == [
        [m] for _, m in expected if m is not None
    ]
    assert len({wanted.reasoning for wanted, _ in expected.values()}) > 4
    assert server.metric("mvw_requests_running") == server.metric("mvw_requests_waiting") == 0


def test_settings_of_a_request(server: Served, urls: list[str]) -> None:
    with server.client() as client:
        cut = ask(client, urls[0], max_completion_tokens=3)
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
        # No picture, so that the model is sure of nothing.
        warm = {"temperature": 2, "max_tokens": 24}
        some = [ask(client, seed=seed, **warm) for seed in (1, 1, 2, 3, 4)]
        texts = [one.choices[0].message.reasoning_content for one in some]
        assert texts[0] == texts[1] and len(set(texts)) > 1
        fresh, other = (ask(client, **warm) for _ in range(2))
        assert fresh.mvw["seed"] != other.mvw["seed"]
        again = ask(client, seed=fresh.mvw["seed"], **warm)
        assert again.choices == fresh.choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_answer_and_is_no_part_of_it(
    server: Served, urls: list[str], stream: bool
) -> None:
    with server.client() as client:
        answer = ask(client, urls[0], stop=["ry shap", "never"], stream=stream)
        chunks = list(answer) if stream else []
    if stream:
        text, reason = joined(chunks, "reasoning_content"), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.reasoning_content, answer.choices[0].finish_reason
    assert (text, reason) == ("I list eve", "stop")


def test_several_images_of_three_kinds_and_a_system_prompt(
    server: Served, scenes: list[Path]
) -> None:
    import io

    from PIL import Image

    made = []
    for kind in ("PNG", "JPEG", "WEBP"):
        Image.open(scenes[0]).convert("RGB").save(buffer := io.BytesIO(), kind)
        made.append(data_url(buffer.getvalue(), kind.lower()))
    with server.client() as client:
        one, three = (ask(client, *made[:count], max_tokens=1) for count in (1, 3))
        assert three.usage.vision_tokens == 3 * one.usage.vision_tokens > 0
        system = {"role": "system", "content": "You count."}
        user = {"role": "user", "content": [*reversed(content(made[0]))]}
        messages: Any = [system, user]
        told = client.chat.completions.create(model="shapes", messages=messages, max_tokens=1)
        assert told.usage.prompt_tokens > one.usage.prompt_tokens
        moved, *_ = told.mvw["remarks"]
        assert "the images come first" in moved
        assert one.mvw["remarks"] == []


def test_files_are_read_below_the_folder_that_is_allowed_and_nowhere_else(
    server: Served, scenes: list[Path], urls: list[str], tmp_path: Path
) -> None:
    folder = scenes[0].parent
    outside = tmp_path / "outside.png"
    outside.write_bytes(scenes[0].read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "inside.png").symlink_to(scenes[1])
    with server.client() as client:
        here = ask(client, scenes[1].as_uri(), max_tokens=8)
        linked = ask(client, (folder / "inside.png").as_uri(), max_tokens=8)
        same = ask(client, urls[1], max_tokens=8)
        assert here.choices == same.choices == linked.choices
        said = set()
        for path in (outside, folder / "link.png", folder / "../outside.png", Path("/etc/passwd")):
            for url in (path.as_uri(), f"file://localhost{path}"):
                with pytest.raises(APIStatusError) as refused:
                    ask(client, url)
                assert refused.value.status_code == 400
                said.add(refused.value.message.replace(url, "…"))
        with pytest.raises(APIStatusError) as missing:
            ask(client, (folder / "nothing.png").as_uri())
        said.add(missing.value.message.replace((folder / "nothing.png").as_uri(), "…"))
    assert len(said) == 1, said  # what is elsewhere is not told from what is nowhere


def test_models_and_health(server: Served) -> None:
    with server.client() as client:
        assert [one.id for one in client.models.list()] == ["shapes"]
        assert client.models.retrieve("embedded").id == "embedded"
        with pytest.raises(APIStatusError) as missing:
            client.models.retrieve("gpt/4")
    assert missing.value.status_code == 404
    assert httpx.get(f"{server.root}/health").json() == {"status": "ok"}


def test_metrics_count_what_was_answered(server: Served, urls: list[str]) -> None:
    names = ("mvw_withdrawals_total", "mvw_withdrawn_tokens_total", "mvw_kv_freed_bytes_total")
    before = [server.metric(name) for name in names]
    vision = server.metric('mvw_tokens_total{kind="vision"}')
    reply = httpx.post(f"{server.url}/chat/completions", json=body(urls[0], mvw={"m": 2}))
    told = reply.json()
    withdrawal = told["mvw"]["withdrawal"]
    freed = withdrawal["kv_bytes_before"] - withdrawal["kv_bytes_after"]
    after = [server.metric(name) for name in names]
    gained = [now - then for now, then in zip(after, before, strict=True)]
    assert gained == [1, withdrawal["vision_tokens"], freed]
    assert (
        server.metric('mvw_tokens_total{kind="vision"}') - vision == told["usage"]["vision_tokens"]
    )
