"""What is counted of the requests of one adapter, of the base, or of all of them."""

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from multiflora.adapters.histogram import WAIT_SECONDS, Histogram

_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1, 5)
_NUM_TOKENS: Final = (1, 8, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

_waits = partial(Histogram, WAIT_SECONDS)
_gaps = partial(Histogram, _TOKEN_SECONDS)
_sizes = partial(Histogram, _NUM_TOKENS)


@dataclass(slots=True)
class Tally:
    """``outcomes`` are ``ok``, ``disconnected`` and the codes of errors; ``roles`` say which
    version of a name was leased, the ``active`` one or the ``canary``.

    ``queue`` and ``load`` are as in ``StageSeconds``. ``inter_token`` is the time between two
    tokens. ``last_used`` is a Unix time.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token: Histogram = field(default_factory=_waits)
    inter_token: Histogram = field(default_factory=_gaps)
    whole: Histogram = field(default_factory=_waits)
    queue: Histogram = field(default_factory=_waits)
    load: Histogram = field(default_factory=_waits)
    last_used: float = field(default_factory=time.time)


@dataclass(slots=True)
class TotalTally(Tally):
    """Of all requests together, and in more detail.

    ``prefill`` is as in ``StageSeconds``, ``per_token`` the mean between tokens of one answer.
    """

    finished: Counter[str] = field(default_factory=Counter)
    prefill: Histogram = field(default_factory=_waits)
    decode: Histogram = field(default_factory=_waits)
    per_token: Histogram = field(default_factory=_gaps)
    prompt_sizes: Histogram = field(default_factory=_sizes)
    answer_sizes: Histogram = field(default_factory=_sizes)
