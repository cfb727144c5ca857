"""Renders chat templates as transformers does, in a sandbox, with bounded output."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidCheckpoint, RequestRejected
from .tokenizer_folder import TokenizerFolder

DEFAULT_MAX_CHARS: Final = 16 * 1024 * 1024
# Same idea as in transformers: the template's own text after the last message is cut off there.
_CONTINUE_MARK: Final = "CONTINUE_FINAL_MESSAGE_MARK "
# What a template can cause with the data of a request; anything else is our mistake.
_TEMPLATE_FAULTS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
_RESERVED: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)


class ChatTemplate:
    """The templates of one tokenizer: ``default``, and ``tool_use`` where there is one."""

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        max_chars: int = DEFAULT_MAX_CHARS,
    ) -> None:
        environment = _environment()
        self.sources = dict(templates)
        self._templates = {name: _compile(environment, text) for name, text in templates.items()}
        self.special_tokens = dict(special_tokens or {})
        self.max_chars = max_chars

    @property
    def is_available(self) -> bool:
        """Whether conversations can be rendered at all."""
        return "default" in self._templates

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Render plain JSON data. Raises ``RequestRejected`` for anything the template refuses."""
        if continue_final_message:
            messages = _marked(messages)
        variables = {
            **self.special_tokens,
            **_checked_extra(extra or {}),
            "messages": messages,
            "tools": tools or None,
            "documents": documents or None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(self._choose(has_tools=bool(tools)), variables)
        return _cut_at_mark(text) if continue_final_message else text

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        raise RequestRejected(
            "this base has no chat template; use /v1/completions", param="messages"
        )

    def _render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(variables):
                size += len(piece)
                if size > self.max_chars:
                    raise RequestRejected(
                        f"the rendered chat is longer than {self.max_chars} characters",
                        param="messages",
                    )
                pieces.append(piece)
        except _TEMPLATE_FAULTS as error:
            raise RequestRejected(
                f"the chat template refused these messages: {str(error)[:300]}", param="messages"
            ) from None
        return "".join(pieces)


def chat_template_of(
    folder: TokenizerFolder, *, max_chars: int = DEFAULT_MAX_CHARS
) -> ChatTemplate:
    """The templates of a tokenizer folder. Raises ``InvalidCheckpoint`` for malformed ones."""
    special = {name: token.content for name, token in folder.special_tokens.items()}
    return ChatTemplate(folder.chat_templates, special_tokens=special, max_chars=max_chars)


def _compile(environment: jinja2.Environment, text: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise InvalidCheckpoint(f"the chat template is malformed: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, loopcontrols],
        optimized=False,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _CodeGenerator(CodeGenerator):
    """Computes nothing while it compiles, not even ``'x' * 5000000000``."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator


class _GenerationTag(Extension):
    """Accepts ``{% generation %}``, which marks assistant text for training, and renders it."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes, with the options that templates pass."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _checked_extra(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in extra:
        if name in _RESERVED:
            raise RequestRejected(
                f"{name} is set by the server", param=f"chat_template_kwargs.{name}"
            )
    return extra


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = messages[-1] if messages else {}
    content = last.get("content")
    if not isinstance(content, str):
        raise RequestRejected(
            "continue_final_message needs a last message with text to continue", param="messages"
        )
    return [*messages[:-1], {**last, "content": content + _CONTINUE_MARK}]


def _cut_at_mark(text: str) -> str:
    mark = _CONTINUE_MARK.strip()
    place = text.rfind(mark)
    if place < 0:
        raise RequestRejected(
            "the chat template drops the last message, so it cannot be continued", param="messages"
        )
    keeps_spaces = text.startswith(_CONTINUE_MARK, place)
    return text[:place] if keeps_spaces else text[:place].rstrip()
