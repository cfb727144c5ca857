"""Paged attention equals plain causal attention, and on CPU never sees its neighbours."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from multiflora.kernels import cpu_ops
from multiflora.kernels.ops import AttentionRun
from multiflora.kernels.staging import DirectStaging
from multiflora.kernels.torch_ops.kv_cache import write_kv

BLOCK = 16
STAGING = DirectStaging(torch.device("cpu"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pages:
    """Requests of known keys and values, scattered over shuffled blocks of a poisoned pool."""

    def __init__(self, lengths: list[int], num_kv_heads: int, head_dim: int) -> None:
        needed = [-(-length // BLOCK) for length in lengths]
        order = (
            torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1)) + 1
        ).tolist()
        shape = (sum(needed) + 1, BLOCK, num_kv_heads, head_dim)
        # Unused rows are zero, as the runner leaves them; stale finite values may follow later.
        self.k_cache, self.v_cache = torch.zeros(shape), torch.zeros(shape)
        self.k = [random(n, num_kv_heads, head_dim, seed=10 + i) for i, n in enumerate(lengths)]
        self.v = [random(n, num_kv_heads, head_dim, seed=50 + i) for i, n in enumerate(lengths)]
        self.tables = [[order.pop() for _ in range(count)] for count in needed]
        for index, table in enumerate(self.tables):
            positions = torch.arange(lengths[index])
            rows = torch.tensor(table)[positions // BLOCK] * BLOCK + positions % BLOCK
            write_kv(self.k[index], self.v[index], self.k_cache, self.v_cache, rows)


def reference(q: Tensor, k: Tensor, v: Tensor, first: int, window: int | None) -> Tensor:
    """Attention of rows at positions first, first + 1, ... in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        last = first + row + 1
        start = 0 if window is None else max(0, last - window)
        for head in range(q.shape[1]):
            keys = k[start:last, head // group].double()
            weights = (keys @ q[row, head].double() * q.shape[2] ** -0.5).softmax(0)
            out[row, head] = weights @ v[start:last, head // group].double()
    return out


@pytest.mark.parametrize("window", [None, 5, 64, 130])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (7, 1)])
def test_equals_plain_causal_attention(
    ops: ModuleType, num_heads: int, num_kv_heads: int, window: int | None
) -> None:
    lengths, new = [1, 16, 131, 300, 17], [1, 16, 1, 40, 3]
    pages = Pages(lengths, num_kv_heads, 32)
    q = random(sum(new), num_heads, 32, seed=3)
    runs, row = [], 0
    for length, count, table in zip(lengths, new, pages.tables, strict=True):
        runs.append(AttentionRun(row, row + count, length - count, table))
        row += count
    plan = ops.plan_attention(
        runs, num_rows=row, block_size=BLOCK, window=window, max_context=1024, staging=STAGING
    )
    found = ops.paged_attention(q, pages.k_cache, pages.v_cache, plan, 32**-0.5)
    for index, run in enumerate(runs):
        expected = reference(
            q[run.start : run.stop], pages.k[index], pages.v[index], run.first_position, window
        )
        torch.testing.assert_close(
            found[run.start : run.stop].double(), expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("has_core", [True, False])
def test_cpu_decode_prefill_and_any_chunking_give_the_same_bits(
    request: pytest.FixtureRequest,
    has_core: bool,
    num_heads: int,
    num_kv_heads: int,
    window: int | None,
) -> None:
    if not has_core:
        request.getfixturevalue("without_core")
    length = 290
    pages = Pages([length, 40, 600], num_kv_heads, 64)
    q = random(length, num_heads, 64, seed=3)

    def attend(first: int, stop: int, others: int) -> Tensor:
        runs = [AttentionRun(0, stop - first, first, pages.tables[0])]
        rows = [q[first:stop]]
        for index in range(others):
            start = runs[-1].stop
            position = (39, 599)[index]
            runs.append(AttentionRun(start, start + 1, position, pages.tables[1 + index]))
            rows.append(q[:1])
        stacked = torch.cat(rows)
        plan = cpu_ops.plan_attention(
            runs,
            num_rows=len(stacked),
            block_size=BLOCK,
            window=window,
            max_context=1024,
            staging=STAGING,
        )
        out = cpu_ops.paged_attention(stacked, pages.k_cache, pages.v_cache, plan, 0.125)
        return out[: stop - first]

    whole = attend(0, length, 0)
    chunked = torch.cat([attend(a, b, 2) for a, b in ((0, 13), (13, 128), (128, 257), (257, 290))])
    assert torch.equal(whole, chunked)
    for position in (0, 1, 127, 128, 255, 256, 289):
        assert torch.equal(attend(position, position + 1, 2)[0], whole[position])


def test_masked_keys_of_another_request_do_not_count(ops: ModuleType) -> None:
    pages = Pages([20], 2, 32)
    q = random(1, 4, 32, seed=3)
    run = AttentionRun(0, 1, 9, pages.tables[0])
    plan = ops.plan_attention(
        [run], num_rows=1, block_size=BLOCK, window=None, max_context=1024, staging=STAGING
    )
    before = ops.paged_attention(q, pages.k_cache, pages.v_cache, plan, 0.2)
    rows = torch.tensor([pages.tables[0][0] * BLOCK + 12])
    write_kv(
        torch.full((1, 2, 32), 1e4),
        torch.full((1, 2, 32), -1e4),
        pages.k_cache,
        pages.v_cache,
        rows,
    )
    assert torch.equal(ops.paged_attention(q, pages.k_cache, pages.v_cache, plan, 0.2), before)
