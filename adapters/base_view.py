"""What loading an adapter may look at in the base that it belongs to."""

from typing import Protocol

from torch import Tensor


class BaseView(Protocol):
    """The resident base by projection index; called in loader threads, on resident weights only."""

    def rows(self, index: int, start: int, stop: int) -> Tensor:
        """Rows ``[start, stop)`` of a projection's weight: float32 [stop - start, K], decoded.

        Of the embedding: those tokens' rows [stop - start, H]. ``start`` is a multiple of
        ``ROW_MULTIPLE``, and so is ``stop`` unless it is the end. On the base's device.
        """
        ...

    def bias(self, index: int) -> Tensor | None:
        """The projection's bias [N], if the base has one."""
        ...


# Rows at which every backend's layout of a weight can be cut.
ROW_MULTIPLE = 128
