"""What clients of the replicas talk to: it reads which adapters a request names, and sends it where
Ray Serve knows them to be.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import orjson
from fastapi import FastAPI, Request, Response
from obstore.exceptions import BaseError
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from .asking import Asker
from .call import Call, Head, ServerLost, call_of
from .common_store import CommonStore

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_LOST: Final = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError, ServerLost)
_ANSWERED_BY_MODEL: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/tokenize",
)
app = FastAPI(title="multiflora", docs_url=None, redoc_url=None, openapi_url=None)


@serve.ingress(app)
class Door:
    """``replicas`` is the handle of their deployment."""

    def __init__(self, replicas: DeploymentHandle, *, store: str, prefers_residents: bool) -> None:
        self._replicas = replicas
        self._store = CommonStore(store)
        self._prefers_residents = prefers_residents
        self._asker = Asker(self._ask, lost=_LOST)
        self._names: frozenset[str] = frozenset()
        self._looked = float("-inf")
        self._looking = asyncio.Lock()

    @app.get("/live")
    async def live(self) -> dict[str, str]:
        return {"status": "live"}

    @app.get("/ready")
    async def ready(self, request: Request) -> Response:
        return await self._asker.answer(await call_of(request, "/ready"))

    @app.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """The base and the common store's names, as a replica that has them would list them."""
        answer = await self._asker.answer(await call_of(request, "/v1/models"))
        if answer.status_code != 200:
            return answer
        cards = orjson.loads(bytes(answer.body))["data"]
        listed = {card["id"] for card in cards}
        base: dict[str, Any] = cards[0]
        cards += [
            {**base, "id": name, "root": name, "parent": base["id"]}
            for name in sorted(await self._known())
            if name not in listed
        ]
        return Response(
            orjson.dumps({"object": "list", "data": cards}), media_type="application/json"
        )

    @app.post("/{path:path}")
    async def ask(self, request: Request, path: str) -> Response:
        if f"/{path}" not in _ANSWERED_BY_MODEL:
            return Response(status_code=404)
        call = await call_of(request, f"/{path}", known=await self._known())
        try:
            return await self._asker.answer(call)
        except BackPressureError:
            return Response(status_code=503, headers={"retry-after": "1"})

    async def _ask(self, call: Call) -> AsyncGenerator[Head | bytes]:
        model = call.adapters[0] if call.adapters and self._prefers_residents else ""
        handle = self._replicas.options(stream=True, multiplexed_model_id=model)
        parts = cast(DeploymentResponseGenerator[Any], handle.answer.remote(call))
        try:
            async for part in parts:
                yield part
        finally:
            # Whoever leaves early ends the work; of an answer that is complete nothing is left.
            parts.cancel()

    async def _known(self) -> frozenset[str]:
        """The names of the common store as they were a moment ago, or when it last answered."""
        async with self._looking:
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                try:
                    self._names = frozenset(await asyncio.to_thread(self._store.names))
                except (OSError, BaseError) as error:
                    logger.warning("the common store does not answer: %s", type(error).__name__)
                self._looked = time.monotonic()
            return self._names
