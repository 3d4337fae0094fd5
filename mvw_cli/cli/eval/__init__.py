"""`mvw eval`: its arguments and options. What it does with them is in `run.py`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from mvw_cli.cli.batch import column_options, serving_options
from mvw_cli.cli.options import (
    ARGUMENTS,
    Remembering,
    arm_options,
    common_options,
    model_options,
)

_COUNT = click.IntRange(min=1)
_COLUMNS = ("image_column", "question_column", "id_column", "answer_column")
_SCORING = (
    *("data", "limit", "scorer", "judge", "judge_model", "output", "rescore", "offline"),
    *("html", "as_json", "verbose", *_COLUMNS),
)
"""Parameters that `--rescore` goes by as well."""


@click.command("eval", cls=Remembering, short_help="Score answers on a benchmark, against m.")
@click.argument(
    "data",
    metavar="DATA",
    help="A VLMEvalKit .tsv, .jsonl, .parquet, dataset folder, or a name as WeMath.",
)
@arm_options("Other policies to compare, as fastv:layer=2,random,downsample. Repeatable.")
@click.option("--no-image", is_flag=True, help="Ask without the images as well, as a control.")
@model_options
@click.option("--limit", metavar="N", type=_COUNT, help="Take the first N questions only.")
@click.option(
    "--scorer",
    metavar="RULE",
    help="choice, exact, numeric, anls, yes-no, contains, vqa, wemath, mmmu, mathvista, or a "
    "function as package.module:function.  [default: by the data]",
)
@click.option(
    "--judge",
    metavar="URL",
    help="Let a model behind an OpenAI-compatible address decide what the rule can't read.",
)
@click.option("--judge-model", metavar="NAME", help="The model to ask there.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    help="Folder of the records and the report.  [default: NAME.eval]",
)
@click.option(
    "--rescore", is_flag=True, help="Score what is in DIR again; no model is loaded or asked."
)
@serving_options
@column_options
@click.option("--html", metavar="FILE", help="Write one page that opens offline.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Print every table, not one screen.")
@common_options
@click.pass_context
def eval_(
    context: click.Context, /, profile: str | None, flags: dict[str, object], **options: Any
) -> int:
    """Answer a benchmark under several withdrawals, and say what each keeps right.

    Every arm's answers are kept as they come, so that the same command goes on after Ctrl-C, and
    more arms can follow. Each arm is held against the one that never withdraws, question by
    question: accuracy with Wilson's interval, the change with Tango's and McNemar's test, tokens,
    seconds and bytes of the KV cache. Where VLMEvalKit has a rule, its figure stands beside.

    \b
    Examples:
      mvw eval WeMath --profile llava-cot --m 16,32,64,never
      mvw eval MMStar.tsv --model ORG/NAME --m 16 --no-image --policy fastv:layer=2,random
      mvw eval samples/questions.jsonl --m 8,64,never --html report.html
      mvw eval WeMath --rescore --judge http://localhost:8000/v1 --judge-model NAME
    """
    from mvw_cli.cli.eval.run import Task, run

    columns = {name: options.pop(name) for name in _COLUMNS}
    known = set(Task.__dataclass_fields__)
    unused = tuple(
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in {*context.params} - {*_SCORING}
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    )
    own = {name: options.pop(name) for name in [*options] if name in known}
    return run(
        Task(
            words=tuple(context.meta[ARGUMENTS]),
            profile=profile,
            flags=flags,
            columns=columns,
            serving=options,
            unused=unused if own["rescore"] else (),
            **own,
        )
    )
