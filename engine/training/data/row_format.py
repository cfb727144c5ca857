"""The formats of training files: how each is recognised by its fields, and read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, TypeAlias

from .config import Method
from .problem import RowRejected
from .row import (
    ChatPair,
    ChatRating,
    ChatRow,
    CompletionPair,
    CompletionRating,
    CompletionRow,
    Message,
    Row,
    TextRow,
)
from .turn import Turn, read_answer, read_turns, require_question, require_text

Fields: TypeAlias = Mapping[str, Any]
# What rows may say about themselves; nothing of it is learnt.
IGNORED: Final = frozenset({"id", "metadata"})
_TOOL_FIELDS: Final = frozenset({"tools", "functions", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """A format: its fields, and how a row of it is read.

    ``is_chat`` rows need a base with a chat template. ``method`` is what the rows are for.
    """

    name: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    is_chat: bool
    method: Method = "supervised"
    read: Callable[[Fields, int], Row]


def recognise(fields: object) -> RowFormat:
    """The one format that a row has. Raises ``RowRejected`` for none, several, or foreign fields.

    >>> recognise({"prompt": "1+1=", "completion": "2"}).name
    'completion'
    """
    if not isinstance(fields, dict):
        raise RowRejected(
            "not_an_object", f"a JSON object was expected, not a {type(fields).__name__}"
        )
    families = _fitting(fields)
    if not families:
        raise RowRejected(
            "unknown_format",
            f"a row with {_listed(fields)} has no known format; expected are {_all_fields()}",
        )
    if len(families) > 1:
        raise RowRejected(
            "ambiguous_format",
            f"the row fits several formats: {_all_fields(families)}; keep the fields of one",
        )
    found = _form(families[0], fields)
    _check_fields(fields, found)
    return found


def _fitting(fields: Fields) -> list[tuple[RowFormat, ...]]:
    """Families whose fields are all there, without those that only miss a field of another."""
    found = [family for family in _FAMILIES if family[0].required <= fields.keys()]
    return [
        family
        for family in found
        if not any(family[0].required < other[0].required for other in found)
    ]


def _form(family: tuple[RowFormat, ...], fields: Fields) -> RowFormat:
    """Of the forms with the same fields, lists of messages tell the first."""
    has_messages = any(isinstance(fields[name], list) for name in family[0].required)
    return family[0] if has_messages else family[-1]


def _check_fields(fields: Fields, found: RowFormat) -> None:
    for name in _TOOL_FIELDS & fields.keys():
        if fields[name] and name != "parallel_tool_calls":
            raise RowRejected(
                "unsupported_tools",
                f"{name}: tools are not rendered, in training as in serving; leave them out",
            )
    known = found.required | found.optional | IGNORED
    foreign = [name for name in fields if name not in known | _TOOL_FIELDS]
    if foreign:
        raise RowRejected(
            "unknown_field",
            f"unknown field {foreign[0][:50]!r}; {found.name} rows have {_listed(sorted(known))}",
        )


def _read_chat(fields: Fields, line: int) -> ChatRow:
    return _chat_row(read_turns(fields["messages"], "messages"), "messages", line)


def _chat_row(turns: tuple[Turn, ...], where: str, line: int) -> ChatRow:
    messages = tuple(turn.message for turn in turns)
    if messages[-1]["role"] != "assistant":
        raise RowRejected("invalid_message", f"{where}: the last message must be the assistant's")
    for place, turn in enumerate(turns):
        if turn.is_trained:
            require_question(messages[:place], f"{where}[{place}]")
            require_text(turn.message, f"{where}[{place}]")
    if not any(turn.is_trained for turn in turns):
        raise RowRejected("nothing_to_learn", f"{where}: every answer has the weight 0")
    return ChatRow(messages, tuple(turn.is_trained for turn in turns), line)


def _read_preference(fields: Fields, line: int) -> ChatPair:
    asked = fields["input"]
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowRejected("invalid_message", "input: an object with messages was expected")
    _check_fields(asked, _INPUT)
    prompt = _read_prompt(asked["messages"], "input.messages")
    better = read_answer(fields["preferred_output"], "preferred_output")
    worse = read_answer(fields["non_preferred_output"], "non_preferred_output")
    return ChatPair(prompt, better, worse, line)


def _read_prompt(value: object, where: str) -> tuple[Message, ...]:
    messages = tuple(turn.message for turn in read_turns(value, where))
    if messages[-1]["role"] == "assistant":
        raise RowRejected("invalid_message", f"{where}: the last message is an answer already")
    return messages


def _read_chat_pair(fields: Fields, line: int) -> ChatPair:
    prompt = _read_prompt(fields["prompt"], "prompt")
    better = read_answer(fields["chosen"], "chosen")
    worse = read_answer(fields["rejected"], "rejected")
    return ChatPair(prompt, better, worse, line)


def _read_text_pair(fields: Fields, line: int) -> CompletionPair:
    prompt, chosen, rejected = (_text(fields, name) for name in ("prompt", "chosen", "rejected"))
    return CompletionPair(prompt, chosen, rejected, line)


def _read_chat_completion(fields: Fields, line: int) -> ChatRow:
    prompt = [Turn(turn.message, False) for turn in read_turns(fields["prompt"], "prompt")]
    completion = read_turns(fields["completion"], "completion")
    return _chat_row((*prompt, *completion), "prompt + completion", line)


def _read_chat_rating(fields: Fields, line: int) -> ChatRating:
    prompt = _read_prompt(fields["prompt"], "prompt")
    answer = read_answer(fields["completion"], "completion")
    return ChatRating(prompt, answer, _label(fields), line)


def _read_text_rating(fields: Fields, line: int) -> CompletionRating:
    prompt, completion = _text(fields, "prompt"), _text(fields, "completion")
    return CompletionRating(prompt, completion, _label(fields), line)


def _label(fields: Fields) -> bool:
    label = fields["label"]
    if not isinstance(label, bool):
        raise RowRejected(
            "invalid_field", "label: true (a good completion) or false (a bad one) was expected"
        )
    return label


def _read_text_completion(fields: Fields, line: int) -> CompletionRow:
    return CompletionRow(_text(fields, "prompt"), _text(fields, "completion"), line)


def _read_question(fields: Fields, line: int) -> ChatRow:
    return _dialogue(_text(fields, "question"), _text(fields, "answer"), None, line)


def _read_alpaca(fields: Fields, line: int) -> ChatRow:
    asked, given = _text(fields, "instruction"), fields.get("input") or ""
    if not isinstance(given, str):
        raise RowRejected("invalid_field", "input: a text was expected")
    system = _text(fields, "system") if fields.get("system") else None
    question = f"{asked}\n\n{given}" if given else asked
    return _dialogue(question, _text(fields, "output"), system, line)


def _dialogue(question: str, answer: str, system: str | None, line: int) -> ChatRow:
    messages = [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return ChatRow(tuple(messages), (*[False] * (len(messages) - 1), True), line)


def _read_text(fields: Fields, line: int) -> TextRow:
    return TextRow(_text(fields, "text"), line)


def _text(fields: Fields, name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        what = "nothing" if value is None else f"a {type(value).__name__}"
        raise RowRejected("invalid_field", f"{name}: a text was expected, not {what}")
    if not value.strip():
        raise RowRejected("empty_field", f"{name}: the text is empty")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name[:30] for name in islice(names, 8))


def _all_fields(families: Sequence[tuple[RowFormat, ...]] | None = None) -> str:
    each = [sorted(family[0].required) for family in families or _FAMILIES]
    return ", or ".join(" + ".join(fields) for fields in each)


def _format(
    name: str,
    required: str,
    read: Callable[[Fields, int], Row],
    *,
    optional: str = "",
    is_chat: bool = True,
    method: Method = "supervised",
) -> RowFormat:
    return RowFormat(
        name=name,
        required=frozenset(required.split()),
        optional=frozenset(optional.split()),
        is_chat=is_chat,
        method=method,
        read=read,
    )


_PAIR: Final = "prompt chosen rejected"
_PREFERENCE: Final = "input preferred_output non_preferred_output"
_RATING: Final = "prompt completion label"
_INPUT: Final = _format("input", "messages", _read_chat)
# Formats of one family have the same fields.
_FAMILIES: Final = (
    (_format("messages", "messages", _read_chat),),
    (_format("preference", _PREFERENCE, _read_preference, method="dpo"),),
    (
        _format("pair of messages", _PAIR, _read_chat_pair, method="dpo"),
        _format("pair of texts", _PAIR, _read_text_pair, is_chat=False, method="dpo"),
    ),
    (
        _format("completion of messages", "prompt completion", _read_chat_completion),
        _format("completion", "prompt completion", _read_text_completion, is_chat=False),
    ),
    (
        _format("rating of messages", _RATING, _read_chat_rating, method="kto"),
        _format("rating", _RATING, _read_text_rating, is_chat=False, method="kto"),
    ),
    (_format("question", "question answer", _read_question),),
    (_format("instruction", "instruction output", _read_alpaca, optional="input system"),),
    (_format("text", "text", _read_text, is_chat=False),),
)
FORMATS: Final = tuple(chain.from_iterable(_FAMILIES))
