"""A lender of memory, of which the test says how much is idle."""

import torch

from multiflora.adapters.loan import Loan


class FakeLender:
    """Memory of which a part is idle, and another would be missed."""

    def __init__(self, idle_bytes: int, useful_bytes: int) -> None:
        self.idle_bytes = idle_bytes
        self.useful_bytes = useful_bytes
        self.lent: dict[tuple[int, int], int] = {}
        self.num_called_in = 0

    def lend(self, num_elements: int, *, is_urgent: bool) -> Loan | None:
        limit = self.idle_bytes + (self.useful_bytes if is_urgent else 0)
        if sum(self.lent.values()) + num_elements > limit:
            return None
        key = (len(self.lent), id(object()))
        self.lent[key] = num_elements
        return Loan(torch.zeros(num_elements, dtype=torch.uint8), key)

    def take_back(self, loan: Loan, *, is_called_in: bool) -> None:
        del self.lent[loan.owner_key]
        self.num_called_in += is_called_in
