"""How fast do servers on one CPU answer for many adapters, over HTTP on loopback, side by side?

This server beside llama.cpp's and vLLM's, all on the same random base and adapters, with the same
threads and room for the same requests. All are up at once and are asked in turn, cell by cell, so
that a slow minute hits every one of them. A server that is not there is skipped, and the record
says why; so is one whose answers do not depend on the adapter that is asked.

    python -m benchmarks.serving.bench_http_peers [--shape llama] [--concurrency 1,8,32]
        [--servers multiflora,llama.cpp-q4_0] [--smoke]
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.harness import save
from benchmarks.peer_environment import PEERS, PeerMissing
from benchmarks.shape import QWEN_0_5B, TINY_LLAMA
from multiflora.server.load_test.arrival import Arrival, drive
from multiflora.server.load_test.openai_server import OpenAIServer
from multiflora.server.load_test.outcome import Outcome, figures
from multiflora.server.load_test.question import PATHS, Question

from .memory_watch import MemoryWatch
from .peer_files import RANK, PeerFiles, write_files
from .peer_server import BASE_NAME, LAUNCHES, Launch, Sizing, last_line
from .server_process import ServerProcess, running_process

# Everything that the report has a row for; what was not asked is missing there.
CONCURRENCIES: Final = (1, 8, 32)
ADAPTERS: Final = (0, 1, 8)
_TINY: Final = {
    **QWEN_0_5B,
    "vocab_size": 1_536,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# Compiling kernels for every shape is a part of a start.
_START_SECONDS: Final = 600
_CHECK_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, and the family whose code computes it."""

    sizes: dict[str, Any]
    family: Literal["qwen2", "llama"]
    title: str


