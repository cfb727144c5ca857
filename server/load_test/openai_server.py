"""A server that speaks OpenAI's API, asked for streams whose every piece is timed."""

import time
from types import TracebackType
from typing import Any, Final, Self

import httpx2
import orjson

from multiflora.engine.errors import EngineUnavailable, RequestRejected

from .outcome import Outcome
from .question import PATHS, Api, Question

# Lengths that tell what a word takes, and what a template adds.
_PROBES: Final = (4, 24)


class OpenAIServer:
    """An open connection pool. Raises ``EngineUnavailable`` and ``RequestRejected``."""

    def __init__(self, url: str, *, key: str | None, timeout_seconds: float) -> None:
        self._client = httpx2.AsyncClient(
            base_url=url.removesuffix("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_seconds,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """The names that the server lists."""
        return [model["id"] for model in (await self._call("GET", "/v1/models"))["data"]]

    async def words_for(self, num_tokens: int, model: str, api: Api) -> int:
        """How many words make a prompt of about ``num_tokens``, by what the server counts."""
        few, many = [await self._prompt_tokens(model, api, count) for count in _PROBES]
        per_word = (many - few) / (_PROBES[1] - _PROBES[0])
        if per_word <= 0:
            raise RequestRejected(
                "the server counts no more tokens in a longer prompt; give --prompt-words"
            )
        around = few - per_word * _PROBES[0]
        return max(1, round((num_tokens - around) / per_word))

    async def _prompt_tokens(self, model: str, api: Api, num_words: int) -> int:
        question = Question(api=api, num_words=num_words, max_tokens=1, ignore_eos=False)
        answer = await self._call("POST", PATHS[api], question.body(model, 0))
        try:
            return answer["usage"]["prompt_tokens"]
        except (KeyError, TypeError):
            raise RequestRejected(
                "the server does not count the tokens of a prompt; give --prompt-words"
            ) from None

    async def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx2.TransportError as error:
            raise EngineUnavailable(
                f"{self._client.base_url} does not answer ({_reason(error)}); name another "
                "server with --url"
            ) from None
        if answer.status_code != 200:
            raise RequestRejected(f"{path}: {_refusal(answer.status_code, answer.content)}")
        return answer.json()

    async def ask(self, question: Question, model: str, number: int) -> Outcome:
        """Stream one answer; whatever goes wrong is the outcome's error."""
        body = question.body(model, number)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        reading = _Reading(model)
        path = PATHS[question.api]
        try:
            async with self._client.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    return reading.end(_refusal(answer.status_code, await answer.aread()))
                async for event in httpx2.EventSource(answer):
                    if event.data == "[DONE]":
                        return reading.end()
                    reading.take(orjson.loads(event.data))
        except (httpx2.HTTPError, httpx2.SSEError, httpx2.StreamError) as error:
            return reading.end(_reason(error))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            return reading.end("the stream is not OpenAI's")
        return reading.end("the stream ended early")


class _Reading:
    """Notes when pieces of one answer come."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = self._last = time.perf_counter()
        self._first_token: float | None = None
        self._gaps: list[float] = []
        self._usage: dict[str, int] = {}
        self._error = ""

    def take(self, event: dict[str, Any]) -> None:
        """One event, as JSON. A role alone, or the count at the end, is no piece."""
        self._usage = event.get("usage") or self._usage
        if "error" in event:
            self._error = event["error"].get("code") or event["error"]["message"]
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or choice
            if delta.get("content") or delta.get("text") or delta.get("reasoning_content"):
                self._piece()

    def _piece(self) -> None:
        now = time.perf_counter()
        if self._first_token is None:
            self._first_token = now - self._started
        else:
            self._gaps.append(now - self._last)
        self._last = now

    def end(self, error: str = "") -> Outcome:
        pieces = len(self._gaps) + (self._first_token is not None)
        return Outcome(
            name=self._model,
            seconds=time.perf_counter() - self._started,
            first_token=self._first_token,
            gaps=tuple(self._gaps),
            num_tokens=self._usage.get("completion_tokens", pieces),
            num_prompt_tokens=self._usage.get("prompt_tokens", 0),
            error=error or self._error,
        )


def _refusal(status: int, content: bytes) -> str:
    """The status and the code of an error in OpenAI's envelope, as far as there is one."""
    try:
        error = orjson.loads(content)["error"]
        return f"{status} {error.get('code') or error['message']}"
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return str(status)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
