"""`multiflora merge`: adapters into one, without a base and without a server."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from rich.table import Table

from multiflora.adapters.merging.depth import Curve, Filter
from multiflora.adapters.merging.method import METHODS
from multiflora.adapters.merging.picture import check_picture, draw_interference
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import DTYPES, OnAntiparallel, Recipe
from multiflora.adapters.merging.report import MergeReport

from ..announcement import loading_progress
from ..setting_value import parse_path
from .argument import DATA_DIR, find_adapter, typed

_EPILOG: Final = f"Methods: {', '.join(METHODS)}. What each does is in docs/merging.md."


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "merge", help="merge adapters into a new one", epilog=_EPILOG, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("adapters", nargs="+", metavar="ADAPTER", help="PEFT folder, or a name in --data-dir")
    option("-o", "--output", required=True, type=parse_path, metavar="DIR", help="a folder to make")
    option("--method", default="linear", metavar="METHOD", help="default: linear")
    option("--weights", nargs="+", type=float, metavar="W", help="one number per adapter")
    option("--t", type=typed(Curve.parse), metavar="T", help="slerp: 0.3, or 0,0.5,1 over depth")
    option(
        "--filter",
        dest="filters",
        action="append",
        type=typed(Filter.parse),
        metavar="MATCH=T",
        help="slerp: another t for modules whose path contains MATCH; repeatable",
    )
    option("--rank", type=typed(RankPolicy.parse), metavar="exact|N|energy:E", help="ranks to keep")
    option("--dtype", choices=DTYPES, help="default: the widest of the adapters'")
    option("--density", type=float, metavar="SHARE", help="entries that stay; default: 0.5")
    option("--gamma", type=float, metavar="SHARE", help="breadcrumbs: largest entries to drop")
    option("--epsilon", type=float, metavar="WIDTH", help="della: spread of the probabilities")
    option("--seed", type=int, metavar="N", help="of dare and della; default: 0")
    option("--sequential", action="store_true", default=None, help="slerp: one after another")
    option("--on-antiparallel", choices=get_args(OnAntiparallel), help="slerp; default: error")
    option("--allow-different-bases", action="store_true", help="if two names mean one base")
    option("--picture", type=parse_path, metavar="FILE.png", help="draw where parents interfere")
    option(
        "--data-dir", type=parse_path, default=DATA_DIR, metavar="DIR", help="where names are kept"
    )


def run(
    *,
    adapters: Sequence[str],
    output: Path,
    weights: Sequence[float] | None,
    filters: Sequence[Filter] | None,
    picture: Path | None,
    data_dir: Path,
    **settings: Any,
) -> int:
    """Merge, write, and print what happened."""
    recipe = Recipe(
        num_parents=len(adapters),
        weights=tuple(weights) if weights else None,
        filters=tuple(filters) if filters else None,
        **settings,
    )
    if picture:
        check_picture(picture, num_parents=len(adapters))
    folders = [find_adapter(text, data_dir=data_dir) for text in adapters]
    # Imported late: they load torch, which a mistake in the arguments does not need.
    from multiflora.adapters.merging.merge import merge_folders
    from multiflora.adapters.merging.write import refuse_existing

    refuse_existing(output)
    with loading_progress("merging") as show:
        merged = merge_folders(
            folders, recipe, names=adapters, on_progress=lambda share: show("merging", share)
        )
        merged.write(output)
    if picture:
        draw_interference(merged.report, picture)
    print_summary(merged.report, output)
    return 0


def print_summary(report: MergeReport, output: Path) -> None:
    """The report in a screen, on stdout."""
    summary = report.summary()
    table = Table.grid(padding=(0, 2))
    for parent in report.parents:
        weight = "" if parent.weight is None else f"weight {parent.weight:.4g}, "
        table.add_row("parent", f"{parent.name} ({weight}{parent.dtype})")
    table.add_row("method", f"{report.method}: {report.variant}")
    table.add_row("settings", ", ".join(_settings(report)) or "none")
    if summary["cosine_mean"] is not None:
        table.add_row(
            "parents",
            f"mean cosine {summary['cosine_mean']:.4f}, overlap of output spaces "
            f"{summary['overlap_mean']:.4f}",
        )
    lacking = f", {summary['num_missing']} of them lacking in a parent"
    table.add_row("modules", f"{summary['num_modules']}{lacking if summary['num_missing'] else ''}")
    table.add_row(
        "rank",
        f"{summary['rank_min']} to {summary['rank_max']}, energy kept "
        f"{summary['energy_kept_mean']:.4%} (least {summary['energy_kept_min']:.4%})",
    )
    table.add_row("dtype", f"{report.dtype}, rounding up to {summary['rounding_error_max']:.1e}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{output}: {len(report.parents)} adapters merged")
    console.print(table)
    console.print(f"\nmultiflora serve --adapter {output.name}={output}")


def _settings(report: MergeReport) -> list[str]:
    return [f"{name} {value}" for name, value in report.settings.items() if value not in (None, [])]
