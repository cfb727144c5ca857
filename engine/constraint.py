"""A grammar that an answer must follow, and how far the answer has come in it."""

from typing import Final

from llguidance import LLMatcher


class Constraint:
    """The state of one answer. Says which tokens may follow; an answer can end at EOS alone."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def bits(self) -> bytes:
        """One bit per token of the vocabulary, lowest first, in words of 32: which may follow.

        None may if the grammar has become too complex; see ``problem``.
        """
        return self._matcher.compute_bitmask()

    def advance(self, token: int) -> None:
        """Take in a token that was drawn. Raises ``GrammarFailed``."""
        if not self._matcher.consume_token(token):
            raise GrammarFailed(self.problem or "the answer left the grammar")

    @property
    def problem(self) -> str:
        """What is wrong with the grammar, if anything."""
        return self._matcher.get_error()[:MAX_PROBLEM_CHARS]


class GrammarFailed(ArithmeticError):
    """A grammar that cannot be followed any further."""

    code = "invalid_grammar"


MAX_PROBLEM_CHARS: Final = 500
