"""`multiflora soup`: the mean of checkpoints of one training run."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiflora.adapters.merging.rank_policy import RankPolicy

from ..setting_value import parse_path
from .argument import DATA_DIR, find_adapter, typed


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "soup", help="average checkpoints of one training run", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="PEFT folder, or a name in --data-dir"
    )
    option("-o", "--output", required=True, type=parse_path, metavar="DIR", help="a folder to make")
    option("--weights", nargs="+", type=float, metavar="W", help="one per checkpoint; default: 1")
    option(
        "--rank",
        type=typed(RankPolicy.parse),
        metavar="exact|N|energy:E",
        help="ranks to keep; default: those of the checkpoints",
    )
    option(
        "--data-dir", type=parse_path, default=DATA_DIR, metavar="DIR", help="where names are kept"
    )


def run(
    *,
    checkpoints: Sequence[str],
    output: Path,
    weights: Sequence[float] | None,
    rank: RankPolicy | None,
    data_dir: Path,
) -> int:
    """Average, and print what re-compression kept."""
    folders = [find_adapter(text, data_dir=data_dir) for text in checkpoints]
    # Imported late: it loads torch, which no other command of this process needs.
    from multiflora.adapters.merging.soup import cook

    report = cook(folders, output, weights=weights, rank=rank, names=checkpoints)
    summary = report["summary"]
    print(
        f"{output}: mean of {len(checkpoints)} checkpoints\n"
        f"  linears   {summary['modules']}, rank: {report['rank']}\n"
        f"  energy    at least {summary['energy_kept_min']:.4%} of each linear's is kept\n\n"
        f"multiflora serve --adapter {output.name}={output}"
    )
    return 0
