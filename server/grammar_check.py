"""Checks grammars beside the event loop, within a time limit, before the engine sees them."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.grammar import InvalidGrammar, problem_of

from .refusal import QueueFull

_SECONDS: Final = 2.0
_MAX_KEPT: Final = 256


class GrammarCheck:
    """Two threads, so that no flood of schemas takes more; what passed is remembered."""

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(2, "grammar-check")
        self._passed: OrderedDict[str, None] = OrderedDict()

    async def make(self, build: Callable[[], str], *, param: str) -> str:
        """The grammar that ``build`` returns. Raises ``InvalidGrammar`` naming ``param``.

        Raises ``QueueFull`` where the threads had no time to begin, for grammars of others.
        """
        work = self._threads.submit(self._checked, build)
        checking = asyncio.wrap_future(work)
        try:
            await asyncio.wait({checking}, timeout=self._seconds)
            if checking.done():
                return checking.result()
        except RequestRejected as error:
            raise InvalidGrammar(str(error), param=param) from None
        finally:
            has_begun = not work.cancel()
            checking.cancel()
        if has_begun:
            raise InvalidGrammar(
                f"it takes longer than {self._seconds:g} seconds to compile; simplify it",
                param=param,
            )
        raise QueueFull(
            "too many grammars wait to be checked; try again later, or on another replica",
            retry_after_seconds=self._seconds,
        )

    def _checked(self, build: Callable[[], str]) -> str:
        grammar = build()
        if grammar not in self._passed and (problem := problem_of(grammar)):
            raise InvalidGrammar(problem)
        self._passed[grammar] = None
        if len(self._passed) > _MAX_KEPT:
            self._passed.popitem(last=False)
        return grammar
