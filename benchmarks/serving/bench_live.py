"""How long until a new adapter answers: from its upload, and from the job that makes it?

A server with the embedded demo, as a user starts it. Each upload has weights that the server has
never seen; the first token is streamed to a chat that is asked as soon as the upload is answered,
and beside it to one that asks an adapter in use. A job teaches a few rows for one epoch; its time
is from its creation, with the file there already, until its name has given a first token.

    python -m benchmarks.serving.bench_live [--uploads 10] [--smoke]
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx2

from benchmarks.harness import save
from multiflora.server.base_model import DEMO
from multiflora.server.load_test.openai_server import OpenAIServer
from multiflora.server.load_test.question import Question

from .server_process import running_server

BASE: Final = "multiflora-demo"
_SOURCE: Final = DEMO / "adapters" / "json"
_JOB_SECONDS: Final = 600
_POLL_SECONDS: Final = 0.05
_QUESTION: Final = Question(num_words=8, max_tokens=4)


def main() -> None:
    arguments = _arguments()
    started = time.perf_counter()
    with running_server("--device", "cpu", threads=arguments.threads) as server:
        ready = time.perf_counter() - started
        found = asyncio.run(measure(server.url, uploads=arguments.uploads, rows=arguments.rows))
    record = {
        "model": "embedded demo, NF4",
        "arguments": vars(arguments),
        "server_ready_seconds": round(ready, 2),
        **found,
    }
    path = save("live-smoke" if arguments.smoke else "live", record)
    print(f"{json.dumps(found, indent=2)}\nsaved {path}")


async def measure(url: str, *, uploads: int, rows: int) -> dict[str, Any]:
    """Seconds of each upload and its first token, of a resident adapter's, and of one job."""
    async with (
        OpenAIServer(url, key=None, timeout_seconds=_JOB_SECONDS) as server,
        httpx2.AsyncClient(base_url=url, timeout=_JOB_SECONDS) as client,
    ):
        # What a first request of its kind costs is no part of an upload.
        await first_token(server, "json", -1)
        taken = [await _upload(client, server, number) for number in range(uploads)]
        job = await _job(client, server, rows)
    return {
        "upload": {
            "repeats": taken,
            **{name: _median([one[name] for one in taken]) for name in taken[0]},
        },
        "job": job,
    }


async def first_token(server: OpenAIServer, name: str, number: int) -> float:
    """Seconds from asking to the first piece. Raises ``SystemExit`` if there is none."""
    outcome = await server.ask(_QUESTION, name, number)
    if outcome.error or outcome.first_token is None:
        raise SystemExit(f"{name} did not answer: {outcome.error}")
    return outcome.first_token


async def _upload(
    client: httpx2.AsyncClient, server: OpenAIServer, number: int
) -> dict[str, float]:
    config = json.loads((_SOURCE / "adapter_config.json").read_text())
    # Content names a version: another scale makes another one.
    config["lora_alpha"] += (number + 1) / 1000
    files = {
        "config": ("adapter_config.json", json.dumps(config).encode()),
        "weights": (
            "adapter_model.safetensors",
            (_SOURCE / "adapter_model.safetensors").read_bytes(),
        ),
    }
    started = time.perf_counter()
    answer = await client.put(f"/v1/adapters/live-{number}", files=files)
    answered = time.perf_counter()
    if answer.status_code != 201:
        raise SystemExit(f"the upload was answered with {answer.status_code}: {answer.text}")
    cold = await first_token(server, f"live-{number}", 2 * number)
    resident = await first_token(server, "json", 2 * number + 1)
    return {
        "upload_seconds": round(answered - started, 4),
        "first_token_seconds": round(answered - started + cold, 4),
        "resident_first_token_seconds": round(resident, 4),
    }


async def _job(client: httpx2.AsyncClient, server: OpenAIServer, rows: int) -> dict[str, Any]:
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Name number {number}."},
                    {"role": "assistant", "content": f"It is {number}, matey."},
                ]
            }
        )
        for number in range(rows)
    ]
    files = {"file": ("rows.jsonl", "\n".join(lines).encode())}
    file = await client.post("/v1/files", files=files, data={"purpose": "fine-tune"})
    hyperparameters = {"n_epochs": 1, "batch_size": 8}
    # Whether one epoch of these rows makes anything good is not what is asked here.
    training = {"gate": {"num_prompts": 0}}
    body = {
        "model": BASE,
        "training_file": file.json()["id"],
        "suffix": "live-job",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "training": training,
    }
    started = time.perf_counter()
    job = (await client.post("/v1/fine_tuning/jobs", json=body)).json()
    running = None
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        if time.perf_counter() - started > _JOB_SECONDS:
            raise SystemExit(f"the job is still {job['status']}")
        await asyncio.sleep(_POLL_SECONDS)
        job = (await client.get(f"/v1/fine_tuning/jobs/{job['id']}")).json()
        if running is None and job["status"] == "running":
            running = time.perf_counter() - started
    live = time.perf_counter() - started
    if job["status"] != "succeeded":
        raise SystemExit(f"the job {job['status']}: {job['error']}")
    token = await first_token(server, job["fine_tuned_model"], 10**6)
    return {
        "rows": rows,
        "trained_tokens": job["trained_tokens"],
        "running_seconds": None if running is None else round(running, 3),
        "live_seconds": round(live, 3),
        "first_token_seconds": round(live + token, 3),
    }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uploads", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64, help="that the job teaches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    parser.add_argument("--smoke", action="store_true", help="two uploads, 16 rows: that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.uploads, arguments.rows, arguments.threads = 2, 16, 1
    return arguments


if __name__ == "__main__":
    main()
