"""GET /v1/models: the base first, then the adapters by name."""

import pytest

from multiflora.adapters.tier import Tier
from multiflora.engine.client import EngineState

pytestmark = pytest.mark.anyio


async def test_the_base_comes_first_then_adapters_by_name(client, registry):
    registry.publish("abc", "e" * 64)

    answer = (await client.get("/v1/models")).json()

    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == ["base", "abc", "json", "loud:one"]
    assert [card["parent"] for card in answer["data"]] == [None, "base", "base", "base"]
    assert {card["root"] for card in answer["data"]} == {"base"}
    assert {card["max_model_len"] for card in answer["data"]} == {256}
    assert all(card["object"] == "model" and card["created"] > 0 for card in answer["data"])


async def test_one_model_by_id(client):
    card = (await client.get("/v1/models/loud:one")).json()

    assert card["id"] == "loud:one"
    assert card["adapter"] == {"version": "b" * 64, "rank": 0, "state": "disk"}


async def test_a_card_says_where_an_adapter_is_while_the_engine_does(client, engine):
    engine.tiers["a" * 64] = Tier.DEVICE
    states = [card["adapter"]["state"] for card in (await cards_of(client))[1:]]
    assert states == ["device", "disk"]

    engine.state = EngineState.RESTARTING
    states = [card["adapter"]["state"] for card in (await cards_of(client))[1:]]
    assert states == [None, None]


async def cards_of(client):
    return (await client.get("/v1/models")).json()["data"]


async def test_the_bases_id_may_have_a_slash(client, service):
    service.catalog.base = "team/base"

    assert (await client.get("/v1/models/team/base")).json()["id"] == "team/base"


async def test_an_unknown_id_is_404(client):
    response = await client.get("/v1/models/nobody")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"
