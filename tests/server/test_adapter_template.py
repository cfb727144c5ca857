"""Chat templates of adapters: dropped and ignored, unless the operator lets them be used."""

import asyncio
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from multiflora.adapters.folder import TEMPLATE_NAME
from multiflora.adapters.registry import Registry
from multiflora.adapters.target import Projection
from multiflora.engine.text.chat_template import chat_template_of
from multiflora.engine.text.template_renderer import TemplateRenderer
from multiflora.server.adapter_template import AdapterTemplates
from multiflora.server.app import create_app
from multiflora.server.publishing import Publisher
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
OWN = "{% for message in messages %}own {{ message.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]
BASE_TEXT = "<s><|user|>hi</s><|assistant|>"


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def is_allowed(request: pytest.FixtureRequest) -> bool:
    return getattr(request, "param", True)


@pytest.fixture
def publisher(
    registry: Registry, projections: tuple[Projection, ...], is_allowed: bool
) -> Iterator[Publisher]:
    publisher = Publisher(registry, projections, with_templates=is_allowed)
    yield publisher
    publisher.close()


@pytest.fixture
async def own_renderer(service: Service) -> AsyncIterator[TemplateRenderer]:
    """Of the templates that adapters bring."""
    renderer = TemplateRenderer(chat_template_of(service.tokenizer.folder))
    yield renderer
    await renderer.stop()


@pytest.fixture
async def api(
    service: Service, registry: Registry, is_allowed: bool, own_renderer: TemplateRenderer
) -> AsyncIterator[httpx.AsyncClient]:
    """A server that renders in a process of its own, as servers do."""
    renderer = TemplateRenderer(chat_template_of(service.tokenizer.folder))
    templates = AdapterTemplates(registry.store if is_allowed else None, own_renderer)
    app = create_app(replace(service, chat_template=renderer, adapter_templates=templates))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
    await renderer.stop()


def packed(folder: Path, template: str | bytes) -> bytes:
    content = template if isinstance(template, bytes) else template.encode()
    (folder / TEMPLATE_NAME).write_bytes(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname="adapter")
    return buffer.getvalue()


async def upload(
    api: httpx.AsyncClient, folder: Path, template: str | bytes, name: str = "mine"
) -> httpx.Response:
    archive = {"archive": packed(folder, template)}
    return await api.post("/v1/adapters", data={"name": name}, files=archive)


async def text_of(api: httpx.AsyncClient, service: Service, **fields: Any) -> str:
    """What the template made of ``MESSAGES``."""
    answer = await api.post("/tokenize", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 200, answer.text
    return service.tokenizer.decode(answer.json()["tokens"], skip_special_tokens=False)


async def test_an_adapter_answers_chats_of_its_own_form(
    api: httpx.AsyncClient, service: Service, engine: Any, write_adapter: Callable[..., Path]
) -> None:
    assert (await upload(api, write_adapter(), OWN)).status_code == 201
    chat = {"model": "mine", "messages": MESSAGES}
    assert (await api.post("/v1/chat/completions", json=chat)).status_code == 200
    reply = {"model": "mine", "input": "hi"}
    assert (await api.post("/v1/responses", json=reply)).status_code == 200
    for request in engine.requests:
        assert service.tokenizer.decode(request.prompt, skip_special_tokens=False) == "own hi"
    assert await text_of(api, service, model="mine") == "own hi"
    assert await text_of(api, service, model="base") == BASE_TEXT
    blend = {**chat, "model": "base", "adapters": [{"name": "mine", "weight": 0.5}]}
    await api.post("/v1/chat/completions", json=blend)
    last = engine.requests[-1].prompt
    assert service.tokenizer.decode(last, skip_special_tokens=False) == BASE_TEXT

    download = await api.get("/v1/adapters/mine/download")
    with tarfile.open(fileobj=io.BytesIO(download.content)) as archive:
        kept = archive.extractfile(f"mine/{TEMPLATE_NAME}")
        assert kept is not None
        assert kept.read().decode() == OWN


async def test_a_template_of_an_adapter_delays_no_chat_of_the_base(
    api: httpx.AsyncClient,
    service: Service,
    own_renderer: TemplateRenderer,
    write_adapter: Callable[..., Path],
) -> None:
    assert (await upload(api, write_adapter(), OWN)).status_code == 201
    await own_renderer.start()
    assert own_renderer.pid is not None
    os.kill(own_renderer.pid, signal.SIGSTOP)
    slow = asyncio.create_task(text_of(api, service, model="mine"))

    assert await text_of(api, service, model="base") == BASE_TEXT
    assert not slow.done()
    os.kill(own_renderer.pid, signal.SIGCONT)
    assert await slow == "own hi"


@pytest.mark.parametrize("is_allowed", [False], indirect=True)
async def test_without_leave_it_is_neither_kept_nor_used(
    api: httpx.AsyncClient,
    service: Service,
    registry: Registry,
    write_adapter: Callable[..., Path],
) -> None:
    folder = write_adapter()
    assert (await upload(api, folder, OWN)).status_code == 201
    assert await text_of(api, service, model="mine") == BASE_TEXT
    assert registry.store is not None
    digest = registry.entry("mine").digest
    assert registry.store.open(digest).template is None
    # It does not count: with another one, or none, the version is the same.
    assert (await upload(api, folder, "other", "again")).json()["version"] == digest


async def test_the_template_is_a_part_of_the_version(
    api: httpx.AsyncClient, write_adapter: Callable[..., Path]
) -> None:
    folder = write_adapter()
    versions = [
        (await upload(api, folder, template, name)).json()["version"]
        for name, template in (("a", "one"), ("b", "two"), ("c", "one"))
    ]
    assert versions[0] == versions[2] != versions[1]


@pytest.mark.parametrize("template", [b"x" * ((64 << 10) + 1), b"\xff"], ids=["long", "no text"])
async def test_what_cannot_be_a_template_is_refused_with_its_adapter(
    api: httpx.AsyncClient, write_adapter: Callable[..., Path], template: bytes
) -> None:
    refused = await upload(api, write_adapter(), template)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_template")


async def test_a_hostile_template_hurts_its_own_chats_alone(
    api: httpx.AsyncClient, service: Service, write_adapter: Callable[..., Path]
) -> None:
    bombs = {
        "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "huge": "{{ ('x' * 5000000000) | length }}",
        "escape": "{{ messages.__class__.__mro__ }}",
        "broken": "{% for %}",
    }
    folder = write_adapter()
    for name, template in bombs.items():
        assert (await upload(api, folder, template, name)).status_code == 201
        ask = {"model": name, "messages": MESSAGES}
        refused = await api.post("/v1/chat/completions", json=ask)
        param = "model" if name == "broken" else "messages"
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), name
        assert await text_of(api, service, model="base") == BASE_TEXT


async def test_tools_are_not_read_in_the_way_of_another_template(
    api: httpx.AsyncClient, write_adapter: Callable[..., Path]
) -> None:
    await upload(api, write_adapter(), OWN)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ask = {"model": "mine", "messages": MESSAGES, "tools": [tool]}
    refused = await api.post("/tokenize", json=ask)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
