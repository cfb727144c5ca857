"""Every route, with every scope, of every tenant: generated from the application's own routes."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute, Route

from multiflora.engine.training.jobs.job import JobWish
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.authorization import AuthorizationMiddleware
from multiflora.server.access.caller import Scope
from multiflora.server.access.key_registry import KeyRegistry
from multiflora.server.access.keyring import Keyring
from multiflora.server.access.origin import OriginCheck
from multiflora.server.access.rule import RULES
from multiflora.server.app import create_app
from multiflora.server.background_job import BackgroundJob
from multiflora.server.batch_store import BatchStore
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio

PASSED = 299
PUBLIC = {
    *("/live", "/ready", "/health", "/version", "/openapi.json"),
    *("/console", "/console/", "/console/{name}"),
}
# The specification in its own words, the first match counts; None is public.
SCOPES: tuple[tuple[str, Scope], ...] = (
    (r"/metrics(/adapters)?", Scope.METRICS),
    (r"/v1/keys.*", Scope.ADMIN),
    (r"(/v1)?/(un)?load_lora_adapter", Scope.ADMIN),
    (r"/v1/adapters/\{name\}/import", Scope.ADMIN),
    (r"POST /v1/feedback", Scope.INFERENCE),
    (r"/v1/feedback.*", Scope.TRAINING),
    (r"/v1/(fine_tuning|files|datasets).*", Scope.TRAINING),
    (r"/v1/adapters/\{name\}/learn(ing)?.*", Scope.TRAINING),
    (r"/v1/adapters.*", Scope.ADAPTERS),
    (r"DELETE /v1/models/.*", Scope.ADAPTERS),
    (
        r"/(v1/)?(chat|completions|models|responses|embeddings|batches|de|tok|abort).*",
        Scope.INFERENCE,
    ),
)
TENANTS = ("red", "blue", "")
# For batches: who may make them sees their files, and no others.
FILES = "/v1/files"
MERGE, SAMPLE, BATCH_FILE = "merge", "sample", "batch file"


def routes_of(routes: list[BaseRoute]) -> Iterator[Route]:
    """All of them, also those of included routers; anything else fails."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_of(inner.routes)
        else:
            assert isinstance(route, Route), f"{route} is no route that a rule could name"
            yield route


def spec(method: str, path: str) -> Scope | None:
    if path in PUBLIC:
        return None
    for pattern, scope in SCOPES:
        if re.fullmatch(pattern, path) or re.fullmatch(pattern, f"{method} {path}"):
            return scope
    raise AssertionError(f"{method} {path}: no line of the specification covers it")


@pytest.fixture
def operations(service: Service) -> list[tuple[str, str]]:
    routes = routes_of(create_app(service).router.routes)
    return sorted(
        (method, route.path)
        for route in routes
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    )


def kind_of(path: str) -> str | None:
    """What a path names; merges, samplings and training jobs all have a ``job_id``."""
    found = re.search(r"(\w+)/\{(\w+)(:path)?\}", path)
    if found is None:
        return None
    word, param, _ = found.groups()
    return word if word in (MERGE, SAMPLE) else param


