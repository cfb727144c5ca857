"""The NF4 format of bitsandbytes: 4-bit codes and one absmax per 64 weights.

Bytes are kept exactly as bitsandbytes defines them (QLoRA, arXiv 2305.14314; bitsandbytes 0.50);
a backend only permutes nibbles. Nothing here computes with weights except the reference decoder.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZE = 64

# bitsandbytes' quantiles of a standard normal; index 7 is exactly zero.
CODEBOOK = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, slots=True)
class Nf4Tensor:
    """A quantized matrix [N, K] in canonical order.

    ``codes`` is uint8 ``[N * K / 2]``: two weights a byte, row-major, the high nibble first.
    ``absmax`` is float32 ``[N * K / 64]``: one scale per 64 consecutive weights.
    """

    codes: Tensor
    absmax: Tensor
    out_features: int
    in_features: int

    def __post_init__(self) -> None:
        weights = self.out_features * self.in_features
        if self.in_features % BLOCK_SIZE:
            raise ValueError(
                f"NF4 needs in_features divisible by {BLOCK_SIZE}, got {self.in_features}; "
                "load this model with --quantization none"
            )
        assert self.codes.dtype == torch.uint8
        assert self.codes.numel() == weights // 2
        assert self.absmax.dtype == torch.float32
        assert self.absmax.numel() == weights // BLOCK_SIZE

    @property
    def num_bytes(self) -> int:
        return self.codes.numel() + 4 * self.absmax.numel()


def expand_absmax(quantized: Tensor, code: Tensor, scales: Tensor, offset: Tensor) -> Tensor:
    """Undo double quantization: ``code[q[b]] * scales[b // 256] + offset`` in float32."""
    blocks = code.float()[quantized.reshape(-1).long()]  # [N * K / 64]
    nested_size = 256
    expanded = scales.float().repeat_interleave(nested_size)[: blocks.numel()]
    return blocks * expanded + offset.float()


def dequantize(weight: Nf4Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode to [N, K]: ``codebook[code] * absmax`` in float32, then one rounding."""
    device = weight.codes.device
    codebook = torch.tensor(CODEBOOK, device=device)
    pairs = torch.stack((weight.codes >> 4, weight.codes & 0xF), dim=-1)  # [N * K / 2, 2]
    values = codebook[pairs.reshape(-1, BLOCK_SIZE).int()]  # [N * K / 64, 64]
    dense = values * weight.absmax[:, None]
    return dense.reshape(weight.out_features, weight.in_features).to(dtype)


def concatenate(parts: list[Nf4Tensor]) -> Nf4Tensor:
    """Stack matrices with equal K along N; exact, because no block of 64 crosses a row."""
    assert len({part.in_features for part in parts}) == 1
    return Nf4Tensor(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.absmax for part in parts]),
        sum(part.out_features for part in parts),
        parts[0].in_features,
    )
