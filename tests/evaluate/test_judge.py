"""The judge: a real server on this machine; what it says is read, kept and asked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, said

from mvw_cli.batch.items import Item
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.evaluate import judge as judging
from mvw_cli.evaluate.dataset import Question
from mvw_cli.evaluate.judge import Judge, prompt_of


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(judging.KEY, raising=False)
    monkeypatch.setattr(judging.time, "sleep", lambda seconds: None)
    found = Server()
    yield found
    found.close()


def ask(server: Server, folder: Path, **prompts: str) -> dict[str, bool | None]:
    return Judge(server.url, "judge-1", folder).verdicts(prompts, lambda done, of: None)


def test_a_reply_is_read_after_its_thinking_and_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(judging.KEY, "secret")
    replies = {"p1": "<think>no, wait</think> Yes.", "p2": "No", "p3": "I can't tell"}
    server.reply = lambda body: (200, said(replies[body["messages"][0]["content"]]))
    found = ask(server, tmp_path, a="p1", b="p2", c="p3", again="p1")
    assert found == {"a": True, "b": False, "c": None, "again": True}
    assert len(server.asked) == 3 and server.asked[0]["model"] == "judge-1"
    assert server.asked[0]["temperature"] == 0 and set(server.tokens) == {"Bearer secret"}
    assert ask(server, tmp_path, a="p1", b="p2", c="p3") == {"a": True, "b": False, "c": None}
    assert len(server.asked) == 3, "what was said is asked once"
    assert "secret" not in (tmp_path / "judge.jsonl").read_text()
    Judge(server.url, "judge-2", tmp_path).verdicts({"a": "p1"}, lambda done, of: None)
    assert len(server.asked) == 4, "another model says for itself"


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: (200, said("yes")) if len(server.asked) > 2 else (429, {})
    assert ask(server, tmp_path, a="p") == {"a": True} and len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "cause", "times"),
    [
        ((401, {"error": "no token"}), "HTTP 401", 1),
        ((200, {"choices": []}), "none of chat completions", 1),
        ((503, {}), "HTTP 503", judging.TRIES),
    ],
)
def test_a_judge_that_fails_costs_nothing_that_was_said(
    reply: tuple[int, Any], cause: str, times: int, server: Server, tmp_path: Path
) -> None:
    assert ask(server, tmp_path, a="p1") == {"a": True}
    server.reply = lambda body: reply
    with pytest.raises(MvwError) as caught:
        ask(server, tmp_path, a="p1", b="p2")
    assert cause in str(caught.value.cause) and "judge.jsonl" in str(caught.value.cause)
    assert len(server.asked) == 1 + times
    server.reply = lambda body: (200, said("no"))
    assert ask(server, tmp_path, a="p1", b="p2") == {"a": True, "b": False}
    assert len(server.asked) == 2 + times


def test_nobody_there(tmp_path: Path, server: Server) -> None:
    server.close()
    with pytest.raises(MvwError, match="does not answer"):
        ask(server, tmp_path, a="p")
    for url in ("file:///etc/passwd", "localhost:8000", "http://"):
        with pytest.raises(UsageProblem, match="is no address"):
            Judge(url, "m", tmp_path)


def test_what_is_asked() -> None:
    question = Question(Item("1", (), "put"), "Which?", ("B", "C"), {"A": "x", "B": "y"})
    text = prompt_of(question, "the {second}")
    assert "Question: Which?\nOptions:\nA. x\nB. y\nRight answer: B or C\n" in text
    assert "Answer to judge: the {second}\n" in text
