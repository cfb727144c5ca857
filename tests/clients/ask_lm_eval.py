"""lm-eval against a server, its scores beside those of the reference."""

import json
import math
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from .reference import Reference

_WORDS: Final = "the quick brown fox jumps over lazy dog".split()
_NUM_ROWS: Final = 24
_NUM_TOKENS: Final = 3
_TASKS: Final[Mapping[str, dict[str, Any]]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "tiny_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": _NUM_TOKENS, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@dataclass(frozen=True, slots=True)
class Score:
    """One number of lm-eval and what it has to be."""

    run: str
    metric: str
    score: float
    expected: float

    @property
    def difference(self) -> float:
        return abs(self.score - self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """``python`` has lm-eval; ``folder`` is for its tasks and results."""

    python: Path
    folder: Path
    url: str
    key: str
    model_folder: Path

    def scores(self, reference: Reference) -> Iterator[Score]:
        """Scores of all tasks and ways to ask. Raises ``CalledProcessError``."""
        completions = f"base_url={self.url}/v1/completions,num_concurrent=4,max_retries=1"
        chat = f"base_url={self.url}/v1/chat/completions,num_concurrent=4,max_retries=1"
        local = f"{completions},tokenizer_backend=huggingface,tokenizer={self.model_folder}"
        remote = f"{completions},tokenizer_backend=remote,auth_token={self.key}"
        kinds = ("local-completions", "local-chat-completions")
        yield from self._compare(kinds[0], local, "rank-3", tuple(_TASKS), reference)
        yield from self._compare(kinds[0], remote, "rank-1", ("tiny_choice",), reference)
        yield from self._compare(kinds[1], chat, "rank-8-rslora", ("tiny_answer",), reference)

    def _compare(
        self, kind: str, arguments: str, model: str, tasks: Sequence[str], reference: Reference
    ) -> Iterator[Score]:
        is_chat = "chat" in kind
        folder = self.folder / f"{kind}-{model}"
        expected = _write_tasks(folder, model, tasks, reference, is_chat=is_chat)
        found = self._run(folder, kind, f"model={model},{arguments}", tasks, is_chat=is_chat)
        how = kind + (", remote tokenizer" if "remote" in arguments else "")
        for task in tasks:
            for metric, value in expected[task].items():
                score = found[task][f"{metric},none"]
                yield Score(f"{how}: {task} of {model}", metric, score, value)

    def _run(
        self, folder: Path, kind: str, arguments: str, tasks: Sequence[str], *, is_chat: bool
    ) -> Any:
        command = [self.python, "-m", "lm_eval", "run", "--model", kind]
        command += ["--model_args", arguments, "--tasks", ",".join(tasks)]
        command += ["--include_path", folder, "--output_path", folder / "out"]
        command += ["--apply_chat_template"] if is_chat else []
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": self.key}
        caches = {"HF_HOME": str(self.folder / "cache")}
        ended = subprocess.run(
            command,
            env={**os.environ, **offline, **caches},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(f"lm-eval ended with {ended.returncode}: {ended.stderr[-3000:]}")
        (results,) = (folder / "out").rglob("results_*.json")
        return json.loads(results.read_text())["results"]


def _write_tasks(
    folder: Path, model: str, tasks: Sequence[str], reference: Reference, *, is_chat: bool
) -> dict[str, dict[str, float]]:
    """Tasks with their rows; returns the scores that they must have."""
    folder.mkdir(parents=True)
    draw = random.Random(7)
    makers = {"tiny_choice": _choices, "tiny_text": _texts}
    expected = {}
    for task in tasks:
        if task == "tiny_answer":
            rows, scores = _answers(draw, model, reference, is_chat=is_chat)
        else:
            rows, scores = makers[task](draw, model, reference)
        path = folder / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        whole = {"task": task, **data, "test_split": "test", **_TASKS[task]}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(whole))
        expected[task] = scores
    return expected


def _text(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(count))


def _choices(draw: random.Random, model: str, reference: Reference) -> Any:
    rows, right, right_by_length = [], 0, 0
    for _ in range(_NUM_ROWS):
        question, gold = _text(draw, 6), draw.randrange(4)
        choices = [_text(draw, draw.randint(1, 3)) for _ in range(4)]
        scores = [reference.score(model, question, f" {choice}") for choice in choices]
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        right += scores.index(max(scores)) == gold
        right_by_length += by_length.index(max(by_length)) == gold
        rows.append({"question": question, "choices": choices, "gold": gold})
    return rows, {"acc": right / _NUM_ROWS, "acc_norm": right_by_length / _NUM_ROWS}


def _texts(draw: random.Random, model: str, reference: Reference) -> Any:
    texts = [_text(draw, draw.randint(5, 20)) for _ in range(_NUM_ROWS)]
    total = sum(reference.score_text(model, text) for text in texts)
    bits = -total / sum(len(text.encode()) for text in texts) / math.log(2)
    return [{"text": text} for text in texts], {"bits_per_byte": bits}


def _answers(draw: random.Random, model: str, reference: Reference, *, is_chat: bool) -> Any:
    """Every third row asks for something else than what the model says."""
    rows: list[dict[str, str]] = []
    while len(rows) < _NUM_ROWS:
        question = _text(draw, draw.randint(2, 9))
        tokens = (
            reference.chat_tokens(question) if is_chat else reference.tokenizer.encode(question)
        )
        answer = reference.continued(model, tokens, _NUM_TOKENS)
        if answer is not None and answer == answer.strip():
            wanted = f"not {answer}" if len(rows) % 3 == 2 else answer
            rows.append({"question": question, "answer": wanted})
    return rows, {"exact_match": 2 / 3}
