"""What inference routes answer with, for the OpenAPI document; the answers are built by hand."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

Item = TypeVar("Item")


class ErrorDetail(BaseModel):
    """``code`` is a string of ours; vLLM's own routes answer with the status."""

    message: str
    type: str
    param: str | None
    code: str | int | None


class Error(BaseModel):
    """Every refusal and failure, whatever the route."""

    error: ErrorDetail


class Page(BaseModel, Generic[Item]):
    """``last_id`` is the next page's ``after``."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | int | None
    last_id: str | int | None
    has_more: bool

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{params[0].__name__}Page"


class Deleted(BaseModel):
    """The thing is not there any more."""

    id: str
    object: str
    deleted: Literal[True]


class PromptTokensDetails(BaseModel):
    """``cached_tokens`` were not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenScore(BaseModel):
    """A token, its natural logarithm of a probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(TokenScore):
    """A token beside the likeliest ones."""

    top_logprobs: list[TokenScore]


class ChatLogprobs(BaseModel):
    """One entry per token of the answer."""

    content: list[ScoredToken]
    refusal: None


class CompletionLogprobs(BaseModel):
    """Parallel lists; a prompt's first token has no score."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(BaseModel):
    """``arguments`` is JSON as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of one of the request's functions."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """``content`` is null beside calls alone."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] = []


class ChatCompletion(BaseModel):
    """An answered conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] = []


class CompletionChoice(BaseModel):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class Completion(BaseModel):
    """Continued prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseUsage(BaseModel):
    """Token counts under the names of the responses API."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseObject(BaseModel):
    """An answered input."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    system_fingerprint: str
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    tools: list[dict[str, Any]]
    usage: ResponseUsage | None


class EmbeddingItem(BaseModel):
    """A unit vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts of the inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """One vector per input, in order."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class Tokens(BaseModel):
    """A tokenized text or conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(BaseModel):
    """Detokenized tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The base's tokenizer; special tokens are further fields."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    chat_template: str | None


class Model(BaseModel):
    """``parent`` is null for the base."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(BaseModel):
    """The base first."""

    object: Literal["list"]
    data: list[Model]


class Status(BaseModel):
    """One word."""

    status: str


class Version(BaseModel):
    """The server's version."""

    version: str


class DoorAnswer(BaseModel):
    """SGLang's answer to loading and unloading."""

    success: bool
    error_message: str
    loaded_adapters: dict[str, Annotated[str, Field(min_length=64, max_length=64)]]
