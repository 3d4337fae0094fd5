"""Reasoning text is taken apart, also when it was cut or is malformed."""

from __future__ import annotations

import pytest
from mvw_hf.model import HuggingFace

from mvw_cli.adapter import parse_stages, parse_thinking

WHOLE = "<SUMMARY> s </SUMMARY> <CAPTION>c</CAPTION>\n<CONCLUSION>\n2 </CONCLUSION>"


def test_whole_stages() -> None:
    answer = parse_stages(WHOLE)
    assert answer.answer == "2"
    assert answer.reasoning == "s\nc"
    assert dict(answer.stages) == {"SUMMARY": "s", "CAPTION": "c", "CONCLUSION": "2"}
    assert list(answer.stages) == ["SUMMARY", "CAPTION", "CONCLUSION"]


@pytest.mark.parametrize(
    ("text", "answer", "stages"),
    [
        ("", "", {}),
        ("plain text", "plain text", {}),
        ("<SUMMARY> cut he", "", {"SUMMARY": "cut he"}),
        ("<SUMMARY>s</SUMMARY><CONCLUSION>4", "4", {"SUMMARY": "s", "CONCLUSION": "4"}),
        ("<SUMMARY>s<CONCLUSION>4</CONCLUSION>", "4", {"SUMMARY": "s", "CONCLUSION": "4"}),
        ("</SUMMARY>x<CONCLUSION>4</CONCLUSION>y", "4", {"CONCLUSION": "4"}),
        ("<CONCLUSION>1</CONCLUSION><CONCLUSION>2</CONCLUSION>", "2", {"CONCLUSION": "2"}),
        (
            "<CONCLUSION>a < b and <b>c</CONCLUSION>",
            "a < b and <b>c",
            {"CONCLUSION": "a < b and <b>c"},
        ),
        ("<CONCLUSION></CONCLUSION>", "", {"CONCLUSION": ""}),
        ("<REASONING>r</REASONING> 4 </CONCLUSION>", "4", {"REASONING": "r", "CONCLUSION": "4"}),
        ("<CONCLUSION>4 </CONCL", "4", {"CONCLUSION": "4"}),
        ("<SUMM", "", {}),
        ("4 </CONCLUSION>", "4", {"CONCLUSION": "4"}),
        ("<CONCLUSION>4</CONCLUSION> y </CONCLUSION>", "4", {"CONCLUSION": "4"}),
        # Only the four names are tags.
        (
            "<CONCLUSION>press <OK> or </A></CONCLUSION>",
            "press <OK> or </A>",
            {"CONCLUSION": "press <OK> or </A>"},
        ),
        ("if a < B", "if a < B", {}),
        ("4 (", "4 (", {}),
        # What the released weights were seen to write instead.
        (
            "(Here begins the SUMMARY stage) s (Here ends the SUMMARY stage) "
            "(Here begins the CONCLUSION stage) 4 (Here ends the CONCLUSION stage)",
            "4",
            {"SUMMARY": "s", "CONCLUSION": "4"},
        ),
        ("(Here begins the CONCLUSION stage) 4 (Here ends the CON", "4", {"CONCLUSION": "4"}),
    ],
)
def test_cut_and_malformed_stages(text: str, answer: str, stages: dict[str, str]) -> None:
    parsed = parse_stages(text)
    assert (parsed.answer, dict(parsed.stages)) == (answer, stages)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("just 4", "just 4", ""),
        ("<think>a b</think> 4", "4", "a b"),
        ("a b</think>4", "4", "a b"),
        ("<think>cut", "", "cut"),
        ("<think>a</think><answer> 4 </answer>", "4", "a"),
        ("<think>a</think><answer> 4", "4", "a"),
        ("<think>a</think>4 <answer>", "4 <answer>", "a"),
        ("<think>a</think>b</think>c", "c", "a</think>b"),
    ],
)
def test_thinking(text: str, answer: str, reasoning: str) -> None:
    parsed = parse_thinking(text)
    assert (parsed.answer, parsed.reasoning) == (answer, reasoning)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<|channel>thought\nIs it?<channel|>4", "4", "Is it?"),
        ("<|channel>thought\n<channel|>4", "4", ""),
        ("<|channel>", "", ""),
        ("<|channel>thou", "", ""),
        ("<|channel>thought\nthought", "", "thought"),
        ("<|channel>thought\na<channel|>", "", "a"),
        ("thought 4", "thought 4", ""),
    ],
)
def test_gemma_4_thinks_in_a_channel(text: str, answer: str, reasoning: str) -> None:
    parsed = HuggingFace().parse(text)
    assert (parsed.answer, parsed.reasoning) == (answer, reasoning)


def test_thinking_with_other_tags() -> None:
    parsed = parse_thinking("◁think▷hm◁/think▷ 4", opening="◁think▷", closing="◁/think▷")
    assert (parsed.answer, parsed.reasoning) == ("4", "hm")
