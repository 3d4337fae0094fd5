"""Options that several commands have: those of every command, and those that set keys of a profile.

Of the latter each is one dotted key. None has a default of its own, so that an option that is not
given leaves the profile's value alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mvw_cli import console
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mvw_cli.plugins import Entry

ARGUMENTS = "mvw.arguments"
"""Key of the command's own words in `Context.meta`."""
CommandT = TypeVar("CommandT", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table."
)


def _configure(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name:
        console.configure(**{parameter.name: True})


def common_options(command: CommandT) -> CommandT:
    """Add -q, --no-color and --debug to a command; they act at once."""
    flags = (
        (("-q", "--quiet"), "Nothing on stderr but errors."),
        (("--no-color",), "No colours, also with a terminal.  [env var: NO_COLOR]"),
        (("--debug",), "Show the traceback of an error.  [env var: MVW_DEBUG]"),
    )
    for names, help_text in reversed(flags):
        option = click.option(
            *names,
            is_flag=True,
            is_eager=True,  # before --help, which may have to warn of a broken plugin
            expose_value=False,
            callback=_configure,
            help=help_text,
        )
        command = option(command)
    return command


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


def complete_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a profile, or else let the shell complete a path."""
    from click.shell_completion import CompletionItem

    from mvw_cli.profiles.store import known_profiles

    found = [CompletionItem(name) for name in known_profiles() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_adapters(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an adapter."""
    from mvw_cli.plugins import load_plugins

    return _matching(load_plugins().adapters, incomplete)


def complete_policies(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a withdrawal policy, also after others and a `+`."""
    from mvw_cli.plugins import load_plugins

    before, plus, last = incomplete.rpartition("+")
    return _matching(load_plugins().policies, last, before + plus)


def _matching(
    entries: Sequence[Entry[Any]], incomplete: str, before: str = ""
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(before + entry.info.name, help=entry.info.summary)
        for entry in entries
        if entry.info.name.startswith(incomplete)
    ]


class Remembering(click.Command):
    """A command that keeps the words it was called with, for hints and reports."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


# -- keys of a profile ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Flag:
    key: str
    names: tuple[str, ...]
    metavar: str
    help: str
    type: Any = str
    complete: Any = None
    joined_by: str | None = None
    """Repeatable; what lies between the values of one key."""

    @property
    def parameter(self) -> str:
        return self.key.replace(".", "_")


_FLAGS = (
    _Flag(
        "withdrawal.m",
        ("-m", "--m"),
        "N",
        "Withdraw the vision tokens after N generated tokens.",
        click.IntRange(min=1),
    ),
    _Flag("withdrawal.until", ("--until",), "TAG", "Withdraw once TAG, as </CAPTION>, is written."),
    _Flag(
        "withdrawal.policy",
        ("--policy",),
        "NAME[:KEY=VALUE,…]",
        "Withdrawal policy, as mvw:m=16; `mvw list policies` shows them. Repeatable: they act in "
        "this order.",
        complete=complete_policies,
        joined_by="+",
    ),
    _Flag("model", ("--model",), "ORG/NAME", "Weights: a Hugging Face id, or a folder."),
    _Flag(
        "adapter",
        ("--adapter",),
        "NAME",
        "Model family; `mvw list adapters` shows them.",
        complete=complete_adapters,
    ),
    _Flag(
        "generation.max_new_tokens",
        ("--max-new-tokens",),
        "N",
        "Generate at most N tokens.",
        click.IntRange(min=1),
    ),
    _Flag(
        "generation.temperature",
        ("--temperature",),
        "T",
        "0 takes the likeliest token; above 0 samples.",
        click.FloatRange(min=0),
    ),
    _Flag(
        "generation.top_p",
        ("--top-p",),
        "P",
        "Sample from the likeliest tokens of probability P together.",
        click.FloatRange(min=0, max=1, min_open=True),
    ),
    _Flag("generation.seed", ("--seed",), "N", "Seed of the sampling.", click.IntRange(min=0)),
    _Flag("device", ("--device",), "DEVICE", "auto, cpu, mps, cuda or cuda:N."),
    _Flag("device_map", ("--device-map",), "auto", "Spread the layers over all GPUs."),
    _Flag("dtype", ("--dtype",), "DTYPE", "auto, float32, bfloat16 or float16."),
    _Flag("quantization", ("--quantization",), "8bit|4bit", "Hold linear layers in so many bits."),
    _Flag("attention", ("--attention",), "KERNEL", "auto, sdpa, eager or flash."),
)


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as `profile`, a name, and `flags` by dotted key."""
    return _with_options(command, _FLAGS)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same without the withdrawal, for commands that have their own words for it."""
    return _with_options(command, [one for one in _FLAGS if not one.key.startswith("withdrawal.")])


def _with_options(command: Callable[..., Any], flags: Sequence[_Flag]) -> Callable[..., Any]:
    @functools.wraps(command)
    def call(
        *args: Any,
        profile: str | None,
        settings: tuple[str, ...],
        no_withdrawal: bool = False,
        **given: Any,
    ) -> Any:
        chosen = {flag.key: _whole(flag, given.pop(flag.parameter)) for flag in flags}
        merged = _merged(chosen, settings, no_withdrawal)
        return command(*args, profile=profile, flags=merged, **given)

    wrapped: Callable[..., Any] = call
    for option in reversed(_options(flags)):
        wrapped = option(wrapped)
    return wrapped


def _options(chosen: Sequence[_Flag]) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    profile = click.option(
        "--profile",
        metavar="NAME|FILE",
        shell_complete=complete_profiles,
        help="Profile to run; `mvw list profiles` shows them.  [env var: MVW_PROFILE]",
    )
    flags = [
        click.option(
            *flag.names,
            flag.parameter,
            metavar=flag.metavar,
            type=flag.type,
            shell_complete=flag.complete,
            help=flag.help,
            multiple=flag.joined_by is not None,
        )
        for flag in chosen
    ]
    never = click.option(
        "--no-withdrawal", is_flag=True, help="Keep the vision tokens to the end (--policy none)."
    )
    offline = click.option(
        "--offline",
        is_flag=True,
        envvar="MVW_OFFLINE",
        expose_value=False,
        callback=_offline,
        help="Ask no network: use what is on this machine.  [env var: MVW_OFFLINE]",
    )
    any_key = click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Set any key of the profile, as generation.top_k=20; repeatable.",
    )
    withdrawal = sum(flag.key.startswith("withdrawal.") for flag in chosen)
    first, rest = flags[:withdrawal], flags[withdrawal:]
    return [profile, *first, *([never] if first else []), *rest, any_key, offline]


def option_names(key: str) -> list[str]:
    """List the options that set a key of a profile; none where only `--set` does."""
    return [name for flag in _FLAGS if flag.key == key for name in flag.names]


def _whole(flag: _Flag, value: Any) -> Any:
    """Make one value of those of a repeatable option; None where it is not given."""
    if flag.joined_by is None:
        return value
    return flag.joined_by.join(value) if value else None


def _offline(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from mvw_cli.cli.process import stay_offline

        stay_offline()


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
                raise _conflict(f"--set {key}", _option(key, no_withdrawal))
            merged[key] = value
    if merged.get("withdrawal.policy") == "none":
        for key in merged:
            if key.startswith("withdrawal.") and key != "withdrawal.policy":
                option = _option("withdrawal.policy", no_withdrawal)
                raise _conflict(
                    "--policy none" if option == "--policy" else option, _option(key, no_withdrawal)
                )
    return merged


def _option(key: str, no_withdrawal: bool) -> str:
    if key == "withdrawal.policy" and no_withdrawal:
        return "--no-withdrawal"
    return (option_names(key) or [f"--set {key}"])[-1]


def _conflict(one: str, other: str) -> UsageProblem:
    command = click.get_current_context().command_path
    return UsageProblem(
        f"{one} and {other} contradict each other",
        cause="give one of them",
        hint=f"{command} --help",
    )
