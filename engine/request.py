"""What a client asks the engine for, and what it hears back. Plain data: knows no text, no HTTP."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from multiflora.adapters.histogram import Distribution

MAX_TOP_LOGPROBS: Final = 20


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 switch those filters off. ``seed`` and
    the position alone determine each draw. The end-of-turn tokens of the model always stop a
    request unless ``ignore_eos``; neither they nor ``stop_token_ids`` count before ``min_tokens``.
    With ``max_tokens`` 0 the prompt is read and nothing drawn.

    ``logit_bias`` holds tokens with what is added to their logits. ``allowed_token_ids``, unless
    empty, rule every other token out, ``bad_words`` the last of their tokens after the others.
    ``logprobs`` asks for the score of every drawn token and so many of the likeliest,
    ``prompt_logprobs`` for those of the prompt; None asks for nothing. ``grammar``, if any, is
    what the whole answer follows, in llguidance's form (see ``text.grammar``).
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens >= 0, "at least 0")
        _check("min_tokens", self.min_tokens, self.min_tokens >= 0, "at least 0")
        _check("temperature", self.temperature, 0 <= self.temperature <= 2, "between 0 and 2")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "at least 0 (0 is off)")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        repetition = self.repetition_penalty
        _check("repetition_penalty", repetition, 0.01 <= repetition <= 10, "between 0.01 and 10")
        for name in ("frequency_penalty", "presence_penalty"):
            _check(name, getattr(self, name), -2 <= getattr(self, name) <= 2, "between -2 and 2")
        _check("seed", self.seed, -(2**63) <= self.seed < 2**63, "a 64-bit integer")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name) or 0
            _check(name, count, 0 <= count <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}")
        if self.grammar and (self.ignore_eos or self.min_tokens):
            raise ValueError("a grammar says where an answer ends: no ignore_eos, no min_tokens")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def named_tokens(self) -> tuple[int, ...]:
        """Every token id that the settings mention."""
        biased = (token for token, _ in self.logit_bias)
        bad = (token for word in self.bad_words for token in word)
        return (*self.stop_token_ids, *self.allowed_token_ids, *biased, *bad)


def _check(name: str, value: float, is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value}; it must be {rule}")


@dataclass(frozen=True, slots=True)
class AdapterShare:
    """One version in a blend: its digest and its weight.

    A version that scales or replaces what the base computes (``feature.why_unblendable``) has
    weight 1 and no mates.
    """

    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to continue.

    ``adapters`` is empty for the base; several shares are a blend. ``tenant`` is whom the server
    takes the client for: it shares the engine fairly with the other tenants, and the prefix cache
    not at all. ``cache_salt`` comes from the client and separates its own clients there. Requests
    of a lower ``priority`` number go first, whoever waits behind them. With ``wants_embedding`` the
    last hidden state of the prompt's last token comes with the last event.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    adapters: tuple[AdapterShare, ...] = ()
    cache_salt: str = ""
    tenant: str = ""
    priority: int = 0
    wants_embedding: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely the model itself thought a token, whatever the request's settings made of that.

    Natural logarithms. ``top`` are the likeliest tokens, falling, with their ``top_logprobs``.
    """

    logprob: float
    top: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Where a request was before its first token; ``load``, the wait for its versions, is a part
    of ``queue``, the wait until the scheduler took it. ``prefill`` follows.
    """

    queue: float = 0.0
    load: float = 0.0
    prefill: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New tokens of one request, in order; the last event carries ``finish_reason``.

    ``cached_tokens`` counts prompt tokens taken from the prefix cache. ``scores`` belong to
    ``tokens`` where they were asked for, ``prompt_scores`` to prompt tokens: the first event has
    that of the second token of the prompt. ``embedding`` holds little-endian float32. ``error`` and
    ``error_code`` are set when the reason is ``error``. ``stages`` come with the first token, or
    with the end of a request that draws none.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    embedding: bytes = b""
    error: str | None = None
    error_code: str | None = None
    stages: StageSeconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says about itself once it is ready."""

    model: str
    family: str
    base_digest: str
    max_model_len: int
    vocab_size: int
    device: str
    kernels: str
    dtype: str
    quantization: str
    num_kv_blocks: int
    block_size: int
    base_bytes: int
    kv_cache_bytes: int
    adapter_bytes: int
    load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStats:
    """Jobs right now, and what all of them did since the engine started.

    ``seconds`` is time in quanta, ``tokens`` those of finished optimizer steps. ``share`` is how
    much training gets for each second of serving while there are requests.
    """

    num_running: int = 0
    num_paused: int = 0
    num_queued: int = 0
    quanta: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    share: float = 0.0
    bytes_used: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionQueue:
    """Requests of one version; ``oldest_seconds`` is how long the first of the waiting ones has
    waited since it came.
    """

    num_waiting: int = 0
    num_running: int = 0
    oldest_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What steps did since the engine started.

    A phase is ``prefill``, ``decode`` or ``mixed``; ``tokens`` are counted by ``prefill`` and
    ``decode``, ``rows`` by what computes them: ``base``, ``adapter`` or ``blend``. ``requests`` and
    ``versions`` are how many shared a step. ``needed_ranks`` is rows times ranks of all segments,
    ``computed_ranks`` what the kernels' tiles make of it. Replays are of captured steps, and
    ``padding_rows`` what those computed beyond their rows.
    """

    seconds: dict[str, Distribution] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    requests: Distribution = field(default_factory=Distribution)
    versions: Distribution = field(default_factory=Distribution)
    needed_ranks: int = 0
    computed_ranks: int = 0
    graph_replays: int = 0
    padding_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStats:
    """The engine's process and device. On a CPU the device's memory is the machine's, as far as
    this process may use it.
    """

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    num_threads: int = 0
    device_bytes_used: int = 0
    device_bytes_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters and gauges of one engine, since its start.

    ``adapter_loads`` are reads of files, ``adapter_copies`` arrivals on the device.
    ``adapter_borrowed_bytes`` of the KV cache hold versions beyond the adapters' own memory.
    ``adapter_arrivals`` counts the versions of new requests by the tier they were found in.
    ``adapter_eviction_causes`` are those of the device's evictions, ``adapter_load_seconds`` the
    time of each stage of a load, ``adapter_load_failures`` counted by code. ``version_queues`` are
    by digest, the base's under the empty one; ``version_bytes`` those of versions on the device.
    """

    steps: int = 0
    num_waiting: int = 0
    num_running: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0
    kv_blocks_total: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    aborts: int = 0
    adapter_bytes_used: int = 0
    adapter_bytes_total: int = 0
    adapter_borrowed_bytes: int = 0
    adapter_leases: int = 0
    adapter_host_bytes_used: int = 0
    adapter_host_bytes_total: int = 0
    adapter_pinned_bytes: int = 0
    adapter_loads: int = 0
    adapter_copies: int = 0
    adapter_evictions: int = 0
    adapter_host_evictions: int = 0
    resident_versions: tuple[str, ...] = ()
    pinned_versions: tuple[str, ...] = ()
    step_seconds: float = 0.0
    requests_finished: dict[str, int] = field(default_factory=dict)
    adapter_arrivals: dict[str, int] = field(default_factory=dict)
    adapter_eviction_causes: dict[str, int] = field(default_factory=dict)
    adapter_load_seconds: dict[str, Distribution] = field(default_factory=dict)
    adapter_load_failures: dict[str, int] = field(default_factory=dict)
    version_queues: dict[str, VersionQueue] = field(default_factory=dict)
    version_bytes: dict[str, int] = field(default_factory=dict)
    step: StepStats = field(default_factory=StepStats)
    machine: MachineStats = field(default_factory=MachineStats)
    training: TrainingStats = field(default_factory=TrainingStats)
