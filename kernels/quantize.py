"""bitsandbytes' NF4 quantizer in pieces that fit a cache: the same bits, several times as fast.

bitsandbytes 0.50 makes full-size float32 and int32 copies on CPU (10 M weights/s on two idle cores
against 80-100 here) and rounds to the nearest code by binary search; counting boundaries is exact
too.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .nf4 import BLOCK_SIZE, CODEBOOK, Nf4Tensor, expand_absmax

PIECE_WEIGHTS = {"cpu": 1 << 17, "cuda": 1 << 25}
NESTED_BLOCK_SIZE = 256


@dataclass(frozen=True, slots=True)
class NestedAbsmax:
    """Scales in 8 bits: ``codes`` uint8 [blocks], and for each 256 of them one of ``scales``.

    ``code`` is the float32 [256] codebook; ``offset`` the mean that was taken off before.
    """

    codes: Tensor
    code: Tensor
    scales: Tensor
    offset: float

    def expand(self) -> Tensor:
        """float32 [blocks]."""
        return expand_absmax(self.codes, self.code, self.scales, torch.tensor(self.offset))


def quantize(weight: Tensor, *, double: bool = True) -> Nf4Tensor:
    """Quantize ``weight`` [N, K] as bitsandbytes does.

    ``double`` passes the scales through its nested 8-bit form, as ``bnb_4bit_use_double_quant``.
    """
    plain = encode(weight)
    return replace(plain, absmax=double_quantize(plain.absmax)) if double else plain


def encode(weight: Tensor) -> Nf4Tensor:
    """Quantize ``weight`` [N, K] with plain float32 scales, bit for bit as bitsandbytes on CPU.

    Only exact operations are involved, so codes and scales are equal on every machine.
    """
    num_rows, num_columns = weight.shape
    flat = weight.reshape(-1)
    codes = torch.empty(flat.numel() // 2, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(flat.numel() // BLOCK_SIZE, device=weight.device)
    piece = PIECE_WEIGHTS[weight.device.type]

    def encode_piece(start: int) -> None:
        stop = min(start + piece, flat.numel())
        blocks = flat[start:stop].float().reshape(-1, BLOCK_SIZE)
        scales = blocks.abs().amax(-1)
        absmax[start // BLOCK_SIZE : stop // BLOCK_SIZE] = scales
        codes[start // 2 : stop // 2] = _encode_blocks(blocks, scales)

    with _piece_workers(weight.device) as workers:
        list(workers.map(encode_piece, range(0, flat.numel(), piece)))
    return Nf4Tensor(codes, absmax, num_rows, num_columns)


def double_quantize(absmax: Tensor) -> Tensor:
    """Pass scales through bitsandbytes' nested 8-bit form: what a double-quantized model keeps.

    Runs on the CPU over the whole tensor, because its mean is part of the format.
    """
    return nest(absmax.cpu()).expand().to(absmax.device)


def nest(absmax: Tensor) -> NestedAbsmax:
    """bitsandbytes' 8-bit form of the scales ``absmax``, float32 on the CPU."""
    from bitsandbytes import functional

    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK_SIZE)
    assert state.code is not None
    assert state.absmax is not None
    return NestedAbsmax(codes, state.code, state.absmax, float(offset))


@contextmanager
def _piece_workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """One thread per core, each running torch's operations alone.

    Sharing every small operation among torch's threads costs two barriers each; on a busy host
    those dominate (measured: 20 times slower at a load of 5 on two cores).
    """
    num_threads = torch.get_num_threads()
    num_workers = num_threads if device.type == "cpu" else 1
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_workers) as workers:
            yield workers
    finally:
        torch.set_num_threads(num_threads)


def _encode_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    inverse = 1.0 / scales.clamp(min=1e-38)
    scaled = (blocks * inverse[:, None]).clamp_(-1, 1).reshape(-1)
    codes = torch.zeros(scaled.numel(), dtype=torch.uint8, device=scaled.device)
    above = torch.empty(scaled.numel(), dtype=torch.bool, device=scaled.device)
    for boundary in _boundaries():
        torch.gt(scaled, boundary, out=above)
        codes += above.view(torch.uint8)
    pairs = codes.view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def _boundaries() -> list[float]:
    """Midpoints between neighbouring codes, rounded to float32 as bitsandbytes does."""
    codebook = torch.tensor(CODEBOOK)
    return ((codebook[:-1] + codebook[1:]) / 2).tolist()
