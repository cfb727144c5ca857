"""One micro-batch through the network and back, a layer at a time.

The way up runs without autograd and keeps the residual stream before each layer. The way down runs
one layer again with autograd, from the last to the lowest that is adapted. Memory is that of
checkpointing every layer, and no state is hidden in an autograd graph between two quanta.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.decoder import PROJECTIONS_PER_LAYER
from .dropout import Dropout
from .factors import TrainedFactors
from .head import Divergence, TokenScores, concatenate
from .layer import LayerContext
from .network import TrainingNetwork
from .packed_batch import PackedBatch
from .quantum import Quanta, QuantumReport
from .randomness import Place, tensor_stream

# Of a chunk of logits, so that two distributions and their difference fit its memory.
_DIVERGENCE_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What regularises a training pass; ``place`` names step and micro-batch.

    ``neftune_alpha`` scales uniform noise on embeddings (arXiv 2310.05914) by each sequence's own
    length, so that packing does not weaken it.
    """

    dropout: float
    neftune_alpha: float
    seed: int
    place: tuple[Place, ...]

    def on_factors(self) -> Dropout | None:
        return Dropout(self.dropout, self.seed, self.place) if self.dropout else None

    def add_to(self, embedded: Tensor, batch: PackedBatch) -> Tensor:
        """embedded [T, H] with noise."""
        if not self.neftune_alpha:
            return embedded
        stream = tensor_stream(self.seed, "neftune", *self.place, device=embedded.device)
        noise = torch.empty_like(embedded).uniform_(-1, 1, generator=stream)
        for span in batch.spans:
            size = (span.stop - span.start) * embedded.shape[1]
            noise[span.start : span.stop] *= self.neftune_alpha / math.sqrt(size)
        return embedded + noise


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a policy is held to: normed rows [P, H] of the anchor, and how much the divergence
    KL(anchor || policy) of each prediction counts in the loss [P]."""

    normed: Tensor
    weights: Tensor


class Sweep:
    """A micro-batch on its way; ``factors`` None is the bare base, ``noise`` None is exact."""

    def __init__(
        self,
        network: TrainingNetwork,
        batch: PackedBatch,
        factors: TrainedFactors | None,
        noise: Noise | None = None,
    ) -> None:
        self._network = network
        self._batch = batch
        self._factors = factors
        self._noise = noise
        self._dropout = noise.on_factors() if noise else None
        self._context: LayerContext = network.context(batch)

    def score(self) -> Quanta[TokenScores]:
        """Scores of the batch's predictions, without gradients."""
        x = yield from self._forward(boundaries=None)
        normed = self._normed(x)
        return (yield from self._score(normed.detach(), with_slopes=False))

    def normed(self) -> Quanta[Tensor]:
        """The normed rows [P, H] that predictions are made from, without gradients."""
        x = yield from self._forward(boundaries=None)
        return self._normed(x).detach()

    def divergence(self, anchor: Tensor) -> Quanta[Tensor]:
        """KL(anchor || this) of each prediction [P] in nats; ``anchor`` as ``normed`` gives it."""
        normed = yield from self.normed()
        return (yield from self._diverge(normed, anchor)).values

    def train(
        self, loss: Callable[[Tensor], Tensor], *, anchor: Anchor | None = None
    ) -> Quanta[TokenScores]:
        """Add to the factors' gradients that of ``loss``, a function of log-probabilities [P], and
        of the divergence from ``anchor``."""
        boundaries: list[Tensor] = []
        x = yield from self._forward(boundaries)
        x.requires_grad_()
        with torch.enable_grad():
            normed = self._normed(x)
        scores = yield from self._score(normed.detach(), with_slopes=True)
        assert scores.slopes is not None
        dnormed = scores.slopes * _slope(loss, scores.log_probs)[:, None].to(scores.slopes.dtype)
        divergences = None
        if anchor is not None:
            found = yield from self._diverge(normed.detach(), anchor.normed)
            dnormed += found.slopes * anchor.weights[:, None].to(found.slopes.dtype)
            divergences = found.values
        (dx,) = torch.autograd.grad(normed, x, dnormed)
        yield from self._backward(boundaries, dx)
        return TokenScores(scores.log_probs, scores.entropies, scores.is_top, None, divergences)

    def _forward(self, boundaries: list[Tensor] | None) -> Quanta[Tensor]:
        """The residual stream after the last layer; before each that trains it is kept."""
        with torch.no_grad():
            x = self._network.embed(self._batch)
            if self._noise:
                x = self._noise.add_to(x, self._batch)
        for layer in self._network.layers:
            if boundaries is not None and layer.index >= self._lowest:
                boundaries.append(x)
            with torch.no_grad():
                x = layer.forward(x, self._context, self._factors, self._dropout)
            yield QuantumReport(
                kind="forward", num_tokens=self._batch.num_tokens, layer=layer.index
            )
        return x

    def _normed(self, x: Tensor) -> Tensor:
        return self._network.norm(x.index_select(0, self._batch.sources))

    def _score(self, normed: Tensor, *, with_slopes: bool) -> Quanta[TokenScores]:
        """Score all predictions, a quantum per chunk."""
        size = self._network.head.chunk_rows
        chunks: list[TokenScores] = []
        for start in range(0, normed.shape[0], size):
            rows = slice(start, start + size)
            chunks.append(
                self._network.head.score(
                    normed[rows], self._batch.targets[rows], with_slopes=with_slopes
                )
            )
            yield QuantumReport(kind="loss", num_tokens=chunks[-1].log_probs.shape[0])
        return concatenate(chunks)

    def _diverge(self, normed: Tensor, anchor: Tensor) -> Quanta[Divergence]:
        size = max(1, self._network.head.chunk_rows // _DIVERGENCE_PARTS)
        values, slopes = torch.empty(normed.shape[0], device=normed.device), []
        for start in range(0, normed.shape[0], size):
            rows = slice(start, start + size)
            found = self._network.head.diverge(normed[rows], anchor[rows])
            values[rows] = found.values
            slopes.append(found.slopes)
            yield QuantumReport(kind="loss", num_tokens=found.values.shape[0])
        return Divergence(values, torch.cat(slopes))

    def _backward(self, boundaries: list[Tensor], dx: Tensor) -> Quanta[None]:
        for layer in reversed(self._network.layers[self._lowest :]):
            x = boundaries.pop()
            is_last = layer.index == self._lowest
            x = x.detach().requires_grad_(not is_last)
            with torch.enable_grad():
                y = layer.forward(x, self._context, self._factors, self._dropout)
            y.backward(dx)
            del y
            if x.grad is not None:
                dx = x.grad
            yield QuantumReport(
                kind="backward", num_tokens=self._batch.num_tokens, layer=layer.index
            )

    @property
    def _lowest(self) -> int:
        assert self._factors is not None
        return self._factors.first_projection // PROJECTIONS_PER_LAYER


def _slope(loss: Callable[[Tensor], Tensor], log_probs: Tensor) -> Tensor:
    """The gradient of ``loss`` by each log-probability [P]."""
    leaf = log_probs.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    return slope
