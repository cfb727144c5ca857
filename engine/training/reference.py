"""Log-probabilities of the completions of every row under the reference: computed once, kept.

The reference is the very base with other factors, or none: no second model exists.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from multiflora.adapters import durable
from multiflora.adapters.tensor_file import write_tensors

from .factors import TrainedFactors
from .network import TrainingNetwork
from .packed_batch import sequence_sums
from .preference import PreferenceTask
from .quantum import Quanta
from .rating import RatingTask
from .step_plan import fill_micro_batches
from .stored_factors import digest_tensors
from .sweep import Sweep
from .task import Task


def score_references(
    network: TrainingNetwork,
    tasks: Iterable[Task | None],
    factors: TrainedFactors | None,
    *,
    micro_batch_tokens: int,
    folder: Path,
) -> Quanta[None]:
    """Fill the reference of every task that has one; what was computed is in ``folder``."""
    for task in tasks:
        if isinstance(task, PreferenceTask | RatingTask):
            text = f"{task.digest} {reference_digest(network, factors)}"
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            yield from score_reference(
                *(network, task, factors),
                micro_batch_tokens=micro_batch_tokens,
                cache=folder / f"reference-{name}.safetensors",
            )


def reference_digest(network: TrainingNetwork, factors: TrainedFactors | None) -> str:
    """Of the base, and of the factors that are added to it."""
    return f"{network.digest} {digest_tensors(factors.tensors() if factors else {})}"


def score_reference(
    network: TrainingNetwork,
    task: PreferenceTask | RatingTask,
    factors: TrainedFactors | None,
    *,
    micro_batch_tokens: int,
    cache: Path,
) -> Quanta[None]:
    """Fill ``task.reference``, from the file ``cache`` if it is there. Raises ``OSError``."""
    if cache.is_file():
        task.reference = load_file(cache)["reference"].to(network.device)
        return
    found = torch.empty(task.num_rows, task.num_completions, device=network.device)
    for part in fill_micro_batches(range(task.num_rows), task.num_tokens, micro_batch_tokens):
        batch = task.pack(part, network.device)
        scores = yield from Sweep(network, batch, factors).score()
        found[part] = sequence_sums(batch, scores.log_probs).view(-1, task.num_completions)
    task.reference = found
    _write(cache, found)


def _write(cache: Path, found: Tensor) -> None:
    staged = cache.with_suffix(".incoming")
    write_tensors(staged, {"reference": found}, {"format": "pt"})
    os.rename(staged, cache)
    durable.sync(cache.parent)
