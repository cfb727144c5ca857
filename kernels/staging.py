"""Carrying a step's integers to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class DirectStaging:
    """Makes every tensor at once, int64: for backends that plan and run on the host."""

    is_static = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def place(self, values: Sequence[int], *, capacity: int | None = None) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device)
