"""The KV cache as one tensor, ordered by block: what a block holds in all layers lies together.

    block 0                     block 1
    k of layer 0, v of layer 0, k of layer 1, ...   k of layer 0, ...

One page is the keys or the values of one block in one layer. Kernels see a layer's pages through a
view that starts at the layer's own first page; there a block's page is ``block * pages_per_block``,
in every layer. A run of idle blocks is one run of memory, so it can be lent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .models.config import ModelConfig
from .models.decoder import KvCache


class KvArena:
    """Zeroed memory for ``num_blocks`` blocks of ``block_size`` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.pages_per_block = 2 * config.num_layers
        shape = (num_blocks * self.pages_per_block, block_size, config.num_kv_heads)
        self.pages = torch.zeros((*shape, config.head_dim), dtype=dtype, device=device)

    @property
    def block_elements(self) -> int:
        return self.pages_per_block * self.pages[0].numel()

    def caches(self) -> list[KvCache]:
        """Keys and values of each layer, [pages, P, G, D] each; views."""
        stop = (self.num_blocks - 1) * self.pages_per_block + 1
        views = [self.pages[place : stop + place] for place in range(self.pages_per_block)]
        return list(zip(views[::2], views[1::2], strict=True))

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill ``blocks`` with zeros."""
        if blocks:
            index = torch.tensor(blocks, device=self.pages.device)
            self.pages.view(self.num_blocks, -1).index_fill_(0, index, 0)

    def run(self, first: int, count: int) -> Tensor:
        """The memory of blocks ``[first, first + count)``, flat; a view."""
        return self.pages.view(self.num_blocks, -1)[first : first + count].view(-1)
