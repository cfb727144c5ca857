"""Checks grammars beside the event loop, within a time limit, before the engine sees them."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.grammar import InvalidGrammar, problem_of

_SECONDS: Final = 2.0
_MAX_KEPT: Final = 256


class GrammarCheck:
    """Two threads, so that no flood of schemas takes more; what passed is remembered."""

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(2, "grammar-check")
        self._passed: OrderedDict[str, None] = OrderedDict()

    async def make(self, build: Callable[[], str], *, param: str) -> str:
        """The grammar that ``build`` returns. Raises ``InvalidGrammar`` naming ``param``."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                grammar = await loop.run_in_executor(self._threads, self._checked, build)
        except TimeoutError:
            raise InvalidGrammar(
                f"it takes longer than {self._seconds:g} seconds to compile; simplify it",
                param=param,
            ) from None
        except RequestRejected as error:
            raise InvalidGrammar(str(error), param=param) from None
        return grammar

    def _checked(self, build: Callable[[], str]) -> str:
        grammar = build()
        if grammar not in self._passed and (problem := problem_of(grammar)):
            raise InvalidGrammar(problem)
        self._passed[grammar] = None
        if len(self._passed) > _MAX_KEPT:
            self._passed.popitem(last=False)
        return grammar
