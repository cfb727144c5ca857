"""A turn of a conversation: what clients and files write, and what chat templates get of it."""

import json
from collections.abc import Mapping
from typing import Any, Final

_TEXT_KINDS: Final = ("text", "input_text", "output_text", "refusal")
_OPTIONAL: Final = ("name", "tool_calls", "tool_call_id", "reasoning_content")


def read_content(value: object) -> object:
    """Join a list of text parts, with a newline between them as vLLM does.

    Anything but a list is returned as it is. Raises ``ValueError`` for parts that are no text.
    """
    if not isinstance(value, list):
        return value
    return "\n".join(_part_text(place, part) for place, part in enumerate(value))


def template_message(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The message as chat templates know it.

    No content is empty content, developer is system, and the arguments of calls are data instead of
    JSON text. Raises ``ValueError`` for arguments that are no JSON object.
    """
    message: dict[str, Any] = {
        "role": "system" if fields["role"] == "developer" else fields["role"],
        "content": fields.get("content") or "",
    }
    for name in _OPTIONAL:
        if (value := fields.get(name)) is not None:
            message[name] = [_call(c) for c in value] if name == "tool_calls" else value
    return message


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return dict(call)
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("the arguments of a tool call are a JSON object, written as a string")
    return {**call, "function": {**function, "arguments": parsed}}


def _part_text(place: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _TEXT_KINDS:
        shown = repr(kind)[:50] if isinstance(part, dict) else f"a {type(part).__name__}"
        raise ValueError(f"part {place} is {shown}; only text parts are supported")
    assert isinstance(part, dict)
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise ValueError(f"part {place} has no text")
    return text
