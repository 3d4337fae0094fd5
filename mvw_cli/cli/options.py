"""Options that several commands have: those of every command, and those that set keys of a profile.

Of the latter each is one dotted key. None has a default of its own, so that an option that is not
given leaves the profile's value alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import click

from mvw_cli import console
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

ARGUMENTS = "mvw.arguments"
"""Key of the command's own words in `Context.meta`."""
CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_POSITIVE, _FROM_ZERO = click.IntRange(min=1), click.IntRange(min=0)

NEVER = "never"
"""Among tokens after which to withdraw: not at all."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table."
)
allow_pickle_option = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read pickled weights where there are no others. Only from people you trust.",
)
random_weights_option = click.option(
    "--random-weights",
    is_flag=True,
    help="Measure speed and memory at the model's shape, without its weights. Answers are noise.",
)


def _configure(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name:
        setattr(console.settings, parameter.name, True)


def common_options(command: CommandT) -> CommandT:
    """Add -q, --no-color and --debug to a command; they act at once."""
    flags = (
        (("-q", "--quiet"), None, "Nothing on stderr but errors."),
        (("--no-color",), None, "No colours, also with a terminal.  [env var: NO_COLOR]"),
        (("--debug",), "MVW_DEBUG", "Show the traceback of an error."),
    )
    for names, variable, help_text in reversed(flags):
        option = click.option(
            *names,
            is_flag=True,
            envvar=variable,
            show_envvar=True,
            is_eager=True,  # before --help, which may have to warn of a broken plugin
            expose_value=False,
            callback=_configure,
            help=help_text,
        )
        command = option(command)
    return command


class FloatRange(click.FloatRange):
    """A range of numbers; infinity and what is no number lie outside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


class Size(click.ParamType[Any, Any]):
    """A number of bytes, as 800MiB or 20G."""

    name = "size"
    _units: ClassVar = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value), re.IGNORECASE)
        size = 0.0 if found is None else float(found[1]) * self._units[found[2].lower()]
        if not 1 <= size < 2**63:
            self.fail(f"{value!r} is no size; write it as 800MiB or 20GiB.", param, ctx)
        return int(size)


class Listed(click.ParamType[Any, Any]):
    """Values with commas between them, each once, in the order given.

    Args:
        of: what each value is.
        word: a value that is taken as it is.
    """

    def __init__(self, of: click.ParamType[Any, Any], name: str, word: str | None = None) -> None:
        self.name = name
        self._of, self._word = of, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail("it is empty.", param, ctx)
        found = (
            part if part == self._word else self._of.convert(part, param, ctx) for part in parts
        )
        return tuple(dict.fromkeys(found))