SHAPES: Final = {
    "qwen": Shape(QWEN_0_5B, "qwen2", "Qwen2.5-0.5B shape"),
    "llama": Shape(TINY_LLAMA, "llama", "Llama shape of 1.1 B parameters"),
    "tiny": Shape(_TINY, "qwen2", "two small layers"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is asked at once; ``adapters`` is how many are asked in turn, 0 for the base."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    adapters: int

    def names(self, files: PeerFiles) -> list[str]:
        return list(files.adapters)[: self.adapters] or [BASE_NAME]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is up and was checked."""

    launch: Launch
    server: ServerProcess
    watch: MemoryWatch
    start_seconds: float
    ready_mib: int


def main() -> None:
    arguments = _arguments()
    shape = SHAPES[arguments.shape]
    files = write_files(
        PEERS / "files" / arguments.shape,
        shape.sizes,
        family=shape.family,
        num_adapters=max(1, *arguments.adapters),
    )
    cells = plan(arguments)
    record: dict[str, Any] = {
        "work": f"{shape.title}, prompts of {' and '.join(map(str, arguments.prompt_tokens))}",
        "arguments": vars(arguments),
        "base": shape.sizes,
        "rank": RANK,
        "planned": [asdict(cell) for cell in report_plan(arguments)],
        "servers": {},
        "skipped": {},
        "cells": [],
    }
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = start(stack, files, arguments, scratch=scratch, skipped=record["skipped"])
        path = _save(record, peers, smoke=arguments.smoke)
        for cell in cells:
            for name in peers:
                if f"{name}:{cell.concurrency}" in arguments.leave_out:
                    continue
                found = asyncio.run(measure(cell, name, peers, files, arguments))
                record["cells"].append(found)
                print(_line(found), flush=True)
            # After every cell: the last may take longer than there is time.
            path = _save(record, peers, smoke=arguments.smoke, path=path)
    print(f"{json.dumps(record['skipped'], indent=2)}\nsaved {path}")


def plan(arguments: argparse.Namespace) -> list[Cell]:
    return list(
        itertools.starmap(
            Cell,
            itertools.product(
                arguments.prompt_tokens,
                (arguments.output_tokens,),
                arguments.concurrency,
                arguments.adapters,
            ),
        )
    )


def report_plan(arguments: argparse.Namespace) -> list[Cell]:
    """Everything of these lengths that there is a question about, asked or not."""
    concurrencies = sorted({*CONCURRENCIES, *arguments.concurrency})
    adapters = sorted({*ADAPTERS, *arguments.adapters})
    asked = {**vars(arguments), "concurrency": concurrencies, "adapters": adapters}
    return plan(argparse.Namespace(**asked))


def start(
    stack: ExitStack,
    files: PeerFiles,
    arguments: argparse.Namespace,
    *,
    scratch: Path,
    skipped: dict[str, str],
) -> dict[str, Peer]:
    """Servers that start and serve their adapters, by name; why others do not is in ``skipped``."""
    length = max(arguments.prompt_tokens) + arguments.output_tokens
    peers: dict[str, Peer] = {}
    for name in arguments.servers:
        own = scratch / name
        own.mkdir()
        sizing = Sizing(
            threads=arguments.threads,
            concurrency=max(arguments.concurrency),
            length=length,
            scratch=own,
        )
        with ExitStack() as attempt:
            try:
                launch = LAUNCHES[name](files, sizing)
                peer = _start(attempt, launch, scratch / f"{name}.log")
                check_adapters(peer, files, prompt_tokens=min(arguments.prompt_tokens))
            except (PeerMissing, RuntimeError, OSError) as error:
                skipped[name] = last_line(str(error))
                print(f"{name} is skipped: {error}", flush=True)
                continue
            stack.push(attempt.pop_all())
        peers[name] = peer
        print(f"{name} is up after {peer.start_seconds} s", flush=True)
    return peers


def _start(stack: ExitStack, launch: Launch, log: Path) -> Peer:
    started = time.perf_counter()
    server = stack.enter_context(
        running_process(
            launch.command,
            environment=launch.environment,
            ready=launch.ready,
            start_seconds=_START_SECONDS,
            log=log,
        )
    )
    seconds = round(time.perf_counter() - started, 1)
    watch = stack.enter_context(MemoryWatch(server))
    return Peer(launch, server, watch, seconds, watch.peak_mib)


def check_adapters(peer: Peer, files: PeerFiles, *, prompt_tokens: int) -> None:
    """Every name has to answer one prompt in its own way, and the base twice in the same way.

    Raises ``RuntimeError``.
    """
    question = _question(peer, files, prompt_tokens, max_tokens=_CHECK_TOKENS, seed=0)
    names = [BASE_NAME, *files.adapters]
    answers = {name: _answer(peer.server, question.body(name, 0)) for name in names}
    if _answer(peer.server, question.body(BASE_NAME, 0)) != answers[BASE_NAME]:
        raise RuntimeError("the base answers the same prompt in two ways at temperature 0")
    for (name, text), (other, same) in itertools.combinations(answers.items(), 2):
        if text == same:
            raise RuntimeError(f"{name} and {other} answer alike: {text!r}")


def _answer(server: ServerProcess, body: Mapping[str, Any]) -> str:
    request = urllib.request.Request(
        server.url + PATHS["completions"],
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_START_SECONDS) as answer:
        return json.load(answer)["choices"][0]["text"]


def _question(
    peer: Peer, files: PeerFiles, prompt_tokens: int, *, max_tokens: int, seed: int
) -> Question:
    vocab_size = files.config["vocab_size"]
    return Question(
        api="completions",
        num_words=prompt_tokens,
        max_tokens=max_tokens,
        # No byte alone and no sign that ends a text.
        token_ids=range(vocab_size // 4, vocab_size),
        seed=seed,
        fields=peer.launch.fields,
    )


async def measure(
    cell: Cell,
    name: str,
    peers: Mapping[str, Peer],
    files: PeerFiles,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Figures of one server; ``invalid`` says what is wrong with them, or is empty."""
    peer, names = peers[name], cell.names(files)
    # The same for every server; no two cells share a prompt.
    seed = zlib.crc32(repr(cell).encode())
    question = _question(peer, files, cell.prompt_tokens, max_tokens=cell.output_tokens, seed=seed)
    warmup = _question(peer, files, cell.prompt_tokens, max_tokens=2, seed=seed)
    others = [other.watch for other in peers.values() if other is not peer]
    peer.watch.begin("cell")
    async with OpenAIServer(peer.server.url, key=None, timeout_seconds=_START_SECONDS) as server:

        async def ask(asked: Question, number: int) -> Outcome:
            return await server.ask(asked, names[number % len(names)], number)

        once = Arrival(concurrency=cell.concurrency, num_requests=max(cell.concurrency, len(names)))
        # Below zero: prompts that no counted request repeats, or they would be cached.
        await drive(lambda number: ask(warmup, -1 - number), once)
        spent = sum(watch.cpu_seconds() for watch in others)
        arrival = Arrival(
            concurrency=cell.concurrency,
            num_requests=max(arguments.requests, 2 * cell.concurrency),
            seconds=arguments.cell_seconds,
        )
        run = await drive(lambda number: ask(question, number), arrival)
        spent = sum(watch.cpu_seconds() for watch in others) - spent
    return {
        **figures(run.outcomes, run.seconds),
        "server": name,
        **asdict(cell),
        "invalid": what_is_wrong(cell, run.outcomes),
        "peak_mib": peer.watch.end("cell"),
        "others_cpu_seconds": round(spent, 2),
        "pieces": sum(len(outcome.gaps) + 1 for outcome in run.outcomes),
    }


def what_is_wrong(cell: Cell, outcomes: Sequence[Outcome]) -> str:
    """Empty if every request was answered with the tokens that were asked, as the server counts."""
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        return f"{len(failed)} of {len(outcomes)} requests failed: {last_line(failed[0])}"
    for asked, counted, what in (
        (cell.prompt_tokens, {o.num_prompt_tokens for o in outcomes}, "prompt"),
        (cell.output_tokens, {o.num_tokens for o in outcomes}, "answer"),
    ):
        if counted != {asked}:
            found = ", ".join(map(str, sorted(counted)))
            return f"{asked} tokens of each {what} were asked for, and {found} were counted"
    return ""


def compare(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokens per second of each of our servers over each peer's, by cell."""
    compared = []
    for cell, found in _by_cell(cells):
        speeds = {one["server"]: one["tokens_per_second"] for one in found if not one["invalid"]}
        ratios = {
            f"{ours} / {peer}": round(speeds[ours] / speeds[peer], 2)
            for ours, peer in itertools.product(speeds, speeds)
            if _is_ours(ours) and not _is_ours(peer) and speeds[peer]
        }
        compared.append({**asdict(cell), "ratios": ratios})
    return compared


def _by_cell(cells: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Cell, list[Mapping[str, Any]]]]:
    apart: dict[Cell, list[Mapping[str, Any]]] = {}
    for one in cells:
        cell = Cell(one["prompt_tokens"], one["output_tokens"], one["concurrency"], one["adapters"])
        apart.setdefault(cell, []).append(one)
    yield from apart.items()


def _is_ours(name: str) -> bool:
    return name.startswith("multiflora")


def _save(
    record: dict[str, Any], peers: Mapping[str, Peer], *, smoke: bool, path: Path | None = None
) -> Path:
    record["compared"] = compare(record["cells"])
    record["servers"] = {
        name: {
            "version": peer.launch.version,
            "form": peer.launch.form,
            "start_seconds": peer.start_seconds,
            "ready_mib": peer.ready_mib,
            "peak_mib": peer.watch.peak_mib,
        }
        for name, peer in peers.items()
    }
    return save("http-peers-smoke" if smoke else "http-peers", record, path=path)


def _line(found: Mapping[str, Any]) -> str:
    asked = f"{found['prompt_tokens']:4} prompt, {found['concurrency']:2} x {found['adapters']} "
    if found["invalid"]:
        return f"{asked} {found['server']}: {found['invalid']}"
    first, next_token = found["first_token_ms"]["p50"], found["inter_token_ms"]["p50"]
    return (
        f"{asked} {found['server']:26} {found['tokens_per_second']:8.2f} tokens/s, first "
        f"{first:8.1f} ms, next {next_token:7.1f} ms, {found['peak_mib']} MiB"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--servers", type=_names, default=list(LAUNCHES), metavar="NAME,...")
    option("--shape", choices=SHAPES, default="qwen")
    option("--concurrency", type=_numbers, default=[1, 8], metavar="N,...")
    option("--adapters", type=_numbers, default=list(ADAPTERS), metavar="N,...")
    option("--prompt-tokens", type=_numbers, default=[64], metavar="N,...")
    option("--output-tokens", type=int, default=64)
    option("--threads", type=int, default=2)
    option(
        "--leave-out", type=_texts, default=[], metavar="NAME:N,...", help="N at once, of a server"
    )
    option("--requests", type=int, default=8, help="a cell, but two for each client at least")
    option("--cell-seconds", type=float, default=20, help="begin no request of a cell after it")
    option("--notes", default="", help="about the machine, kept in the record")
    option("--smoke", action="store_true", help="a tiny base, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.shape, arguments.threads, arguments.requests = "tiny", 1, 2
        arguments.prompt_tokens, arguments.output_tokens = [16], 8
        arguments.concurrency, arguments.adapters = [2], [0, 2]
    return arguments


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in LAUNCHES]:
        known = ", ".join(LAUNCHES)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {known}")
    return names


def _texts(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
