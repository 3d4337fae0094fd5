"""Scorers: what is read, what it is worth, and the same as the harness where it has the rule."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from harness import folder, module

from mvw_cli.batch.items import Item
from mvw_cli.errors import UsageProblem
from mvw_cli.evaluate.dataset import Question
from mvw_cli.evaluate.rules import RULES, can_infer, find_rule, relaxed, stated_letter

LETTERS = "ABCD"
OPTIONS = {"A": "a dog", "B": "Paris", "C": "3 cm", "D": "none of these"}


def question(*answers: str, options: Mapping[str, str] | None = None, **row: str) -> Question:
    return Question(Item("1", (), "asked", answers[0]), "asked", answers, options or {}, row)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        *(("B", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), ("B. Paris", "B"), (" b", None)),
        *(("B: Paris, as the sign says", "B"), ("Option B", "B"), ("[C]", "C")),
        *(("The answer is B.", "B"), ("Answer: (C)", "C"), ("**Answer:** D", "D")),
        *(("Final answer: A because it barks", "A"), ("so the correct option is C.", "C")),
        *(("It can't be A. The answer is D", "D"), (r"thus \boxed{B}", "B")),
        *((r"\boxed{\text{C}}", "C"), ("The answer is B. Option A is wrong.", "B")),
        *(("Answer: A? No. Answer: C", "C"), ("the answer is A or B", None)),
        *(("Based on the image, it is Paris", None), ("A dog", None), ("A dog barks", None)),
        *(("The answer is A dog", None), ("Given that", None), ("E", None), ("", None)),
        *(("Both A and B", None), ("Answer: A, B", None), ("Can't say. Beijing?", None)),
    ],
)
def test_a_letter_counts_where_it_is_stated(answer: str, read: str | None) -> None:
    assert stated_letter(answer, LETTERS) == read


def test_an_option_may_be_written_out() -> None:
    judged = find_rule("choice")
    assert judged("Paris.", question("B", options=OPTIONS)).value == 1
    assert judged("It is in Paris.", question("B", options=OPTIONS)).read is None


def test_among_choices_an_open_question_is_judged_as_a_text() -> None:
    judged = find_rule("choice")
    assert judged("three.", question("Three")).value == 1
    assert judged("four", question("Three")).value == 0
    assert judged("The answer is B", question("B")).value == 1, "its options may be in the image"


def test_where_ours_differs_from_the_harness() -> None:
    """A quantifier that the harness takes for a letter, and a word in the middle of another."""
    dog = find_rule("choice")("I see A big dog", question("A", options=OPTIONS))
    assert (dog.value, dog.read, dog.harness) == (0.0, None, 1.0)
    comparison = find_rule("choice")("Comparison: Paris", question("C", options=OPTIONS))
    assert (comparison.value, comparison.harness) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "answers", "answer", "value", "harness"),
    [
        ("exact", ["3"], "3.0", 1, 0),
        ("exact", ["cat", "feline"], " Feline", 1, 1),
        ("yes-no", ["Yes"], "**Yes**", 1, 0),
        ("yes-no", ["No"], "No, there is no sign that says yes.", 1, 0),
        ("yes-no", ["Yes"], "yes and no", 0, 0),
        ("yes-no", ["No"], "I know nothing", 0, 0),
        ("numeric", ["100"], "104.9", 1, 1),
        ("numeric", ["100"], "105.1", 0, 0),
        ("numeric", ["1000"], "1,020", 1, 0),
        ("numeric", ["12%"], "12 %", 1, 1),
        ("numeric", ["0.12"], "12%", 1, 1),
        ("numeric", ["12"], "12%", 1, 0),
        ("numeric", ["0"], "0.0", 1, 0),
        ("numeric", ["-5"], "5", 0, 0),
        ("numeric", ["blue"], "Blue", 1, 1),
        ("anls", ["hello world"], "Hello  wurld", 10 / 11, 11 / 12),
        ("anls", ["abcdefghij"], "abcdefgh", 0.8, 0.8),
        ("anls", ["abcd"], "xyz", 0, 0),
        ("anls", ["abcd", "wxyz"], "wxyz", 1, 1),
        ("contains", ["EXIT"], "The sign says: exit!", 1, 1),
        ("vqa", ["red"] * 10, "Red.", 1, 1),
        ("vqa", ["red"] * 2 + ["blue"] * 8, "red", (2 * 1 / 3 + 8 * 2 / 3) / 10, None),
        ("vqa", ["two"] * 10, "2", 1, 1),
        ("vqa", ["red"] * 10, "red" + " ." * 32, 1, 1),
        ("vqa", ["red"] * 10, "red" + " ." * 33, 0, 0),  # a slip of the evaluation's own
        ("vqa", ["don't walk"] * 10, "dont walk", 1, 1),
        ("mmmu", ["7"], "7", 1, 1),
    ],
)
def test_rules(
    rule: str, answers: list[str], answer: str, value: float, harness: float | None
) -> None:
    found = find_rule(rule)(answer, question(*answers))
    assert found.value == pytest.approx(value)
    assert harness is None or found.harness == pytest.approx(harness)


def test_a_formula_is_compared_without_spaces() -> None:
    kind = "Handwritten Mathematical Expression Recognition"
    assert find_rule("contains")(
        r"\frac{a}{b}", question(r"\frac { a } { b }", category=kind)
    ).value
    assert not find_rule("contains")(r"\frac{A}{b}", question(r"\frac{a}{b}", category=kind)).value


@pytest.mark.parametrize(
    ("answer", "kind", "wanted", "value", "harness"),
    [
        ("14", "integer", "14", 1, 1),
        ("The number is 14.", "integer", "14", 1, 0),
        ("between 3 and 1,400", "integer", "1400", 1, 0),
        ("1.450", "float", "1.45", 1, 1),
        ("nothing", "float", "1.45", 0, 0),
        ("[2007, 2008]", "list", "[2007, 2008]", 1, 0),
    ],
)
def test_mathvista(answer: str, kind: str, wanted: str, value: int, harness: int) -> None:
    found = find_rule("mathvista")(answer, question(wanted, answer_type=kind))
    assert (found.value, found.harness) == (value, harness)


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rule.py").write_text(
        "def starts(answer, row): return answer.startswith(row['answers'][0])\n"
        "def half(answer, row): return 0.5\n"
        "def wrong(answer, row): return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_rule("own_rule:starts")("red, I think", question("red", kind="x")).value == 1
    assert find_rule("own_rule:half")("red", question("red")).value == 0.5
    with pytest.raises(UsageProblem, match="own_rule:wrong has failed on 1") as caught:
        find_rule("own_rule:wrong")("red", question("red"))
    assert "it returned 7.0" in str(caught.value.cause)
    for name in ("own_rule:absent", "no_such_module_here:f", "absent"):
        with pytest.raises(UsageProblem):
            find_rule(name)


# -- against the harness ------------------------------------------------------------------------

WORDS = (
    *("A", "B", "C", "D", "a", "dog", "Paris", "paris", "3", "cm", "Z", "is", "the", "answer"),
    *(
        "(B)",
        "C.",
        "**D**",
        "A,",
        "yes",
        "Yes.",
        "no",
        "No,",
        "none",
        "of",
        "these",
        "two",
        "1,000",
    ),
    *("12%", "0.5", "don't", "dont", "O'Neil", "U.S.", "5.", "a/b", "x-y", "-", "!", "100", "104"),
)


def texts(count: int, seed: int, longest: int = 8) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]


needs_harness = pytest.mark.skipif(folder() is None, reason="ms-vlmeval is not installed")


@needs_harness
def test_can_infer_is_the_harness_s() -> None:
    theirs = module("utils/matching_util.py")["can_infer"]
    read = set()
    for answer in [
        *texts(4000, 1),
        "Cannot determine the answer",
        "Failed to obtain answer via API",
    ]:
        found = can_infer(answer, OPTIONS)
        assert found == (theirs(answer, dict(OPTIONS)) or None), answer
        read.add(found)
    assert read == {*LETTERS, "Z", None}


@needs_harness
def test_texts_are_judged_as_the_harness_does() -> None:
    import numpy

    punctuation = module("smp/misc.py", "process_punctuation")["process_punctuation"]
    lists = module("smp/misc.py", "istype", np=numpy)["istype"]
    code = module("dataset/utils/vqa_eval.py", process_punctuation=punctuation, istype=lists)
    extract = module("dataset/utils/yorn.py", "YOrN_Extraction", process_punctuation=punctuation)
    draw = random.Random(2)
    told = texts(1500, 3, 4)
    for answer in told:
        assert relaxed(answer, other := draw.choice(told)) == code["relaxed_correctness"](
            other, answer
        )
        said = extract["YOrN_Extraction"](answer)
        for right in ("Yes", "No"):
            assert RULES["yes-no"](answer, question(right)).harness == (said == right), answer
        people = [draw.choice([answer, *told[:40]]) for _ in range(10)]
        line = {"answer": repr(people), "prediction": answer}
        match = code["process_line"](line)["match"]
        assert RULES["vqa"](answer, question(*people)).harness == pytest.approx(
            numpy.mean(match)
        ), (
            answer,
            people,
        )
        match = code["process_line"](line, method="anls")["match"]
        score = 1 - numpy.min(match)
        assert RULES["anls"](answer, question(*people)).harness == pytest.approx(
            score if score >= 0.5 else 0
        )
