"""Sampling over HTTP and from the shell: what passes is in the file, and nothing else."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from multiflora.engine.errors import EngineOverloaded, RequestFailed
from multiflora.engine.request import FinishReason, GenerationRequest
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.cli import main
from multiflora.server.service import Service

from .fake_engine import Event, FakeEngine

pytestmark = pytest.mark.anyio
SAMPLE = "/v1/datasets/sample"
ASK: dict[str, Any] = {"model": "json", "grader": {"type": "exact"}, "n": 4, "keep": 2}
EVEN = {"messages": [{"role": "user", "content": "Is 4 even?"}], "expected": "yes"}
ODD = {"prompt": "Is 5 even?", "expected": "no"}


@pytest.fixture(autouse=True)
def answers(engine: FakeEngine) -> None:
    """Three of four answers are yes, one is cut off; a judge finds every answer with an e good."""

    def say(request: GenerationRequest) -> list[Event]:
        asked = engine.tokenizer.decode(request.prompt)
        if "Judge" in asked:
            engine.text = "Yes, it is." if "e" in asked.partition(":")[2] else "No."
            return engine.say(request)
        place = int(request.id.rpartition("-")[2])
        engine.text = "yes" if place else "maybe"
        events = engine.say(request)
        if place == 3:
            events[-1] = engine.event(request, [], reason=FinishReason.LENGTH)
        return events

    engine.script = say


async def ask(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(SAMPLE, json={**ASK, "prompts": [EVEN, ODD], **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rows_of(client: httpx.AsyncClient, report: dict[str, Any]) -> list[dict[str, Any]]:
    content = (await client.get(f"/v1/files/{report['file']}/content")).content
    return [orjson.loads(line) for line in content.splitlines()]


async def test_what_passes_is_a_training_file_with_its_rates(client: httpx.AsyncClient) -> None:
    report = await ask(client)
    # Of the answers to the first prompt, two are yes and end by themselves; none to the second.
    assert (report["answers"], report["passed"], report["cut_off"]) == (8, 2, 2)
    assert report["pass_rates"] == {"pass@1": 0.25, "pass@2": pytest.approx(5 / 12), "pass@4": 0.5}
    assert report["unsolved_prompts"] == 1
    rows = await rows_of(client, report)
    # Equal answers teach once.
    assert rows == [{"messages": [*EVEN["messages"], {"role": "assistant", "content": "yes"}]}]
    stored = (await client.get(f"/v1/files/{report['file']}")).json()
    assert (stored["purpose"], stored["status"]) == ("fine-tune", "processed")


async def test_every_answer_has_its_own_seed_and_the_order_decides_them(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await ask(client, seed=3)
    first = [request.sampling.seed for request in engine.requests]
    engine.requests.clear()
    await ask(client, seed=3)
    assert sorted(map(str, first)) == sorted(str(one.sampling.seed) for one in engine.requests)
    assert len(set(first)) == 8


async def test_nothing_that_passes_makes_no_file(client: httpx.AsyncClient) -> None:
    report = await ask(client, prompts=[ODD])
    assert (report["rows"], report["file"]) == (0, None)
    assert (await client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("grader", "passed"),
    [
        ({"type": "regex", "pattern": "^(yes|maybe)$"}, {"yes", "maybe"}),
        ({"type": "json_schema", "schema": {"type": "string"}}, set()),
        ({"type": "exact", "extract": "(may)"}, set()),
        ({"type": "judge", "model": "base", "question": "Judge: {answer}"}, {"yes", "maybe"}),
        ({"type": "judge", "model": "base", "question": "Judge: {expected}o"}, set()),
    ],
)
async def test_graders_decide(
    client: httpx.AsyncClient, grader: dict[str, Any], passed: set[str]
) -> None:
    prompts = [{**ODD, "expected": "no"}]
    report = await ask(client, prompts=prompts, grader=grader, keep=4)
    rows = await rows_of(client, report) if report["file"] else []
    assert {row["completion"] for row in rows} == passed


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompts": None}, "prompts"),
        ({"prompts_file": "file-1"}, "prompts"),
        ({"prompts": [{"prompt": "x"}]}, "prompts.0.expected"),
        ({"prompts": [{"expected": "x"}]}, "prompts.0"),
        ({"grader": {"type": "regex", "pattern": "(a"}}, "grader.pattern"),
        ({"grader": {"type": "magic"}}, "grader"),
        ({"model": "nobody"}, "model"),
        ({"grader": {"type": "judge", "model": "nobody", "question": "?"}}, "grader.model"),
        ({"n": 65}, "n"),
    ],
)
async def test_what_cannot_be_sampled_is_refused_by_name(
    client: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    answer = await client.post(SAMPLE, json={**ASK, "prompts": [EVEN], **changes})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_full_queue_is_waited_for_and_a_failure_ends_all(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    say, tries = engine.script, 0
    assert say is not None

    def refuse_once(request: GenerationRequest) -> Any:
        nonlocal tries
        tries += 1
        return [EngineOverloaded("full")] if tries == 1 else say(request)

    engine.script = refuse_once
    assert (await ask(client, prompts=[EVEN]))["passed"] == 2
    engine.script = lambda request: [RequestFailed("broken", code="engine_died")]
    failed = await client.post(SAMPLE, json={**ASK, "prompts": [EVEN] * 40})
    assert failed.status_code == 503
    assert not engine.running


async def test_in_background_the_report_comes_later(client: httpx.AsyncClient) -> None:
    answer = await client.post(SAMPLE, json={**ASK, "prompts": [EVEN], "background": True})
    assert answer.status_code == 202
    job = answer.json()
    while job["status"] in ("queued", "running"):
        await asyncio.sleep(0.01)
        job = (await client.get(f"{SAMPLE}/{job['id']}")).json()
    assert (job["status"], job["progress"], job["report"]["passed"]) == ("succeeded", 1.0, 2)
    assert (await client.get(f"/v1/adapters/merge/{job['id']}")).status_code == 404


async def test_a_sampling_in_background_can_be_cancelled(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {**ASK, "prompts": [EVEN] * 50, "background": True}
    engine.script = lambda request: [0.5, *engine.say(request)]
    job = (await client.post(SAMPLE, json=body)).json()
    await client.post(f"{SAMPLE}/{job['id']}/cancel")
    while job["status"] in ("queued", "running"):
        await asyncio.sleep(0.01)
        job = (await client.get(f"{SAMPLE}/{job['id']}")).json()
    assert job["status"] == "cancelled"
    assert (await client.get("/v1/files")).json()["data"] == []
    again = await client.post(f"{SAMPLE}/{job['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_over")


async def test_the_command_leaves_a_file_that_can_be_trained_on(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps({"question": "Is 4 even?", "answer": "yes"}))

    def run(*more: str) -> int:
        arguments = ["sample", str(data), "-o", str(output), "--model", "json", "--n", "4"]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--url", url, *more])
        return int(str(ended.value.code))

    assert await asyncio.to_thread(run) == 0
    assert json.loads(output.read_text())["messages"][-1]["content"] == "yes"
    assert "pass@4 1.000" in capsys.readouterr().out
    assert await asyncio.to_thread(run) == 2
    output.unlink()
    assert await asyncio.to_thread(run, "--regex", "nothing") == 1
    assert await asyncio.to_thread(run, "--regex", "(a") == 1
    assert "missing )" in capsys.readouterr().err


async def test_the_command_brings_the_key_of_its_environment(
    url: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = KeyWish(name="x", scopes=frozenset({Scope.TRAINING}), tenant="red")
    _, key = service.keyring.registry.create(wish)
    data, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps({"question": "Is 4 even?", "answer": "yes"}))

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(data), "-o", str(output), "--model", "json", "--url", url])
        return int(str(ended.value.code))

    assert await asyncio.to_thread(run) == 1
    monkeypatch.setenv("MULTIFLORA_API_KEY", key)
    assert await asyncio.to_thread(run) == 0


async def test_the_command_says_where_no_server_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    arguments = ["sample", str(data), "-o", str(tmp_path / "out"), "--model", "m"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--url", "http://127.0.0.1:9"])
    assert ended.value.code == 1
    assert "does not answer" in capsys.readouterr().err
