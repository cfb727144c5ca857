"""Does a model learn a skill from its own answers that pass?

The demo base answers training questions of one task many times at temperature 1; what equals the
right answer is trained on; the adapter does the same again. Pass rates of each round are measured
on held-out questions, with the same sampling and other seeds: on other content where a task has
endless content, and on the same sums in another wording for the small table of products.

A task must be one that the base can do sometimes. Nothing is gained where it always can, or where
it guesses: of a guess that is right by chance nothing is learnt.
"""

import argparse
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.serving.server_process import running_server
from demo.tasks import OPEN_TASKS, Example, draw

BASE: Final = "multiflora-demo"
GRADER: Final = {"type": "exact", "ignore_case": True}
_PATIENCE_SECONDS: Final = 600
_TABLE: Final = "multiply"
# Questions in this wording are held out of the table.
_APART: Final = "Multiply"
_MOST_DRAWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Api:
    """JSON to and from the server at ``url``."""

    url: str

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call(path, json.dumps(body).encode())

    def get(self, path: str) -> dict[str, Any]:
        return self._call(path, None)

    def _call(self, path: str, content: bytes | None) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data=content, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.read().decode()}") from None


def questions(task: str, num: int, *, seed: int, held_out: bool) -> list[dict[str, Any]]:
    """Up to ``num`` prompts with their right answers, each content once."""
    numbers = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_MOST_DRAWS):
        if len(found) == num:
            break
        example = _draw(task, numbers, held_out=held_out)
        message = {"role": "user", "content": example.prompt}
        found[example.content] = {"messages": [message], "expected": example.answer}
    return list(found.values())


def _draw(task: str, numbers: random.Random, *, held_out: bool) -> Example:
    if task != _TABLE:
        return draw(task, numbers, held_out=held_out)
    while True:
        example = draw(task, numbers)
        if example.prompt.startswith(_APART) == held_out:
            return example


def sample(server: Api, model: str, prompts: Any, *, seed: int, arguments: Any) -> Any:
    """A report; see docs/continual.md."""
    body = {
        "model": model,
        "prompts": prompts,
        "grader": GRADER,
        "n": arguments.n,
        "max_tokens": 24,
        "seed": seed,
    }
    return server.post("/v1/datasets/sample", body)


def train(server: Api, model: str, file: str, name: str, arguments: Any) -> dict[str, Any]:
    """The job when it has ended."""
    hyperparameters = {"n_epochs": arguments.epochs, "batch_size": 16}
    job = server.post(
        "/v1/fine_tuning/jobs",
        {
            "model": model,
            "training_file": file,
            "suffix": name,
            "seed": arguments.seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        },
    )
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.2)
        job = server.get(f"/v1/fine_tuning/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"the job ended as {job['status']}: {job['error']}")
    return job


def measure(server: Api, arguments: Any) -> list[dict[str, Any]]:
    """One entry per round; the first is what the base can do."""
    held_out = questions(arguments.task, arguments.held_out, seed=1, held_out=True)
    model, rounds = BASE, list[dict[str, Any]]()
    for number in range(arguments.rounds + 1):
        tested = sample(server, model, held_out, seed=99 + number, arguments=arguments)
        rounds.append({"round": number, "model": model, "held_out": tested["pass_rates"]})
        print(json.dumps(rounds[-1]), flush=True)
        if number == arguments.rounds:
            break
        asked = questions(
            arguments.task, arguments.questions, seed=arguments.seed + 10 * number, held_out=False
        )
        made = sample(server, model, asked, seed=arguments.seed + number, arguments=arguments)
        if made["file"] is None:
            raise SystemExit("no answer passed: there is nothing to learn from")
        job = train(server, model, made["file"], f"round-{number + 1}", arguments)
        model = job["fine_tuned_model"]
        rounds[-1] |= {
            "sampled": {name: made[name] for name in ("answers", "passed", "rows", "seconds")},
            "trained_tokens": job["trained_tokens"],
            "training_seconds": job["finished_at"] - job["started_at"],
        }
    return rounds


def main() -> None:
    arguments = _parse()
    with running_server("--device", "cpu", threads=None) as server:
        rounds = measure(Api(server.url), arguments)
    record = {"base": BASE, "arguments": vars(arguments), "rounds": rounds}
    path = save("rejection-sampling", record)
    _draw_rates(rounds, path.with_suffix(".png"))
    print(f"{_table(rounds)}\n\nwrote {path} and {path.with_suffix('.png').name}")


def _table(rounds: Sequence[Mapping[str, Any]]) -> str:
    names = list(rounds[0]["held_out"])
    lines = [
        f"| round | {' | '.join(names)} | answers that passed, of those sampled for the next |"
    ]
    lines.append(f"| --- | {'--: | ' * len(names)}--: |")
    for one in rounds:
        rates = " | ".join(f"{one['held_out'][name]:.1%}" for name in names)
        made = one.get("sampled")
        passed = f"{made['passed']} of {made['answers']}" if made else ""
        lines.append(f"| {one['round']} | {rates} | {passed} |")
    return "\n".join(lines)


def _draw_rates(rounds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """pass@k of held-out questions over k, a line per round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    tries = [int(name.partition("@")[2]) for name in rounds[0]["held_out"]]
    for one in rounds:
        label = f"after round {one['round']}" if one["round"] else "the base"
        axes.plot(tries, list(one["held_out"].values()), marker="o", label=label)
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k of held-out questions")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tries, [str(number) for number in tries])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted([*OPEN_TASKS, _TABLE]), default=_TABLE)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--questions", type=int, default=162, help="training prompts per round")
    parser.add_argument("--held-out", type=int, default=81, help="prompts that are measured")
    parser.add_argument("--n", type=int, default=8, help="answers per prompt")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
