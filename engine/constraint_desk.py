"""Compiles the grammars of requests beside the loop, which goes on serving everybody else."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from llguidance import LLMatcher, LLTokenizer

from .constraint import Constraint, GrammarFailed
from .errors import StartupError
from .request import GenerationRequest
from .text.tokenizer import load_tokenizer

_MAX_KEPT: Final = 64
_MAX_COMPILING: Final = 256


class ConstraintDesk:
    """Owns requests from their submission until their grammar is compiled.

    The tokenizer's trie is built with the first grammar, so bases without a tokenizer and servers
    without such requests pay nothing. Compiled grammars are kept, the latest used.
    """

    def __init__(self, folder: Path, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._compiling: dict[str, tuple[GenerationRequest, Future[Constraint]]] = {}
        self._thread = ThreadPoolExecutor(1, "grammar")

    @property
    def is_busy(self) -> bool:
        return bool(self._compiling)

    @property
    def is_full(self) -> bool:
        return len(self._compiling) >= _MAX_COMPILING

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._compiling

    def start(self, request: GenerationRequest) -> None:
        future = self._thread.submit(self._compile, request.sampling.grammar)
        self._compiling[request.id] = request, future

    def cancel(self, request_id: str) -> bool:
        """Let go of a request; whether it was here."""
        request, future = self._compiling.pop(request_id, (None, None))
        if future:
            future.cancel()
        return request is not None

    def poll(self) -> list[tuple[GenerationRequest, Constraint | Exception]]:
        """Requests whose grammar is compiled, or cannot be, in the order of their submission."""
        done = [item for item in self._compiling.values() if item[1].done()]
        for request, _ in done:
            del self._compiling[request.id]
        return [(request, future.exception() or future.result()) for request, future in done]  # type: ignore[misc]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> Constraint:
        """On the desk's thread, which alone uses what is kept. Raises ``GrammarFailed``."""
        matcher = self._kept.pop(grammar, None) or LLMatcher(self._trie(), grammar, log_level=0)
        if matcher.is_error():
            raise GrammarFailed(Constraint(matcher).problem)
        self._kept[grammar] = matcher
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return Constraint(matcher.deep_copy())

    def _trie(self) -> LLTokenizer:
        if self._tokenizer is None:
            if not self._eos_token_ids:
                raise GrammarFailed("the base names no token that ends an answer")
            try:
                text = load_tokenizer(self._folder).identity()
            except StartupError as error:
                raise GrammarFailed(str(error)) from None
            self._tokenizer = LLTokenizer(
                text, n_vocab=self._vocab_size, eos_token=self._eos_token_ids
            )
        return self._tokenizer
