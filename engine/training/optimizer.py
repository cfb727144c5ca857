"""AdamW over the flat float32 factors (arXiv 1711.05101).

``torch.optim`` would do, but its first use imports torch's compiler, seconds in which nobody is
served; here a step is ten passes over flat memory and needs no scratch but the gradient itself.
"""

import math

import torch

from .config import OptimizerSettings
from .error import TrainingDiverged
from .factors import TrainedFactors


class Optimizer:
    """One step at a time; all of its state is the two moments and the number of steps."""

    def __init__(self, factors: TrainedFactors, settings: OptimizerSettings) -> None:
        self._factors = factors
        self._settings = settings
        self.first_moment = torch.zeros_like(factors.values)
        self.second_moment = torch.zeros_like(factors.values)

    @torch.no_grad()
    def step(self, number: int, rate: float) -> float:
        """Take step ``number``, counted from 1, at ``rate``, and clear the gradient.

        Returns the gradient's norm before clipping. Raises ``TrainingDiverged`` before anything has
        moved.
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
        gradient.mul_(min(1.0, self._settings.max_grad_norm / (norm + 1e-6)))
        self._move(gradient, number, rate)
        gradient.zero_()
        return norm

    def _move(self, gradient: torch.Tensor, number: int, rate: float) -> None:
        settings, values = self._settings, self._factors.values.detach()
        self.first_moment.lerp_(gradient, 1 - settings.beta1)
        self.second_moment.mul_(settings.beta2)
        self.second_moment.addcmul_(gradient, gradient, value=1 - settings.beta2)
        update = gradient
        torch.sqrt(self.second_moment, out=update)
        update.div_(math.sqrt(1 - settings.beta2**number)).add_(settings.epsilon)
        torch.div(self.first_moment, update, out=update)
        update.div_(1 - settings.beta1**number)
        if settings.weight_decay:
            update.add_(values, alpha=settings.weight_decay)
        if settings.lora_plus_ratio != 1:
            for boosted in self._factors.boosted():
                update[boosted].mul_(settings.lora_plus_ratio)
        values.add_(update, alpha=-rate)
