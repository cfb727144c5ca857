"""A measurement from its settings to its report: who is asked, for what, when, and what came."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import multiflora

from .arrival import Arrival, drive
from .mix import Mix
from .openai_server import OpenAIServer
from .outcome import Outcome, by_name, figures
from .question import Api, Question

_DEFAULT_CONCURRENCY = 8
_DEFAULT_REQUESTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What is asked of whom; without ``models`` all that the server lists are asked.

    Without ``prompt_words`` the server's own count says how many make ``prompt_tokens``.
    """

    url: str
    models: tuple[str, ...] = ()
    mix: str = "uniform"
    api: Api = "chat"
    prompt_tokens: int = 64
    prompt_words: int | None = None
    output_tokens: int = 64
    ignore_eos: bool = True
    temperature: float = 0.0
    concurrency: int | None = None
    request_rate: float | None = None
    num_requests: int | None = None
    duration: float | None = None
    warmup: int = 0
    seed: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "prompt_words", "output_tokens", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {value}; it must be above 0")

    def arrival(self) -> Arrival:
        """Raises ``ValueError``."""
        concurrency, num_requests = self.concurrency, self.num_requests
        if concurrency is None and self.request_rate is None:
            concurrency = _DEFAULT_CONCURRENCY
        if num_requests is None and self.duration is None:
            num_requests = _DEFAULT_REQUESTS
        return Arrival(
            concurrency=concurrency,
            rate=self.request_rate,
            num_requests=num_requests,
            seconds=self.duration,
            seed=self.seed,
        )


async def measure(
    settings: Measurement,
    *,
    key: str | None = None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """The settings, and the figures of all requests and of each name.

    Raises ``ValueError``, ``EngineUnavailable``, ``RequestRejected``.
    """
    arrival = settings.arrival()
    async with OpenAIServer(settings.url, key=key, timeout_seconds=settings.timeout) as server:
        names = settings.models or tuple(await server.models())
        mix = Mix.parse(settings.mix, names)
        words = settings.prompt_words
        if words is None:
            words = await server.words_for(settings.prompt_tokens, names[0], settings.api)
        question = Question(
            api=settings.api,
            num_words=words,
            max_tokens=settings.output_tokens,
            ignore_eos=settings.ignore_eos,
            temperature=settings.temperature,
            seed=settings.seed,
        )

        async def ask(number: int) -> Outcome:
            name = mix.draw(Random(f"{settings.seed} {number}"))
            return await server.ask(question, name, number)

        if settings.warmup:
            warmup = Arrival(concurrency=_DEFAULT_CONCURRENCY, num_requests=settings.warmup)
            # Below zero: words that no counted request repeats, or they would be cached.
            await drive(lambda number: ask(-1 - number), warmup)
        run = await drive(ask, arrival, on_end=on_end)
    return {
        "multiflora": multiflora.__version__,
        "settings": {**asdict(settings), "models": list(names), "prompt_words": words},
        "total": figures(run.outcomes, run.seconds),
        "models": by_name(run.outcomes, run.seconds),
    }