def with_id(path: str, name: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", name, path)


async def _nothing() -> dict[str, Any]:
    return {}


@pytest.fixture
async def things(service: Service, tmp_path: Path) -> dict[str, dict[str, str]]:
    """Ids of one thing of each kind and tenant."""
    kinds = ("name", "model", "file_id", BATCH_FILE, "job_id", "batch_id", MERGE, SAMPLE)
    found: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    batches = BatchStore(service.registry.database)
    for tenant in ("red", ""):
        name = f"{tenant or 'shared'}-thing"
        service.registry.publish_version(service.registry.version("a" * 64))
        service.registry.point(name, "a" * 64, tenant=tenant)
        found["name"][tenant] = found["model"][tenant] = name
        for kind, purpose in (("file_id", "fine-tune"), (BATCH_FILE, "batch")):
            staged = tmp_path / name
            staged.write_bytes(b"{}\n")
            stored = service.files.add(staged, filename="x", purpose=purpose, tenant=tenant)
            found[kind][tenant] = stored.id
        for kind, word in ((MERGE, "merge"), (SAMPLE, "sampling")):
            background = BackgroundJob(word, "x", tenant)
            service.background.start(background, _nothing)
            found[kind][tenant] = background.id
        batch = batches.create(endpoint="/v1/x", input_file="file-0", metadata={}, tenant=tenant)
        found["batch_id"][tenant] = batch.id
        wish = JobWish(model="base", training_file=found["file_id"][tenant])
        job = service.jobs.rows.create(
            wish, name=lambda _: "x", start=None, notes=(), tenant=tenant
        )
        found["job_id"][tenant] = job.id
    return found


async def _reached(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": PASSED, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def door_of(service: Service, **changes: Any) -> httpx.AsyncClient:
    """The door alone, in front of an application that answers whatever reaches it."""
    (made,) = [
        middleware
        for middleware in create_app(service).user_middleware
        if middleware.cls is AuthorizationMiddleware
    ]
    app = AuthorizationMiddleware(_reached, **{**made.kwargs, **changes})  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


def key_of(service: Service, scope: Scope, tenant: str) -> str:
    wish = KeyWish(name="test", scopes=frozenset({scope}), tenant=tenant)
    return service.keyring.registry.create(wish)[1]


def expected(scope: Scope, tenant: str, method: str, path: str, owner: str | None) -> set[int]:
    """``owner`` None: the path names nothing, or nothing that is there."""
    wanted = spec(method, path)
    if wanted is None:
        return {PASSED}
    if scope is Scope.INFERENCE and path.startswith(FILES):
        return {PASSED} if owner is None else {404}
    if scope not in (wanted, Scope.ADMIN):
        return {403}
    if owner is None or scope is Scope.ADMIN or owner == tenant:
        return {PASSED}
    if owner == "":
        return {PASSED} if method == "GET" else {403}
    return {409} if method == "PUT" and path.endswith("{name}") else {404}


async def test_every_route_of_every_scope_and_tenant(
    service: Service, operations: list[tuple[str, str]], things: dict[str, dict[str, str]]
) -> None:
    keys = {(s, t): key_of(service, s, t) for s, t in itertools.product(Scope, TENANTS)}
    wrong = []
    async with door_of(service) as door:
        for (method, path), ((scope, tenant), key) in itertools.product(operations, keys.items()):
            owners = things.get(kind_of(path) or "", {})
            # Of a deleted name there is a history, and of a job that is to be revoked a key.
            is_free = path.endswith(("/history", "/import")) or (method, path) == (
                "GET",
                "/v1/models/{model:path}",
            )
            for owner in owners or [None]:
                url = path if owner is None else with_id(path, owners[owner])
                headers = {"authorization": f"Bearer {key}"}
                status = (await door.request(method, url, headers=headers)).status_code
                if status not in expected(scope, tenant, method, path, None if is_free else owner):
                    wrong.append((method, url, scope.value, tenant, owner, status))
    assert not wrong, wrong[:20]


async def test_without_a_good_key_only_public_routes_answer(
    service: Service, operations: list[tuple[str, str]]
) -> None:
    good = key_of(service, Scope.ADMIN, "")
    for bad in (None, "", "Bearer", "Bearer x", f"Bearer {good}x", f"Basic {good}", good):
        headers = {} if bad is None else {"authorization": bad}
        async with door_of(service) as door:
            for method, path in operations:
                response = await door.request(method, path, headers=headers)
                assert response.status_code == (PASSED if path in PUBLIC else 401), (method, path)
                if path not in PUBLIC:
                    assert response.headers["www-authenticate"] == "Bearer"
                    assert response.json()["error"]["code"] == "invalid_api_key"


def test_every_route_has_a_rule(operations: list[tuple[str, str]]) -> None:
    missing = [f"{method} {path}" for method, path in operations]
    assert [route for route in missing if route not in RULES] == []


async def test_a_route_without_a_rule_does_not_exist(service: Service) -> None:
    async with door_of(service, rules={}) as door:
        assert (await door.get("/v1/models")).status_code == 404
    key_of(service, Scope.ADMIN, "")
    async with door_of(service, rules={}) as door:
        assert (await door.get("/v1/models")).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["//v1/keys", "/v1//keys", "/V1/keys", "/v1/keys/", "/v1/./keys", "/v1/%6beys", "/nowhere"],
)
async def test_no_spelling_of_a_path_avoids_its_rule(service: Service, path: str) -> None:
    key = key_of(service, Scope.INFERENCE, "red")
    async with door_of(service) as door:
        response = await door.get(path, headers={"authorization": f"Bearer {key}"})
        assert response.status_code in (403, 404)
        assert (await door.get(path)).status_code == 401


async def test_the_host_header_changes_nothing(service: Service) -> None:
    key_of(service, Scope.ADMIN, "")
    async with door_of(service) as door:
        for host in ("server/health?", "x/v1/models", "health"):
            response = await door.get("/v1/keys", headers={"host": host})
            assert response.status_code == 401


async def test_files_of_batches_open_for_inference_as_all_files_do_for_training(
    service: Service, operations: list[tuple[str, str]], things: dict[str, dict[str, str]]
) -> None:
    async with door_of(service) as door:
        for scope, tenant in itertools.product((Scope.INFERENCE, Scope.TRAINING), TENANTS):
            headers = {"authorization": f"Bearer {key_of(service, scope, tenant)}"}
            for method, path in operations:
                if kind_of(path) != "file_id":
                    continue
                for owner, file_id in things[BATCH_FILE].items():
                    response = await door.request(method, with_id(path, file_id), headers=headers)
                    wanted = expected(Scope.TRAINING, tenant, method, path, owner)
                    assert response.status_code in wanted, (method, path, scope, tenant, owner)


async def test_a_server_without_keys_answers_no_foreign_web_page(service: Service) -> None:
    async with door_of(service, origin=OriginCheck({"127.0.0.1"})) as door:
        local = {"host": "127.0.0.1:8000"}
        assert (await door.get("/v1/models", headers=local)).status_code == PASSED
        for headers in (
            {"host": "evil.example"},
            {**local, "origin": "https://evil.example"},
            {**local, "sec-fetch-site": "cross-site"},
        ):
            response = await door.post("/v1/completions", headers=headers)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "foreign_origin"
        same = {**local, "origin": "http://127.0.0.1:8000"}
        assert (await door.post("/v1/completions", headers=same)).status_code == PASSED


def test_a_keyring_of_its_own_registry_is_open(service: Service) -> None:
    assert Keyring(KeyRegistry(service.registry.database)).is_open
