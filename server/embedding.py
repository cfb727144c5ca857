"""Turns prompts into vectors on the engine."""

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy
from numpy.typing import NDArray

from multiflora.engine.client import EngineClient
from multiflora.engine.errors import RequestFailed, RequestRejected
from multiflora.engine.request import FinishReason, GenerationRequest

Vector = NDArray[numpy.float32]


async def embed(client: EngineClient, requests: Sequence[GenerationRequest]) -> list[Vector]:
    """The unit vectors of ``requests``. The first error of any of them ends all."""
    tasks = [asyncio.create_task(_vector(client, request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _vector(client: EngineClient, request: GenerationRequest) -> Vector:
    events = client.generate(request)
    async with aclosing(events):
        async for event in events:
            if event.finish_reason is FinishReason.ABORT:
                raise RequestFailed("the request was aborted", code="aborted")
            if event.embedding:
                return unit(numpy.frombuffer(event.embedding, "<f4"))
    raise RequestFailed("the engine ended the request without an embedding")


def unit(vector: Vector) -> Vector:
    """Of length 1; zeros stay."""
    length = float(numpy.linalg.norm(vector.astype(numpy.float64)))
    return (vector / (length or 1.0)).astype("<f4")


def shortened(vector: Vector, dimensions: int | None) -> Vector:
    """The first ``dimensions``, as a unit vector again. Raises ``RequestRejected``."""
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise RequestRejected(
            f"dimensions is {dimensions}; this base's vectors have {len(vector)}",
            param="dimensions",
        )
    return unit(vector[:dimensions])


def written(vector: Vector, *, as_base64: bool) -> Any:
    """As a list of numbers, or as the base64 of little-endian float32."""
    return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
