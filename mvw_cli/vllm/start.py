"""Whether vLLM can serve a profile exactly, and how it is started for one.

Nothing here imports vLLM before it is asked for: it takes seconds, and few have it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.errors import ModelProblem, MvwError, OutOfMemory, UsageProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.vllm.plugin.settings import LEADER

if TYPE_CHECKING:
    from mvw_cli.adapter import ModelSpec
    from mvw_cli.profiles.schema import Profile

INSTALL = "pip install 'mvw[vllm]'"
OWN = "mvw infer IMAGE QUESTION --engine mvw"
_RESERVED = {
    "model": "model",
    "revision": "revision",
    "dtype": "dtype",
    "additional_config": "withdrawal",
    "trust_remote_code": "adapter",
}
"""Arguments of vLLM's engine that have a key of their own in a profile."""
_SHARED = 0.9
"""Of the memory of a device, what several engines on it take together; vLLM takes that much for
one."""
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (ERROR [^\]]*\] )?")
_ERROR = re.compile(r"^[\w.]*(Error|Exception): .")
_DIED = re.compile(r"Worker proc \S+ died unexpectedly \(exit code: -(?!15\b)\d+\)")
"""Killed, and not by vLLM itself, whose other processes end when one has failed."""
_FITS = re.compile(r"estimated maximum model length is (\d+)")


def installed() -> bool:
    """Whether vLLM can be imported here; found without importing it."""
    return find_spec("vllm") is not None


def why_not(profile: Profile, policy: WithdrawalPolicy) -> str | None:
    """Return why vLLM can't serve a profile as it stands, or None; imports nothing of vLLM."""
    if reason := _own_policy(policy):
        return reason
    keys = {
        "attention": profile.attention != "auto",
        "cross_attention": profile.cross_attention != "skip",
        "device_map": profile.device_map is not None,
        "quantization": profile.quantization is not None,
        "images.min_pixels": profile.images.min_pixels is not None,
    }
    asked = [key for key, given in keys.items() if given]
    if asked:
        return f"{', '.join(asked)} is for mvw's own engine: vLLM has arguments of its own"
    return "vLLM does not run on mps" if profile.device == "mps" else None


def _own_policy(policy: WithdrawalPolicy) -> str | None:
    """Return why a policy is not for vLLM, or None."""
    if not isinstance(policy, Mvw | NoWithdrawal):
        return f"the policy {policy.name} is had in mvw's own engine only"
    if isinstance(policy, Mvw) and not isinstance(policy.until, str | None):
        return "a tag for each image is had in mvw's own engine only"
    return None


def choose(profile: Profile, policy: WithdrawalPolicy) -> tuple[str, str, Any]:
    """Choose the engine of `engine: auto`; return its name, why, and vLLM's model configuration."""
    from mvw_cli.plugins import load_adapter
    from mvw_cli.profiles.resolution import model_spec

    if not installed():
        return "mvw", "vLLM is not installed", None
    if reason := why_not(profile, policy):
        return "mvw", reason, None
    try:
        config = load_adapter(profile.adapter).shape(model_spec(profile))
    except MvwError as error:
        return "mvw", error.message, None
    if reason := unsupported(config):
        return "mvw", reason, None
    return "vllm", "vLLM has the model and can be exact", config


def unsupported(config: Any) -> str | None:
    """Return why vLLM can't serve a model of this configuration exactly, or None."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    # A window counts entries: once vision is gone, older text would come back into it.
    if kinds - {"full_attention"} or (window and not kinds):
        return "withdrawal in vLLM is not exact with sliding windows or other kinds of layers"
    if not installed():
        return None
    with silenced():
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.transformers_utils import model_arch_config_convertor as known

        plain = known.ModelArchConfigConvertorBase
        kind = known.MODEL_ARCH_CONFIG_CONVERTORS.get(config.model_type, plain)
        both_ways = kind(config, text).is_mm_prefix_lm()

    names = list(getattr(config, "architectures", None) or ())
    if not names:  # of configurations that are known by heart
        names = [f"{type(config).__name__.removesuffix('Config')}ForConditionalGeneration"]
    if not set(names) & set(ModelRegistry.get_supported_archs()):
        return f"vLLM does not have {' or '.join(names) or 'the model'}"
    if both_ways:
        return "withdrawal in vLLM is not exact with images that are attended to both ways"
    return None


def check(profile: Profile, policy: WithdrawalPolicy) -> None:
    """Refuse what vLLM can't do, before anything is loaded.

    Raises:
        UsageProblem: with the reason.
    """
    if not installed():
        raise UsageProblem(
            "vLLM is not installed", cause=f"engine: vllm needs it: {INSTALL}", hint=OWN
        )
    if reason := why_not(profile, policy):
        raise refused(reason)
    for name, key in _RESERVED.items():
        if name in profile.engine_args.given:
            raise UsageProblem(
                f"engine_args has {name}",
                cause=f"the profile's key `{key}` says it",
                hint="mvw show --schema",
            )


def refused(reason: str) -> UsageProblem:
    """Make the error of a profile that vLLM can't serve."""
    return UsageProblem("vLLM can't serve this profile", cause=reason, hint=OWN)


