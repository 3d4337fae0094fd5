"""The public data sets that are known by name: how each is asked and scored, and where it lies.

Names, prompts, rules and addresses are those of VLMEvalKit (open-compass/VLMEvalKit, as ms-vlmeval
0.0.20 has it); its files lie in `$LMUData`, else in `~/LMUData`.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Literal

from mvw_cli.errors import UsageProblem
from mvw_cli.text import did_you_mean

Prompt = Literal["plain", "choice", "choice without request", "requirement", "short"]
"""How a question is put: as it stands; with hint, options and what to do with them; without the
last; with what the row's `requirement` asks for; or for one word or phrase."""
_SITE = "https://opencompass.openxlab.space/utils"


@dataclass(frozen=True, slots=True)
class Public:
    """How a data set is asked and scored."""

    rule: str
    prompt: Prompt
    folder: str = "VLMEval"
    """On the site."""
    circular: bool = False
    """Whether rows ask one question with its options turned, and count together."""
    images: str | None = None
    """Folder of its image files below `images`, where that is not its name."""


_CHOICE = Public("choice", "choice")
_SHORT_ANLS = Public("anls", "short")
_YES_NO = Public("yes-no", "plain")
_EXACT = Public("exact", "short")


def _mmbench(images: str) -> Public:
    return Public("choice", "choice", "benchmarks/MMBench", circular=True, images=images)


PUBLIC = {
    "WeMath": Public("wemath", "choice without request"),
    "WeMath_COT": Public("wemath", "requirement"),
    "MMStar": _CHOICE,
    "RealWorldQA": _CHOICE,
    "AI2D_TEST": _CHOICE,
    "AI2D_TEST_NO_MASK": _CHOICE,
    "BLINK": _CHOICE,
    "MMVP": _CHOICE,
    "ScienceQA_VAL": Public("choice", "choice", "benchmarks/ScienceQA"),
    "ScienceQA_TEST": Public("choice", "choice", "benchmarks/ScienceQA"),
    "SEEDBench_IMG": Public("choice", "choice", "benchmarks/SEEDBench"),
    "SEEDBench2_Plus": Public("choice", "choice", "benchmarks/SEEDBench"),
    "MMMU_DEV_VAL": Public("mmmu", "choice"),
    "MMBench_DEV_EN": _mmbench("MMBench"),
    "MMBench_DEV_CN": _mmbench("MMBench"),
    "MMBench_DEV_EN_V11": _mmbench("MMBench_V11"),
    "MMBench_DEV_CN_V11": _mmbench("MMBench_V11"),
    "CCBench": Public("choice", "choice", circular=True),
    "MathVista_MINI": Public("mathvista", "plain"),
    "POPE": _YES_NO,
    "MME": _YES_NO,
    "HallusionBench": _YES_NO,
    "ChartQA_TEST": Public("numeric", "short"),
    "TextVQA_VAL": Public("vqa", "short"),
    "DocVQA_VAL": _SHORT_ANLS,
    "InfoVQA_VAL": _SHORT_ANLS,
    "OCRVQA_TEST": _EXACT,
    "OCRVQA_TESTCORE": _EXACT,
    "GQA_TestDev_Balanced": _EXACT,
    "OCRBench": Public("contains", "plain"),
}


def find(name: str) -> str:
    """Return the path of a data set's table; any `NAME.tsv` that lies there counts.

    Raises:
        UsageProblem: it is not there; says how to get it, where that is known.
    """
    root = os.environ.get("LMUData", "")  # noqa: SIM112 (so it is called)
    if not os.path.exists(root):
        root = os.path.join(os.path.expanduser("~"), "LMUData")
    for ending in (".tsv", "_local.tsv"):  # VLMEvalKit's own copy of a large one, images apart
        path = os.path.join(root, name + ending)
        if os.path.exists(path):
            return path
    known = PUBLIC.get(name)
    if known is None:
        raise UsageProblem(
            f"There is no {name}",
            cause=did_you_mean(
                name, PUBLIC, otherwise=f"no such file or folder, and no {name}.tsv in {root}"
            ),
            hint="mvw eval --help",
        )
    file = "WeMath" if name == "WeMath_COT" else name
    path = shlex.quote(os.path.join(root, f"{name}.tsv"))
    raise UsageProblem(
        f"The data set {name} is not on this machine",
        cause=f"there is no {name}.tsv in {root}, which is $LMUData or else ~/LMUData",
        hint=f"curl -fL --create-dirs -o {path} {_SITE}/{known.folder}/{file}.tsv",
    )
