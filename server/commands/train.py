"""`multiflora train`: an adapter from a file, without a server."""

import argparse
import asyncio
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from multiflora.adapters.folder import CONFIG_NAME, AdapterFolder
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, EngineConfig, TrainingConfig
from multiflora.engine.errors import RequestFailed
from multiflora.engine.models.named_folder import NamedFolder
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.training.config import LoraSettings
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.job import (
    CheckpointExported,
    EvaluationMetrics,
    JobEnded,
    JobFailed,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.training.jobs.job import JobWish
from multiflora.engine.training.jobs.job_folder import JobFolder
from multiflora.engine.training.jobs.order import make_order
from multiflora.engine.training.jobs.preparation import BesideFile, Preparation
from multiflora.engine.training.jobs.settings import (
    DataSize,
    check_wish,
    data_config,
    lora_settings_of,
    read_hyperparameters,
    training_settings,
)
from multiflora.engine.training.jobs.tracking.availability import check_sinks
from multiflora.engine.training.jobs.tracking.message import SINKS, SinkName, TrackedRun
from multiflora.engine.training.jobs.tracking.tracker import Tracker

from ..announcement import loading_progress
from ..setting_value import parse_path, parse_sinks
from ..training_progress import TrainingProgress
from .argument import DATA_DIR, DEMO_BASE_NAME, find_base, find_model, typed

_EPILOG: Final = (
    "What is left out is chosen by the size of the data. An interrupted run goes on when the same "
    "command is given again. docs/training.md lists the settings for --set."
)
# Nothing is generated here.
_MAX_MODEL_LEN: Final = 256
# Nobody waits for a quantum to end: micro-batches are as large as memory allows.
_QUANTUM_SECONDS: Final = 60.0


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train", help="train an adapter on a file", epilog=_EPILOG, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("data", type=parse_path, metavar="DATA", help="JSONL: messages, prompts, preferences")
    option("-o", "--output", required=True, type=parse_path, metavar="DIR", help="a folder to make")
    option("--method", choices=("sft", "dpo", "kto"), default="sft", help="default: sft")
    option(
        "--model",
        default=DEMO_BASE_NAME,
        metavar="MODEL",
        help="folder or hub id of the base, or a PEFT folder to go on from and, with dpo, against",
    )
    option("--base", metavar="BASE", help="of that PEFT folder; default: what its config names")
    option("--validation", type=parse_path, metavar="FILE", help="rows that are only scored")
    option("--replay", type=parse_path, metavar="FILE", help="supervised rows to repeat beside")
    option("--epochs", type=int, metavar="N", help="passes over the data")
    option("--batch-size", type=int, metavar="ROWS", help="rows per step")
    option("--rank", type=int, metavar="R", help="rank of the adapter; alpha is twice of it")
    option("--learning-rate", type=float, metavar="RATE", help="highest rate of the schedule")
    option("--max-length", type=int, metavar="TOKENS", help="longer rows are cut; default: 1024")
    option("--seed", type=int, default=0, metavar="N", help="of every random draw; default: 0")
    option(
        "--set",
        dest="changes",
        action="append",
        default=[],
        type=typed(parse_change),
        metavar="SECTION.NAME=VALUE",
        help="any other setting, such as lora.use_rslora=true; repeatable",
    )
    option(
        "--report-to",
        type=typed(parse_sinks),
        default=(),
        metavar="SINKS",
        help="where metrics go too: tensorboard, wandb or trackio, several with commas",
    )
    option("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(
    *,
    data: Path,
    output: Path,
    method: str,
    model: str,
    base: str | None,
    validation: Path | None,
    seed: int,
    device: Any,
    report_to: tuple[SinkName, ...],
    **choices: Any,
) -> int:
    """Check the file, train, and leave a PEFT folder at ``output``."""
    check_sinks(report_to, allowed=SINKS, param="--report-to")
    if output.exists():
        raise ValueError(f"{output} exists; choose another --output, or remove it")
    kind = "supervised" if method == "sft" else method
    wish = _wish(data, validation, method=kind, seed=seed, **choices)
    start = find_start(model, base)
    check_wish(wish, start=start.lora)
    console = Console(stderr=True)
    folder = JobFolder(output.absolute().with_name(f".{output.name}.training"))
    job = _prepare(wish, start, folder, console)
    config = EngineConfig(
        base=BaseConfig(model=str(start.base.folder)),
        device=device,
        max_model_len=_MAX_MODEL_LEN,
        data_dir=str(DATA_DIR),
        training=TrainingConfig(pace="throughput", quantum_seconds=_QUANTUM_SECONDS),
    )
    tracker = _tracker(report_to, output.absolute(), console)
    ended = asyncio.run(_train(job, config, folder, tracker, console))
    assert ended.folder is not None
    shutil.move(ended.folder, output)
    folder.remove()
    text = f"{output}: a PEFT adapter of {start.base.name}, after {ended.step} steps"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    named = model if start.adapter is None else start.base.folder
    hint = "" if start.base.name == DEMO_BASE_NAME else f"{named} "
    serve = f"serve it with: multiflora serve {hint}--adapter {output.name}={output}"
    console.print(serve, highlight=False, markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True, slots=True)
class Start:
    """Where training begins: at ``base``, or at the PEFT folder ``adapter`` of it.

    Such a folder's settings stay as they are: ``lora``.
    """

    base: NamedFolder
    adapter: Path | None = None
    lora: LoraSettings | None = None

    def store(self) -> str | None:
        """Check the adapter and keep it where the engine finds it; returns its digest.

        A server that starts on this data directory removes what no name has. Raises
        ``AdapterRejected`` and ``OSError``.
        """
        if self.adapter is None:
            return None
        return import_adapter(
            self.adapter,
            projections=load_model_config(self.base.folder).adapter_projections(),
            store=AdapterStore(DATA_DIR),
        )


def find_start(model: str, base: str | None) -> Start:
    """Read ``model``, a base or a PEFT folder, and ``base``, which replaces the folder's own.

    Raises ``AdapterRejected``, ``StartupError``, and ``ValueError`` for a base of a base.
    """
    adapter = Path(model).expanduser()
    if not (adapter / CONFIG_NAME).is_file():
        if base is not None:
            raise ValueError(f"--base goes with a PEFT folder in --model; {model} is none")
        return Start(find_model(model))
    return Start(
        find_base(base, adapter=adapter), adapter, lora_settings_of(AdapterFolder(adapter))
    )


def parse_change(text: str) -> tuple[str, str, Any]:
    """Read ``SECTION.NAME=VALUE``; the value is JSON, or else a text. Raises ``ValueError``."""
    place, separator, value = text.partition("=")
    section, dot, name = place.strip().partition(".")
    if not separator or not dot or not name:
        raise ValueError(f"{text!r} is not SECTION.NAME=VALUE")
    try:
        return section, name, json.loads(value)
    except json.JSONDecodeError:
        return section, name, value


def render(report: Report) -> str:
    """What was found in a file, in a few lines."""
    lines = [
        f"{report.num_rows} rows ({report.format}), {report.num_tokens} tokens, "
        f"{report.num_trained_tokens} of them trained"
    ]
    if report.histogram:
        buckets = (f"{b.num_examples} up to {b.max_tokens}" for b in report.histogram)
        lines.append(f"  lengths   {', '.join(buckets)}")
    lines += [f"  {finding.severity:<9} {finding.message}" for finding in report.findings]
    return "\n".join(lines)


def _wish(
    data: Path,
    validation: Path | None,
    *,
    method: Any,
    seed: int,
    epochs: int | None,
    batch_size: int | None,
    rank: int | None,
    learning_rate: float | None,
    max_length: int | None,
    replay: Path | None,
    changes: Sequence[tuple[str, str, Any]],
) -> JobWish:
    """Flags as a request of the fine-tuning API would say it."""
    flags = (
        ("lora", "rank", rank),
        ("optimizer", "learning_rate", learning_rate),
        ("data", "max_length", max_length),
        ("replay", "file", None if replay is None else str(replay)),
    )
    training: dict[str, dict[str, Any]] = {}
    for section, name, value in (*flags, *changes):
        if value is not None:
            training.setdefault(section, {})[name] = value
    given = {"n_epochs": epochs, "batch_size": batch_size}
    return JobWish(
        model="",
        training_file=str(data),
        validation_file=None if validation is None else str(validation),
        seed=seed,
        method=method,
        hyperparameters=read_hyperparameters(given, "--"),
        training=training,
    )


def _prepare(wish: JobWish, start: Start, folder: JobFolder, console: Console) -> TrainingJob:
    base, model = start.base, load_model_config(start.base.folder)
    validation = None if wish.validation_file is None else Path(wish.validation_file)
    with console.status("checking and tokenizing"):
        Preparation(base.folder, end_tokens=frozenset(model.eos_token_ids)).prepare(
            folder,
            data_config(wish),
            training_file=Path(wish.training_file),
            validation_file=validation,
            beside=_beside(wish, folder),
        )
    with PreparedDataset.open(folder.training) as rows:
        report = rows.info.report
        size = DataSize(num_rows=len(rows), num_tokens=report.num_trained_tokens)
    console.print(render(report), highlight=False)
    settings = training_settings(wish, model, size, start=start.lora)
    console.print(
        f"rank {settings.lora.rank}, {settings.batch.num_epochs} epochs of "
        f"{settings.batch.batch_size} rows a step, learning rate "
        f"{settings.optimizer.learning_rate:.2g}",
        highlight=False,
    )
    return make_order(*("train", wish, settings, folder), base_name=base.name, start=start.store())


def _beside(wish: JobWish, folder: JobFolder) -> list[BesideFile]:
    """The rows to repeat."""
    if wish.replay_file is None:
        return []
    return [BesideFile(wish.replay_file, str(folder.replay.absolute()), "--replay")]


def _tracker(sinks: Iterable[SinkName], output: Path, console: Console) -> Tracker:
    def lose(sink: str, reason: str) -> None:
        console.print(f"{sink} gets no metrics: {reason}", style="yellow", highlight=False)

    folder = output.parent / "runs" / output.name
    runs = [
        TrackedRun(sink=sink, id=output.name, name=output.name, folder=str(folder))
        for sink in sinks
    ]
    return Tracker(runs, on_failure=lose)


async def _train(
    job: TrainingJob, config: EngineConfig, folder: JobFolder, tracker: Tracker, console: Console
) -> JobEnded:
    client = EngineClient.in_this_process(config)
    try:
        with loading_progress() as show:
            client.on_progress = show
            await client.start()
        with TrainingProgress(console) as progress:
            async with aclosing(client.train(job)) as events:
                async for event in events:
                    match event:
                        case JobStarted():
                            progress.begin(event)
                            tracker.begin(event.step, job.document()["settings"])
                        case StepMetrics() | EvaluationMetrics():
                            row = {"step": event.step, **event.metrics}
                            folder.add_metrics([row])
                            tracker.add([row])
                            progress.add(event)
                        case CheckpointExported():
                            # The checkpoint itself stays; nobody serves its export here.
                            shutil.rmtree(event.folder, ignore_errors=True)
                        case JobFailed(code, message):
                            raise RequestFailed(message, code=code)
                        case JobEnded():
                            progress.end(event)
                            tracker.close(True)
                            return event
                        case _:
                            pass
    finally:
        tracker.close(False)
        await client.stop()
        tracker.wait()
    raise RequestFailed("the engine ended before the job did")
