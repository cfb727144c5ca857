"""Texts as the gate asks and reads them, by the tokenizer and template of serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...text.chat_template import ChatTemplate
from ...text.tokenizer import Tokenizer


class GateText(Protocol):
    """``TextSide`` is one."""

    def prompt(self, question: str) -> list[int]: ...

    def text(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class TextSide:
    """Of one base."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def prompt(self, question: str) -> list[int]:
        """A question as a chat request sends it, or as plain text where there is no template.

        Raises ``RequestRejected`` if the template refuses it.
        """
        if not self.template.is_available:
            return self.tokenizer.encode(question)
        messages = self.tokenizer.quote([{"role": "user", "content": question}])
        return self.tokenizer.encode_chat(
            self.template.render(messages, add_generation_prompt=True)
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Without special tokens and the space around it."""
        return self.tokenizer.decode(tokens).strip()
