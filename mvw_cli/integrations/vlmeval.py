"""VLMEvalKit with mvw's profiles among its models: `python -m mvw_cli.integrations.vlmeval`.

The words after it are the harness's own, as `--data WeMath --model llava-cot-mvw16`. A model is
called `PROFILE`, which withdraws as the profile says, `PROFILE-mvwM`, which withdraws after M
tokens, or `PROFILE-never`. `--mvw-profile FILE` adds a profile by the name of its file, and
`--mvw-set KEY=VALUE` sets a key of all of them; both are repeatable.
"""

from __future__ import annotations

import argparse
import re
import runpy
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.engine.types import summarise
from mvw_cli.errors import ExitCode, MvwError, UsageProblem
from mvw_cli.evaluate.public import PUBLIC
from mvw_cli.evaluate.rules import first_letter, stated_letter
from mvw_cli.images.reading import open_image
from mvw_cli.profiles.resolution import parse_set, resolve
from mvw_cli.profiles.store import known_profiles
from mvw_cli.session import open_session
from mvw_cli.text import did_you_mean

if TYPE_CHECKING:
    from mvw_cli.profiles.resolution import Resolved

_LETTERS = string.ascii_uppercase[:8]
"""Of the options that the harness knows."""


def main(arguments: Sequence[str]) -> int:
    """Register the models that the command line names, and run the harness; return its exit code.

    A model's name that is none of mvw's is the harness's own.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--mvw-profile", action="append", default=[])
    own.add_argument("--mvw-set", action="append", default=[])
    given, rest = own.parse_known_args(arguments)
    names = _models(rest)
    try:
        models = named_models(names, given.mvw_profile, parse_set(given.mvw_set))
        found = find_spec("vlmeval")
        if found is None or found.origin is None:
            raise UsageProblem(
                "VLMEvalKit is not installed",
                cause="there is no package vlmeval in this environment",
                hint="pip install ms-vlmeval",
            )
        register(models, names)
    except MvwError as error:
        console.error(error.message, error.cause, error.hint)
        return error.exit_code
    sys.argv[1:] = rest
    package = Path(found.origin).parent
    if (package / "__main__.py").exists():
        runpy.run_module("vlmeval", run_name="__main__", alter_sys=True)
    else:  # a checkout of the harness, which has its script beside the package
        runpy.run_path(str(package.parent / "run.py"), run_name="__main__")
    return ExitCode.OK


def _models(words: Sequence[str]) -> list[str]:
    """List the names that stand after `--model`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", default=[])
    names: list[str] = parser.parse_known_args(words)[0].model
    return names


def named_models(
    names: Sequence[str], files: Sequence[str], flags: Mapping[str, object]
) -> dict[str, Resolved]:
    """Resolve the names that are a profile's, with or without a withdrawal behind.

    Args:
        files: profiles that are known by the names of their files.
        flags: as of `resolve`, for all of them.

    Raises:
        UsageProblem: a profile, key or value that is wrong.
        PluginProblem: an adapter or policy can't be used.
    """
    known = {name: name for name in known_profiles()} | {Path(one).stem: one for one in files}
    found = {}
    for name in names:
        withdrawal: dict[str, object] = {}
        profile = known.get(name)
        told = re.fullmatch(r"(.+)-(?:mvw([1-9]\d{0,8})|never)", name)
        if profile is None and told is not None:
            profile = known.get(told[1])
            withdrawal = {"withdrawal.policy": "none"}
            if told[2] is not None:
                withdrawal = {"withdrawal.policy": "mvw", "withdrawal.m": int(told[2])}
        if profile is not None:
            found[name] = resolve(profile, {**flags, **withdrawal})
    return found


def register(models: Mapping[str, Resolved], names: Sequence[str]) -> None:
    """Put models among the harness's; this imports it, which takes a while.

    Raises:
        UsageProblem: one of the names is neither.
    """
    from vlmeval.config import supported_VLM

    supported_VLM.update({name: partial(_model_class(), one) for name, one in models.items()})
    for name in names:
        if name not in supported_VLM:
            profiles = ", ".join(known_profiles())
            raise UsageProblem(
                f"There is no model {name}",
                cause=did_you_mean(
                    name,
                    known_profiles(),
                    otherwise=f"it is none of VLMEvalKit's, and no PROFILE, PROFILE-mvwM or "
                    f"PROFILE-never of the profiles {profiles}",
                ),
                hint="mvw list profiles",
            )


def _model_class() -> Callable[..., Any]:
    """Make the class that the harness makes its model of: the base class is the harness's."""
    from vlmeval.vlm.base import BaseModel

    class Mvw(BaseModel):
        INTERLEAVE = True  # several images: they come first in the prompt, and all text after them

        def __init__(self, resolved: Resolved, **ignored: Any) -> None:
            super().__init__()
            self._images = resolved.profile.images
            self._session = open_session(resolved.profile, policy=resolved.policy)

        def generate_inner(
            self, message: Sequence[Mapping[str, str]], dataset: str | None = None
        ) -> str:
            limits = self._images.model_dump(include={"max_pixels", "max_decoded_pixels"})
            images = [
                open_image(part["value"], **limits).image
                for part in message
                if part["type"] == "image"
            ]
            question = "\n".join(part["value"] for part in message if part["type"] == "text")
            request = self._session.request(images, question)
            completion = summarise(self._session.run([request]))
            return with_stated_letter(self._session.parse(completion.text).answer, dataset)

    return Mvw


def with_stated_letter(answer: str, dataset: str | None) -> str:
    """Write an answer so that the harness's rule for WeMath reads the letter that it states.

    That rule takes the first character after the last `Answer`, or of the whole text without that
    word. Other answers, and those that state no letter, stay as they are.
    """
    public = PUBLIC.get(dataset or "")
    if public is None or public.rule != "wemath":
        return answer
    letter = stated_letter(answer, _LETTERS)
    if letter is None or letter == first_letter(answer):
        return answer
    return f"{answer}\nAnswer: {letter}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
