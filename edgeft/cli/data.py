"""`edgeft data`: data files -> what is wrong with them; the same without it, split, mixed, or judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import build, json_option, options_of, print_json, require_options
from edgeft.data.options import CheckOptions, CleanOptions, MixOptions, SplitOptions
from edgeft.feedback.options import LabelOptions
from edgeft.progress import say

FILES = click.argument(
    "data", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)


@click.group("data")
def command() -> None:
    """Check, clean, split, mix and label data files before training on them.

    \b
    edgeft data check chats.jsonl
    """


@command.command("check")
@FILES
@options_of(
    CheckOptions,
    skip=("data", "test_sets"),
    base=click.STRING,
    cutoff_length=click.IntRange(min=8),
    near=click.FloatRange(0, 1),
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the findings as an HTML page, too.",
)
@json_option
@configurable
@click.pass_context
def check_command(
    ctx: click.Context, /, data: tuple[Path, ...], page: Path | None, as_json: bool, **options: Any
) -> None:
    """Look for what makes training on the files a mistake. Exit code 3 where there is such a thing.

    \b
    edgeft data check chats.jsonl --base smollm2-135m --against items.jsonl --page chats.html
    """
    from edgeft.base.resolve import resolve_base
    from edgeft.benchmarks.suites import suite_tests
    from edgeft.data.checking import check
    from edgeft.files import write_text
    from edgeft.report import data_page

    options["base"] = options["base"] and resolve_base(options["base"])
    options["against"] = tuple(map(Path, options["against"]))
    report = check(build(CheckOptions, options, data=data, test_sets=suite_tests()))
    if page is not None:
        write_text(page, data_page.html(report))
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(data_page.text(report))
    if page is not None:
        say(f"page: {page}")
    ctx.exit(report.exit_code)


OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what --output holds.")


@command.command("clean")
@FILES
@options_of(CleanOptions, skip=("data",), near=click.FloatRange(0, 1, min_open=True))
@OVERWRITE
@json_option
@configurable
def clean_command(data: tuple[Path, ...], overwrite: bool, as_json: bool, **options: Any) -> None:
    """Leave out or mend rows by named rules, each with its count.

    \b
    edgeft data clean raw.jsonl --output clean.jsonl
    edgeft data clean raw.jsonl --output clean.jsonl --rules default,mask-personal-data,near-duplicates
    """
    from edgeft.data.cleaning import clean

    options["against"] = tuple(map(Path, options["against"]))
    result = clean(build(CleanOptions, options, data=data), overwrite)
    if as_json:
        print_json(result.to_json())
        return
    for rule, count in result.counts.items():
        say(f"{rule}: {count} rows")
    say(f"{result.kept} of {result.rows} rows kept")
    click.echo(result.output)


@command.command("split")
@FILES
@options_of(
    SplitOptions,
    skip=("data",),
    validation=click.FloatRange(0, 1, max_open=True),
    test=click.FloatRange(0, 1, max_open=True),
)
@OVERWRITE
@json_option
@configurable
def split_command(data: tuple[Path, ...], overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write train, validation and test files; rows that are added later move no others.

    \b
    edgeft data split chats.jsonl --output splits --validation 0.1 --test 0.1
    """
    from edgeft.data.partition import split_files

    result = split_files(build(SplitOptions, options, data=data), overwrite)
    if as_json:
        print_json(result.to_json())
        return
    for stratum, splits in result.strata.items():
        say(f"{stratum or '(empty)'}: " + ", ".join(f"{name} {n}" for name, n in splits.items()))
    for name, rows in result.splits.items():
        say(f"{name}: {rows} rows")
        click.echo(str(Path(result.output) / f"{name}.jsonl"))


@command.command("mix")
@click.argument("data", nargs=-1, required=True, metavar="FILE[=WEIGHT]...")
@options_of(
    MixOptions,
    skip=("data",),
    temperature=click.FloatRange(min=0, min_open=True),
    replay_share=click.FloatRange(0, 1, min_open=True, max_open=True),
    rows=click.IntRange(min=1),
)
@OVERWRITE
@json_option
@configurable
@click.pass_context
def mix_command(
    ctx: click.Context, /, data: tuple[str, ...], overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Mix files by weights or a temperature, with general data against forgetting.

    \b
    edgeft data mix task.jsonl=3 other.jsonl --replay general.jsonl --output mix.jsonl
    """
    from edgeft.data.mixing import mix

    require_options(ctx, replay_share="replay")
    options["replay"] = tuple(map(Path, options["replay"]))
    result = mix(build(MixOptions, options, data=data), overwrite)
    if as_json:
        print_json(result.to_json())
        return
    total = sum(result.rows.values())
    for name, rows in result.rows.items():
        say(f"{name}: {rows} rows ({rows / total:.1%}), of {result.available[name]}")
    click.echo(result.output)


@command.command("label")
@options_of(
    LabelOptions,
    model=click.Path(path_type=Path),
    clients=click.IntRange(min=1),
    judge_tokens=click.IntRange(min=1),
    max_tokens=click.IntRange(min=1),
    limit=click.IntRange(min=1),
    timeout=click.FloatRange(min=0, min_open=True),
    temperature=click.FloatRange(min=0, min_open=True),
)
@OVERWRITE
@json_option
@configurable
def label_command(overwrite: bool, as_json: bool, **options: Any) -> None:
    """Let a judge choose the better of two answers: preference pairs for edgeft train --objective dpo.

    \b
    edgeft data label --data answers.jsonl --judge http://127.0.0.1:8080/v1 --output pairs.jsonl
    edgeft data label --data prompts.jsonl --model q8_0.gguf --judge https://api.example.com/v1 \\
        --judge-model large --api-key-env JUDGE_KEY --output pairs.jsonl
    """
    from edgeft.feedback.labelling import label

    result = label(build(LabelOptions, options), overwrite)
    if as_json:
        print_json(result.to_json())
        return
    for outcome, count in result.outcomes.items():
        say(f"{outcome}: {count} rows")
    for name, share in (
        ("the same verdict in both positions", result.self_agreement),
        ("verdicts for the first position", result.first_position),
        ("agreement with the rows' labels", result.label_agreement),
    ):
        if share:
            say(f"{name}: {share[0]:.1%} (95 % {share[1]:.1%} to {share[2]:.1%})")
    click.echo(result.output)
