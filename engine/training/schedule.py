"""The learning rate of every step, as ``transformers.get_scheduler`` gives it."""

import math

from .config import ScheduleSettings


def rate_factor(settings: ScheduleSettings, step: int, num_steps: int) -> float:
    """What multiplies the peak rate at ``step``, counted from 0."""
    warmup = warmup_steps(settings, num_steps)
    if step < warmup:
        return step / warmup
    if settings.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    if settings.kind == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def warmup_steps(settings: ScheduleSettings, num_steps: int) -> int:
    """Steps until the peak."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return math.ceil(num_steps * settings.warmup_ratio)
