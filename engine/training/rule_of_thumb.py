"""What textbooks say of memory, from a number of parameters alone. Imports no torch.

Sizes are decimal, as there: 1 GB is 1e9 bytes. ``estimate`` counts what this engine takes instead.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ..models.config import ModelConfig

Optimizer: TypeAlias = Literal["sgd", "momentum", "adam"]
# States per parameter beside its gradient.
OPTIMIZER_STATES: Final[dict[Optimizer, int]] = {"sgd": 0, "momentum": 1, "adam": 2}
# Activations and the KV cache of moderate use, as a part of the weights.
_SERVING_OVERHEAD: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class FullTraining:
    """Bytes when every parameter is trained; activations come on top."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def serving_bytes(num_parameters: int, *, item: int) -> int:
    """Weights of ``item`` bytes each, and a fifth more."""
    return round(num_parameters * item * (1 + _SERVING_OVERHEAD))


def full_training(num_parameters: int, *, item: int, optimizer: Optimizer) -> FullTraining:
    """Weights, a gradient each, and the optimizer's states, all of ``item`` bytes."""
    copy = num_parameters * item
    return FullTraining(weights=copy, gradients=copy, optimizer=OPTIMIZER_STATES[optimizer] * copy)


def lora_parameters(in_features: int, out_features: int, *, rank: int) -> int:
    """Of one matrix: A is [rank, in], B is [out, rank]."""
    return rank * (in_features + out_features)


def count_parameters(model: ModelConfig) -> int:
    """All weights of a base, without biases."""
    tables = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    norms = (2 * model.num_layers + 1) * model.hidden_size
    projections = sum(p.out_features * p.in_features for p in model.projections())
    return tables + norms + projections
