"""`multiflora export`: base and adapter as one checkpoint."""

import argparse
from pathlib import Path
from typing import Any, Final

from multiflora.engine.models.named_folder import NamedFolder

from ..announcement import loading_progress
from ..setting_value import parse_path
from ..size import parse_size
from .argument import DATA_DIR, find_adapter, find_base, typed

_REQUANTIZE_HELP: Final = (
    "write a bitsandbytes 4-bit checkpoint instead; much of a small delta is lost"
)


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "export", help="merge an adapter into its base and write a checkpoint", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("--adapter", required=True, metavar="NAME_OR_FOLDER", help="what to merge")
    option("--adapter-weight", type=float, default=1.0, metavar="WEIGHT", help="times its delta")
    option("-o", "--output", required=True, type=parse_path, metavar="DIR", help="a folder to make")
    option("--model", metavar="BASE", help="folder or hub id; default: what the adapter names")
    option("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    option(
        "--base",
        choices=("quantized", "original"),
        default="quantized",
        help="weights to add to: NF4 as served, decoded (default), or the checkpoint's own",
    )
    option("--max-shard-size", type=typed(parse_size), default="5GB", metavar="SIZE")
    option("--requantize", choices=("nf4",), help=_REQUANTIZE_HELP)
    option("--min-delta-kept", type=float, default=0.8, metavar="SHARE", help="default: 0.8")
    option("--force", action="store_true", help="also if less of the delta is kept")
    option("--no-verify", action="store_true", help="skip the comparison of logits")
    option(
        "--data-dir", type=parse_path, default=DATA_DIR, metavar="DIR", help="where NAME is kept"
    )


def run(
    *,
    adapter: str,
    adapter_weight: float,
    output: Path,
    model: str | None,
    requantize: str | None,
    no_verify: bool,
    max_shard_size: int,
    data_dir: Path,
    **settings: Any,
) -> int:
    """Export, and print what was measured."""
    folder = find_adapter(adapter, data_dir=data_dir)
    base = find_base(model, adapter=folder)
    # Imported late: they load torch, which no other command of this process needs.
    from multiflora.engine.export.export import ExportSettings, export_model

    wanted = ExportSettings(
        weight=adapter_weight,
        max_shard_bytes=max_shard_size,
        requantize=requantize is not None,
        verify=not no_verify,
        **settings,
    )
    with loading_progress("opening the base") as show:
        report = export_model(
            base,
            NamedFolder(adapter, folder),
            output,
            wanted,
            progress=show,
        )
    print(render(report, output))
    return 0


def render(report: dict[str, Any], output: Path) -> str:
    """The report in a few lines."""
    summary = report["summary"]
    lines = [f"{output}: {report['base']['name']} + {report['adapter']['name']}"]
    if summary["delta_kept"] is not None:
        lines.append(
            f"  delta     {summary['relative_delta']:.4f} of the weights it changes "
            f"(|D| / |W|, {summary['adapted_modules']} linears)"
        )
        lines.append(
            f"  rounding  {report['linears']} keeps {summary['delta_kept']:.4f} of the delta, "
            f"error {summary['delta_error']:.4f} of its norm"
        )
    lines.append(f"  logits    {_logits(report['logits'])}")
    serve = f"multiflora serve {output}"
    return "\n".join(
        [*lines, "", serve if report["linears"] == "nf4" else f"{serve} --quantization none"]
    )


def _logits(logits: dict[str, Any]) -> str:
    if not logits["verified"]:
        return "not compared (--no-verify)"
    return (
        f"max difference {logits['max_difference']:.2g}, mean {logits['mean_difference']:.2g} "
        f"(they spread {logits['spread']:.2g}); {logits['greedy_agreement']:.1%} of "
        f"{logits['positions']} greedy tokens agree"
    )
