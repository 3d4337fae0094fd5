"""`mvw serve`: its options. What it does with them is in `run.py`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from mvw_cli.adapter import ModelSpec
from mvw_cli.cli.options import (
    FloatRange,
    Size,
    allow_pickle_option,
    common_options,
    profile_options,
    random_weights_option,
)

_BOUNDS = ("queue", "timeout", "read_timeout", "max_body", "max_images", "max_pixels")
_OWN = (*_BOUNDS, "kv_memory", "allow_urls")
"""Options that vLLM's own server does not have."""
_SECONDS = FloatRange(0, 86400, min_open=True)
_POSITIVE = click.IntRange(min=1)


@click.command(short_help="Answer questions over HTTP, in OpenAI's form.")
@profile_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "--api-key",
    metavar="TOKEN",
    envvar="MVW_API_KEY",
    show_envvar=True,
    help="Answer only requests that bring this bearer token.",
)
@click.option(
    "--slots",
    metavar="N",
    type=_POSITIVE,
    help="Requests that decode at the same time.  [default: by device]",
)
@click.option(
    "--kv-memory", metavar="SIZE", type=Size(), help="Memory for the KV cache, as 800MiB or 20GiB."
)
@click.option(
    "--queue",
    metavar="N",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Requests that wait beside those; more are answered with status 429.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=_SECONDS,
    default=600.0,
    show_default=True,
    help="Give a request up that is not answered in this time.",
)
@click.option(
    "--read-timeout",
    metavar="SECONDS",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    help="The same for one that does not come whole, and for fetching an image.",
)
@click.option(
    "--max-body",
    metavar="SIZE",
    type=Size(),
    default="32MiB",
    show_default=True,
    help="Bytes of a request at most, its images in base64 included.",
)
@click.option(
    "--max-images",
    metavar="N",
    type=_POSITIVE,
    default=16,
    show_default=True,
    help="Images of a request at most.",
)
@click.option(
    "--max-pixels",
    metavar="N",
    type=_POSITIVE,
    default=ModelSpec().max_decoded_pixels,
    show_default=True,
    help="Pixels of a request's images together at most, as they are decoded.",
)
@click.option("--allow-files", metavar="DIR", help="Read file:// URLs of images below DIR.")
@click.option(
    "--allow-urls", is_flag=True, help="Fetch images from the internet, never from this network."
)
@allow_pickle_option
@random_weights_option
@common_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> int:
    """Answer questions over HTTP, in OpenAI's form.

    /v1/chat/completions with images, streaming or not, beside /v1/models, /health and /metrics.
    Requests share the slots of one engine, and each may say when its own vision is withdrawn. The
    address goes to stdout. SIGTERM or Ctrl-C ends it once all that was begun is answered; twice, at
    once. With --engine vllm, vLLM's own server runs with mvw's plugin.

    \b
    Examples:
      mvw serve
      mvw serve --profile qwen2.5-vl-7b --m 16 --port 8080 --slots 32
      mvw serve --model Qwen/Qwen2.5-VL-7B-Instruct --m 16 --engine vllm
    """
    from mvw_cli.cli.serve.run import Task, run

    given = (
        f"--{name.replace('_', '-')}"
        for name in _OWN
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    )
    bounds = {name: options.pop(name) for name in _BOUNDS}
    return run(Task(bounds=bounds, own=tuple(given), **options))
