"""Log-probabilities of both completions of every pair under the reference: computed once, kept.

The reference is the very base with other factors, or none: no second model exists.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from multiflora.adapters import durable
from multiflora.adapters.tensor_file import write_tensors

from .factors import TrainedFactors
from .network import TrainingNetwork
from .preference import PreferenceTask, sequence_sums
from .quantum import Quanta
from .step_plan import fill_micro_batches
from .sweep import Sweep


def score_reference(
    network: TrainingNetwork,
    task: PreferenceTask,
    factors: TrainedFactors | None,
    *,
    micro_batch_tokens: int,
    cache: Path,
) -> Quanta[None]:
    """Fill ``task.reference``, from the file ``cache`` if it is there. Raises ``OSError``."""
    if cache.is_file():
        task.reference = load_file(cache)["reference"].to(network.device)
        return
    found = torch.empty(task.num_rows, 2, device=network.device)
    for part in fill_micro_batches(range(task.num_rows), task.num_tokens, micro_batch_tokens):
        batch = task.pack(part, network.device)
        scores = yield from Sweep(network, batch, factors).score()
        found[part] = sequence_sums(batch, scores.log_probs).view(-1, 2)
    task.reference = found
    _write(cache, found)


def _write(cache: Path, found: Tensor) -> None:
    staged = cache.with_suffix(".incoming")
    write_tensors(staged, {"reference": found}, {"format": "pt"})
    os.rename(staged, cache)
    durable.sync(cache.parent)
