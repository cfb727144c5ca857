"""vLLM's and SGLang's ways to load adapters, as their operators and trainers use them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.adapters.registry import Registry
from multiflora.server.publishing import Publisher

pytestmark = pytest.mark.anyio
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def root(service, write_adapter: Callable[..., Path]) -> Path:
    """The door is open for one folder, which holds ``poet``."""
    folder = write_adapter("poet").parent
    object.__setattr__(service, "adapters_root", folder)
    return folder


def error(response) -> tuple[int, str]:
    shown = response.json()["error"]
    assert shown["code"] == response.status_code
    assert shown["param"] is None
    return response.status_code, shown["type"]


async def test_load_and_unload(client, complete, root):
    body = {"lora_name": "poet", "lora_path": str(root / "poet"), "lora_int_id": 7}
    loaded = await client.post(LOAD, json=body)

    assert (loaded.status_code, loaded.text) == (
        200,
        "Success: LoRA adapter 'poet' added successfully.",
    )
    assert loaded.headers["content-type"].startswith("text/plain")
    assert (await complete(model="poet")).status_code == 200
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in listed] == [("base", None), ("poet", "base")]
    unloaded = await client.post(UNLOAD, json={"lora_name": "poet", "lora_int_id": 7})
    assert (unloaded.status_code, unloaded.text) == (
        200,
        "Success: LoRA adapter 'poet' removed successfully.",
    )
    assert (await complete(model="poet")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"lora_name": "a"},
        {"lora_path": "poet"},
        {"lora_name": "", "lora_path": "poet"},
        {"lora_name": "a", "lora_path": ""},
        {"lora_name": 3, "lora_path": "poet"},
        [],
    ],
)
async def test_a_missing_field(client, root, body):
    response = await client.post(LOAD, json=body)

    assert error(response) == (400, "InvalidUserInput")
    assert response.json()["error"]["message"] == (
        "Both 'lora_name' and 'lora_path' must be provided."
    )


async def test_a_duplicate_name(client, root):
    body = {"lora_name": "poet", "lora_path": "poet"}
    await client.post(LOAD, json=body)
    response = await client.post(LOAD, json=body)

    assert error(response) == (400, "InvalidUserInput")
    assert "has already been loaded" in response.json()["error"]["message"]


async def test_loading_in_place_publishes_a_version(client, root, registry, write_adapter):
    body = {"lora_name": "poet", "lora_path": "poet"}
    await client.post(LOAD, json=body)
    old = registry.entry("poet").digest
    write_adapter("poet", seed=2)
    response = await client.post(LOAD, json={**body, "load_inplace": True})

    assert response.status_code == 200
    assert registry.entry("poet").digest != old
    assert registry.rollback("poet").digest == old


@pytest.mark.parametrize(
    "path", ["nobody", "../outside", "/etc", ".", "", "link", "poet/../../outside", "a\0b"]
)
async def test_paths_that_are_not_inside_the_root(client, root, tmp_path, write_adapter, path):
    outside = write_adapter("outside").rename(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    response = await client.post(LOAD, json={"lora_name": "a", "lora_path": path})

    expected = (404, "NotFoundError") if path else (400, "InvalidUserInput")
    assert error(response) == expected
    assert str(tmp_path) not in response.text


async def test_a_wrong_base_or_a_bad_name_is_a_bad_request(client, root, write_adapter, registry):
    write_adapter("wide", size=9)
    wrong = await client.post(LOAD, json={"lora_name": "wide", "lora_path": "wide"})
    named = await client.post(LOAD, json={"lora_name": "a/b", "lora_path": "poet"})

    assert error(wrong) == error(named) == (400, "BadRequestError")
    assert "lora_A" in wrong.json()["error"]["message"]
    assert registry.entries() == ()


async def test_unloading_what_is_not_there(client, root):
    unknown = await client.post(UNLOAD, json={"lora_name": "nobody"})
    missing = await client.post(UNLOAD, json={"lora_int_id": 1})

    assert error(unknown) == (404, "NotFoundError")
    assert unknown.json()["error"]["message"] == "The lora adapter 'nobody' cannot be found."
    assert error(missing) == (400, "InvalidUserInput")


async def test_without_a_root_the_doors_are_closed(client, write_adapter, registry):
    path = write_adapter("poet")
    body = {"lora_name": "poet", "lora_path": str(path)}

    for route in (LOAD, UNLOAD):
        response = await client.post(route, json=body)
        assert error(response) == (404, "NotFoundError")
        assert "--adapters-root" in response.json()["error"]["message"]
    for route in ("/load_lora_adapter", "/unload_lora_adapter"):
        response = await client.post(route, json=body)
        assert response.status_code == 400
        assert "--adapters-root" in response.json()["error_message"]
    assert registry.entries() == ()


async def test_sglangs_door(client, root, complete, registry):
    body = {"lora_name": "poet", "lora_path": "poet", "pinned": True}
    loaded = await client.post("/load_lora_adapter", json=body)
    again = await client.post("/load_lora_adapter", json=body)

    assert loaded.status_code == 200
    assert loaded.json()["success"] is True
    assert list(loaded.json()["loaded_adapters"]) == ["poet"]
    assert registry.entry("poet").is_pinned
    assert (again.status_code, again.json()["success"]) == (400, False)
    assert "already loaded" in again.json()["error_message"]
    assert (await complete(model="base", lora_path="poet")).status_code == 200
    for expected in (200, 400):
        gone = await client.post("/unload_lora_adapter", json={"lora_name": "poet"})
        assert gone.status_code == expected
        assert gone.json()["loaded_adapters"] == {}
    for wrong in ({}, {"lora_name": "a"}, {"lora_name": "a", "lora_path": "../x"}):
        assert (await client.post("/load_lora_adapter", json=wrong)).status_code == 400
    assert (await client.post("/unload_lora_adapter", json={})).status_code == 400
