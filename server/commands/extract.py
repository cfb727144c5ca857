"""`multiflora extract`: a LoRA out of a fine-tuned checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from multiflora.adapters.merging.rank_policy import RankPolicy

from ..announcement import loading_progress
from ..setting_value import parse_path
from .argument import find_model, typed


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "extract", help="make a LoRA of a fine-tuned checkpoint and its base", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("--model", required=True, metavar="FINE_TUNED", help="folder or hub id")
    option("--base", required=True, metavar="BASE", help="folder or hub id of what it was made of")
    option("-o", "--output", required=True, type=parse_path, metavar="DIR", help="a folder to make")
    option(
        "--rank",
        type=typed(RankPolicy.parse),
        default="energy:0.9",
        metavar="energy:E|N|exact",
        help="ranks of each linear; default: what holds 0.9 of the squared difference",
    )
    option("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    option(
        "--base-weights",
        choices=("original", "quantized"),
        default="original",
        help="what to subtract; quantized: NF4, decoded, as `export` adds to by default",
    )
    option(
        "--ignore-others",
        action="store_true",
        help="leave out differences that no LoRA on linears can hold",
    )


def run(*, model: str, base: str, output: Path, **settings: Any) -> int:
    """Extract, and print what is held and what is not."""
    tuned, plain = find_model(model), find_model(base)
    # Imported late: it loads torch, which no other command of this process needs.
    from multiflora.engine.extraction.extraction import ExtractionSettings, extract_lora

    with loading_progress("opening the models") as show:
        report = extract_lora(tuned, plain, output, ExtractionSettings(**settings), progress=show)
    print(render(report, output))
    return 0


def render(report: dict[str, Any], output: Path) -> str:
    """The report in a few lines."""
    summary = report["summary"]
    ranks = f"{summary['rank_min']} to {summary['rank_max']}"
    lines = [
        f"{output}: {report['extracted_from']} - {report['base']['name']}",
        f"  linears   {summary['modules']} that differ, of rank {ranks} ({report['rank']})",
        f"  energy    {summary['energy_kept']:.4%} of the squared difference is held",
    ]
    if report["not_held"]:
        lines.append(f"  not held  {', '.join(report['not_held'])}")
    return "\n".join(lines)
