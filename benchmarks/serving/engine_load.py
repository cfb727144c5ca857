"""An engine without a server around it, asked and timed as a load test asks a server."""

import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.shape import LLAMA_1B, QWEN_0_5B, SMALL, build_base
from multiflora.engine.client import EngineClient
from multiflora.engine.config import EngineConfig
from multiflora.engine.errors import EngineError
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams
from multiflora.server.base_model import DEMO
from multiflora.server.load_test.outcome import Outcome

BASES: Final[Mapping[str, dict[str, Any]]] = {
    "small": SMALL,
    "qwen2.5-0.5b": QWEN_0_5B,
    "llama-3.2-1b": LLAMA_1B,
}


def base_folder(name: str, work: Path) -> Path:
    """``demo``, or a random base in a shape of ``BASES``, made in ``work`` if it is not there."""
    return DEMO / "base" if name == "demo" else build_base(work / name, BASES[name])


@asynccontextmanager
async def engine(config: EngineConfig) -> AsyncIterator[EngineClient]:
    client = EngineClient.in_process_of_its_own(config)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


class EngineLoad:
    """Greedy requests of one size; a name is a version's digest, the empty one is the base's."""

    def __init__(
        self, client: EngineClient, *, prompt_tokens: int, new_tokens: int, seed: int = 0
    ) -> None:
        self._client = client
        self._prompt_tokens = prompt_tokens
        self._sampling = SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True)
        self._seed = seed
        self._num_asked = 0

    async def ask(self, name: str, number: int) -> Outcome:
        """``number`` draws the prompt, so that the same one can be asked again."""
        self._num_asked += 1
        draw = random.Random(f"{self._seed} {number}")
        vocab_size = self._client.info.vocab_size
        request = GenerationRequest(
            id=f"load-{self._seed}-{self._num_asked}",
            prompt=tuple(draw.randrange(4, vocab_size) for _ in range(self._prompt_tokens)),
            sampling=self._sampling,
            adapters=(AdapterShare(name),) if name else (),
        )
        started, error = time.perf_counter(), ""
        times: list[float] = []
        num_tokens = 0
        try:
            async for event in self._client.generate(request):
                if event.tokens:
                    times.append(time.perf_counter() - started)
                    num_tokens += len(event.tokens)
        except EngineError as problem:
            error = type(problem).__name__
        return Outcome(
            name=name,
            seconds=time.perf_counter() - started,
            first_token=times[0] if times else None,
            gaps=tuple(later - earlier for earlier, later in pairwise(times)),
            num_tokens=num_tokens,
            num_prompt_tokens=self._prompt_tokens,
            error=error,
        )
