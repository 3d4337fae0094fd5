"""Taking a reasoning model's text apart: tagged stages, or a thinking block before the answer.

Text that was cut or is malformed is taken apart as far as it goes.
"""

from __future__ import annotations

import re

from mvw_cli.adapter import Answer

_TAG = re.compile(r"<(/?)([A-Z][A-Z_]*)>")
_ANSWER = re.compile(r"^<answer>(.*?)(</answer>)?$", re.DOTALL)
_HALF_TAG = re.compile(r"<(/?[A-Z_]*)$")
"""What is left of a tag at the end of text that was cut inside it."""


def parse_stages(text: str, *, answer: str = "CONCLUSION") -> Answer:
    """Take `<SUMMARY>…</SUMMARY> … <CONCLUSION>…</CONCLUSION>` apart.

    A stage that is not closed runs to the next opening tag or the end; one that is closed and was
    never opened runs from the tag before it. Of two stages of one name the later counts. Without
    any stage the whole text is the answer; with stages but without the answering one, the answer
    is empty. A tag that was cut at the end is no part of a stage.
    """
    text = _HALF_TAG.sub("", text)
    stages: dict[str, str] = {}
    name: str | None = None
    start = 0
    for tag in _TAG.finditer(text):
        closing, tag_name = tag.group(1) == "/", tag.group(2)
        content = text[start : tag.start()]
        if name is not None and (not closing or tag_name == name):
            _put(stages, name, content)
            name, start = None, tag.end()
        elif name is None and closing and tag_name not in stages and content.strip():
            _put(stages, tag_name, content)
            start = tag.end()
        if not closing:
            name, start = tag_name, tag.end()
    if name is not None:
        _put(stages, name, text[start:])
    if not stages:
        return Answer(answer=text.strip())
    reasoning = "\n".join(content for stage, content in stages.items() if stage != answer)
    return Answer(answer=stages.get(answer, ""), reasoning=reasoning, stages=stages)


def parse_thinking(text: str, *, opening: str = "<think>", closing: str = "</think>") -> Answer:
    """Take `<think>…</think>answer` apart.

    The opening tag may be missing, since some chat templates write it into the prompt. Without
    the closing tag an opened block is all reasoning and the answer is empty; with neither tag the
    whole text is the answer. An answer within `<answer>…</answer>`, as GLM-4.1V writes it, is taken
    out of these tags.
    """
    before, closed, after = text.rpartition(closing)
    if closed:
        reasoning = before.replace(opening, "", 1).strip()
        return Answer(answer=_ANSWER.sub(r"\1", after.strip()).strip(), reasoning=reasoning)
    head, opened, rest = text.partition(opening)
    if opened:
        return Answer(answer="", reasoning=(head + rest).strip())
    return Answer(answer=text.strip())


def _put(stages: dict[str, str], name: str, content: str) -> None:
    # Written again at the end, so that the order is that of the text.
    stages.pop(name, None)
    stages[name] = content.strip()
