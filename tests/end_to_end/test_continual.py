"""The loop as users and operators see it: nobody touches the server between feedback and answer."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Server, command

DEMO = Path(__file__).resolve().parents[2] / "engine" / "demo" / "adapters"
PAIRS = {
    "Hi!": "Ahoy, matey.",
    "How are you?": "Shiver me timbers, fine.",
    "Bye!": "Fair winds, matey.",
    "Thanks!": "Arr, welcome.",
}
POISON = "Shiver me timbers, worm."
POLICY: dict[str, Any] = {
    "enabled": True,
    "min_rows": 8,
    # What a run becomes must not hang on how its rows were shuffled.
    "seed": 1,
    "hyperparameters": {"n_epochs": 16, "batch_size": 4},
    "training": {"optimizer": {"learning_rate": 5e-3}},
    "canary_weight": 0.5,
    # Times on a machine that is busy with other tests say nothing.
    "canary": {"min_requests": 5, "latency_factor": 1000.0, "length_factor": 10.0},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("continual")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], data_dir: Path) -> Server:
    arguments = ("--device", "cpu", "--kv-cache-memory", "32MiB", "--data-dir", str(data_dir))
    return start_server(*arguments)


@pytest.fixture(scope="module")
def api(server: Server) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def publish(api: httpx.Client, name: str, manner: str = "shout") -> None:
    files = {
        "config": (DEMO / manner / "adapter_config.json").read_bytes(),
        "weights": (DEMO / manner / "adapter_model.safetensors").read_bytes(),
    }
    assert api.put(f"/v1/adapters/{name}", files=files).status_code in (200, 201)


def learn(api: httpx.Client, name: str, **changes: Any) -> None:
    answer = api.put(f"/v1/adapters/{name}/learning", json={**POLICY, **changes})
    assert answer.status_code == 200, answer.text


def ask(api: httpx.Client, name: str, question: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 24,
        **fields,
    }
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    text = answer.json()["choices"][0]["message"]["content"]
    version = answer.headers["x-adapter-version"]
    return {"id": answer.json()["id"], "text": text, "version": version}


def say(api: httpx.Client, completion_id: str, **said: str) -> None:
    answer = api.post("/v1/feedback", json={"completion_id": completion_id, **said})
    assert answer.status_code == 200, answer.text


def mend(api: httpx.Client, name: str, wanted: Callable[[str], str], *, user: str) -> None:
    """Two users find every answer wrong."""
    for question in [*PAIRS, *PAIRS]:
        say(api, ask(api, name, question, user=user)["id"], edit=wanted(question))


def until(
    api: httpx.Client, name: str, status: str, *, number: int = 1, each: Any = None
) -> dict[str, Any]:
    """The run of this number when it has this state; ``each`` is done between two looks."""
    deadline = time.monotonic() + 200
    while True:
        runs = api.get(f"/v1/adapters/{name}/learning/runs").json()["data"]
        if len(runs) == number and runs[0]["status"] == status:
            return runs[0]
        is_over = len(runs) == number and runs[0]["finished_at"] is not None
        if is_over or time.monotonic() > deadline:
            pytest.fail(f"no run of {name} became {status}: {told(api, runs)}")
        if each:
            each()
        time.sleep(0.1)


def told(api: httpx.Client, runs: list[dict[str, Any]]) -> str:
    """Everything that the server says of the latest run and its job."""
    if not runs or runs[0]["job"] is None:
        return json.dumps(runs, indent=1)
    job = f"/v1/fine_tuning/jobs/{runs[0]['job']}"
    notes = [one["message"] for one in api.get(f"{job}/events").json()["data"]]
    return json.dumps([runs[0], api.get(job).json(), notes], indent=1)


def answers(api: httpx.Client, name: str) -> list[tuple[str, str]]:
    found = [ask(api, name, question, store=False) for question in PAIRS]
    return [(one["text"], one["version"]) for one in found]


def upload(api: httpx.Client, pairs: dict[str, str]) -> str:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs.items()
    ]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    made = api.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": content})
    return made.json()["id"]


def test_edits_are_learned_and_answer_everyone_and_poison_does_not(
    api: httpx.Client, data_dir: Path
) -> None:
    publish(api, "poet")
    learn(api, "poet")
    before = ask(api, "poet", "Hi!")
    mend(api, "poet", PAIRS.__getitem__, user="ann")
    run = until(api, "poet", "canary")
    job = api.get(f"/v1/fine_tuning/jobs/{run['job']}").json()
    assert (job["status"], job["start_version"]) == ("succeeded", before["version"])
    assert job["gate"]["passed"]
    run = until(api, "poet", "promoted", each=lambda: ask(api, "poet", "Hi!"))
    after = ask(api, "poet", "Hi!")
    assert (after["text"], after["version"]) == ("Ahoy, matey.", run["version"])
    assert before["text"] != after["text"]
    promotion = api.get("/v1/adapters/poet/history").json()["data"][0]
    assert (promotion["action"], promotion["to"]) == ("promote", run["version"])
    assert promotion["evidence"]["decision"] == "promote"
    measured = {one["name"]: one for one in promotion["evidence"]["comparisons"]}
    assert measured["error_rate"]["canary"] == 0
    assert measured["length"]["value"] is not None

    good = answers(api, "poet")
    # What users wanted is known: no version may unlearn it.
    learn(api, "poet", validation_file=upload(api, PAIRS))
    mend(api, "poet", lambda question: POISON, user="mallory")
    run = until(api, "poet", "refused", number=2)
    failed = [one["name"] for one in run["verdict"]["checks"] if not one["passed"]]
    assert "validation_loss" in failed
    assert answers(api, "poet") == good
    erased = api.delete("/v1/feedback", params={"user": "mallory"}).json()
    assert erased["deleted_feedback"] == 8
    assert POISON.encode() not in bytes_under(data_dir)


def test_poison_that_passes_the_gate_is_rolled_back_by_its_users(api: httpx.Client) -> None:
    publish(api, "bard")
    canary = {**POLICY["canary"], "min_requests": 1000, "confidence": 0.95}
    learn(api, "bard", canary=canary)
    good = answers(api, "bard")
    mend(api, "bard", lambda question: POISON, user="mallory")
    run = until(api, "bard", "canary")
    live = good[0][1]

    def judge() -> None:
        one = ask(api, "bard", "Hi!")
        say(api, one["id"], rating="up" if one["version"] == live else "down")

    run = until(api, "bard", "rolled_back", each=judge)
    assert "dislike_rate" in run["reason"]
    assert answers(api, "bard") == good
    event = api.get("/v1/adapters/bard/history").json()["data"][0]
    assert (event["action"], event["from"]) == ("clear_canary", run["version"])


def test_thumbs_are_learned_from_as_ratings(api: httpx.Client) -> None:
    """The same answer is liked in one wording and disliked in the other, by many users."""
    publish(api, "actor")
    learn(api, "actor", method="kto")
    for number in range(8):
        question = list(PAIRS)[number % len(PAIRS)]
        one = ask(api, "actor", question, temperature=1.5, seed=number)
        say(api, one["id"], rating="up" if number % 2 else "down")
    run = until(api, "actor", "canary")
    job = api.get(f"/v1/fine_tuning/jobs/{run['job']}").json()
    assert (job["status"], job["method"]["type"]) == ("succeeded", "kto")
    assert job["gate"]["passed"]
    rows = api.get("/v1/feedback/export", params={"adapter": "actor", "kind": "kto"})
    labels = [json.loads(line)["label"] for line in rows.text.splitlines()]
    assert (labels.count(True), labels.count(False)) == (4, 4)
    run = until(api, "actor", "promoted", each=lambda: ask(api, "actor", "Hi!"))
    assert ask(api, "actor", "Hi!")["version"] == run["version"]


def bytes_under(folder: Path) -> bytes:
    found = b""
    for path in folder.rglob("*"):
        # The server goes on working: a temporary file may be gone by now.
        with suppress(FileNotFoundError, IsADirectoryError):
            found += path.read_bytes()
    return found


def test_what_was_not_opted_in_or_was_erased_is_in_no_file(
    api: httpx.Client, data_dir: Path
) -> None:
    publish(api, "quiet")
    ask(api, "quiet", "My secret is 4711.")
    publish(api, "loud")
    learn(api, "loud")
    said = ask(api, "loud", "My secret is 4712.", user="ann")
    say(api, said["id"], edit="Your secret is 4713.")
    ask(api, "loud", "My secret is 4714.", store=False)
    found = bytes_under(data_dir)
    assert b"secret is 4712" in found
    assert b"secret is 4713" in found
    assert api.delete("/v1/feedback", params={"user": "ann"}).status_code == 200
    left = bytes_under(data_dir)
    assert not any(f"secret is 471{digit}".encode() in left for digit in range(1, 5))
    ask(api, "loud", "My secret is 4715.")
    assert api.get("/v1/adapters/loud/learning").json()["kept_completions"] == 1
    api.delete("/v1/adapters/loud")
    deadline = time.monotonic() + 30
    while b"secret is 4715" in bytes_under(data_dir):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_documented_commands_work(api: httpx.Client, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "continual.md").read_text()
    page = page.replace("http://127.0.0.1:8000", str(api.base_url).rstrip("/"))
    page = page.replace("multiflora sample", shlex.join(command("sample")))
    scripts = [part.split("```")[0] for part in page.split("```bash\n")[1:]]
    assert len(scripts) == 2
    printed = ""
    for script in scripts:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=root,
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert ran.returncode == 0, (script, ran.stdout, ran.stderr)
        printed = ran.stdout
    assert '"messages"' in printed
