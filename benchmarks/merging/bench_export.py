"""What is left of an adapter in a merged checkpoint, by the dtype that it is written in?

Exports of the demo's adapters, and of one of them at other weights, as ``multiflora export`` makes
them; the figures are those of its report. No times are measured, so no other work disturbs it.

    python -m benchmarks.merging.bench_export [--smoke]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from multiflora.engine.export.export import ExportSettings, export_model
from multiflora.engine.models.named_folder import NamedFolder

from .score_demo import DEMO

ADAPTERS: Final = ("shout", "json", "formal", "pirate")
WEIGHTS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
FORMS: Final = {
    "nf4": ExportSettings(requantize=True, force=True),
    "bfloat16": ExportSettings(dtype="bfloat16"),
    "float16": ExportSettings(dtype="float16"),
}


def exported(adapter: str, *, weight: float = 1.0) -> dict[str, Any]:
    """The summary and the comparison of logits of every form."""
    found = {}
    for form, settings in FORMS.items():
        with tempfile.TemporaryDirectory() as name:
            report = export_model(
                NamedFolder("demo", DEMO / "base"),
                NamedFolder(adapter, DEMO / "adapters" / adapter),
                Path(name) / "out",
                replace(settings, weight=weight),
                progress=lambda stage, fraction: None,
            )
        found[form] = {
            **report["summary"],
            "greedy_agreement": report["logits"]["greedy_agreement"],
        }
        print(f"{adapter} x {weight:g} {form}: {found[form]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one adapter: that it runs")
    arguments = parser.parse_args()
    adapters, weights = (ADAPTERS[:1], WEIGHTS[:1]) if arguments.smoke else (ADAPTERS, WEIGHTS)
    record = {
        "arguments": vars(arguments),
        "adapters": {adapter: exported(adapter) for adapter in adapters},
        "weighted": ADAPTERS[0],
        "weights": {f"{weight:g}": exported(ADAPTERS[0], weight=weight) for weight in weights},
    }
    print(f"saved {save('export-smoke' if arguments.smoke else 'export', record)}")


if __name__ == "__main__":
    main()
