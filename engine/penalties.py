"""What penalties and bans change in a batch of logits: listed on the host, applied at once.

Indices are integers throughout: a boolean mask on a GPU makes the host wait for its length.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .active_request import ActiveRequest
from .token_mask import TokenMask, is_masked


def changes_logits(request: ActiveRequest) -> bool:
    """Whether anything of ``request`` changes its logits before temperature and filters."""
    sampling = request.request.sampling
    return (
        sampling.repetition_penalty != 1
        or _counts_answer(request)
        or _bans_stops(request)
        or bool(sampling.logit_bias or sampling.bad_words)
        or is_masked(request)
    )


def _counts_answer(request: ActiveRequest) -> bool:
    sampling = request.request.sampling
    has_penalty = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    return has_penalty and request.num_generated > 0


def _bans_stops(request: ActiveRequest) -> bool:
    sampling = request.request.sampling
    return bool(sampling.stop_token_ids) and request.num_generated < sampling.min_tokens


def _completed_bad_words(request: ActiveRequest) -> set[int]:
    """Tokens that would end a bad word whose other tokens the answer ends with."""
    answer = request.tokens[request.num_prompt :]
    words = request.request.sampling.bad_words
    return {w[-1] for w in words if len(w) == 1 or tuple(answer[1 - len(w) :]) == w[:-1]}


class EditList:
    """(row, token) pairs to change, as runs of float64, which holds every index exactly."""

    def __init__(self, requests: Sequence[ActiveRequest]) -> None:
        samplings = [request.request.sampling for request in requests]
        self._seen = _Pairs()
        self._counted = _Pairs()
        self._banned = _Pairs()
        self._biased = _Pairs()
        self._amounts = array("d")
        self._times = array("d")
        self._penalties = (
            array("d", [sampling.repetition_penalty for sampling in samplings]),
            array("d", [sampling.frequency_penalty for sampling in samplings]),
            array("d", [sampling.presence_penalty for sampling in samplings]),
        )
        for row, request in enumerate(requests):
            self._add(row, request)

    def _add(self, row: int, request: ActiveRequest) -> None:
        sampling = request.request.sampling
        if sampling.repetition_penalty != 1:
            self._seen.add(row, set(request.tokens))
        if _counts_answer(request):
            counts = Counter(request.tokens[request.num_prompt :])
            self._counted.add(row, counts.keys())
            self._times.extend(counts.values())
        banned = set(sampling.stop_token_ids) if _bans_stops(request) else set()
        if sampling.bad_words:
            banned |= _completed_bad_words(request)
        self._banned.add(row, banned)
        self._biased.add(row, [token for token, _ in sampling.logit_bias])
        self._amounts.extend([amount for _, amount in sampling.logit_bias])

    @property
    def runs(self) -> "list[array[float]]":
        """In the order of the fields of ``Edits``."""
        seen, counted, banned, biased = self._seen, self._counted, self._banned, self._biased
        lists = (seen.rows, seen.ids, counted.rows, counted.ids, self._times)
        bans = (banned.rows, banned.ids)
        return [*self._penalties, *lists, *bans, biased.rows, biased.ids, self._amounts]


class _Pairs:
    """Rows and tokens, side by side."""

    def __init__(self) -> None:
        self.rows = array("d")
        self.ids = array("d")

    def add(self, row: int, tokens: Collection[int]) -> None:
        self.rows.extend(array("d", [row]) * len(tokens))
        self.ids.extend(tokens)


@dataclass(frozen=True, slots=True)
class Edits:
    """The runs of an ``EditList`` on the device, all float64; the first three are [B].

    ``mask`` rules tokens out in the rows that it names.
    """

    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    seen_rows: Tensor
    seen_ids: Tensor
    counted_rows: Tensor
    counted_ids: Tensor
    times: Tensor
    banned_rows: Tensor
    banned_ids: Tensor
    biased_rows: Tensor
    biased_ids: Tensor
    amounts: Tensor
    mask: TokenMask | None = None

    @property
    def can_empty(self) -> bool:
        """Whether a row may be left without any token."""
        return self.mask is not None or bool(len(self.banned_rows))

    def bias(self, logits: Tensor) -> None:
        """Add what was asked for to float32 ``logits`` [B, V], in place."""
        if len(self.biased_rows):
            place = (self.biased_rows.long(), self.biased_ids.long())
            logits.index_put_(place, logits[place] + self.amounts.float())

    def penalize(self, logits: Tensor) -> None:
        """Change float32 ``logits`` [B, V] in place.

        Repetition as in CTRL (arXiv:1909.05858), over prompt and answer; then frequency and
        presence as in OpenAI's API, over the answer.
        """
        if len(self.seen_rows):
            place = (self.seen_rows.long(), self.seen_ids.long())
            values = logits[place]
            penalty = self.repetition.float()[place[0]]
            changed = torch.where(values > 0, values / penalty, values * penalty)
            # An infinite best logit would turn the row into NaN.
            largest = torch.finfo(logits.dtype).max
            logits.index_put_(place, changed.clamp_(min=-largest, max=largest))
        if len(self.counted_rows):
            place = (self.counted_rows.long(), self.counted_ids.long())
            frequency = self.frequency.float()[place[0]]
            penalty = frequency * self.times.float() + self.presence.float()[place[0]]
            logits.index_put_(place, logits[place] - penalty)

    def ban(self, logits: Tensor) -> None:
        """Put tokens that may not be drawn yet out of reach, in place."""
        if len(self.banned_rows):
            place = (self.banned_rows.long(), self.banned_ids.long())
            logits.index_put_(place, logits.new_full((), -torch.inf))
        if self.mask:
            self.mask.apply(logits)
