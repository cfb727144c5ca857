"""Scores of tokens in the two forms of OpenAI's API."""

from collections.abc import Mapping, Sequence
from typing import Any

from multiflora.engine.request import TokenScore
from multiflora.engine.text.token_bytes import TokenBytes, num_characters, token_text


def chat_logprobs(
    names: TokenBytes, tokens: Sequence[int], scores: Sequence[TokenScore]
) -> dict[str, Any]:
    """One entry per token, with the likeliest beside it."""
    content = [
        {
            **_entry(names[token], score.logprob),
            "top_logprobs": [
                _entry(names[other], logprob)
                for other, logprob in zip(score.top, score.top_logprobs, strict=True)
            ],
        }
        for token, score in zip(tokens, scores, strict=True)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    names: TokenBytes,
    tokens: Sequence[int],
    scores: Sequence[TokenScore | None],
    *,
    offset: int,
    silent: frozenset[int],
) -> dict[str, Any]:
    """Parallel lists; ``offset`` is where the first token begins in the text of the answer.

    ``silent`` tokens take no room in the text.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += 0 if token in silent else num_characters(names[token])
    return {
        "tokens": [token_text(names[token]) for token in tokens],
        "token_logprobs": [score and score.logprob for score in scores],
        "top_logprobs": [
            score and _by_text(names, token, score)
            for token, score in zip(tokens, scores, strict=True)
        ],
        "text_offset": offsets,
    }


def _entry(content: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(content), "logprob": logprob, "bytes": list(content)}


def _by_text(names: TokenBytes, token: int, score: TokenScore) -> Mapping[str, float]:
    """The likeliest tokens and the token itself; of two with the same text, the likelier."""
    found: dict[str, float] = {}
    pairs = zip((*score.top, token), (*score.top_logprobs, score.logprob), strict=True)
    for other, logprob in pairs:
        text = token_text(names[other])
        found[text] = max(logprob, found.get(text, logprob))
    return found