def replica_gpus(profile: Profile) -> int:
    """Return over how many GPUs one engine of a profile is spread."""
    return 1 if profile.engine == "mvw" else _spread(profile.engine_args.given)


def over_ray(profile: Profile) -> bool:
    """Whether vLLM itself asks Ray for the GPUs of an engine, on whichever machines they are."""
    backend = profile.engine_args.given.get("distributed_executor_backend")
    return profile.engine != "mvw" and backend == "ray"


def _spread(engine_args: Mapping[str, Any]) -> int:
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    sizes = [engine_args.get(name) for name in names]
    return prod(size for size in sizes if isinstance(size, int) and size > 1)


def withdrawal_settings(policy: WithdrawalPolicy) -> dict[str, Any]:
    """Turn a policy into what the plugin reads from `additional_config`.

    Raises:
        UsageProblem: the policy is not for vLLM.
    """
    if reason := _own_policy(policy):
        raise refused(reason)
    if not isinstance(policy, Mvw):
        return {}
    given = {"m": policy.m, "until": policy.until, "min": policy.min, "max": policy.max}
    return {key: value for key, value in given.items() if value is not None}


def engine_arguments(
    spec: ModelSpec,
    policy: WithdrawalPolicy,
    *,
    slots: int | None,
    engine_args: Mapping[str, Any],
    kv_bytes: int | None = None,
    sharers: int = 1,
) -> dict[str, Any]:
    """List the arguments of vLLM's engine; what the user gives goes last.

    Args:
        slots, kv_bytes, sharers: as of `open_session`.
    """
    until = isinstance(policy, Mvw) and policy.until is not None
    given: dict[str, Any] = {
        "model": spec.model,
        "revision": spec.revision,
        "dtype": spec.dtype,
        "seed": 0,
        "additional_config": {"mvw": withdrawal_settings(policy)},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # Weights from pickles are refused as everywhere, unless the user allows them.
        "load_format": "auto" if spec.allow_pickle else "safetensors",
    }
    if spec.random_weights:
        given["load_format"] = "dummy"
    if slots is not None:
        given["max_num_seqs"] = slots
    if kv_bytes is not None:
        given["kv_cache_memory_bytes"] = kv_bytes
    elif sharers > 1:
        given["gpu_memory_utilization"] = round(_SHARED / sharers, 3)
    if until:
        given["async_scheduling"] = False  # else a tag is known one pass late
    return given | dict(engine_args)


@dataclass(frozen=True, slots=True)
class Log:
    """What vLLM and its processes write, where the user does not want to see it."""

    handle: int | None
    begin: int = 0
    """What stands before it is about the start, and is over."""

    def last_error(self) -> str | None:
        """Find the last error that was written: what vLLM raises here names none of it."""
        if self.handle is None:
            return None
        length = os.fstat(self.handle).st_size - self.begin
        written = os.pread(self.handle, length, self.begin).decode(errors="replace")
        lines = [_PREFIX.sub("", line) for line in written.splitlines()]
        died = [found[0] for line in lines if (found := _DIED.match(line))]
        errors = [line.partition(": ")[2] for line in lines if _ERROR.match(line)]
        errors = [error for error in errors if error != "cancelled"]  # a wait, as others died
        # Others fail of it afterwards.
        return next(iter((*died, *reversed(errors))), None)


