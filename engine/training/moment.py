"""Adam's moments: in float32 or in 8 bits, on the device or in pinned memory of the host."""

from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from .config import OptimizerSettings
from .dynamic_map import DynamicMap
from .optimizer_size import BLOCK

FIRST: Final = "first_moment"
SECOND: Final = "second_moment"


class Moment(Protocol):
    """float32 numbers [num_elements] that are read and written by ranges.

    A range starts at a multiple of ``BLOCK``. What was read is changed in place, then written.
    """

    def read(self, start: int, stop: int) -> Tensor:
        """float32 [stop - start] on the device."""
        ...

    def write(self, start: int, values: Tensor) -> None: ...

    def tensors(self) -> Mapping[str, Tensor]:
        """All of its state, where it is, by names that a checkpoint can have."""
        ...


def make_moments(
    settings: OptimizerSettings, num_elements: int, device: torch.device
) -> tuple[Moment, Moment]:
    """The first and the second moment, both zero."""
    pages = settings.is_paged
    if not settings.is_8bit:
        return (
            WideMoment(FIRST, num_elements, device, pages=pages),
            WideMoment(SECOND, num_elements, device, pages=pages),
        )
    return (
        ByteMoment(FIRST, num_elements, DynamicMap.signed(device), pages=pages),
        ByteMoment(SECOND, num_elements, DynamicMap.unsigned(device), pages=pages),
    )


class WideMoment:
    """In float32."""

    def __init__(self, name: str, num_elements: int, device: torch.device, *, pages: bool) -> None:
        self._name = name
        self._device = device
        self._values = _allocate(num_elements, torch.float32, device, pages=pages)

    def read(self, start: int, stop: int) -> Tensor:
        return self._values[start:stop].to(self._device)

    def write(self, start: int, values: Tensor) -> None:
        own = self._values[start : start + values.shape[0]]
        # What was read on one device is this very memory.
        if own.data_ptr() != values.data_ptr():
            own.copy_(values)

    def tensors(self) -> Mapping[str, Tensor]:
        return {self._name: self._values}


class ByteMoment:
    """In 8 bits, in blocks with a scale of their own; the map is on the device."""

    def __init__(self, name: str, num_elements: int, data_type: DynamicMap, *, pages: bool) -> None:
        self._name = name
        self._map = data_type
        self._device = data_type.codes.device
        num_blocks = -(-num_elements // BLOCK)
        self._codes = _allocate(num_blocks * BLOCK, torch.uint8, self._device, pages=pages)
        self._scales = _allocate(num_blocks, torch.float32, self._device, pages=pages)

    def read(self, start: int, stop: int) -> Tensor:
        blocks = slice(start // BLOCK, -(-stop // BLOCK))
        codes = self._codes[blocks.start * BLOCK : blocks.stop * BLOCK].to(self._device)
        scales = self._scales[blocks].to(self._device)
        return self._map.decode(codes, scales)[: stop - start]

    def write(self, start: int, values: Tensor) -> None:
        if rest := -values.shape[0] % BLOCK:
            values = torch.nn.functional.pad(values, (0, rest))
        codes, scales = self._map.encode(values)
        self._codes[start : start + codes.shape[0]].copy_(codes)
        self._scales[start // BLOCK : start // BLOCK + scales.shape[0]].copy_(scales)

    def tensors(self) -> Mapping[str, Tensor]:
        return {self._name: self._codes, f"{self._name}_scale": self._scales}


def _allocate(
    num_elements: int, dtype: torch.dtype, device: torch.device, *, pages: bool
) -> Tensor:
    """Zeros; ``pages`` puts them into pinned memory of the host, which a host's own memory is not.

    Pinned memory is copied at once, page by page as it is needed, and never moves on its own.
    """
    if pages and device.type != "cpu":
        return torch.zeros(num_elements, dtype=dtype, pin_memory=True)
    return torch.zeros(num_elements, dtype=dtype, device=device)
