"""The base's own weights that PEFT saves beside adapters on the embedding and the head.

PEFT would load them over the base. Here the base is shared, so they must be what it is already.
"""

import torch
from torch import Tensor

from .base_view import ROW_MULTIPLE, BaseView
from .error import AdapterRejected
from .flat_buffer import Read
from .layout import FlatLayout

_ROWS = 16 * ROW_MULTIPLE


def check_base_copies(layout: FlatLayout, read: Read, base: BaseView, dtype: torch.dtype) -> None:
    """Raise ``AdapterRejected`` for a copy that is not the base's weight of ``dtype``."""
    for projection in layout.projections:
        for part in projection.parts:
            name = part.module.base_copy
            if name and not _is_base(read(name), base, projection.index, dtype):
                raise AdapterRejected(
                    "wrong_base",
                    f"{name} is not the weight of this base, or the base holds it quantized; save "
                    "the adapter with save_embedding_layers=False if it was trained on this base",
                )


def _is_base(copy: Tensor, base: BaseView, index: int, dtype: torch.dtype) -> bool:
    """Equal in the coarser of two dtypes: either may have been rounded from the other."""
    for start in range(0, copy.shape[0], _ROWS):
        theirs = copy[start : start + _ROWS]
        ours = base.rows(index, start, start + theirs.shape[0]).cpu()
        is_same = torch.equal(theirs.to(dtype).float(), ours)
        if not is_same and not torch.equal(ours.to(theirs.dtype), theirs):
            return False
    return True
