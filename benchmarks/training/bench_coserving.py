"""What does a training job cost those who are served, and what do they leave it?

Requests arrive at random at half the rate that the engine can serve. Three phases of equal length:
serving alone, training alone, both, with the same arrivals; inter-token gaps and trained tokens are
compared.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from benchmarks.harness import save
from benchmarks.shape import QWEN_0_5B, build_base
from multiflora.engine.client import EngineClient
from multiflora.engine.config import (
    BaseConfig,
    EngineConfig,
    SchedulerConfig,
    TrainingConfig,
    TrainingPace,
)
from multiflora.engine.request import GenerationRequest, SamplingParams
from multiflora.engine.training.config import BatchSettings, TrainingSettings
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.example import Example
from multiflora.engine.training.job import JobFailed, JobStarted, StepMetrics, TrainingJob

SMOKE: dict[str, Any] = {
    **QWEN_0_5B,
    "vocab_size": 2_048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
PROMPT_TOKENS, MAX_REQUESTS = 32, 8
NUM_ROWS, ROW_TOKENS = 64, 128


@dataclass(slots=True)
class Latencies:
    """Seconds to first tokens, and between the tokens of a stream."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """Milliseconds between tokens, of which one gap in a hundred is longer."""
        return _spread(self.gaps)["p99"]

    def figures(self) -> dict[str, Any]:
        return {
            "requests": len(self.first),
            "first_token_ms": _spread(self.first),
            "inter_token_ms": _spread(self.gaps),
        }


class Traffic:
    """Requests with random prompts, at ``rate`` a second."""

    def __init__(self, client: EngineClient, vocab_size: int, num_tokens: int) -> None:
        self._client = client
        self._vocab_size = vocab_size
        self._num_tokens = num_tokens
        self._random = random.Random(1)
        self._number = 0

    async def saturate(self, num_requests: int) -> float:
        """Requests a second when all are there at once."""
        started = time.perf_counter()
        await asyncio.gather(*(self._stream(Latencies()) for _ in range(num_requests)))
        return num_requests / (time.perf_counter() - started)

    async def flow(self, rate: float, seconds: float) -> Latencies:
        """Latencies of the requests that arrive within ``seconds``, at the same times each call."""
        measured, streams = Latencies(), []
        started = time.perf_counter()
        for arrival in arrivals(rate, seconds):
            await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
            streams.append(asyncio.create_task(self._stream(measured)))
        await asyncio.gather(*streams)
        return measured

    async def _stream(self, measured: Latencies) -> None:
        self._number += 1
        prompt = tuple(self._random.randrange(2, self._vocab_size) for _ in range(PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=self._num_tokens, temperature=0.0, ignore_eos=True)
        last, is_first = time.perf_counter(), True
        request = GenerationRequest(id=str(self._number), prompt=prompt, sampling=sampling)
        async for event in self._client.generate(request):
            now = time.perf_counter()
            if event.tokens:
                (measured.first if is_first else measured.gaps).append(now - last)
                last, is_first = now, False


def arrivals(rate: float, seconds: float) -> list[float]:
    """When requests come, in seconds from the start: at random, ``rate`` a second, never anew."""
    numbers = random.Random(3)
    gaps = (numbers.expovariate(rate) for _ in itertools.count())
    return list(itertools.takewhile(lambda at: at < seconds, itertools.accumulate(gaps)))


class Training:
    """A job that never ends by itself, as a context; ``steps`` are the times of its steps' ends."""

    def __init__(self, client: EngineClient, job: TrainingJob) -> None:
        self._client = client
        self._job = job
        self.steps: list[float] = []
        self._started: asyncio.Future[JobStarted] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def __aenter__(self) -> "Training":
        self.micro_batch_tokens = (await self._started).micro_batch_tokens
        return self

    def tokens_per_second(self, first: float, last: float) -> float | None:
        """From the first to the last step that ended between two times; None for fewer than two.

        A step takes seconds, so tokens by the clock of the phase would be off by a step.
        """
        ends = [at for at in self.steps if first <= at <= last]
        if len(ends) < 2:
            return None
        return round((len(ends) - 1) * ROW_TOKENS / (ends[-1] - ends[0]), 2)

    async def __aexit__(self, *exc: object) -> None:
        self._client.cancel_training(self._job.id)
        await self._task

    async def _run(self) -> None:
        async for event in self._client.train(self._job):
            if isinstance(event, JobFailed):
                raise SystemExit(f"the job failed: {event.message}")
            if isinstance(event, JobStarted):
                self._started.set_result(event)
            if isinstance(event, StepMetrics):
                self.steps.append(time.perf_counter())


