"""Does anything leak while a server is treated badly for long?

Workers send good requests, streams that they leave in the middle, requests that they abandon,
deadlines that pass, bodies that are none, names that are not there, and swap, roll back, delete and
upload adapters meanwhile. Memory, blocks, leases, open files and tasks are sampled all along and
once more when everything is quiet again; what is not back where it was is a leak.
"""

import argparse
import asyncio
import io
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy

from benchmarks.harness import save
from benchmarks.serving.server_process import Connection, ServerProcess, connected, running_server
from multiflora.server.base_model import DEMO

_SAMPLE_SECONDS: Final = 5.0
_QUIET_SECONDS: Final = 30.0
# What has to be zero once nobody asks for anything.
_ZERO: Final = (
    "multiflora_requests_running",
    "multiflora_requests_waiting",
    "multiflora_kv_blocks_used",
    "multiflora_adapter_leases",
    "multiflora_open_streams",
)
_BASE: Final = "multiflora-demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    record = soak(**vars(arguments))
    path = save("soak", record)
    print(f"{record['verdict']}; saved {path}")


def soak(*, minutes: float, workers: int, seed: int) -> dict[str, Any]:
    """Treat one server badly; the record says what was left."""
    flags = ("--max-num-requests", "8", "--max-queued-requests", "24", "--threads", "1")
    with running_server(*flags) as server:
        return asyncio.run(_soak(server, minutes * 60, workers, seed))


async def _soak(server: ServerProcess, seconds: float, workers: int, seed: int) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    archives = _archives()
    await _work(server, archives, min(20.0, seconds / 4), workers, seed, Counter())
    before = await _quiet(server)
    samples: list[dict[str, float]] = []
    end = time.monotonic() + seconds
    sampling = asyncio.create_task(_sample(server, samples, end))
    await _work(server, archives, seconds, workers, seed + 1, outcomes)
    await sampling
    after = await _quiet(server)
    found = leaks(before, after)
    return {
        "minutes": round(seconds / 60, 2),
        "workers": workers,
        "outcomes": dict(sorted(outcomes.items())),
        "quiet_before": before,
        "quiet_after": after,
        "memory_mib_per_minute": _slopes(samples),
        "leaks": found,
        "verdict": "leaks: " + ", ".join(found) if found else "no leak",
        "samples": samples,
    }


async def _work(
    server: ServerProcess,
    archives: Sequence[bytes],
    seconds: float,
    workers: int,
    seed: int,
    outcomes: Counter[str],
) -> None:
    end = time.monotonic() + seconds
    acts: list[Callable[..., Any]] = [
        *(_ask, _ask, _leave_stream, _abandon, _miss_deadline, _send_nonsense, _look_around),
        *(_swap, _roll_back, _delete),
    ]
    weights = (6, 6, 4, 4, 2, 4, 2, 2, 1, 1)

    async def worker(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        while time.monotonic() < end:
            (act,) = draw.choices(acts, weights)
            name = act.__name__.strip("_")
            try:
                async with connected(server) as connection, asyncio.timeout(60):
                    status = await act(connection, draw, archives)
                outcomes[f"{name} {status}"] += 1
            except (OSError, EOFError, TimeoutError) as error:
                outcomes[f"{name} {type(error).__name__}"] += 1

    await asyncio.gather(*(worker(number) for number in range(workers)))


def _question(draw: random.Random, **fields: Any) -> dict[str, Any]:
    model = draw.choice([_BASE, "soak-0", "soak-1", "soak-2", "nobody"])
    words = " ".join(draw.choice(["flower", "tree", "rain", "42"]) for _ in range(9))
    return {
        "model": model,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": draw.randint(1, 48),
        "temperature": draw.choice([0, 1]),
        "n": draw.choice([1, 1, 1, 2]),
        **fields,
    }


async def _ask(connection: Connection, draw: random.Random, archives: Sequence[bytes]) -> int:
    body = _question(draw, stream=draw.random() < 0.5)
    return (await connection.ask("POST", "/v1/chat/completions", body)).status


async def _leave_stream(connection: Connection, draw: random.Random, archives: Any) -> str:
    connection.send("POST", "/v1/chat/completions", _question(draw, stream=True), {})
    await connection.reader.read(draw.randint(1, 2000))
    return "left"


async def _abandon(connection: Connection, draw: random.Random, archives: Any) -> str:
    connection.send("POST", "/v1/chat/completions", _question(draw, max_tokens=200), {})
    await asyncio.sleep(draw.random() / 5)
    return "left"


async def _miss_deadline(connection: Connection, draw: random.Random, archives: Any) -> int:
    headers = {"x-request-timeout-ms": str(draw.randint(1, 60))}
    body = _question(draw, max_tokens=200)
    return (await connection.ask("POST", "/v1/chat/completions", body, headers)).status


async def _send_nonsense(connection: Connection, draw: random.Random, archives: Any) -> int:
    bodies: list[Any] = [
        draw.randbytes(draw.randint(0, 500)),
        b"[" * 5000,
        {"model": _BASE, "messages": [{"role": "king", "content": 3}]},
        {"model": _BASE, "messages": [{"role": "user", "content": "x" * 100_000}]},
        _question(draw, n=999),
        _question(draw, stop=["x"] * 99),
    ]
    return (await connection.ask("POST", "/v1/chat/completions", draw.choice(bodies))).status


async def _look_around(connection: Connection, draw: random.Random, archives: Any) -> int:
    paths = ("/v1/models", "/v1/adapters", "/metrics", "/nowhere", "/v1/adapters/nobody")
    return (await connection.ask("GET", draw.choice(paths))).status


async def _swap(connection: Connection, draw: random.Random, archives: Sequence[bytes]) -> int:
    archive = draw.choice([*archives, b"no archive"])
    mark = "soak-boundary"
    head = (
        f'--{mark}\r\ncontent-disposition: form-data; name="archive"; filename="a.tar.gz"\r\n\r\n'
    )
    content = head.encode() + archive + f"\r\n--{mark}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={mark}"}
    path = f"/v1/adapters/soak-{draw.randrange(3)}"
    return (await connection.ask("PUT", path, content, headers)).status


