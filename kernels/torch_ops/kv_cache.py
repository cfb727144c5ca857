"""Writing keys and values into their pages."""

from torch import Tensor


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor) -> None:
    k_cache.flatten(0, 1).index_copy_(0, rows, k)
    v_cache.flatten(0, 1).index_copy_(0, rows, v)
