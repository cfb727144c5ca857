"""How the rows of a step are drawn: grouped and packed on the host, copied to the device once."""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

import torch
from torch import Tensor

from .active_request import ActiveRequest
from .penalties import EditList, Edits, changes_logits
from .token_mask import mask_of

# A row's top-k decides how many candidates are looked at, never its neighbours'.
NARROW_TOP_K = 64
WIDE_TOP_K = 1024
_NUM_FILTERS = 5
# As good as greedy, and no float32 over it overflows float64.
_LOWEST_TEMPERATURE = 1e-260


class Group(IntEnum):
    """Rows that are drawn in the same way; ``DrawPlan`` orders rows by it."""

    PLAIN = 0  # greedy, on logits as they are
    GREEDY = 1  # greedy, on changed logits
    WHOLE = 2  # no filter: every token may be drawn
    NARROW = 3  # top-k up to 64
    WIDE = 4  # top-k up to 1024
    NUCLEUS = 5  # top-p or min-p over the whole vocabulary
    EXACT = 6  # any filters, after a full sort


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of a plan form one group."""

    group: Group
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """What the device must know of some rows, in their order, on the logits' device.

    ``filters`` is float64 [5, B, 1]: temperature, top-k (V where it is off), top-p, min-p and the
    uniform number. ``edits`` is None where no row has any.
    """

    rows: Tensor  # int64 [B], rows of the step's logits
    spans: list[Span]
    filters: Tensor
    edits: Edits | None


def group_of(request: ActiveRequest) -> Group:
    """The cheapest group that can draw ``request``."""
    sampling = request.request.sampling
    if sampling.is_greedy:
        return Group.GREEDY if changes_logits(request) else Group.PLAIN
    if sampling.top_k:
        if sampling.top_k <= NARROW_TOP_K:
            return Group.NARROW
        return Group.WIDE if sampling.top_k <= WIDE_TOP_K else Group.EXACT
    has_filter = sampling.top_p < 1 or sampling.min_p > 0
    return Group.NUCLEUS if has_filter else Group.WHOLE


def plan_draws(
    rows: Sequence[int], groups: Sequence[Group], requests: Sequence[ActiveRequest], like: Tensor
) -> DrawPlan:
    """Plan ``rows`` of logits ``like`` [., V], sorted by group; one copy to its device."""
    runs = [array("d", rows), _filters(requests, vocab_size=like.shape[1])]
    if any(changes_logits(request) for request in requests):
        runs += EditList(requests).runs
    mask = mask_of(requests, like)
    indices, filters, *edits = _copy(runs, like.device)
    return DrawPlan(
        rows=indices.long(),
        spans=_spans(groups),
        filters=filters.view(_NUM_FILTERS, len(rows), 1),
        edits=Edits(*edits, mask=mask) if edits else None,
    )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, determined by its arguments alone."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _filters(requests: Sequence[ActiveRequest], *, vocab_size: int) -> "array[float]":
    samplings = [request.request.sampling for request in requests]
    values = array("d", [max(s.temperature, _LOWEST_TEMPERATURE) for s in samplings])
    values.extend([sampling.top_k or vocab_size for sampling in samplings])
    values.extend([sampling.top_p for sampling in samplings])
    values.extend([sampling.min_p for sampling in samplings])
    values.extend([uniform(r.request.sampling.seed, len(r.tokens)) for r in requests])
    return values


def _spans(groups: Sequence[Group]) -> list[Span]:
    spans = []
    start = 0
    for group, members in groupby(groups):
        stop = start + len(list(members))
        spans.append(Span(group, start, stop))
        start = stop
    return spans


def _copy(runs: "Sequence[array[float]]", device: torch.device) -> Sequence[Tensor]:
    """The float64 runs on ``device``, which share the memory of one copy."""
    packed = array("d")
    for run in runs:
        packed.extend(run)
    host = torch.frombuffer(packed, dtype=torch.float64)
    if device.type == "cuda":
        # Only a copy from pinned memory leaves the host free to go on.
        host = host.pin_memory()
    return host.to(device, non_blocking=True).split([len(run) for run in runs])
