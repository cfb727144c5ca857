"""The fields that completions and chat share."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from multiflora.engine.request import SamplingParams

from .body import RequestBody

MAX_CHOICES: Final = 16
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_PARENTS: Final = 8
_MASK: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[
    list[_StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_as_list)
]


class StreamOptions(BaseModel):
    """``continuous_usage_stats`` puts the usage so far on every chunk."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class BlendShare(BaseModel):
    """One adapter of a blend; its delta counts ``weight`` times."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=256)
    weight: float = Field(1.0, ge=-16, le=16, allow_inf_nan=False)


class SamplingBody(RequestBody):
    """How to draw tokens and when to end, as completions and chat requests say it."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"metadata", "service_tier"})
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "skip_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "return_token_ids": (False,),
        "truncate_prompt_tokens": (),
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "priority": (0,),
        "response_format": ({"type": "text"},),
        "structured_outputs": ({},),
    }

    model: str
    # LoRAX's and SGLang's names for the adapter.
    adapter_id: str | None = Field(None, max_length=256)
    lora_path: str | None = Field(None, max_length=256)
    adapters: list[BlendShare] = Field([], max_length=MAX_PARENTS)
    # A canary's users stay with the version that they got.
    user: str | None = Field(None, max_length=1024)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopStrings = Field([])
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field([], max_length=256)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    cache_salt: str = Field("", max_length=256)
    # False keeps the answer out of what its adapter keeps for feedback.
    store: bool | None = None

    def sampling_params(self, *, max_tokens: int, seed: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
        )

    def seeds(self) -> list[int]:
        """One seed per choice: the given one (or a random one) and ones derived from it."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        return [first, *(derived_seed(first, choice) for choice in range(1, self.n))]


def derived_seed(seed: int, choice: int) -> int:
    """SplitMix64 (Steele et al. 2014), ``choice`` steps from ``seed``, as a signed integer."""
    state = (seed + choice * _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state
