"""Prompts to sample answers to: the questions of a training file, with their answers if any."""

from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from ...errors import RequestRejected
from ..data.problem import Problem
from ..data.row import ChatRow, CompletionRow
from ..data.row_reader import RowReader
from ..feedback.completion import Prompt

MAX_PROMPTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class SampledPrompt:
    """A question, and the answer that is expected to it."""

    prompt: Prompt
    expected: str | None = None

    def row(self, answer: str) -> dict[str, Any]:
        """A row of a training file that teaches ``answer``."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "completion": answer}
        return {"messages": [*self.prompt, {"role": "assistant", "content": answer}]}


def read_prompts(file: BinaryIO) -> list[SampledPrompt]:
    """Of a supervised training file: what comes before the first answer to learn, and that answer.

    Raises ``RequestRejected`` with the line of the first bad row.
    """
    found: list[SampledPrompt] = []
    for row in RowReader(file):
        if isinstance(row, Problem):
            raise RequestRejected(f"line {row.line}: {row.message}", param="prompts_file")
        if len(found) == MAX_PROMPTS:
            raise RequestRejected(
                f"the file has more than {MAX_PROMPTS} rows; split it", param="prompts_file"
            )
        match row:
            case ChatRow(messages, is_trained):
                asked = [dict(message) for message in messages[: is_trained.index(True)]]
                found.append(SampledPrompt(asked, row.answers[0]))
            case CompletionRow(prompt, completion):
                found.append(SampledPrompt(prompt, completion))
            case _:
                raise RequestRejected(
                    f"line {row.line} has no question with an answer; give conversations, or "
                    "prompts with completions",
                    param="prompts_file",
                )
    if not found:
        raise RequestRejected("the file has no rows", param="prompts_file")
    return found
