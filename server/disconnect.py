"""Stops work for which nobody waits any more."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from .errors import ClientDisconnectedError

_Result = TypeVar("_Result")


async def until_disconnect(request: Request, work: Awaitable[_Result]) -> _Result:
    """Await ``work``, or cancel it and raise ``ClientDisconnectedError`` when the client goes away.

    The request's body must have been read. Starlette cancels streams by itself, but runs any other
    handler to its end.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnectedError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