def start(arguments: Mapping[str, Any], device: str) -> tuple[Any, Log]:
    """Start vLLM's engine; imports it. Returns it, and where its processes write.

    Args:
        device: of the profile, as for `set_environment`.

    Raises:
        UsageProblem: an argument that it does not have.
        ModelProblem: it can't serve the model, or not exactly.
        OutOfMemory: the weights or one whole request do not fit.
    """
    set_environment(device, arguments)
    log = _log()
    with _explained(arguments, log), _writing_to(log.handle):
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        unknown = sorted(set(arguments) - set(EngineArgs.__dataclass_fields__))
        if unknown:
            raise UsageProblem(
                f"engine_args: vLLM has no argument {', '.join(unknown)}",
                cause="they are handed on to vLLM's engine under its own names",
                hint="mvw show --schema",
            )
        from mvw_cli.vllm.plugin.touchpoints import tell_of_death

        # As `vllm.LLM` starts it: budgets of tokens and requests for throughput, no statistics.
        options = EngineArgs(**{"disable_log_stats": True, **arguments})
        engine = LLMEngine.from_engine_args(options, usage_context=UsageContext.LLM_CLASS)
        tell_of_death(engine)
    return engine, Log(log.handle, 0 if log.handle is None else os.fstat(log.handle).st_size)


def set_environment(device: str, engine_args: Mapping[str, Any]) -> None:
    """Prepare what vLLM's processes get from this one, whose end is theirs.

    Args:
        device: of the profile; vLLM takes the first GPUs that it sees, so it is shown that one,
            and those after it that it needs.
    """
    os.environ[LEADER] = str(os.getpid())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the answer
    if device.startswith("cuda:"):
        first, seen = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
        end = first + _spread(engine_args)
        shown = seen.split(",")[first:end] if seen else map(str, range(first, end))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(shown)


def _log() -> Log:
    """Make a file for what vLLM and its processes write, unless the user wants to see it."""
    if "VLLM_LOGGING_LEVEL" in os.environ:
        return Log(None)
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    with tempfile.NamedTemporaryFile(prefix="mvw-vllm-", suffix=".log") as file:
        # Without a name from here on, so that nothing is left of it, whatever ends this process.
        return Log(os.open(file.name, os.O_RDWR | os.O_APPEND))


@contextmanager
def silenced() -> Iterator[None]:
    """Throw away what vLLM writes while it is imported; what it logs later goes to stderr."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # How much it logs is settled by the first import, and whether at all is for `start` to see.
    quiet = "VLLM_LOGGING_LEVEL" not in os.environ
    try:
        if quiet:
            os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        with open(os.devnull, "w") as nowhere, _writing_to(nowhere.fileno()):
            yield
    finally:
        if quiet:
            del os.environ["VLLM_LOGGING_LEVEL"]


@contextmanager
def _writing_to(log: int | None) -> Iterator[None]:
    """Send what this process and those that it starts write to a file, or all to stderr.

    Never to stdout, which is for the answer. The processes keep it; this one is put back.
    """
    kept = os.dup(1), os.dup(2)
    target = os.dup(2 if log is None else log)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(target, 1)
        os.dup2(target, 2)
        console.stderr_fd = kept[1]
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        console.stderr_fd = 2
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for handle in (*kept, target):
            os.close(handle)


@contextmanager
def _explained(arguments: Mapping[str, Any], log: Log) -> Iterator[None]:
    """Turn the ways in which vLLM does not start into one error with a way out."""
    try:
        yield
    except MvwError:
        raise
    except Exception as error:
        if found := _wrong_argument(error, arguments):
            name, why = found
            raise UsageProblem(
                f"engine_args: vLLM refuses {name}", cause=why, hint="mvw show --schema"
            ) from error
        said = log.last_error() or " ".join(str(error).split()) or type(error).__name__
        what = f"vLLM does not start with {arguments['model']}"
        if "KV cache" in said or "kv cache" in said or "memory" in said:
            raise OutOfMemory(what, cause=said[:300], hint=_smaller(said)) from error
        raise ModelProblem(what, cause=said[:300], hint=OWN) from error


def _wrong_argument(error: Exception, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find the argument that vLLM's own checks (pydantic's) have refused, and why."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return None
    for one in error.errors():
        name = next(iter(one["loc"]), None)
        if name in arguments:
            return str(name), f"{one['msg']}, and it is {one['input']!r}"
    return None


def _smaller(said: str) -> str:
    """Name what to change where vLLM says that memory does not do."""
    fits = _FITS.search(said)
    change = "max_model_len=8192"
    if fits is not None and int(fits[1]) > 0:
        change = f"max_model_len={fits[1]}"
    elif "ncrease" in said and "utilization" in said:
        change = "gpu_memory_utilization=0.97"
    elif "--kv-cache-memory-bytes" in said:
        change = "kv_cache_memory_bytes=1073741824"
    elif "utilization" in said:
        change = "gpu_memory_utilization=0.5"
    return f"mvw infer IMAGE QUESTION --engine vllm --set engine_args.{change}"
