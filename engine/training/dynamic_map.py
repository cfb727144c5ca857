"""The dynamic 8-bit data type: numbers in blocks, each as a code times the block's largest value.

As in "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861) and bitsandbytes: from one
power of ten to the next the number of codes doubles, so that a block spans seven powers of ten.
"""

from typing import Final, Self

import torch
from torch import Tensor

from .optimizer_size import BLOCK

_DECADES: Final = 7


# The upper bits of a float32 that find its code but for one: sign, exponent, 8 of the mantissa.
_CELL_BITS: Final = 17


class DynamicMap:
    """``codes`` float32 [256] in order, from -1 or 0 to 1; ``bounds`` [255] lie between them.

    Bounds are farther apart than the floats that share their upper bits (a cell), so a table of the
    cells and one comparison find a code, five times as fast on a CPU as a search does.
    """

    def __init__(self, codes: Tensor, bounds: Tensor, device: torch.device) -> None:
        self.codes = codes.to(device)
        self._bounds = torch.cat((bounds, torch.tensor([torch.inf]))).to(device)
        bits = torch.arange(1 << _CELL_BITS, dtype=torch.int32) << (32 - _CELL_BITS)
        # Of a cell of negative numbers the lowest is that with all other bits set.
        bits[bits < 0] |= (1 << (32 - _CELL_BITS)) - 1
        self._lowest = torch.bucketize(bits.view(torch.float32), bounds).byte().to(device)

    @property
    def bounds(self) -> Tensor:
        return self._bounds[:-1]

    @classmethod
    def signed(cls, device: torch.device) -> Self:
        positive = _positive_codes(0)
        codes = torch.cat((-positive.flip(0), torch.tensor([0.0]), positive, torch.tensor([1.0])))
        return cls(codes, _middles(codes), device)

    @classmethod
    def unsigned(cls, device: torch.device) -> Self:
        """For what is never negative. Nothing above 0 becomes 0: Adam divides by such numbers.

        In bitsandbytes the smallest do, and the step that follows is as large as a step can be.
        """
        codes = torch.cat((torch.tensor([0.0]), _positive_codes(1), torch.tensor([1.0])))
        bounds = _middles(codes)
        bounds[0] = 0.0
        return cls(codes, bounds, device)

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values float32 [n * BLOCK] -> codes uint8 [n * BLOCK], largest values float32 [n]."""
        blocks = values.view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        # A block of zeros has no scale; tiny ones underflow to zeros.
        scale = largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        scaled = (blocks / scale).view(-1)
        cells = scaled.view(torch.int32) >> (32 - _CELL_BITS)
        codes = self._lowest.index_select(0, cells.bitwise_and_((1 << _CELL_BITS) - 1))
        return codes.add_(scaled > self._bounds.index_select(0, codes.int())), largest

    def decode(self, codes: Tensor, largest: Tensor) -> Tensor:
        """The inverse but for rounding: float32 [n * BLOCK]."""
        values = self.codes.index_select(0, codes.int())
        return values.view(-1, BLOCK).mul_(largest[:, None]).view(-1)


def _positive_codes(extra_bits: int) -> Tensor:
    """Middles of equal steps from a tenth to one of each power of ten; the first has one step, or
    two with an extra bit, and every next one twice as many."""
    found = []
    for decade in range(_DECADES):
        steps = torch.linspace(0.1, 1, 2 ** (decade + extra_bits) + 1)
        found.append(10.0 ** (decade - _DECADES + 1) * _middles(steps))
    return torch.cat(found)


def _middles(values: Tensor) -> Tensor:
    return (values[:-1] + values[1:]) / 2
