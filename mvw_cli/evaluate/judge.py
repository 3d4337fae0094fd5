"""A judge: a model behind an OpenAI-compatible address that the user names, for what no rule reads.

Nothing is sent anywhere unless the user gives that address. What it has said is kept beside the
answers, by content, so that a run goes on where it was stopped and equal answers are asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mvw_cli.calibrate.store import SampleStore
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.evaluate.dataset import Question
from mvw_cli.text import error_line

KeyT = TypeVar("KeyT")
KEY = "OPENAI_API_KEY"
"""Environment variable with the token, as for OpenAI's own client."""
PROMPT = """\
You compare an answer with the right one. Judge only whether they mean the same; do not solve the \
question yourself. A reasoned answer counts by what it concludes.

Question: {question}
{options}Right answer: {right}
Answer to judge: {answer}

Reply with one word: yes if it is right, no if it is wrong or gives no answer."""
TRIES = 5
TIMEOUT_S = 120.0
_THREADS = 8
_LATER = (408, 409, 429, 500, 502, 503, 504)
_LONGEST_WAIT_S = 60.0


def prompt_of(question: Question, answer: str) -> str:
    """Write what the judge is asked about an answer."""
    options = "".join(f"{letter}. {text}\n" for letter, text in question.options.items())
    return PROMPT.format(
        question=question.question,
        options=f"Options:\n{options}" if options else "",
        right=" or ".join(question.answers),
        answer=answer,
    )


class Judge:
    """Asks one model at one address.

    Args:
        url: up to `/v1`.
        folder: that `judge.jsonl` goes to.
    """

    def __init__(self, url: str, model: str, folder: Path) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageProblem(
                f"--judge {url} is no address",
                cause="an OpenAI-compatible one begins with http:// or https:// and ends with /v1",
                hint="mvw eval --help",
            )
        self.url, self.model = url.rstrip("/"), model
        self._path = folder / "judge.jsonl"

    def verdicts(
        self, prompts: Mapping[KeyT, str], progress: Callable[[int, int], None]
    ) -> dict[KeyT, bool | None]:
        """Ask about answers, each prompt once; None where the reply is neither yes nor no.

        Args:
            prompts: by any key, which the result has as well.
            progress: called with how many have been judged, and how many there are.

        Raises:
            MvwError: the judge does not answer; what it has said is kept.
        """
        keys = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in prompts.items()}
        texts = {keys[key]: text for key, text in prompts.items()}
        with SampleStore(self._path, {"judge": self.model, "prompt": PROMPT}) as store:
            todo = {key: text for key, text in texts.items() if store.get(key) is None}
            with ThreadPoolExecutor(_THREADS) as pool:
                try:
                    replies = pool.map(self._ask, todo.values())
                    for done, (key, reply) in enumerate(zip(todo, replies, strict=True), 1):
                        store.put(key, reply=reply)
                        progress(len(texts) - len(todo) + done, len(texts))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            return {name: _said((store.get(key) or {})["reply"]) for name, key in keys.items()}

    def _ask(self, prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {token}"
        address = f"{self.url}/chat/completions"
        for attempt in range(1, TRIES + 1):
            wait_s = min(2.0 ** (attempt - 1), _LONGEST_WAIT_S)
            try:
                request = Request(address, json.dumps(body).encode(), headers)
                with urlopen(request, timeout=TIMEOUT_S) as response:
                    content = json.load(response)["choices"][0]["message"]["content"]
                return content if isinstance(content, str) else ""
            except HTTPError as error:
                cause = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                later = error.code in _LATER
                given = error.headers.get("Retry-After", "")
                if given.isdecimal():
                    wait_s = min(float(given), _LONGEST_WAIT_S)
            except (OSError, HTTPException) as error:
                cause, later = error_line(error), True
            except (ValueError, LookupError, TypeError) as error:
                cause, later = f"its reply is none of chat completions: {error_line(error)}", False
            if not later or attempt == TRIES:
                raise MvwError(
                    f"The judge at {self.url} does not answer",
                    cause=f"{' '.join(cause.split())}; what it has said is in {self._path}",
                    hint=f"curl -sS {shlex.quote(self.url + '/models')}",
                )
            time.sleep(wait_s)
        raise AssertionError("the loop returns or raises")


def _said(reply: str) -> bool | None:
    """Read the last yes or no of a reply, after whatever was thought before it."""
    found = re.findall(r"\b(yes|no)\b", reply.lower())
    return found[-1] == "yes" if found else None
