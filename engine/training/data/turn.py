"""Reads the messages of a row, by the rules that the chat route has for those of a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...text.message import read_content, template_message
from .problem import RowRejected
from .row import Message

MAX_MESSAGES: Final = 1000
_ROLES: Final = ("developer", "system", "user", "assistant")
_FIELDS: Final = ("role", "content", "name", "weight", "reasoning_content")
_TOOL_FIELDS: Final = ("tool_calls", "function_call", "tool_call_id")
# Clients store answers as they got them; these say nothing that could be learnt.
_EMPTY_FIELDS: Final = ("refusal", "annotations", "audio")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, and whether it is an answer to learn."""

    message: Message
    is_trained: bool


def read_turns(value: object, where: str) -> tuple[Turn, ...]:
    """Read a list of messages. Raises ``RowRejected`` naming the message and the field."""
    if not isinstance(value, list) or not value:
        raise _wrong(where, f"a list of messages was expected, not {_shown(value)}")
    if len(value) > MAX_MESSAGES:
        raise _wrong(where, f"{len(value)} messages; at most {MAX_MESSAGES} are accepted")
    return tuple(_read_turn(each, f"{where}[{place}]") for place, each in enumerate(value))


def read_answer(value: object, where: str) -> Message:
    """Read a list with one answer, or the answer itself. Raises ``RowRejected``."""
    turns = read_turns([value] if isinstance(value, dict) else value, where)
    if len(turns) != 1 or turns[0].message["role"] != "assistant":
        raise _wrong(where, "one message of the role assistant was expected")
    return require_text(turns[0].message, where)


def require_text(message: Message, where: str) -> Message:
    """Refuse an answer without text: it would teach the model to say nothing."""
    if not message["content"].strip():
        raise RowRejected("empty_answer", f"{where}: the answer to learn is empty")
    return message


def require_question(messages: Sequence[Message], where: str) -> None:
    """Refuse an answer to nothing: serving never asks for one."""
    if not messages:
        raise _wrong(where, "an answer to learn needs a message before it")


def _read_turn(value: object, where: str) -> Turn:
    if not isinstance(value, dict):
        raise _wrong(where, f"a message was expected, not {_shown(value)}")
    _check_fields(value, where)
    role = value.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"{_shown(role)} is none of {', '.join(_ROLES)}")
    content = _content(value.get("content"), where)
    for name in ("name", "reasoning_content"):
        if not isinstance(value.get(name), str | None):
            raise _wrong(f"{where}.{name}", f"a text was expected, not {_shown(value[name])}")
    is_trained = _is_trained(value, where)
    return Turn(template_message({**value, "role": role, "content": content}), is_trained)


def _check_fields(value: dict[str, Any], where: str) -> None:
    for name, given in value.items():
        if name in _FIELDS or (name in (*_TOOL_FIELDS, *_EMPTY_FIELDS) and not given):
            continue
        if name in _TOOL_FIELDS:
            raise RowRejected(
                "unsupported_tools", f"{where}.{name}: tool calls cannot be trained; leave them out"
            )
        raise _wrong(where, f"unknown field {name[:50]!r}; a message has {', '.join(_FIELDS)}")


def _content(value: object, where: str) -> str:
    try:
        content = read_content(value)
    except ValueError as error:
        raise _wrong(f"{where}.content", str(error)) from None
    if not isinstance(content, str):
        raise _wrong(f"{where}.content", f"a text was expected, not {_shown(value)}")
    return content


def _is_trained(value: dict[str, Any], where: str) -> bool:
    is_answer = value["role"] == "assistant"
    weight = value.get("weight")
    if weight is None:
        return is_answer
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _wrong(f"{where}.weight", f"{_shown(weight)} is neither 0 nor 1")
    if weight and not is_answer:
        raise _wrong(f"{where}.weight", "only messages of the role assistant are learnt")
    return bool(weight)


def _wrong(where: str, what: str) -> RowRejected:
    return RowRejected("invalid_message", f"{where}: {what}")


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return f"{'an empty' if not value else 'a'} {type(value).__name__}"
    return repr(value)[:50]
