"""The fields that completions and chat share."""

import secrets
from typing import Annotated, ClassVar, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from multiflora.engine.errors import RequestRejected
from multiflora.engine.log_line import HARMLESS_ID
from multiflora.engine.request import MAX_TOP_LOGPROBS, SamplingParams

from .body import RequestBody
from .structure import JsonSchema, ResponseFormat, Structure, StructuredOutputs, constraints

MAX_CHOICES: Final = 128
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_PARENTS: Final = 8
MAX_BIASES: Final = 1024
MAX_BAD_WORDS: Final = 64
MAX_ALLOWED_TOKENS: Final = 65_536
_MASK: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[
    list[_StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_as_list)
]


def _with_integer_keys(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {int(key) if _is_number(key) else key: amount for key, amount in value.items()}


def _is_number(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10


TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
TokenId = Annotated[int, Field(ge=0)]
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
# JSON has no numbers as keys.
LogitBias = Annotated[dict[TokenId, _Bias], BeforeValidator(_with_integer_keys)]


class StreamOptions(BaseModel):
    """``continuous_usage_stats`` puts the usage so far on every chunk."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class BlendShare(BaseModel):
    """One adapter of a blend; its delta counts ``weight`` times."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=256)
    weight: float = Field(1.0, ge=-16, le=16, allow_inf_nan=False)


class TargetBody(RequestBody):
    """What answers a request, for whom and when.

    Fields that nobody knows are kept, to be named in the answer's headers.
    """

    model_config = ConfigDict(extra="allow")

    IGNORED: ClassVar[frozenset[str]] = frozenset({"metadata", "service_tier"})

    model: str
    # LoRAX's and SGLang's names for the adapter.
    adapter_id: str | None = Field(None, max_length=256)
    lora_path: str | None = Field(None, max_length=256)
    adapters: list[BlendShare] = Field([], max_length=MAX_PARENTS)
    # A canary's users stay with the version that they got.
    user: str | None = Field(None, max_length=1024)
    cache_salt: str = Field("", max_length=256)
    # Requests can step back behind others, never ahead of them.
    priority: int = Field(0, ge=0, lt=2**31)
    truncate_prompt_tokens: int | None = Field(None, ge=1, lt=2**31)
    # What the header x-request-id says too.
    request_id: str | None = Field(None, pattern=HARMLESS_ID)


class SamplingBody(TargetBody):
    """How to draw tokens and when to end, as completions and chat requests say it."""

    n: int = Field(1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopStrings = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=256)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logit_bias: LogitBias = Field({}, max_length=MAX_BIASES)
    allowed_token_ids: list[TokenId] = Field([], max_length=MAX_ALLOWED_TOKENS)
    bad_words: list[_StopString] = Field([], max_length=MAX_BAD_WORDS)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # False keeps the answer out of what its adapter keeps for feedback.
    store: bool | None = None
    return_token_ids: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def structure(self) -> Structure | None:
        """The form that the answer must have. Raises ``RequestRejected`` for two at once."""
        found = constraints(
            "guided_",
            json=self.guided_json,
            regex=self.guided_regex,
            choice=self.guided_choice,
            grammar=self.guided_grammar,
        )
        if self.structured_outputs:
            found += self.structured_outputs.structures("structured_outputs")
        if self.response_format and (asked := self.response_format.structure("response_format")):
            found.append(asked)
        if len(found) > 1:
            raise RequestRejected(
                f"{found[0].param} and {found[1].param} both say what the answer looks like; "
                "give one of them",
                param=found[1].param,
            )
        for name in ("ignore_eos", "min_tokens"):
            if found and getattr(self, name):
                raise RequestRejected(
                    f"{found[0].param} decides where the answer ends; leave {name} out", param=name
                )
        return found[0] if found else None

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != info.data.get("n"):
            raise ValueError("every choice is returned, so this must equal n")
        return value

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to list for each drawn one; None for no scores at all."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for tokens of the prompt."""
        return None

    def sampling_params(self) -> SamplingParams:
        """All but what differs between prompts and choices."""
        return SamplingParams(
            max_tokens=0,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logit_bias=tuple(self.logit_bias.items()),
            allowed_token_ids=tuple(self.allowed_token_ids),
            logprobs=self.num_logprobs,
            prompt_logprobs=self.num_prompt_logprobs,
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
