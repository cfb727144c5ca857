"""The only place where a backend is selected."""

import importlib
import logging
from typing import cast

from .ops import Ops

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "cpu", "triton")


def choose_ops(wanted: str, device_type: str) -> Ops:
    """Return the backend module for ``wanted`` (``auto`` or a backend name) on ``device_type``.

    Raises ``ValueError`` if the wanted backend does not exist or cannot run on this device: an
    explicit wish is never replaced by something else.
    """
    name = _default_backend(device_type) if wanted == "auto" else wanted
    if name not in BACKENDS:
        raise ValueError(f"unknown kernels {wanted!r}; choose auto, {', '.join(BACKENDS)}")
    if name == "cpu" and device_type != "cpu":
        raise ValueError("kernels 'cpu' run on --device cpu only; use --kernels auto")
    if name == "triton":
        raise ValueError("kernels 'triton' are not in this version; use --kernels auto or torch")
    ops = cast(Ops, importlib.import_module(f"multiflora.kernels.{name}_ops"))
    logger.info("kernels: %s on %s", ops.NAME, device_type)
    return ops


def _default_backend(device_type: str) -> str:
    return "cpu" if device_type == "cpu" else "torch"
