"""An admitted or waiting request and how far it has come. No tensors."""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from .constraint import Constraint
from .kv_blocks import block_key, root_key
from .request import FinishReason, GenerationRequest

# A tenant, or "", the digests of a blend, and the priority.
QueueKey = tuple[str, tuple[str, ...], int]


@dataclass(slots=True)
class Milestones:
    """When a request came, when its versions were on the device, when it was admitted first.

    Readings of the performance counter, in seconds; None is not yet.
    """

    submitted: float = field(default_factory=time.perf_counter)
    loaded: float | None = None
    admitted: float | None = None


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """``tokens`` is prompt and answer; the first ``num_computed`` of them are in the KV cache.

    ``keys`` are the keys of the full blocks among ``tokens``, computed once and kept. ``pages`` are
    the first pages of ``blocks`` as far as ``first_pages`` was asked for them.
    """

    request: GenerationRequest
    arrival: int
    tokens: list[int] = field(init=False)
    blocks: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    # Prompt tokens found in the prefix cache at the first admission; None before it.
    num_cached: int | None = None
    # Prompt tokens counted so far: a recomputed one is not a new one.
    num_counted: int = 0
    # Prompt positions whose following token was scored, if that is asked for.
    num_scored: int = 0
    waiting_since: int = 0
    # The allowed tokens as bits, once they were needed.
    allowed_words: Any = None
    constraint: Constraint | None = None
    milestones: Milestones = field(default_factory=Milestones)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(share.digest for share in self.request.adapters)

    @property
    def is_blend(self) -> bool:
        """Whether any version answers by a share only."""
        shares = self.request.adapters
        return len(shares) > 1 or any(share.weight != 1.0 for share in shares)

    @property
    def queue_key(self) -> QueueKey:
        """Requests with the same tenant, versions and priority share one queue."""
        return self.request.tenant, self.digests, self.request.priority

    @property
    def client(self) -> Hashable:
        """Who waits when this request waits: its tenant or, without one, its versions."""
        return self.request.tenant or self.digests

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.tokens) - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None

    @property
    def num_reusable(self) -> int:
        """Tokens that need not be computed again if their blocks are cached."""
        return min(
            self.num_scored if self.scores_prompt else len(self.tokens), len(self.tokens) - 1
        )

    def unscored(self, start: int, stop: int) -> range:
        """Positions from ``start`` to ``stop`` whose following prompt token is to be scored."""
        if not self.scores_prompt:
            return range(0)
        return range(max(start, self.num_scored), min(stop, self.num_prompt - 1))

    def advance(self, count: int) -> None:
        """So many more tokens are in the KV cache, and scored."""
        self.num_computed += count
        self.num_scored = max(self.num_scored, min(self.num_computed, self.num_prompt - 1))

    def hold(self, blocks: list[int]) -> None:
        """Replace what the request holds."""
        self.blocks = blocks
        self.pages = []

    def first_pages(self, pages_per_block: int) -> list[int]:
        """The first page of every block, extended as blocks arrive."""
        missing = self.blocks[len(self.pages) :]
        self.pages += [block * pages_per_block for block in missing]
        return self.pages

    def full_block_keys(self, block_size: int) -> list[bytes]:
        """Keys of every full block of ``tokens``, extended as tokens arrive."""
        while (len(self.keys) + 1) * block_size <= len(self.tokens):
            start = len(self.keys) * block_size
            parent = self.keys[-1] if self.keys else self._root()
            self.keys.append(block_key(parent, self.tokens[start : start + block_size]))
        return self.keys

    def _root(self) -> bytes:
        return root_key(self.request.adapters, self.request.cache_salt, self.request.tenant)


def finish_reason(request: ActiveRequest, token: int | None) -> FinishReason | None:
    """Whether ``token``, just appended, or the end of the prompt ends the request."""
    sampling = request.request.sampling
    if request.num_pending > 0 and token is None:
        return None
    if request.num_generated >= sampling.min_tokens and token in sampling.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if request.num_generated >= sampling.max_tokens else None
