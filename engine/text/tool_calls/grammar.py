"""Rules of a Lark grammar for calls of some functions."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..grammar import check_schema, compact, quoted
from .call import Function

_NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


def choice_of_objects(functions: Sequence[Function], *, word: str) -> str:
    """The rule ``object``: a call of one of the functions, with its arguments under ``word``.

    Names and words are spaced as the models saw them in training; arguments are compact.
    """
    rules = named_rules(
        functions,
        lambda name, rule: f"{quoted(_beginning(name, word))} {rule} {quoted('}')}",
    )
    return f"object: {rules}"


def named_rules(functions: Sequence[Function], write: Callable[[str, str], str]) -> str:
    """Alternatives made by ``write(name, rule of the arguments)``, then the rules themselves."""
    alternatives = [write(f.name, f"arguments_{place}") for place, f in enumerate(functions)]
    rules = [f"arguments_{place}: {_json(f.parameters)}" for place, f in enumerate(functions)]
    return "\n".join([" | ".join(alternatives), *rules])


def _beginning(name: str, word: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{word}": '


def _json(parameters: Mapping[str, Any]) -> str:
    schema = parameters or _NO_PARAMETERS
    check_schema(schema)
    # Arguments are an object even where a schema leaves that open.
    return f"%json {json.dumps(compact({'type': 'object', **schema}))}"
