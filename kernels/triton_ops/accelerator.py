"""What launches need to know of one device, and the scratch memory they share on it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .codebook import look_up_tables
from .interpreter import INTERPRETED
from .workspace import Workspace

# Ampere: the tensor-core shapes, asynchronous copies and bfloat16 that the kernels are built on.
_OLDEST = (8, 0)
_HOPPER = (9, 0)
# For the interpreter: large enough that every split is exercised.
_INTERPRETED_MULTIPROCESSORS = 4


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device. ``permute`` False takes the portable look-up, slower on every GPU.

    ``has_pdl``: a kernel may start while the one before it ends (programmatic dependent launch).
    """

    device: torch.device
    num_multiprocessors: int
    has_pdl: bool
    permute: bool
    workspace: Workspace
    _tables: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def open(cls, device: torch.device, *, permute: bool = True) -> "Accelerator":
        if INTERPRETED:
            return cls(device, _INTERPRETED_MULTIPROCESSORS, False, False, Workspace(device))
        properties = torch.cuda.get_device_properties(device)
        return cls(
            device=device,
            num_multiprocessors=properties.multi_processor_count,
            has_pdl=(properties.major, properties.minor) >= _HOPPER,
            permute=permute,
            workspace=Workspace(device),
        )

    def look_up(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The code book for activations of ``dtype``: permute words, and plain values."""
        if dtype not in self._tables:
            self._tables[dtype] = look_up_tables(dtype, self.device)
        return self._tables[dtype]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run on ``device`` with ``dtype``, and what helps."""
    if device.type != "cuda" and not INTERPRETED:
        return f"they need a CUDA device, not {device.type}; use --kernels cpu"
    if device.type == "cuda" and INTERPRETED:
        return "TRITON_INTERPRET is set; unset it to compile for the device"
    if INTERPRETED:
        return None
    if dtype not in (torch.bfloat16, torch.float16):
        return f"they compute in bfloat16 and float16, not {dtype}; use --dtype bfloat16"
    found = torch.cuda.get_device_capability(device)
    if found < _OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found[0]}.{found[1]}, they need 8.0 or newer"
    return None
