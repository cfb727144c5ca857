"""RMS normalisation by the compiled core or torch's fused kernel; a row is one thread's, alone."""

from torch import Tensor
from torch.nn import functional

from .core import Core, core_for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    core = _core(x, weight)
    if core is None:
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)
    return core.norm(x.contiguous(), None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    core = _core(x, weight)
    if core is None:
        residual = residual + x
        return rms_norm(residual, weight, eps), residual
    return core.norm(x.contiguous(), residual.contiguous(), weight, eps)


def _core(x: Tensor, weight: Tensor) -> Core | None:
    return core_for(x.dtype) if weight.dtype == x.dtype else None
