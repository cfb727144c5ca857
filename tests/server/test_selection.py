"""Which adapter answers: names, aliases, blends, canaries, and what headers say about it."""

import pytest

from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version

pytestmark = pytest.mark.anyio
A, B, C = "a" * 64, "b" * 64, "c" * 64


def shares(engine) -> dict[str, float]:
    return {share.digest: share.weight for share in engine.requests[-1].adapters}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_every_answer_says_who_gave_it(chat, complete, stream):
    for ask in (chat, complete):
        answer = await ask(model="json", stream=stream)
        base = await ask(model="base", stream=stream)

        assert (answer.headers["x-adapter-id"], answer.headers["x-adapter-version"]) == ("json", A)
        assert not {"x-adapter-id", "x-adapter-version"} & set(base.headers)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "base:json"},
        {"model": "base", "adapter_id": "json"},
        {"model": "json", "adapter_id": "json"},
        {"model": "base:json", "adapter_id": "json"},
        {"model": "base", "lora_path": "json"},
        {"model": "base", "lora_path": "base:json"},
        {"model": "base", "lora_path": "json", "adapter_id": "json"},
        {"model": "base", "adapters": [{"name": "json"}]},
    ],
)
async def test_other_servers_ways_to_name_an_adapter(complete, engine, fields):
    answer = await complete(**fields)

    assert answer.status_code == 200
    assert answer.headers["x-adapter-id"] == "json"
    assert shares(engine) == {A: 1.0}


async def test_an_exact_name_wins_over_a_base_and_an_adapter(complete, engine, registry, client):
    registry.publish("base:json", C)

    assert (await complete(model="base:json")).headers["x-adapter-id"] == "base:json"
    assert shares(engine) == {C: 1.0}
    assert (await client.get("/v1/models/base:json")).json()["id"] == "base:json"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "base:nobody"}, 404, "model"),
        ({"model": "nobody:json"}, 404, "model"),
        ({"adapter_id": "nobody"}, 404, "adapter_id"),
        ({"lora_path": "/etc/passwd"}, 404, "lora_path"),
        ({"model": "loud:one", "adapter_id": "json"}, 400, "adapter_id"),
        ({"adapter_id": "json", "lora_path": "loud:one"}, 400, "adapter_id"),
        ({"model": "json", "adapters": [{"name": "json"}]}, 400, "adapters"),
        ({"adapter_id": "json", "adapters": [{"name": "json"}]}, 400, "adapters"),
        ({"adapters": [{"name": "json"}, {"name": "json"}]}, 400, "adapters.1.name"),
        ({"adapters": [{"name": "json"}, {"name": "nobody"}]}, 404, "adapters.1.name"),
        ({"adapters": [{"name": "json", "weight": 17}]}, 400, "adapters.0.weight"),
        ({"adapters": [{"name": "json", "weight": "1"}]}, 400, "adapters.0.weight"),
        ({"adapters": [{"name": "json", "scale": 1}]}, 400, "adapters.0.scale"),
        ({"adapters": [{"weight": 1.0}]}, 400, "adapters.0.name"),
        ({"adapters": [{"name": "json"}] * 9}, 400, "adapters"),
    ],
)
async def test_what_names_nothing_or_two_things(complete, registry, fields, status, param):
    response = await complete(**fields)

    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert registry.leases_by_digest() == {}


async def test_a_blend_holds_every_parent(complete, engine, registry):
    blend = [{"name": "json", "weight": 0.75}, {"name": "base:loud:one", "weight": -0.5}]
    held = []
    say = engine.say
    engine.script = lambda asked: [
        held.append(registry.leases_by_digest()) or e for e in say(asked)
    ]

    answer = await complete(adapters=blend)

    assert shares(engine) == {A: 0.75, B: -0.5}
    assert answer.headers["x-adapter-id"] == "json,loud:one"
    assert answer.headers["x-adapter-version"] == f"{A},{B}"
    assert answer.json()["model"] == "base"
    assert held[0] == {A: 1, B: 1}
    assert registry.leases_by_digest() == {}


@pytest.mark.parametrize(
    ("features", "word"),
    [(("dora",), "DoRA"), (("ia3",), "IA"), (("head", "saved_module"), "modules_to_save")],
)
async def test_a_parent_that_only_answers_alone_is_refused_in_a_blend(
    complete, engine, registry, features, word
):
    registry.publish_version(Version(C, features=features))
    registry.point("scaled", C)
    blends = (
        [{"name": "json", "weight": 0.5}, {"name": "scaled", "weight": 1.0}],
        [{"name": "json", "weight": 0.0}, {"name": "scaled", "weight": 0.5}],
    )

    for blend in blends:
        refused = await complete(adapters=blend)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "adapters.1.name")
        assert word in error["message"]
    weighted = await complete(adapters=[{"name": "scaled", "weight": 0.5}])
    assert (weighted.status_code, registry.leases_by_digest()) == (400, {})
    for alone in ({"model": "scaled"}, {"adapters": [{"name": "scaled"}]}):
        assert (await complete(**alone)).status_code == 200
        assert shares(engine) == {C: 1.0}


async def test_biases_heads_and_embeddings_are_blended(complete, engine, registry):
    registry.publish_version(Version(C, features=("bias", "embedding", "head")))
    registry.point("wide", C)

    await complete(adapters=[{"name": "json", "weight": 0.5}, {"name": "wide", "weight": 0.25}])

    assert shares(engine) == {A: 0.5, C: 0.25}


async def test_two_names_of_one_version_add_up(complete, engine, registry):
    registry.publish("twin", A)

    await complete(adapters=[{"name": "json", "weight": 0.5}, {"name": "twin", "weight": 0.25}])

    assert shares(engine) == {A: 0.75}


async def test_fingerprints_tell_blends_apart(complete):
    prints = set()
    for weight in (0.25, 0.5):
        answer = await complete(adapters=[{"name": "json", "weight": weight}])
        prints.add(answer.json()["system_fingerprint"])
    prints.add((await complete(model="json")).json()["system_fingerprint"])
    assert len(prints) == 3


async def test_a_canary_keeps_its_users_and_its_share(complete, registry: Registry):
    registry.publish("other", C)
    registry.set_canary("json", C, 0.3)

    async def version(user: str | None) -> str:
        return (await complete(model="json", user=user)).headers["x-adapter-version"]

    first = {f"user-{i}": await version(f"user-{i}") for i in range(60)}
    again = {user: await version(user) for user in first}
    alone = [await version(None) for _ in range(50)]

    assert again == first
    assert 8 <= list(first.values()).count(C) <= 30
    assert 13 <= alone.count(C) <= 17
    registry.promote("json")
    assert {await version(user) for user in first} == {C}
