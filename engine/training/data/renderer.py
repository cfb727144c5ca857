"""From messages and texts to the tokens that serving would send, and those it should get back.

Nothing is searched in rendered text. A conversation is rendered once as the prompt for its answer
and once with the answer, by the serving template; the second must begin with the first, and the
rest is the answer. The prompt's tokens are those of the chat route. The answer's are those of the
whole text, unless a token of that would cross the border: what was sent is settled before anything
is generated, so the answer is then encoded as text that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RequestRejected
from ...text.chat_template import ChatTemplate
from ...text.fingerprint import text_fingerprint
from ...text.tokenizer import Tokenizer
from .problem import RowRejected
from .row import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids: what serving sends, and what is to come back, with the token that ends it."""

    prompt: list[int]
    tokens: list[int]


class Renderer:
    """The text side of a base; ``end_tokens`` are the ids at which serving stops.

    Where a template, or a text, writes none of them after an answer, ``end_token`` is appended: an
    answer without an end teaches never to stop. Raises ``ValueError`` if there is no such id.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, end_tokens: frozenset[int]
    ) -> None:
        if not end_tokens:
            raise ValueError("the base names no eos_token_id, so answers could never end")
        named = tokenizer.token_id(tokenizer.eos_token) if tokenizer.eos_token else None
        self.end_tokens = end_tokens
        self.end_token = named if named in end_tokens else min(end_tokens)
        self.tokenizer = tokenizer
        self._template = template

    @property
    def has_template(self) -> bool:
        return self._template.is_available

    def fingerprint(self) -> str:
        """What an adapter remembers of the text side that it was trained for."""
        return text_fingerprint(self.tokenizer, self.end_tokens)

    def chat(self, messages: Sequence[Message]) -> Answer:
        """The last message as the answer to those before it. Raises ``RowRejected``."""
        try:
            return self._chat(self.tokenizer.quote([dict(message) for message in messages]))
        except RequestRejected as error:
            raise RowRejected("template_refused", str(error)) from None

    def completion(self, prompt: str, completion: str) -> Answer:
        """Plain text as ``/v1/completions`` encodes it, special tokens in it included."""
        sent = self.tokenizer.encode(prompt)
        tokens = _after(sent, self.tokenizer.encode(prompt + completion))
        if tokens is None:
            tokens = self.tokenizer.continuation(completion)
        return Answer(sent, self._ended(tokens))

    def text(self, text: str) -> list[int]:
        """Plain text for continued pre-training, with its end."""
        return self._ended(self.tokenizer.encode(text))

    def _chat(self, quoted: list[dict[str, Any]]) -> Answer:
        asked = self._template.render(quoted[:-1], add_generation_prompt=True)
        whole = self._template.render(quoted, add_generation_prompt=False)
        _check_prefix(asked, whole)
        _check_complete(quoted[-1], whole[len(asked) :])
        sent = self.tokenizer.encode_chat(asked)
        tokens = self._answer(sent, asked, whole)
        end = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        if end is not None:
            return Answer(sent, tokens[: end + 1])
        bare = self._template.render(
            quoted, add_generation_prompt=False, continue_final_message=True
        )
        _check_prefix(asked, bare)
        return Answer(sent, self._ended(self._answer(sent, asked, bare)))

    def _answer(self, sent: list[int], asked: str, whole: str) -> list[int]:
        tokens = _after(sent, self.tokenizer.encode_chat(whole))
        if tokens is None:
            return self.tokenizer.encode_chat(whole[len(asked) :], continues=True)
        return tokens

    def _ended(self, tokens: list[int]) -> list[int]:
        is_ended = bool(tokens) and tokens[-1] in self.end_tokens
        return tokens if is_ended else [*tokens, self.end_token]


def _after(sent: list[int], whole: list[int]) -> list[int] | None:
    """The tokens that follow ``sent`` in ``whole``; None if a token crosses the border."""
    return whole[len(sent) :] if whole[: len(sent)] == sent else None


def _check_prefix(asked: str, whole: str) -> None:
    if whole.startswith(asked):
        return
    same = next((i for i in range(len(whole)) if asked[i] != whole[i]), len(whole))
    raise RowRejected(
        "template_rewrites_prompt",
        f"the chat template asks for the answer with ...{asked[max(0, same - 20) : same + 40]!r}, "
        f"but writes ...{whole[max(0, same - 20) : same + 40]!r} with it, so what is learnt would "
        "never be asked for; use rows of prompt and completion texts",
    )


def _check_complete(message: Message, rendered: str) -> None:
    """Templates may trim an answer and move its line breaks, but must not drop any of it."""
    shown = _packed(rendered)
    for name in ("content", "reasoning_content"):
        if _packed(message.get(name, "")) not in shown:
            raise RowRejected(
                "template_drops_answer",
                f"the chat template leaves out a part of the answer's {name}, which would never be "
                "learnt; use rows of prompt and completion texts, or write the answer without it",
            )


def _packed(text: str) -> str:
    return "".join(text.split())
