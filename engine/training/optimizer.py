"""AdamW over the flat float32 factors (arXiv 1711.05101).

``torch.optim`` would do, but its first use imports torch's compiler, seconds in which nobody is
served; here a step is ten passes over flat memory, cut into quanta, and needs no scratch but the
gradient itself where the moments are in float32 on the device.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from .config import OptimizerSettings
from .error import TrainingDiverged
from .factors import TrainedFactors
from .moment import make_moments
from .optimizer_size import CHUNK_ELEMENTS
from .quantum import Quanta, QuantumReport

# Some tens of milliseconds on two cores of a CPU, or of copies between a host and a GPU.
QUANTUM_ELEMENTS: Final = 4 * CHUNK_ELEMENTS


class Optimizer:
    """One step at a time; all of its state is the two moments and the number of steps."""

    def __init__(self, factors: TrainedFactors, settings: OptimizerSettings) -> None:
        self._factors = factors
        self._settings = settings
        values = factors.values
        self._first, self._second = make_moments(settings, values.numel(), values.device)
        self._boosted = factors.boosted() if settings.lora_plus_ratio != 1 else []

    def tensors(self) -> Mapping[str, Tensor]:
        """All that a checkpoint has to keep, by name."""
        return {**self._first.tensors(), **self._second.tensors()}

    @torch.no_grad()
    def step(self, number: int, rate: float) -> Quanta[float]:
        """Take step ``number``, counted from 1, at ``rate``, and clear the gradient.

        Returns the gradient's norm before clipping. Raises ``TrainingDiverged`` before anything has
        moved. The last quantum ends with the generator.
        """
        gradient = self._factors.gradient
        assert gradient is not None
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"the gradient's norm at step {number} is {norm}; lower the learning rate, or look "
                "for rows that no model of this kind has seen"
            )
        # The same clipping as torch.nn.utils.clip_grad_norm_.
        clipped = min(1.0, self._settings.max_grad_norm / (norm + 1e-6))
        size = gradient.numel()
        for start in range(0, size, CHUNK_ELEMENTS):
            if start and start % QUANTUM_ELEMENTS == 0:
                yield QuantumReport(kind="optimizer")
            rows = slice(start, min(start + CHUNK_ELEMENTS, size))
            self._move(rows, gradient[rows].mul_(clipped), number, rate)
        return norm

    def _move(self, rows: slice, gradient: Tensor, number: int, rate: float) -> None:
        """Move the factors of ``rows``, and leave zeros in their ``gradient``."""
        settings, values = self._settings, self._factors.values.detach()[rows]
        first = self._first.read(rows.start, rows.stop).lerp_(gradient, 1 - settings.beta1)
        second = self._second.read(rows.start, rows.stop).mul_(settings.beta2)
        second.addcmul_(gradient, gradient, value=1 - settings.beta2)
        update = gradient
        torch.sqrt(second, out=update)
        update.div_(math.sqrt(1 - settings.beta2**number)).add_(settings.epsilon)
        torch.div(first, update, out=update)
        update.div_(1 - settings.beta1**number)
        if settings.weight_decay:
            update.add_(values, alpha=settings.weight_decay)
        for boosted in self._boosted:
            start, stop = max(boosted.start, rows.start), min(boosted.stop, rows.stop)
            if start < stop:
                update[start - rows.start : stop - rows.start].mul_(settings.lora_plus_ratio)
        values.add_(update, alpha=-rate)
        self._first.write(rows.start, first)
        self._second.write(rows.start, second)
        gradient.zero_()