async def _roll_back(connection: Connection, draw: random.Random, archives: Any) -> int:
    path = f"/v1/adapters/soak-{draw.randrange(3)}/rollback"
    return (await connection.ask("POST", path)).status


async def _delete(connection: Connection, draw: random.Random, archives: Any) -> int:
    return (await connection.ask("DELETE", f"/v1/adapters/soak-{draw.randrange(3)}")).status


def _archives() -> list[bytes]:
    """The demo's adapters as uploads."""
    archives = []
    for folder in sorted((DEMO / "adapters").iterdir()):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file in sorted(folder.glob("adapter_*")):
                archive.add(file, arcname=file.name)
        archives.append(buffer.getvalue())
    return archives


async def _sample(server: ServerProcess, samples: list[dict[str, float]], end: float) -> None:
    started = time.monotonic()
    while time.monotonic() < end:
        seconds = round(time.monotonic() - started, 1)
        with suppress(OSError):
            samples.append({"seconds": seconds, **server.resources()})
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _quiet(server: ServerProcess) -> dict[str, float]:
    """Facts once everything that was asked is over, or after ``_QUIET_SECONDS``."""
    deadline = time.monotonic() + _QUIET_SECONDS
    while True:
        found = await asyncio.to_thread(server.metrics)
        is_quiet = not any(found[name] for name in _ZERO)
        if is_quiet or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    # Keep-alive connections of the clients are closed; the server notices in its own time.
    await asyncio.sleep(2)
    found = await asyncio.to_thread(server.metrics)
    shown = {name: found[name] for name in (*_ZERO, "multiflora_event_loop_tasks")}
    return {**shown, **server.resources()}


def leaks(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Names of what is not back where it was, given the facts of two quiet moments."""
    found = [name for name in _ZERO if after[name]]
    for name, count in after.items():
        if name.endswith(("_open_files", "_tasks")) and count > before[name] + 2:
            found.append(name)
        # Heaps grow in steps; more than this in one run is a leak.
        if name.endswith("_mib") and count > 1.2 * before[name] + 32:
            found.append(name)
    return found


def _slopes(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Growth over the second half of the run."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return {}
    minutes = [sample["seconds"] / 60 for sample in half]
    names = [name for name in half[0] if name.endswith("_mib")]
    return {
        name: round(float(numpy.polyfit(minutes, [s.get(name, 0.0) for s in half], 1)[0]), 3)
        for name in names
    }


if __name__ == "__main__":
    main()
