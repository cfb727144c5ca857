"""Logits to tokens, one request at a time, so that neighbours never change a draw.

Order of the filters as in transformers and vLLM: penalties, temperature, top-k, top-p, min-p. The
random number of a token comes from a hash of (seed, position), which is a counter-based stream: it
needs no state and is the same after a preemption or a restart.
"""

import hashlib
import struct
from collections import Counter

import torch
from torch import Tensor

from .active_request import ActiveRequest
from .request import SamplingParams

# Enough candidates for nearly every top-p; the full sort is the exact fallback.
_FEW = 1024


class NonFiniteLogits(ArithmeticError):
    """A row of logits holds NaN or infinity; only its own request may suffer for it."""


def sample(logits: Tensor, request: ActiveRequest) -> int:
    """Draw the next token of ``request`` from its float32 logits [V].

    Raises ``NonFiniteLogits``.
    """
    sampling = request.request.sampling
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLogits(f"request {request.id}: the model's output is not finite")
    logits = _penalize(logits, request)
    # With the best logit at zero, the smallest temperature overflows to -inf only, never to NaN.
    logits = (logits - logits.max()).clamp(min=torch.finfo(logits.dtype).min)
    if request.num_generated < sampling.min_tokens and sampling.stop_token_ids:
        logits = logits.clone()
        logits[list(sampling.stop_token_ids)] = float("-inf")
    if sampling.is_greedy:
        return int(logits.argmax())
    probabilities, ids = _candidates(logits.double() / sampling.temperature, sampling)
    cumulative = probabilities.cumsum(0)
    point = uniform(sampling.seed, len(request.tokens)) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, point, right=True))
    index = min(index, len(cumulative) - 1)
    return index if ids is None else int(ids[index])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, determined by its arguments alone."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _penalize(logits: Tensor, request: ActiveRequest) -> Tensor:
    sampling = request.request.sampling
    generated = request.tokens[request.num_prompt :]
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(request.tokens)), device=logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        changed = torch.where(values > 0, values / penalty, values * penalty)
        logits = logits.index_copy(0, seen, changed)
    if generated and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(generated)
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        penalty = sampling.frequency_penalty * times + sampling.presence_penalty
        logits = logits.index_add(0, ids, -penalty)
    return logits


def _candidates(logits: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Probabilities that may be drawn and their token ids; None means ids 0 .. V - 1."""
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return logits.softmax(0), None
    if sampling.top_k:
        logits, ids = logits.topk(min(sampling.top_k, len(logits)))
        probabilities = logits.softmax(0)
    else:
        probabilities, ids = _most_likely(logits.softmax(0), sampling)
    before = probabilities.cumsum(0) - probabilities
    kept = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
    return probabilities[kept], ids[kept]


def _most_likely(probabilities: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Candidates in falling order: all that top-p and min-p could keep, and perhaps more."""
    few, ids = probabilities.topk(min(_FEW, len(probabilities)))
    reaches_top_p = sampling.top_p < 1 and float(few.sum()) >= sampling.top_p
    reaches_min_p = sampling.min_p > 0 and float(few[-1]) < sampling.min_p * float(few[0])
    if reaches_top_p or reaches_min_p:
        return few, ids
    ordered, all_ids = probabilities.sort(descending=True, stable=True)
    return ordered, all_ids
