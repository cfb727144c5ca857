"""Which tokens some rows may draw at all, as bits: one for each token of the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from .active_request import ActiveRequest

_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class TokenMask:
    """``words`` int32 [b, ceil(V / 32)], lowest bit first, for the rows int64 [b]."""

    rows: Tensor
    words: Tensor

    def apply(self, logits: Tensor) -> None:
        """Put what is not allowed out of reach in float32 ``logits`` [B, V], in place."""
        shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
        bits = (self.words.unsqueeze(2) >> shifts) & 1  # [b, W, 32]
        is_ruled_out = bits.flatten(1)[:, : logits.shape[1]] == 0
        masked = logits.index_select(0, self.rows).masked_fill_(is_ruled_out, -torch.inf)
        logits.index_copy_(0, self.rows, masked)


def is_masked(request: ActiveRequest) -> bool:
    """Whether ``request`` may draw from a part of the vocabulary only."""
    return request.constraint is not None or bool(request.request.sampling.allowed_token_ids)


def mask_of(requests: Sequence[ActiveRequest], like: Tensor) -> TokenMask | None:
    """The mask of the ``requests`` that have one, for logits ``like`` [., V]."""
    rows = [row for row, request in enumerate(requests) if is_masked(request)]
    if not rows:
        return None
    words = numpy.stack([_words(requests[row], like.shape[1]) for row in rows])
    return TokenMask(_to(torch.tensor(rows), like), _to(torch.from_numpy(words), like))


def _words(request: ActiveRequest, vocab_size: int) -> NDArray[numpy.int32]:
    if request.constraint is None:
        return _allowed_words(request, vocab_size)
    words = numpy.frombuffer(request.constraint.bits(), dtype="<i4")
    if not request.request.sampling.allowed_token_ids:
        return words
    return words & _allowed_words(request, vocab_size)


def _allowed_words(request: ActiveRequest, vocab_size: int) -> NDArray[numpy.int32]:
    if request.allowed_words is None:
        num_words = -(-vocab_size // _WORD_BITS)
        is_allowed = numpy.zeros(num_words * _WORD_BITS, dtype=numpy.uint8)
        is_allowed[list(request.request.sampling.allowed_token_ids)] = 1
        packed = numpy.packbits(is_allowed, bitorder="little")
        request.allowed_words = packed.view("<i4")
    return request.allowed_words


def _to(tensor: Tensor, like: Tensor) -> Tensor:
    if like.device.type == "cuda":
        # Only a copy from pinned memory leaves the host free to go on.
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)
