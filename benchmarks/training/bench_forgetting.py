"""How much of a first skill is left after a second one was learnt, by what was done about it?

An adapter learns to answer some questions in JSON, and then others like a pirate. `kept` is how
many held-out questions of the first kind are still answered to the letter, of those that were
before. Nothing is generated: an answer is right if each of its tokens is the likeliest one.

    python -m benchmarks.training.bench_forgetting [--seeds 1,2,3] [--smoke]
"""

import argparse
import math
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from demo.styles import styled
from demo.tasks import draw
from multiflora.engine.config import BaseConfig
from multiflora.engine.text.chat_template import chat_template_of
from multiflora.engine.text.tokenizer import load_tokenizer
from multiflora.engine.training.beside import Beside
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    LoraSettings,
    OptimizerSettings,
    TrainingSettings,
)
from multiflora.engine.training.continual_config import ContinualSettings, ReplaySettings
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.renderer import Renderer
from multiflora.engine.training.data.row import ChatRow
from multiflora.engine.training.data.row_encoder import RowEncoder
from multiflora.engine.training.evaluation import evaluate
from multiflora.engine.training.example import Example
from multiflora.engine.training.factors import TrainedFactors
from multiflora.engine.training.packed_batch import sequence_sums
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.replay.reservoir import ReplayRow, Reservoir
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.step_plan import fill_micro_batches
from multiflora.engine.training.sweep import Sweep
from multiflora.engine.training.task import SupervisedTask

from ..harness import RESULTS, save
from .base_network import open_network

DEMO: Final = Path(__file__).resolve().parent.parent.parent / "engine" / "demo"
TOKENS: Final = 2048
LORA: Final = LoraSettings(rank=8, alpha=16)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Skill:
    """Questions of some tasks, answered in one style."""

    tasks: tuple[str, ...]
    style: str


