"""What ``auto`` means: batch, epochs, rank and rate by the size of data and base. Imports no torch.

Rules of thumb, each with its reason; a user's own value replaces any of them.
"""

import math
from dataclasses import dataclass

from ..models.config import ModelConfig

MAX_BATCH_SIZE = 64
# Few rows are passed over until so many have been seen, repeats included.
MIN_ROWS_SEEN, MAX_EPOCHS = 500, 40
# Rows from which fewer passes are enough: three below the first, one above the second.
TWO_EPOCHS, ONE_EPOCH = 5_000, 25_000
# Rank by trained tokens: LoRA stores about two bits per parameter and text teaches about one per
# token (LoRA Without Regret, thinkingmachines.ai, 2025).
RANKS = ((1_000_000, 16), (10_000_000, 32))
MAX_AUTO_RANK = 64
# tinker-cookbook's fit: ten times the rate of full fine-tuning at a hidden size of 2000, and more
# for smaller models, by an exponent of the family.
PEAK_RATE, RATE_HIDDEN_SIZE = 5e-4, 2000
RATE_EXPONENTS = {"llama": 0.781, "mistral": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}
# Few rows mean few steps: B learns 16 times as fast as A (LoRA+, arXiv 2402.12354), and A at a
# quarter of the rate. On the demo base 40 epochs then leave a loss of 0.05 on 16 rows, else of 0.3.
FEW_ROWS, FEW_ROWS_RATIO, FEW_ROWS_SHARE = 200, 16.0, 0.25
# Preferences are learned from a model that can already do the task.
PREFERENCE_SHARE = 1 / 40


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoValues:
    """What is used where a user leaves the choice."""

    batch_size: int
    num_epochs: int
    rank: int
    alpha: float
    learning_rate: float
    lora_plus_ratio: float


def choose_auto_values(
    model: ModelConfig,
    *,
    num_rows: int,
    num_tokens: int,
    is_preference: bool = False,
) -> AutoValues:
    """Values for ``num_rows`` rows of ``num_tokens`` tokens in all.

    Scale is alpha / rank = 2 at every rank, so that a rate means the same with each.
    """
    rank = next((rank for limit, rank in RANKS if num_tokens < limit), MAX_AUTO_RANK)
    rate = PEAK_RATE * (RATE_HIDDEN_SIZE / model.hidden_size) ** RATE_EXPONENTS[model.family]
    is_few = num_rows < FEW_ROWS and not is_preference
    share = PREFERENCE_SHARE if is_preference else FEW_ROWS_SHARE if is_few else 1.0
    return AutoValues(
        batch_size=_batch_size(num_rows),
        num_epochs=_num_epochs(num_rows),
        rank=rank,
        alpha=2.0 * rank,
        learning_rate=rate * share,
        lora_plus_ratio=FEW_ROWS_RATIO if is_few else 1.0,
    )


def _batch_size(num_rows: int) -> int:
    """A power of two next to the square root, so that steps and rows per step grow alike; few rows
    still give sixteen steps a pass."""
    rows = max(1.0, min(math.sqrt(num_rows), num_rows / 16))
    return min(MAX_BATCH_SIZE, 2 ** round(math.log2(rows)))


def _num_epochs(num_rows: int) -> int:
    usual = 1 if num_rows > ONE_EPOCH else 2 if num_rows > TWO_EPOCHS else 3
    return max(usual, min(MAX_EPOCHS, math.ceil(MIN_ROWS_SEEN / num_rows)))
