"""How good a trained version must be before a name points at it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """Bars of the quality gate.

    ``num_prompts`` prompts of the training data are answered greedily; 0 skips that check.
    ``min_end_rate`` is the share of answers that must end by themselves, of those that do so in the
    training data. ``max_loop_rate`` is the share that may end in a loop, above that of the data.
    The mean length may differ from the data's by ``length_factor`` either way. With a validation
    file, the loss may be ``max_loss_increase`` (relative) above that of the first evaluation.
    """

    num_prompts: int = 32
    min_end_rate: float = 0.95
    max_loop_rate: float = 0.05
    length_factor: float = 3.0
    max_loss_increase: float = 0.0

    def __post_init__(self) -> None:
        _need(0 <= self.num_prompts <= 512, "num_prompts", self.num_prompts, "0 to 512")
        for name in ("min_end_rate", "max_loop_rate"):
            value = getattr(self, name)
            _need(0 <= value <= 1, name, value, "0 to 1")
        _need(self.length_factor >= 1, "length_factor", self.length_factor, "at least 1")
        increase = self.max_loss_increase
        _need(increase >= 0, "max_loss_increase", increase, "at least 0")


def _need(condition: bool, name: str, value: float, limit: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; it must be {limit}")
