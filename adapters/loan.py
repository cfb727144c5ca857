"""Device memory that adapters borrow while its owner has no use for it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Loan:
    """``buffer`` is flat, in the model's dtype, on the device; ``owner_key`` is the lender's."""

    buffer: Tensor
    owner_key: tuple[int, int]


class Lender(Protocol):
    """Whoever owns memory that is idle now and then."""

    def lend(self, num_elements: int, *, is_urgent: bool) -> Loan | None:
        """A buffer of ``num_elements``, or None.

        ``is_urgent`` asks for memory too whose content might still be useful to its owner.
        """
        ...

    def take_back(self, loan: Loan, *, is_called_in: bool) -> None:
        """No later step reads or writes the buffer. ``is_called_in`` if its owner asked for it."""
        ...


class NoLender:
    """For devices without such memory."""

    def lend(self, num_elements: int, *, is_urgent: bool) -> Loan | None:
        return None

    def take_back(self, loan: Loan, *, is_called_in: bool) -> None:
        raise AssertionError("nothing was lent")
