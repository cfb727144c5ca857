"""Adapters that the server fetches itself: from a hub of its own in these tests, and from paths."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from multiflora.adapters.registry import Registry
from multiflora.server.errors import SourceNotAllowed
from multiflora.server.hub_door import HubDoor, check_pattern
from multiflora.server.publishing import Publisher
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """The two routes of the hub that a download needs, over the files of one repository."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        info = {f"/api/models/team/poet/revision/{name}" for name in ("main", "v1", COMMIT)}
        if path in (*info, "/api/models/team/poet"):
            siblings = [{"rfilename": n, "size": len(b)} for n, b in self.files.items()]
            body = {"id": "team/poet", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(body).encode(), with_body)
        elif path.startswith(f"/team/poet/resolve/{COMMIT}/"):
            self._send(200, self.files[path.rsplit("/", 1)[1]], with_body)
        elif path.startswith("/api/models/team/poet/"):
            self._send(404, b"{}", with_body, ("X-Error-Code", "RevisionNotFound"))
        else:
            self._send(404, b"{}", with_body, ("X-Error-Code", "RepoNotFound"))

    def _send(
        self, status: int, body: bytes, with_body: bool, header: tuple[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if header:
            self.send_header(*header)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def hub(write_adapter: Callable[..., Path]) -> type[FakeHub]:
    folder = write_adapter("source")
    FakeHub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    FakeHub.files["pytorch_model.bin"] = b"a pickle"
    FakeHub.asked = []
    return FakeHub


@pytest.fixture
def endpoint(hub: type[FakeHub]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def service(
    service: Service, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Service:
    # The tests' own hub may be asked; no other can be reached from here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    object.__setattr__(service, "hub", HubDoor(["team/*"], endpoint=endpoint))
    object.__setattr__(service, "adapters_root", tmp_path / "adapters")
    return service


async def send(client: httpx.AsyncClient, name: str = "poet", **body: object) -> httpx.Response:
    return await client.post(f"/v1/adapters/{name}/import", json=body)


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_an_allowed_repository_is_fetched_checked_and_served(client, registry, hub):
    answer = await send(client, hub="team/poet", revision="v1")
    assert answer.status_code == 201, answer.text
    entry = registry.entry("poet")
    assert answer.json()["published"] == answer.json()["version"] == entry.digest
    (version,) = (await client.get("/v1/adapters/poet/versions")).json()["data"]
    assert version["source"] == f"hub:team/poet@{COMMIT}", "the commit, whatever v1 becomes"
    assert not any("pickle" in path or ".bin" in path for path in hub.asked)
    assert (await send(client, hub="team/poet")).status_code == 200, "again: the same version"
    assert registry.entry("poet").kept == (entry.digest,)


@pytest.mark.parametrize("hub_id", ["other/poet", "team", "team/poet/x", "../poet", "team/..%2f"])
async def test_what_is_not_allowed_is_refused_before_anything_is_asked(client, hub, hub_id):
    assert error(await send(client, hub=hub_id)) == (403, "source_not_allowed")
    assert hub.asked == []


async def test_the_hubs_answers_become_errors_that_say_what_to_do(client, registry, hub):
    assert error(await send(client, hub="team/nobody")) == (404, "hub_not_found")
    assert error(await send(client, hub="team/poet", revision="v9")) == (404, "hub_not_found")
    del hub.files["adapter_model.safetensors"]
    assert error(await send(client, hub="team/poet")) == (400, "not_found")
    assert registry.entries() == ()


async def test_a_file_above_the_limit_is_not_fetched(client, service, hub, registry):
    hub.files["adapter_model.safetensors"] += bytes(service.limits.max_upload_bytes // 2**21)
    object.__setattr__(service.limits, "max_upload_bytes", 100)
    assert error(await send(client, hub="team/poet")) == (413, "adapter_too_large")
    assert not any("resolve" in path for path in hub.asked)
    assert registry.entries() == ()


async def test_a_hub_that_is_away_is_a_reason_to_try_later(client, service, registry):
    object.__setattr__(service, "hub", HubDoor(["*/*"], endpoint="http://127.0.0.1:9"))
    answer = await send(client, hub="team/poet")
    assert error(answer) == (503, "hub_unavailable")
    assert "retry-after" in answer.headers
    assert registry.entries() == ()


async def test_a_broken_adapter_of_the_hub_is_refused_by_the_gate(client, hub, registry):
    hub.files["adapter_model.safetensors"] = b"\x08\0\0\0\0\0\0\0nonsense"
    assert error(await send(client, hub="team/poet")) == (400, "invalid_file")
    assert registry.entries() == ()


async def test_a_path_inside_the_root_is_published(client, write_adapter, registry):
    write_adapter("source", seed=3)
    assert (await send(client, path="source")).status_code == 201
    assert error(await send(client, path="../outside")) == (400, "not_found")
    assert error(await send(client, name="a/b", path="source"))[0] in (400, 404)
    assert len(registry.entries()) == 1


async def test_an_import_can_publish_without_moving_the_name(client, write_adapter, registry):
    write_adapter("source", seed=3)
    first = (await send(client, path="source")).json()["version"]
    write_adapter("source", seed=4)
    answer = (await send(client, path="source", activate=False)).json()
    assert (answer["version"], registry.entry("poet").digest) == (first, first)
    assert answer["published"] != first


async def test_one_source_is_named(client):
    assert error(await send(client))[0] == 400
    assert error(await send(client, hub="team/poet", path="source"))[0] == 400
    assert error(await send(client, path="source", revision="main"))[0] == 400


async def test_without_flags_both_doors_are_closed(client, service):
    object.__setattr__(service, "hub", HubDoor())
    object.__setattr__(service, "adapters_root", None)
    assert error(await send(client, hub="team/poet")) == (403, "source_not_allowed")
    assert error(await send(client, path="source")) == (403, "source_not_allowed")


@pytest.mark.parametrize("pattern", ["team", "*", "a/b/c", "", "/x", "team/po et"])
def test_patterns_name_an_owner_and_a_repository(pattern):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        check_pattern(pattern)


def test_a_star_stays_inside_its_part():
    door = HubDoor(["team/po*", "*/exact"])
    for allowed in ("team/poet", "any/exact"):
        door.check(allowed)
    for refused in ("team/bard", "any/exactly", "xteam/poet"):
        with pytest.raises(SourceNotAllowed):
            door.check(refused)
