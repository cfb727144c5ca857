"""Ten times as many requests as can be answered: some wait, the others hear so at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.engine.request import GenerationRequest, TokenEvent
from multiflora.engine.text.tokenizer import Tokenizer
from multiflora.server.admission import Admission, AdmissionLimits
from multiflora.server.app import create_app
from multiflora.server.service import Service

from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
SLOTS, SECONDS, QUEUE, OVERLOAD = 4, 0.1, 6, 10


@dataclass
class BusyEngine(FakeEngine):
    """Answers ``SLOTS`` requests at a time, each in ``SECONDS``."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOTS))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        async with self.slots:
            await asyncio.sleep(SECONDS)
            async for event in super().generate(request):
                yield event


async def test_overload_is_answered_or_refused_and_leaves_nothing_behind(
    service: Service, tokenizer: Tokenizer, registry: Registry
) -> None:
    admission = Admission(AdmissionLimits(max_queued_requests=QUEUE))
    engine = BusyEngine(tokenizer)
    service = replace(service, client=cast(EngineClient, engine), admission=admission)
    transport = httpx.ASGITransport(app=create_app(service))
    statuses, most_waiting, num_wrong = Counter[int](), 0, 0

    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

        async def ask(place: int) -> None:
            nonlocal most_waiting, num_wrong
            body: dict[str, Any] = {"model": ("base", "json")[place % 2], "prompt": "hi"}
            answer = await client.post("/v1/completions", json={**body, "stream": place % 3 == 0})
            statuses[answer.status_code] += 1
            most_waiting = max(most_waiting, admission.num_waiting)
            is_refused = answer.status_code == 429
            num_wrong += is_refused and not answer.headers.get("retry-after-ms", "").isdecimal()
            num_wrong += not is_refused and "hello" not in answer.text

        asking = []
        for place in range(int(OVERLOAD * SLOTS / SECONDS)):
            asking.append(asyncio.create_task(ask(place)))
            await asyncio.sleep(SECONDS / SLOTS / OVERLOAD)
        await asyncio.gather(*asking)

    assert set(statuses) == {200, 429}
    assert statuses[200] >= SLOTS + QUEUE
    assert num_wrong == 0
    assert 0 < most_waiting <= QUEUE
    assert (admission.num_waiting, admission.num_waiting_tokens, admission.wait_seconds()) == (
        0,
        0,
        0,
    )
    assert (engine.running, engine.closed_early, service.drain.num_running) == (set(), [], 0)
    assert registry.num_leases("a" * 64) == 0
