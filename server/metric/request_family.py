"""What is counted of requests, on the page that is read often: bounded, however many adapters."""

from collections.abc import Callable
from typing import Final

from multiflora.adapters.histogram import Histogram

from .board import Board
from .exposition import Exposition, labels
from .tally import Tally

_HISTOGRAMS: Final[dict[str, tuple[Callable[[Tally], Histogram], str]]] = {
    "time_to_first_token": (lambda tally: tally.first_token, "Time to the first token."),
    "inter_token": (lambda tally: tally.inter_token, "Time between two tokens of an answer."),
    "queue": (lambda tally: tally.queue, "Time until the scheduler took the request."),
    "request": (lambda tally: tally.whole, "Time from the request to its last token."),
}


def write_requests(page: Exposition, board: Board) -> None:
    """By adapter: those with most requests, the base, and ``other``."""
    shown = {labels(adapter=name): tally for name, tally in board.shown().items()}
    outcomes = [
        (f"{own},{labels(outcome=outcome)}", count)
        for own, tally in shown.items()
        for outcome, count in list(tally.outcomes.items())
    ]
    text = "Inference requests by adapter and outcome."
    page.counter("multiflora_requests", text, outcomes)
    tokens = [
        (f"{own},{labels(kind=kind)}", count)
        for own, tally in shown.items()
        for kind, count in token_kinds(tally)
    ]
    text = "Tokens of requests: of prompts, of those the cached ones, and of answers."
    page.counter("multiflora_request_tokens", text, tokens)
    for name, (histogram, text) in _HISTOGRAMS.items():
        samples = [(own, histogram(tally).snapshot()) for own, tally in shown.items()]
        page.histogram(f"multiflora_{name}_seconds", text, samples)


def token_kinds(tally: Tally) -> list[tuple[str, int]]:
    return [
        ("prompt", tally.prompt_tokens),
        ("cached", tally.cached_tokens),
        ("generated", tally.generated_tokens),
    ]