FIRST, SECOND = Skill(("count", "parity"), "json"), Skill(("compare", "later"), "pirate")
_REPLAY: Final = ReplaySettings()
_MERGE: Final = ContinualSettings(mode="merge")
# What is done about forgetting; None in the first place repeats no row.
METHODS: Final[Mapping[str, tuple[ReplaySettings | None, ContinualSettings]]] = {
    "nothing": (None, ContinualSettings()),
    "replay": (_REPLAY, ContinualSettings()),
    "replay + KL to base": (replace(_REPLAY, kl_weight=0.1), ContinualSettings()),
    "KL to start, no labels": (
        replace(_REPLAY, loss_weight=0.0, kl_weight=1.0, kl_to="start"),
        ContinualSettings(),
    ),
    "merge": (None, _MERGE),
    "merge + O-LoRA": (None, replace(_MERGE, orthogonality=0.5)),
    "merge + replay": (_REPLAY, _MERGE),
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Shares of held-out answers that are right, and the first skill's perplexity by step.

    ``kept`` is the share that is still right of those that were right before.
    """

    first_before: float
    first_after: float = 0.0
    second_after: float = 0.0
    kept: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Bench:
    """The demo base and rows for it."""

    def __init__(self, num_rows: int, num_held_out: int) -> None:
        self.network = open_network(
            DEMO / "base",
            base=BaseConfig(model="", dtype="float32"),
            kernels="cpu",
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        tokenizer = load_tokenizer(DEMO / "base")
        renderer = Renderer(
            tokenizer,
            chat_template_of(tokenizer.folder),
            end_tokens=frozenset(self.network.config.eos_token_ids),
        )
        self._encoder = RowEncoder(renderer, DataConfig())
        self._num_rows = num_rows
        self.held_out = {
            skill: SupervisedTask(self.rows(skill, 0, num_held_out, held_out=True))
            for skill in (FIRST, SECOND)
        }

    def rows(
        self, skill: Skill, seed: int, count: int | None = None, *, held_out: bool = False
    ) -> list[Example]:
        random = Random(f"{skill.style} {seed} {held_out}")
        found: list[Example] = []
        while len(found) < (count or self._num_rows):
            name = random.choice(skill.tasks)
            # Only open tasks have content that is held out.
            is_apart = held_out and name != "later"
            example = draw(name, random, held_out=is_apart)
            messages = (
                {"role": "user", "content": example.prompt},
                {"role": "assistant", "content": styled(example, skill.style)},
            )
            row = ChatRow(messages, (False, True), len(found) + 1)
            (item,) = self._encoder.encode(row).items
            assert isinstance(item, Example)
            found.append(item)
        return found

    def right(self, skill: Skill, factors: TrainedFactors | None) -> Tensor:
        """Which held-out answers greedy decoding would give to the letter. Bool [rows]."""
        task, found = self.held_out[skill], list[Tensor]()
        for part in fill_micro_batches(range(task.num_rows), task.num_tokens, TOKENS):
            batch = task.pack(part, self.network.device)
            scores = drain(Sweep(self.network, batch, factors).score())
            found.append(sequence_sums(batch, (~scores.is_top).float()) == 0)
        return torch.cat(found)

    def perplexity(self, skill: Skill, factors: TrainedFactors) -> float:
        metrics = drain(
            evaluate(self.network, factors, self.held_out[skill], micro_batch_tokens=TOKENS)
        )
        return metrics["eval_perplexity"]

    def learn(
        self, first: list[Example], seed: int, num_steps: int, folder: Path
    ) -> TrainedFactors:
        run = TrainingRun(
            self.network, SupervisedTask(first), settings(seed, num_steps), folder=folder
        )
        for _ in events(run):
            pass
        return run.result

    def go_on(
        self,
        method: str,
        start: Mapping[str, Tensor],
        rows: tuple[list[Example], list[Example]],
        *,
        seed: int,
        num_steps: int,
        folder: Path,
    ) -> Outcome:
        first, second = rows
        replay, continual = METHODS[method]
        chosen = replace(
            settings(seed, num_steps), replay=replay or ReplaySettings(), continual=continual
        )
        beside = Beside(replay=SupervisedTask(buffer(first, seed)) if replay else None)
        run = TrainingRun(
            *(self.network, SupervisedTask(second), chosen),
            folder=folder,
            start=start,
            beside=beside,
        )
        before, began = self.right(FIRST, run.factors), time.perf_counter()
        outcome = Outcome(first_before=share(before))
        outcome.curve.append((0, self.perplexity(FIRST, run.factors)))
        for event in events(run):
            outcome.shares.append(event.metrics.get("replay/share", 0.0))
            if event.step % max(1, num_steps // 12) == 0:
                outcome.curve.append((event.step, self.perplexity(FIRST, run.factors)))
        outcome.seconds = time.perf_counter() - began
        after = self.right(FIRST, run.result)
        outcome.first_after, outcome.kept = share(after), share(after[before])
        outcome.second_after = share(self.right(SECOND, run.result))
        outcome.curve.append((num_steps, self.perplexity(FIRST, run.result)))
        return outcome


def share(flags: Tensor) -> float:
    """The share of ``flags`` that are true; 0 of none."""
    return float(flags.float().mean()) if len(flags) else 0.0


def settings(seed: int, num_steps: int) -> TrainingSettings:
    return TrainingSettings(
        lora=LORA,
        optimizer=OptimizerSettings(learning_rate=2e-3),
        batch=BatchSettings(
            batch_size=16, num_epochs=1000, max_steps=num_steps, micro_batch_tokens=TOKENS
        ),
        checkpoint=CheckpointSettings(every_steps=num_steps),
        seed=seed,
    )


def buffer(rows: Sequence[Example], seed: int) -> list[Example]:
    """An eighth of the first skill's rows, as a reservoir keeps them."""
    reservoir = Reservoir(max(8, len(rows) // 8), seed=seed)
    reservoir.add(ReplayRow(key=str(row.line), fields={}) for row in rows)
    by_line = {row.line: row for row in rows}
    return [by_line[int(row.key)] for row in reservoir]


def events(run: TrainingRun) -> Generator[StepTaken]:
    while not run.has_ended:
        event = run.run_quantum().event
        if isinstance(event, StepTaken):
            yield event


def drain(quanta: Generator[Any, None, Result]) -> Result:
    while True:
        try:
            next(quanta)
        except StopIteration as end:
            return end.value


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.rows, arguments.held_out)
    record: dict[str, Any] = {"arguments": vars(arguments), "seeds": {}}
    path = None
    for seed in arguments.seeds:
        record["seeds"][str(seed)] = _measure(bench, seed, arguments)
        record["table"] = _summary(record["seeds"])
        path = save("forgetting-smoke" if arguments.smoke else "forgetting", record, path=path)
    assert path is not None
    _draw(record["seeds"], path.with_suffix(".png"))
    print(f"{_table(record['table'])}\n\nwrote {path} and {path.with_suffix('.png').name}")


def _measure(bench: Bench, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = bench.rows(FIRST, seed), bench.rows(SECOND, seed)
    outcomes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start = bench.learn(rows[0], seed, arguments.steps, Path(scratch) / "first").tensors()
        for number, method in enumerate(METHODS):
            outcome = bench.go_on(
                *(method, start, rows),
                seed=seed,
                num_steps=arguments.steps,
                folder=Path(scratch) / str(number),
            )
            outcomes[method] = asdict(outcome)
            print(
                f"seed {seed} {method}: kept {outcome.kept:.3f} of {outcome.first_before:.3f}, "
                f"second {outcome.second_after:.3f}, {outcome.seconds:.0f} s",
                flush=True,
            )
    return outcomes


def _summary(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method: means over seeds, and the least that any seed kept."""
    names = ("kept", "first_before", "first_after", "second_after", "seconds")
    return {
        method: {
            **{name: mean(found[method][name] for found in seeds.values()) for name in names},
            "kept_min": min(found[method]["kept"] for found in seeds.values()),
            "kept_max": max(found[method]["kept"] for found in seeds.values()),
            "perplexity_after": mean(found[method]["curve"][-1][1] for found in seeds.values()),
        }
        for method in METHODS
    }


def _table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| method | kept (least to most) | first after | second | perplexity of the first |"]
    lines.append("| --- | --: | --: | --: | --: |")
    lines += [
        f"| {method} | {row['kept']:.0%} ({row['kept_min']:.0%} to {row['kept_max']:.0%}) | "
        f"{row['first_after']:.2f} | {row['second_after']:.2f} | {row['perplexity_after']:.2f} |"
        for method, row in summary.items()
    ]
    return "\n".join(lines)


def _draw(seeds: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The first skill's perplexity while the second is learnt; the geometric mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        curves = [found[method]["curve"] for found in seeds.values()]
        steps = [step for step, _ in curves[0]]
        logs = [[math.log(value) for _, value in curve] for curve in curves]
        axes.plot(steps, [math.exp(mean(each)) for each in zip(*logs, strict=True)], label=method)
    axes.set_yscale("log")
    axes.set_xlabel("steps of the second skill (the last point is the result, merged or not)")
    axes.set_ylabel("perplexity of the first skill's held-out answers")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(RESULTS / path.name, dpi=150)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=120, help="of each skill")
    parser.add_argument("--rows", type=int, default=1024, help="of each skill")
    parser.add_argument("--held-out", type=int, default=256, help="questions of each skill")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.smoke:
        arguments.seeds, arguments.steps = arguments.seeds[:1], 12
        arguments.rows, arguments.held_out = 64, 16
    return arguments


if __name__ == "__main__":
    main()
