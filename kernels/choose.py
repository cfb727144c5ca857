"""The only place where a backend is selected."""

import importlib
import logging
from typing import cast

import torch

from .ops import Ops

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "cpu", "triton")


class KernelsUnavailable(ValueError):
    """The wanted kernels cannot run here; the message names the cause and the remedy."""


def choose_ops(
    wanted: str, device: torch.device, dtype: torch.dtype, *, batch_invariant: bool = False
) -> Ops:
    """Return the backend for ``wanted`` (``auto`` or a name) on ``device`` with ``dtype``.

    ``batch_invariant`` asks for results that no neighbour changes; without it a backend may still
    give them. Raises ``KernelsUnavailable`` if the wish cannot be met: an explicit one is never
    replaced by something else, and neither is a GPU backend that computes wrongly.
    """
    name = _default_backend(device, dtype) if wanted == "auto" else wanted
    if name not in BACKENDS:
        raise KernelsUnavailable(f"unknown kernels {wanted!r}; choose auto, {', '.join(BACKENDS)}")
    if name == "cpu" and device.type != "cpu":
        raise KernelsUnavailable("kernels 'cpu' run on --device cpu only; use --kernels auto")
    if name == "triton":
        ops = _open_triton(device, dtype, batch_invariant=batch_invariant)
    else:
        ops = cast(Ops, importlib.import_module(f"multiflora.kernels.{name}_ops"))
    if batch_invariant and not ops.BATCH_INVARIANT:
        raise KernelsUnavailable(
            f"kernels {name!r} are not batch-invariant; use --kernels auto or no --batch-invariant"
        )
    logger.info("kernels: %s (%s) on %s", ops.NAME, ops.describe(), device)
    return ops


def _default_backend(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return "cpu"
    obstacle = triton_obstacle(device, dtype)
    if obstacle is None:
        return "triton"
    logger.warning("kernels: plain torch, several times slower: %s", obstacle)
    return "torch"


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton backend cannot run here, and what helps; None if it can."""
    try:
        from .triton_ops.accelerator import obstacle
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install torch for CUDA, which brings it"
    return obstacle(device, dtype)


def _open_triton(device: torch.device, dtype: torch.dtype, *, batch_invariant: bool) -> Ops:
    obstacle = triton_obstacle(device, dtype)
    if obstacle is not None:
        raise KernelsUnavailable(f"kernels 'triton' cannot run: {obstacle}; or use --kernels torch")
    # Imported here: a host without Triton serves with the other backends.
    from .triton_ops.accelerator import Accelerator
    from .triton_ops.backend import TritonOps
    from .triton_ops.self_check import SelfCheckFailed, check

    ops = TritonOps(Accelerator.open(device), batch_invariant=batch_invariant)
    try:
        check(ops, dtype)
    except SelfCheckFailed as error:
        raise KernelsUnavailable(f"{error}; use --kernels torch") from error
    return ops
