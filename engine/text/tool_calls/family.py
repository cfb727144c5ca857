"""Which family's way of calling tools a chat template follows."""

from collections.abc import Mapping

from .call import CallSyntax
from .hermes import HermesSyntax
from .llama import LlamaSyntax
from .mistral import MistralSyntax


def call_syntax(templates: Mapping[str, str]) -> CallSyntax | None:
    """The syntax of a tokenizer's templates; None if they know no tools."""
    text = templates.get("tool_use") or templates.get("default") or ""
    if "tools" not in text:
        return None
    if "[TOOL_CALLS]" in text:
        return MistralSyntax(has_arguments_token="[ARGS]" in text)
    if "<tool_call>" in text:
        return HermesSyntax()
    if "<|python_tag|>" in text or '"parameters"' in text:
        return LlamaSyntax()
    return None
