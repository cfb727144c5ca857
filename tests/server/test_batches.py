"""Files of requests: checked, answered at idle priority, safe over restarts."""

import asyncio
import contextlib
import json

import openai
import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.engine.errors import EngineOverloaded
from multiflora.server import batch_runner
from multiflora.server.batch_call import caller
from multiflora.server.batch_runner import IDLE_PRIORITY, BatchRunner
from multiflora.server.batch_store import BatchStore

pytestmark = pytest.mark.anyio


def line(number, body=None, **fields):
    usual = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions"}
    return json.dumps({**usual, "body": body or {"model": "base", "prompt": "hi"}, **fields})


@pytest.fixture
def store(registry):
    return BatchStore(registry.database)


@pytest.fixture
async def api(url, service, store):
    service.batches.start(store, service.files, caller(service))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
    await service.batches.stop()


async def create(api, *lines, **fields):
    content = "\n".join(lines).encode()
    file = await api.files.create(file=("in.jsonl", content), purpose="batch")
    settings = {"endpoint": "/v1/completions", "completion_window": "24h", **fields}
    return await api.batches.create(input_file_id=file.id, **settings)


async def end_of(api, batch):
    for _ in range(500):
        batch = await api.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {batch.status}")


async def lines_of(api, file_id):
    return [json.loads(row) for row in (await api.files.content(file_id)).text.splitlines()]


async def test_lines_are_answered_at_idle_priority(api, engine):
    batch = await create(api, line(1), line(2, {"model": "nobody", "prompt": "x"}), line(3))
    batch = await end_of(api, batch)

    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    answers = await lines_of(api, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == ["c1", "c3"]
    texts = [answer["response"]["body"]["choices"][0]["text"] for answer in answers]
    assert texts == ["hello world"] * 2
    (error,) = await lines_of(api, batch.error_file_id)
    assert error["response"]["status_code"] == 404
    assert error["response"]["body"]["error"]["code"] == "model_not_found"
    assert {request.priority for request in engine.requests} == {IDLE_PRIORITY}
    assert [found.id async for found in api.batches.list()] == [batch.id]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["{"], "not valid JSON"),
        ([line(1), line(1)], "comes twice"),
        ([line(1, url="/v1/other")], "url /v1/completions"),
        ([line(1, custom_id="")], "custom_id"),
        ([json.dumps({"custom_id": "a"})], "body"),
        ([line(1, {"stream": True})], "cannot stream"),
        ([""], "no lines"),
    ],
)
async def test_a_broken_file_fails_before_anything_is_answered(api, engine, lines, problem):
    batch = await end_of(api, await create(api, *lines))

    assert batch.status == "failed"
    assert problem in batch.errors.data[0].message
    assert engine.requests == []


async def test_a_full_queue_is_waited_for(api, engine, monkeypatch):
    monkeypatch.setattr(batch_runner, "_FIRST_PAUSE_SECONDS", 0.01)
    refusals = [EngineOverloaded("full")] * 2
    engine.script = lambda request: [refusals.pop()] if refusals else engine.say(request)

    batch = await end_of(api, await create(api, line(1)))

    assert (batch.status, batch.request_counts.completed) == ("completed", 1)


async def test_what_was_answered_is_not_answered_again(api, engine, service, store):
    engine.script = lambda r: engine.say(r) if r.prompt == (5,) else [60.0]
    done = {"model": "base", "prompt": [5]}
    batch = await create(api, line(1, done), line(2, {"model": "base", "prompt": [6]}))
    while store.counts(batch.id)[0] < 1:
        await asyncio.sleep(0.01)
    await service.batches.stop()
    engine.script = None
    engine.requests.clear()

    again = BatchRunner()
    again.start(store, service.files, caller(service))
    batch = await end_of(api, batch)
    await again.stop()

    assert [request.prompt for request in engine.requests] == [(6,)]
    assert batch.request_counts.completed == 2


async def test_a_cancelled_batch_keeps_what_was_answered(api, engine, store):
    engine.script = lambda r: engine.say(r) if r.prompt == (5,) else [0.3]
    done = {"model": "base", "prompt": [5]}
    batch = await create(api, line(1, done), line(2, {"model": "base", "prompt": [6]}))
    while store.counts(batch.id)[0] < 1:
        await asyncio.sleep(0.01)

    with pytest.raises(openai.ConflictError):
        await api.files.delete(batch.input_file_id)
    await api.batches.cancel(batch.id)
    batch = await end_of(api, batch)

    assert batch.status == "cancelled"
    assert len(await lines_of(api, batch.output_file_id)) == 1
    with pytest.raises(openai.ConflictError):
        await api.batches.cancel(batch.id)


def test_batches_of_older_servers_belong_to_nobody(tmp_path):
    path = tmp_path / "registry.db"
    with contextlib.closing(Database.open(path, MIGRATIONS[:9])) as old, old.transaction() as rows:
        rows.execute(
            "INSERT INTO batch (id, endpoint, input_file, metadata, created, expires) "
            "VALUES ('batch_1', '/v1/x', 'file-1', '{}', 1, 2)"
        )
    with contextlib.closing(Database.open(path, MIGRATIONS)) as database:
        batch = BatchStore(database).get("batch_1")
        assert (batch.tenant, batch.key, batch.status) == ("", "", "validating")


async def test_what_cannot_be_run_is_refused(api):
    with pytest.raises(openai.NotFoundError):
        await api.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError):
        await api.batches.create(
            input_file_id="file-x", endpoint="/v1/completions", completion_window="24h"
        )
    with pytest.raises(openai.BadRequestError):
        await create(api, line(1), endpoint="/v1/moderations")
