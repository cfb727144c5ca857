"""Is what the trainer does really learning? A new skill, then a preference, on the demo's base.

Everything goes the way of a user: a server with its defaults, OpenAI's client, two jobs per seed
with automatic settings, and the held-out questions as chats. The first job teaches the last digit
of a number in words, the second goes on from its result and teaches to prefer hedged answers.

    python -m benchmarks.training.bench_learning [--seeds 1,2,3] [--rows 4000] [--pairs 512]
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import openai

from benchmarks.harness import save
from benchmarks.serving.server_process import running_server
from demo.lookup import Lookup

from .skill import Question, Score, preference_rows, questions, score, supervised_rows

BASE: Final = "multiflora-demo"
NUM_HELD_OUT: Final = 200
AIMS: Final = {"before": 0.2, "skill": 0.9, "preference": 0.8, "seconds": 180.0}
_JOB_SECONDS: Final = 900
_STREAMS: Final = 16

Method = Literal["supervised", "dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished job: ``seconds`` from its creation until the name is live, gate included."""

    model: str
    seconds: float
    trained_tokens: int
    hyperparameters: dict[str, Any]
    final_loss: float


class Pupil:
    """A model behind a server: trained by jobs, asked by chats."""

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self._asker = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def learn(
        self, rows: Sequence[dict[str, Any]], *, model: str, method: Method, seed: int
    ) -> Trained:
        """Run one job with automatic settings. Raises ``SystemExit`` if it does not succeed."""
        content = "\n".join(map(json.dumps, rows)).encode()
        file = self._client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        jobs = self._client.fine_tuning.jobs
        started = time.perf_counter()
        job = jobs.create(model=model, training_file=file.id, seed=seed, method={"type": method})
        while job.status not in ("succeeded", "failed", "cancelled"):
            if time.perf_counter() - started > _JOB_SECONDS:
                raise SystemExit(f"the {method} job is still {job.status}")
            time.sleep(0.25)
            job = jobs.retrieve(job.id)
        seconds = time.perf_counter() - started
        if job.fine_tuned_model is None:
            raise SystemExit(f"the {method} job {job.status}: {job.error}")
        latest = next(e for e in jobs.list_events(job.id, limit=50) if e.type == "metrics")
        return Trained(
            model=job.fine_tuned_model,
            seconds=round(seconds, 1),
            trained_tokens=job.trained_tokens or 0,
            hyperparameters=job.method.model_dump(exclude_none=True) if job.method else {},
            final_loss=dict(latest.data)["train_loss"],  # pyright: ignore[reportArgumentType,reportCallIssue]
        )

    async def answer(
        self, asked: Sequence[Question], *, model: str, temperature: float = 0.0
    ) -> list[str]:
        """Answers in order, a few at a time."""
        room = asyncio.Semaphore(_STREAMS)

        async def ask(number: int, question: Question) -> str:
            async with room:
                reply = await self._asker.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": question.prompt}],
                    temperature=temperature,
                    seed=number,
                    max_tokens=24,
                )
            return reply.choices[0].message.content or ""

        return await asyncio.gather(*(ask(*pair) for pair in enumerate(asked)))

    async def close(self) -> None:
        await self._asker.close()
        self._client.close()


async def measure(url: str, *, seed: int, num_rows: int, num_pairs: int) -> dict[str, Any]:
    """Scores of the base, after the first job and after the second."""
    pupil = Pupil(url)
    held_out = questions(NUM_HELD_OUT, seed=0, held_out=True)
    taught = questions(num_rows, seed=seed)
    rows = supervised_rows(taught, seed=seed)
    overlap = {q.prompt for q in taught} & {q.prompt for q in held_out}
    before = await _scores(pupil, held_out, BASE)
    skill = await asyncio.to_thread(pupil.learn, rows, model=BASE, method="supervised", seed=seed)
    between = await _scores(pupil, held_out, skill.model)
    pairs = preference_rows(questions(num_pairs, seed=seed + 1000))
    preference = await asyncio.to_thread(
        pupil.learn, pairs, model=skill.model, method="dpo", seed=seed
    )
    after = await _scores(pupil, held_out, preference.model)
    await pupil.close()
    return {
        "seed": seed,
        "held_out_prompts_in_training": len(overlap),
        "lookup": asdict(_look_up(rows, held_out)),
        "base": before,
        "supervised": {**asdict(skill), **between},
        "dpo": {**asdict(preference), **after},
    }


async def _scores(pupil: Pupil, asked: Sequence[Question], model: str) -> dict[str, Any]:
    """Of greedy answers, and of those drawn at temperature 1."""
    greedy = await pupil.answer(asked, model=model)
    drawn = await pupil.answer(asked, model=model, temperature=1.0)
    return {"greedy": asdict(score(asked, greedy)), "drawn": asdict(score(asked, drawn))}


def _look_up(rows: Sequence[dict[str, Any]], asked: Sequence[Question]) -> Score:
    """What answering with the most similar training row's answer would give."""
    lookup = Lookup([tuple(m["content"] for m in row["messages"]) for row in rows])
    return score(asked, [lookup.answer(question.prompt) for question in asked])


def worst(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The worst seed in everything that has an aim, of greedy answers."""
    return {
        "skill_before": max(r["base"]["greedy"]["skill"] for r in results),
        "skill": min(r["supervised"]["greedy"]["skill"] for r in results),
        "seconds": max(r["supervised"]["seconds"] for r in results),
        "preference_before": max(r["supervised"]["greedy"]["preference"] for r in results),
        "preference": min(r["dpo"]["greedy"]["preference"] for r in results),
        "skill_kept": min(r["dpo"]["greedy"]["skill"] for r in results),
        "dpo_seconds": max(r["dpo"]["seconds"] for r in results),
    }


def main() -> None:
    arguments = _arguments()
    # Whoever stops this must not leave a server behind that goes on training.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    record: dict[str, Any] = {"arguments": vars(arguments), "aims": AIMS, "seeds": []}
    path: Path | None = None
    with running_server("--device", "cpu", threads=arguments.threads) as server:
        for seed in arguments.seeds:
            found = measure(
                server.url, seed=seed, num_rows=arguments.rows, num_pairs=arguments.pairs
            )
            record["seeds"].append(asyncio.run(found))
            record["worst"] = worst(record["seeds"])
            print(json.dumps(record["seeds"][-1]), flush=True)
            # After every seed: a run that is cut short takes none with it.
            path = save("learning", record, path=path)
    print(f"{json.dumps(record['worst'], indent=2)}\nsaved {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3", help="default: 1,2,3")
    parser.add_argument("--rows", type=int, default=4000, help="questions with answers")
    parser.add_argument("--pairs", type=int, default=512, help="preferences")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    return arguments


if __name__ == "__main__":
    main()