class Compositions(click.ParamType[Any, Any]):
    """Policies with commas between them; a comma before KEY= goes on with the fields of one."""

    name = "policies"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mvw_cli.profiles.policy_line import split_compositions

        if isinstance(value, tuple):
            return value
        return split_compositions(str(value)) or self._empty(param, ctx)

    def _empty(self, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        self.fail("it is empty.", param, ctx)


def arm_options(policies: str) -> Callable[[CommandT], CommandT]:
    """Make what adds the withdrawals that a command compares: `moments`, `until` and `policies`.

    Args:
        policies: help of `--policy`.
    """
    options = (
        click.option(
            "-m",
            "--m",
            "moments",
            metavar="N,…",
            type=Listed(_POSITIVE, "moments", NEVER),
            help="Withdraw after so many tokens; several to compare, as 8,16,32,never.",
        ),
        click.option("--until", metavar="TAG", multiple=True, help="Withdraw at TAG; repeatable."),
        click.option(
            "--policy",
            "policies",
            metavar="POLICY,…",
            type=Compositions(),
            multiple=True,
            help=policies,
        ),
    )

    def add(command: CommandT) -> CommandT:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def complete_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a profile, or else let the shell complete a path."""
    from click.shell_completion import CompletionItem

    from mvw_cli.profiles.store import known_profiles

    found = [CompletionItem(name) for name in known_profiles() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _complete(kind: Literal["adapters", "policies"]) -> Callable[..., list[CompletionItem]]:
    """Make what completes the name of an adapter or policy, also after others and a `+`."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from mvw_cli.plugins import load_plugins
        from mvw_cli.text import one_line

        before, plus, last = incomplete.rpartition("+")
        return [
            CompletionItem(before + plus + entry.info.name, help=one_line(entry.info.summary))
            for entry in getattr(load_plugins(), kind)
            if entry.info.name.startswith(last)
        ]

    return complete


class Remembering(click.Command):
    """A command that keeps the words it was called with, for hints and reports."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


# -- keys of a profile ---------------------------------------------------------------------------


class _Flag:
    """An option that sets one key of a profile."""

    def __init__(self, key: str, *names: str, **options: Any) -> None:
        self.key, self.names = key, names
        self.parameter = key.replace(".", "_")
        self.option = click.option(*names, self.parameter, **options)


_WITHDRAWAL = (
    _Flag(
        "withdrawal.m",
        "-m",
        "--m",
        metavar="N",
        type=_POSITIVE,
        help="Withdraw the vision tokens after N generated tokens.",
    ),
    _Flag(
        "withdrawal.until",
        "--until",
        metavar="TAG",
        help="Withdraw once TAG, as </CAPTION>, is written.",
    ),
    _Flag(
        "withdrawal.policy",
        "--policy",
        metavar="NAME[:KEY=VALUE,…]",
        multiple=True,
        shell_complete=_complete("policies"),
        help="Withdrawal policy, as mvw:m=16; `mvw list policies` shows them. Repeatable: they act "
        "in this order.",
    ),
)
_OTHERS = (
    _Flag("model", "--model", metavar="ORG/NAME", help="Weights: a Hugging Face id, or a folder."),
    _Flag(
        "adapter",
        "--adapter",
        metavar="NAME",
        shell_complete=_complete("adapters"),
        help="Model family; `mvw list adapters` shows them.",
    ),
    _Flag(
        "generation.max_new_tokens",
        "--max-new-tokens",
        metavar="N",
        type=_POSITIVE,
        help="Generate at most N tokens.",
    ),
    _Flag(
        "generation.temperature",
        "--temperature",
        metavar="T",
        type=FloatRange(min=0),
        help="0 takes the likeliest token; above 0 samples.",
    ),
    _Flag(
        "generation.top_p",
        "--top-p",
        metavar="P",
        type=FloatRange(min=0, max=1, min_open=True),
        help="Sample from the likeliest tokens of probability P together.",
    ),
    _Flag("generation.seed", "--seed", metavar="N", type=_FROM_ZERO, help="Seed of the sampling."),
    _Flag(
        "engine",
        "--engine",
        metavar="mvw|vllm|auto",
        help="What runs the model: mvw's own engine, or vLLM.",
    ),
    _Flag("device", "--device", metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N."),
    _Flag("device_map", "--device-map", metavar="auto", help="Spread the layers over all GPUs."),
    _Flag("dtype", "--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16."),
    _Flag(
        "quantization",
        "--quantization",
        metavar="8bit|4bit",
        help="Hold linear layers in so many bits.",
    ),
    _Flag("attention", "--attention", metavar="KERNEL", help="auto, sdpa, eager or flash."),
)
KEYS = {name: flag.key for flag in (*_WITHDRAWAL, *_OTHERS) for name in flag.names}
"""By option, the key of a profile that it sets."""


_PROFILE = click.option(
    "--profile",
    metavar="NAME|FILE",
    shell_complete=complete_profiles,
    help="Profile to run; `mvw list profiles` shows them.  [env var: MVW_PROFILE]",
)
_NO_WITHDRAWAL = click.option(
    "--no-withdrawal", is_flag=True, help="Keep the vision tokens to the end (--policy none)."
)
_SET = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set any key of the profile, as generation.top_k=20; repeatable.",
)
_OFFLINE = click.option(
    "--offline",
    is_flag=True,
    envvar="MVW_OFFLINE",
    show_envvar=True,
    help="Ask no network: use what is on this machine.",
)


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as `profile`, a name, and `flags` by dotted key."""
    return _with_options(command, _WITHDRAWAL)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same without the withdrawal, for commands that have their own words for it."""
    return _with_options(command, ())


def _with_options(command: Callable[..., Any], withdrawal: Sequence[_Flag]) -> Callable[..., Any]:
    flags = [*withdrawal, *_OTHERS]

    @functools.wraps(command)
    def call(
        *args: Any,
        profile: str | None,
        settings: tuple[str, ...],
        offline: bool,
        no_withdrawal: bool = False,
        **given: Any,
    ) -> Any:
        if offline:
            from mvw_cli.cli.process import stay_offline

            stay_offline()
        chosen = {flag.key: given.pop(flag.parameter) for flag in flags}
        if policies := chosen.pop("withdrawal.policy", ()):
            chosen["withdrawal.policy"] = "+".join(policies)
        merged = _merged(chosen, settings, no_withdrawal)
        return command(*args, profile=profile, flags=merged, **given)

    wrapped: Callable[..., Any] = call
    options = [flag.option for flag in withdrawal] + ([_NO_WITHDRAWAL] if withdrawal else [])
    options += [flag.option for flag in _OTHERS]
    for option in reversed([_PROFILE, *options, _SET, _OFFLINE]):
        wrapped = option(wrapped)
    return wrapped


def _merged(
    flags: Mapping[str, object], settings: tuple[str, ...], no_withdrawal: bool
) -> dict[str, object]:
    """Put options and `--set` together; what contradicts itself is refused."""
    merged = {key: value for key, value in flags.items() if value is not None}
    if no_withdrawal:
        if merged.get("withdrawal.policy", "none") != "none":
            raise _conflict("--no-withdrawal", "--policy")
        merged["withdrawal.policy"] = "none"
    if settings:
        from mvw_cli.profiles.resolution import parse_set

        for key, value in parse_set(settings).items():
            if key in merged:
                option = next(name for name, sets in reversed(KEYS.items()) if sets == key)
                if no_withdrawal and key == "withdrawal.policy":
                    option = "--no-withdrawal"
                raise _conflict(f"--set {key}", option)
            merged[key] = value
    return merged


def _conflict(one: str, other: str) -> UsageProblem:
    command = click.get_current_context().command_path
    return UsageProblem(
        f"{one} and {other} contradict each other",
        cause="give one of them",
        hint=f"{command} --help",
    )
