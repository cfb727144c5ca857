"""`multiflora bench serve`: how fast a server answers a mix of names; any that speaks OpenAI's."""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Final, get_args

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..load_test.outcome import Outcome
from ..load_test.question import Api
from ..setting_value import parse_path
from ..settings_source import KEY_VARIABLE

_SHOWN_NAMES: Final = 16


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser("bench", help="measure a running server", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    serve = kinds.add_parser(
        "serve",
        help="ask a mix of names and time every token",
        description="Asks any server that speaks OpenAI's API. Its key, if it needs one, is read "
        f"from {KEY_VARIABLE}.",
        allow_abbrev=False,
    )
    serve.set_defaults(run=run)
    _add_questions(serve)
    _add_pace(serve)
    serve.add_argument("-o", "--output", type=parse_path, metavar="FILE", help="figures as JSON")


def _add_questions(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--url", default="http://127.0.0.1:8000", help="the server; default: %(default)s")
    option("--models", nargs="+", default=(), metavar="NAME", help="default: all that it lists")
    option(
        "--mix",
        default="uniform",
        help="uniform, zipf, zipf:EXPONENT, tiers (thirds of the names get 60, 30 and 10 %% of the "
        "requests), or a share per name: 0.7,0.3",
    )
    option("--api", choices=get_args(Api), default="chat", help="default: %(default)s")
    option("--prompt-tokens", type=int, default=64, metavar="N", help="about; default: 64")
    option("--prompt-words", type=int, metavar="N", help="instead, if the server counts no tokens")
    option("--output-tokens", type=int, default=64, metavar="N", help="per answer; default: 64")
    option(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make every answer as long; what a server does not know needs --no-ignore-eos",
    )
    option("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    option("--timeout", type=float, default=600.0, metavar="SECONDS", help="default: 600")


def _add_pace(parser: argparse.ArgumentParser) -> None:
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, metavar="N", help="clients; default: 8")
    pace.add_argument("--request-rate", type=float, metavar="R", help="requests per second")
    option = parser.add_argument
    option("--num-requests", type=int, metavar="N", help="default: 200, or what --duration allows")
    option("--duration", type=float, metavar="SECONDS", help="begin no request after it")
    option("--warmup", type=int, default=0, metavar="N", help="requests that do not count")
    option("--seed", type=int, default=0, metavar="N", help="of names, words and arrivals")


def run(*, kind: str, output: Path | None, models: list[str], **options: Any) -> int:
    """Ask, print a table, write the figures; 1 if a request failed."""
    # Imported late: no other command needs an HTTP client.
    from ..load_test.measurement import Measurement, measure

    if output is not None and output.exists():
        raise ValueError(f"{output} exists; choose another --output, or remove it")
    settings = Measurement(models=tuple(models), **options)
    with _progress() as progress:
        task = progress.add_task("", total=settings.arrival().num_requests, failed="")
        num_failed = 0

        def show(outcome: Outcome) -> None:
            nonlocal num_failed
            num_failed += bool(outcome.error)
            progress.update(task, advance=1, failed=f"{num_failed} failed" if num_failed else "")

        report = uvloop.run(measure(settings, key=os.environ.get(KEY_VARIABLE), on_end=show))
    Console().print(_table(report))
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n")
        Console().print(f"wrote {output}", highlight=False)
    for error, count in report["total"]["errors"].items():
        Console(stderr=True).print(f"{count} failed: {error}", markup=False, highlight=False)
    return 1 if report["total"]["failed"] else 0


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _table(report: dict[str, Any]) -> Table:
    columns = ("requests", "failed", "tokens/s", "first token ms", "p99", "next ms", "p99")
    total, settings = report["total"], report["settings"]
    table = Table(
        title=f"{settings['url']}: {total['requests']} requests in {total['seconds']:.1f} s",
        caption=f"{total['tokens']} tokens of {total['prompt_tokens']} prompt tokens; the next "
        "token: between two pieces of an answer",
    )
    table.add_column("name", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    names = list(report["models"].items())
    for name, found in names[:_SHOWN_NAMES]:
        table.add_row(name, *_cells(found))
    if len(names) > _SHOWN_NAMES:
        table.add_row(f"{len(names) - _SHOWN_NAMES} more")
    table.add_section()
    table.add_row("all", *_cells(total))
    return table


def _cells(found: dict[str, Any]) -> list[str]:
    times = [
        "-" if found[kind] is None else f"{found[kind][place]:.1f}"
        for kind in ("first_token_ms", "inter_token_ms")
        for place in ("p50", "p99")
    ]
    rate = f"{found['tokens_per_second']:.1f}"
    return [str(found["requests"]), str(found["failed"]), rate, *times]
