"""Answers become feedback, feedback becomes files, and what nobody allowed is nowhere."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.registry import Registry
from multiflora.engine.request import GenerationRequest
from multiflora.engine.training.learning.learner import Learner
from multiflora.server.metrics import Metrics
from multiflora.server.service import Service

from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
POET = "/v1/adapters/poet/learning"


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture(autouse=True)
def published(registry: Registry, write_adapter: Callable[..., Path]) -> None:
    """``poet`` and ``mute``; neither has opted in."""
    assert registry.store is not None
    for name, digest in (("poet", "a" * 64), ("mute", "b" * 64)):
        registry.store.put_copy(digest, AdapterFolder(write_adapter(name)))
        registry.publish(name, digest)


@pytest.fixture
async def keeping(client: httpx.AsyncClient) -> None:
    answer = await client.put(POET, json={"feedback": True})
    assert answer.status_code == 200, answer.text


def bytes_of(data_dir: Path) -> bytes:
    return b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())


async def say(client: httpx.AsyncClient, completion_id: str, **said: Any) -> dict[str, Any]:
    answer = await client.post("/v1/feedback", json={"completion_id": completion_id, **said})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.usefixtures("keeping")
async def test_an_answer_can_be_rated_mended_and_beaten(
    client: httpx.AsyncClient, chat: Callable[..., Any]
) -> None:
    answer = (await chat(model="poet", user="ann")).json()
    made = await say(client, answer["id"], edit="Hello, world!")
    assert made["prompt"] == [{"role": "user", "content": "hi"}]
    assert (made["answer"], made["edit"], made["user"]) == ("hello world", "Hello, world!", "ann")
    assert made["learned_by"] is None
    version = (await client.get("/v1/adapters/poet")).json()["version"]
    assert made["version"] == version
    await say(client, answer["id"], rating="up")
    await say(client, answer["id"], preferred="Hi!")
    listed = (await client.get("/v1/feedback", params={"adapter": "poet", "limit": 2})).json()
    assert [one["kind"] for one in listed["data"]] == ["preferred", "rating"]
    assert listed["has_more"]
    after = {"adapter": "poet", "after": listed["last_id"]}
    assert (await client.get("/v1/feedback", params=after)).json()["data"][0]["id"] == made["id"]
    shown = (await client.get(POET)).json()
    assert (shown["kept_completions"], shown["kept_feedback"]) == (1, 3)


@pytest.mark.usefixtures("keeping")
async def test_every_choice_and_prompt_can_be_judged(
    client: httpx.AsyncClient, complete: Callable[..., Any], engine: FakeEngine
) -> None:
    def echo(request: GenerationRequest) -> Any:
        engine.text = f"answer {request.prompt[0]}"
        return engine.say(request)

    engine.script = echo
    answer = (await complete(model="poet", prompt=["a", "b"], n=2)).json()
    for choice, prompt in enumerate(("a", "a", "b", "b")):
        made = await say(client, answer["id"], rating="up", choice=choice)
        assert made["prompt"] == prompt
        assert made["answer"] == answer["choices"][choice]["text"]


@pytest.mark.usefixtures("keeping")
async def test_a_streamed_answer_is_kept_whole(
    client: httpx.AsyncClient,
    chat: Callable[..., Any],
    read_events: Callable[[httpx.Response], list[Any]],
) -> None:
    events = read_events(await chat(model="poet", stream=True))
    assert (await say(client, events[0]["id"], rating="down"))["answer"] == "hello world"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "mute"},
        {"model": "base"},
        {"model": "poet", "store": False},
        {"model": "base", "adapters": [{"name": "poet", "weight": 0.5}]},
        {"model": "poet", "messages": [{"role": "tool", "content": "private"}]},
        {
            "model": "poet",
            "messages": [{"role": "assistant", "content": "private"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ],
    ids=["no_policy", "base", "store_false", "blend", "tool", "continued"],
)
@pytest.mark.usefixtures("keeping")
async def test_what_was_not_opted_in_is_never_on_the_disk(
    client: httpx.AsyncClient,
    chat: Callable[..., Any],
    learner: Learner,
    tmp_path: Path,
    fields: dict[str, Any],
) -> None:
    private = [{"role": "user", "content": "a private question"}]
    answer = await chat(**{"messages": private, **fields})
    assert answer.status_code == 200, answer.text
    refused = await client.post(
        "/v1/feedback", json={"completion_id": answer.json()["id"], "edit": "x"}
    )
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "completion_not_found"
    await learner.tick()
    for part in (b"private", b"hello world"):
        assert part not in bytes_of(tmp_path / "data")


async def test_opting_out_ends_the_keeping(
    client: httpx.AsyncClient, chat: Callable[..., Any], keeping: None, tmp_path: Path
) -> None:
    assert (await client.put(POET, json={})).json()["feedback"] is False
    await chat(model="poet")
    assert (await client.get(POET)).json()["kept_completions"] == 0
    assert b"hello world" not in bytes_of(tmp_path / "data")


@pytest.mark.usefixtures("keeping")
async def test_what_is_erased_is_nowhere_on_the_disk(
    client: httpx.AsyncClient, chat: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    ids: dict[str, str] = {}
    for user in ("ann", "bob"):
        engine.text = f"told {user}"
        asked = [{"role": "user", "content": f"asked by {user}"}]
        ids[user] = (await chat(model="poet", user=user, messages=asked)).json()["id"]
        await say(client, ids[user], edit=f"meant by {user}")
    answer = await client.delete("/v1/feedback", params={"adapter": "poet", "user": "ann"})
    assert answer.json()["deleted_completions"] == 1
    assert answer.json()["deleted_feedback"] == 1
    left = bytes_of(tmp_path / "data")
    assert not any(f"{verb} ann".encode() in left for verb in ("told", "asked by", "meant by"))
    assert b"told bob" in left
    (one,) = (await client.get("/v1/feedback")).json()["data"]
    gone = await client.delete(f"/v1/feedback/{one['id']}")
    assert gone.json() == {"id": one["id"], "object": "feedback", "deleted": True}
    assert b"bob" not in bytes_of(tmp_path / "data")
    assert (await client.delete(f"/v1/feedback/{one['id']}")).status_code == 404
    assert (await client.delete("/v1/feedback")).status_code == 400


@pytest.mark.usefixtures("keeping")
async def test_feedback_is_exported_as_training_files(
    client: httpx.AsyncClient, chat: Callable[..., Any]
) -> None:
    answer = (await chat(model="poet")).json()
    await say(client, answer["id"], edit="Hello!")
    await say(client, answer["id"], rating="down")
    rows = {}
    for kind in ("sft", "dpo", "kto"):
        params = {"adapter": "poet", "kind": kind}
        got = await client.get("/v1/feedback/export", params=params)
        assert got.headers["content-type"] == "application/jsonl"
        (rows[kind],) = (orjson.loads(line) for line in got.content.splitlines())
    question = {"role": "user", "content": "hi"}
    assert rows["sft"]["messages"] == [question, {"role": "assistant", "content": "Hello!"}]
    assert rows["dpo"]["rejected"] == [{"role": "assistant", "content": "hello world"}]
    assert rows["kto"]["label"] is False
    lost = await client.get("/v1/feedback/export", params={"adapter": "nobody"})
    assert lost.status_code == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"completion_id": "x"}, "one of rating"),
        ({"completion_id": "x", "rating": "up", "edit": "y"}, "one of rating"),
        ({"completion_id": "x", "rating": "fine"}, "'up' or 'down'"),
        ({"completion_id": "x", "edit": " "}, "say nothing"),
        ({"completion_id": "x", "raiting": "up"}, "did you mean 'rating'"),
        ({"rating": "up"}, "completion_id"),
    ],
)
async def test_what_says_nothing_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], message: str
) -> None:
    answer = await client.post("/v1/feedback", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_storing_can_only_be_asked_of_adapters_that_keep(chat: Callable[..., Any]) -> None:
    refused = await chat(model="poet", store=True)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "store"


@pytest.mark.usefixtures("keeping")
async def test_answers_wait_for_no_disk(
    service: Service, chat: Callable[..., Any], learner: Learner
) -> None:
    """While the database is busy, requests are answered; their answers are kept afterwards."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        with service.registry.database.lock:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    holding = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.sleep(0.01)
    assert (await chat(model="poet", store=True)).status_code == 200
    release.set()
    await holding
    await learner.inbox.flush()
    assert learner.store.numbers("poet") == (1, 0)


@pytest.mark.usefixtures("keeping")
async def test_feedback_is_counted(
    client: httpx.AsyncClient, chat: Callable[..., Any], service: Service
) -> None:
    assert isinstance(service.metrics, Metrics)
    await say(client, (await chat(model="poet")).json()["id"], rating="up")
    text = (await client.get("/metrics")).text
    assert 'multiflora_feedback_total{adapter="poet",kind="rating"} 1.0' in text