async def measure(config: EngineConfig, job: TrainingJob, arguments: Any) -> dict[str, Any]:
    client = EngineClient.in_process_of_its_own(config)
    info = await client.start()
    try:
        traffic = Traffic(client, info.vocab_size, arguments.tokens)
        await traffic.saturate(2)
        num_requests = 2 * config.scheduler.max_num_requests
        rate = arguments.load * await traffic.saturate(num_requests)
        alone = await traffic.flow(rate, arguments.seconds)
        async with Training(client, job) as training:
            before = (await client.stats()).training
            started = time.perf_counter()
            await asyncio.sleep(arguments.seconds)
            between = (await client.stats()).training
            began = time.perf_counter()
            beside = await traffic.flow(rate, arguments.seconds)
            ended = time.perf_counter()
            after = (await client.stats()).training
        spent = ended - began
        tokens_alone = training.tokens_per_second(started, began)
        tokens_beside = training.tokens_per_second(began, ended)
        trained_alone = (between.seconds - before.seconds) / arguments.seconds
        trained_beside = (after.seconds - between.seconds) / spent
        return {
            "requests_per_second": round(rate, 3),
            "micro_batch_tokens": training.micro_batch_tokens,
            "serving_alone": alone.figures(),
            "serving_beside_training": beside.figures(),
            "inter_token_p99_over_alone": round(beside.p99 / alone.p99, 3),
            "trained_tokens_per_second_alone": tokens_alone,
            "trained_tokens_per_second_beside": tokens_beside,
            "training_kept": round(tokens_beside / tokens_alone, 3)
            if tokens_alone and tokens_beside
            else None,
            "training_time_share_alone": round(trained_alone, 3),
            "training_time_share_beside": round(trained_beside, 3),
            "share_at_end": after.share,
        }
    finally:
        await client.stop()


def write_rows(folder: Path, vocab_size: int) -> Path:
    """A prepared data set of random rows, half of each learned."""
    numbers = random.Random(2)
    with DatasetWriter(folder, DataConfig()) as writer:
        for line in range(1, NUM_ROWS + 1):
            ids = tuple(numbers.randrange(2, vocab_size) for _ in range(ROW_TOKENS))
            half = ROW_TOKENS // 2
            writer.add(Example(ids, (0.0,) * half + (1.0,) * half, line))
        writer.finish(Report(format="random"), fingerprint="")
    return folder


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(1e3 * statistics.median(ordered), 3),
        "p99": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "max": round(1e3 * ordered[-1], 3),
    }


def main() -> None:
    arguments = _parse()
    shape = SMOKE if arguments.smoke else QWEN_0_5B
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = build_base(folder / "base", shape)
        config = EngineConfig(
            base=BaseConfig(model=str(base)),
            data_dir=scratch,
            max_model_len=1_024,
            scheduler=SchedulerConfig(max_num_requests=MAX_REQUESTS),
            training=TrainingConfig(pace=arguments.pace),
        )
        # A step ends with every row, so that many of them end in a phase.
        batch = BatchSettings(batch_size=1, num_epochs=1_000_000, micro_batch_tokens=512)
        job = TrainingJob(
            id="job",
            data=str(write_rows(folder / "rows", shape["vocab_size"])),
            folder=str(folder / "job"),
            settings=TrainingSettings(batch=batch),
            base_name="random",
        )
        results = asyncio.run(measure(config, job, arguments))
    print(json.dumps(results, indent=2))
    record = {"base": shape, "arguments": vars(arguments), "batch": asdict(batch), **results}
    print(f"saved {save('coserving', record)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny base, to see that it runs")
    parser.add_argument("--seconds", type=float, default=150.0, help="length of each phase")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--load", type=float, default=0.5, help="share of the saturated rate")
    parser.add_argument("--pace", choices=get_args(TrainingPace), default="balanced")
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
