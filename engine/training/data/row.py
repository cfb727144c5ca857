"""The rows of a training file, whatever format they were written in.

All have a ``prompt`` (the text before the answer), ``answers`` (texts to learn), ``texts`` (all of
them) and an ``identity``, which is equal for equal rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# A turn as chat templates know it: role, content, and perhaps name and reasoning_content.
Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; ``is_trained`` says for every message whether it is an answer to learn."""

    messages: tuple[Message, ...]
    is_trained: tuple[bool, ...]
    line: int

    @property
    def prompt(self) -> str:
        """What comes before the first answer to learn."""
        return _joined(self.messages[: self.is_trained.index(True)])

    @property
    def answers(self) -> tuple[str, ...]:
        pairs = zip(self.messages, self.is_trained, strict=True)
        return tuple(message["content"] for message, is_trained in pairs if is_trained)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(message["content"] for message in self.messages)

    @property
    def identity(self) -> str:
        return _json([list(map(dict, self.messages)), self.is_trained])


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """Plain text and how it goes on, for bases without a chat template."""

    prompt: str
    completion: str
    line: int

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.completion,)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    @property
    def identity(self) -> str:
        return _json([self.prompt, self.completion])


@dataclass(frozen=True, slots=True)
class TextRow:
    """Text for continued pre-training: every token is learnt."""

    text: str
    line: int

    @property
    def prompt(self) -> str:
        return ""

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def identity(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ChatPair:
    """A conversation with a better and a worse answer."""

    messages: tuple[Message, ...]
    better: Message
    worse: Message
    line: int

    @property
    def prompt(self) -> str:
        return _joined(self.messages)

    @property
    def chosen(self) -> str:
        return self.better["content"]

    @property
    def rejected(self) -> str:
        return self.worse["content"]

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer to learn."""
        return (self.chosen,)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.prompt, self.chosen, self.rejected)

    @property
    def identity(self) -> str:
        return _json([*map(dict, self.messages), dict(self.better), dict(self.worse)])


@dataclass(frozen=True, slots=True)
class CompletionPair:
    """Plain text with a better and a worse continuation."""

    prompt: str
    chosen: str
    rejected: str
    line: int

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer to learn."""
        return (self.chosen,)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.prompt, self.chosen, self.rejected)

    @property
    def identity(self) -> str:
        return _json([self.prompt, self.chosen, self.rejected])


@dataclass(frozen=True, slots=True)
class ChatRating:
    """A conversation with an answer that was judged good or bad."""

    messages: tuple[Message, ...]
    answer: Message
    is_desirable: bool
    line: int

    @property
    def prompt(self) -> str:
        return _joined(self.messages)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer["content"],)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.prompt, self.answer["content"])

    @property
    def identity(self) -> str:
        return _json([*map(dict, self.messages), dict(self.answer), self.is_desirable])


@dataclass(frozen=True, slots=True)
class CompletionRating:
    """Plain text with a continuation that was judged good or bad."""

    prompt: str
    completion: str
    is_desirable: bool
    line: int

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.completion,)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    @property
    def identity(self) -> str:
        return _json([self.prompt, self.completion, self.is_desirable])


SupervisedRow: TypeAlias = ChatRow | CompletionRow | TextRow
PreferenceRow: TypeAlias = ChatPair | CompletionPair
RatingRow: TypeAlias = ChatRating | CompletionRating
Row: TypeAlias = SupervisedRow | PreferenceRow | RatingRow


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message["content"] for message in messages)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
