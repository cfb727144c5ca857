"""Paged attention kernels against plain attention, and against themselves bit by bit."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from multiflora.kernels import torch_ops
from multiflora.kernels.ops import AttentionRun
from multiflora.kernels.staging import DirectStaging
from multiflora.kernels.torch_ops.kv_cache import write_kv
from multiflora.kernels.triton_ops import attention_plan, paged_decode
from multiflora.kernels.triton_ops.attention_plan import chunk_size, plan_attention
from multiflora.kernels.triton_ops.paged_attention import (
    INVARIANT_ROW_TILE,
    ROW_TILE,
    paged_attention,
)

CONTEXT = 1024


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pages:
    """Requests scattered over shuffled blocks; every cache row that holds no token is NaN."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        num_kv_heads: int = 2,
        size: int = 32,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device,
    ) -> None:
        self.block_size, self.size, self.device = block_size, size, device
        needed = [-(-length // block_size) for length in lengths]
        generator = torch.Generator().manual_seed(1)
        order = (torch.randperm(sum(needed), generator=generator) + 1).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in needed]
        shape = (sum(needed) + 1, block_size, num_kv_heads, size)
        self.k, self.v = (
            torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2)
        )
        for index, (length, table) in enumerate(zip(lengths, self.tables, strict=True)):
            positions = torch.arange(length)
            rows = torch.tensor(table)[positions // block_size] * block_size
            rows = (rows + positions % block_size).to(device)
            k, v = random(2, length, num_kv_heads, size, seed=10 + index).to(device, dtype)
            write_kv(k, v, self.k, self.v, rows)

    def attend(
        self,
        q: Tensor,
        runs: Sequence[AttentionRun],
        *,
        window: int | None = None,
        row_tile: int = ROW_TILE,
    ) -> Tensor:
        plan = plan_attention(
            runs,
            num_rows=len(q),
            block_size=self.block_size,
            window=window,
            max_context=CONTEXT,
            staging=DirectStaging(self.device),
        )
        scale = self.size**-0.5
        return paged_attention(q, self.k, self.v, plan, scale, row_tile=row_tile)

    def expected(self, q: Tensor, runs: Sequence[AttentionRun], window: int | None) -> Tensor:
        plan = torch_ops.plan_attention(
            runs,
            num_rows=len(q),
            block_size=self.block_size,
            window=window,
            max_context=CONTEXT,
            staging=DirectStaging(self.device),
        )
        return torch_ops.paged_attention(q, self.k, self.v, plan, self.size**-0.5)


def make_runs(counts: Sequence[int], lengths: Sequence[int], pages: Pages) -> list[AttentionRun]:
    """The last ``counts`` rows of requests that then have ``lengths`` tokens."""
    runs, row = [], 0
    for count, length, table in zip(counts, lengths, pages.tables, strict=True):
        runs.append(AttentionRun(row, row + count, length - count, table))
        row += count
    return runs


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size", "block_size"),
    [(2, 2, 32, 16), (4, 1, 80, 8), (7, 1, 96, 64), (8, 1, 128, 128), (20, 1, 64, 16)],
)
def test_a_mixed_step_equals_plain_attention(
    num_heads: int,
    num_kv_heads: int,
    size: int,
    block_size: int,
    window: int | None,
    device: torch.device,
) -> None:
    lengths, counts = [1, 16, 257, 300, 17, 700], [1, 16, 1, 20, 3, 1]
    pages = Pages(
        lengths, num_kv_heads=num_kv_heads, size=size, block_size=block_size, device=device
    )
    runs = make_runs(counts, lengths, pages)
    q = random(sum(counts), num_heads, size, seed=3).to(device)
    found = pages.attend(q, runs, window=window)
    torch.testing.assert_close(found, pages.expected(q, runs, window), atol=2e-6, rtol=0)


def test_half_precision_equals_plain_attention(dtype: torch.dtype, device: torch.device) -> None:
    lengths, counts = [40, 300, 520], [20, 1, 1]
    pages = Pages(lengths, size=64, dtype=dtype, device=device)
    runs = make_runs(counts, lengths, pages)
    q = random(sum(counts), 8, 64, seed=3).to(device, dtype)
    found, expected = pages.attend(q, runs), pages.expected(q, runs, None)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=unit, rtol=unit)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (3, 1), (8, 1)])
def test_decode_prefill_and_any_chunking_give_the_same_bits(
    exact_dot: None, num_heads: int, num_kv_heads: int, window: int | None, device: torch.device
) -> None:
    pages = Pages([530, 40, 600], num_kv_heads=num_kv_heads, device=device)
    q = random(530, num_heads, 32, seed=3).to(device)

    def attend(first: int, stop: int, *, neighbours: bool) -> Tensor:
        runs = [AttentionRun(0, stop - first, first, pages.tables[0])]
        rows = [q[first:stop]]
        if neighbours:
            count = stop - first
            runs.insert(0, AttentionRun(count, count + 1, 39, pages.tables[1]))
            runs.append(AttentionRun(count + 1, count + 4, 597, pages.tables[2]))
            rows.append(q[:4])
        found = pages.attend(torch.cat(rows), runs, window=window, row_tile=INVARIANT_ROW_TILE)
        return found[: stop - first]

    # About the start of a request and the ends of its first two chunks.
    for first, cut, stop in ((0, 7, 19), (250, 257, 262), (508, 511, 514)):
        whole = attend(first, stop, neighbours=False)
        chunks = [attend(first, cut, neighbours=True), attend(cut, stop, neighbours=False)]
        assert torch.equal(whole, torch.cat(chunks))
        for position in (cut - 2, cut, stop - 1):
            alone = attend(position, position + 1, neighbours=position == cut)
            assert torch.equal(alone[0], whole[position - first])


@pytest.mark.parametrize("target_programs", [1, 4, 1024])
def test_how_many_programs_share_a_row_does_not_change_bits(
    target_programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = Pages([700, 100], device=device)
    runs = make_runs([1, 1], [700, 100], pages)
    q = random(2, 4, 32, seed=3).to(device)
    expected = pages.attend(q, runs)
    launch = paged_decode.DecodeLaunch(target_programs=target_programs)
    monkeypatch.setattr(paged_decode, "DECODE", launch)
    assert torch.equal(pages.attend(q, runs), expected)


@pytest.mark.parametrize("window", [None, 600])
def test_chunks_of_long_requests_grow_rather_than_multiply(
    exact_dot: None, window: int | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_plan, "MAX_CHUNKS", 2)
    assert [chunk_size(n, None) for n in (512, 513, 1024, 1025)] == [256, 512, 512, 1024]
    pages = Pages([1100], num_kv_heads=1, device=device)
    q = random(40, 2, 32, seed=3).to(device)
    # Rows change chunk size at 512 and 1024 keys, in the middle of a tile.
    for first in (500, 1005):
        run = AttentionRun(0, 40, first, pages.tables[0])
        prefilled = pages.attend(q, [run], window=window, row_tile=INVARIANT_ROW_TILE)
        expected = pages.expected(q, [run], window)
        torch.testing.assert_close(prefilled, expected, atol=2e-6, rtol=0)
        for index in (0, 11, 12, 18, 19, 39):
            alone = AttentionRun(0, 1, first + index, pages.tables[0])
            decoded = pages.attend(q[index : index + 1], [alone], window=window)
            assert torch.equal(decoded[0], prefilled[index])


def test_a_longer_cache_and_other_requests_do_not_count(device: torch.device) -> None:
    pages = Pages([20, 30], device=device)
    q = random(1, 4, 32, seed=3).to(device)
    run = AttentionRun(0, 1, 9, pages.tables[0])
    before = pages.attend(q, [run])
    rows = [table[0] * 16 + 12 for table in pages.tables]
    for cache in (pages.k, pages.v):
        cache.flatten(0, 1)[rows] = float("inf")
    assert torch.equal(pages.attend(q, [run]), before)


class StaticStaging:
    """Places the values of every step under the same addresses of one int32 tensor."""

    is_static = True

    def __init__(self, device: torch.device, room: int = 4096) -> None:
        self.device = device
        # Garbage that would be out of bounds wherever it is read.
        self._buffer = torch.full((room,), 2**30, dtype=torch.int32, device=device)
        self._next = 0

    def begin(self) -> None:
        self._next = 0

    def place(self, values: Sequence[int], *, capacity: int | None = None) -> Tensor:
        assert capacity is None or len(values) <= capacity
        start, self._next = self._next, self._next + (capacity or len(values))
        self._buffer[start : start + len(values)] = torch.tensor(values, dtype=torch.int32)
        return self._buffer[start : self._next]


@pytest.mark.parametrize("window", [None, 300])
def test_a_captured_step_serves_later_steps_and_writes_zeros_to_padding(
    window: int | None, device: torch.device
) -> None:
    lengths = [700, 3, 256]
    pages = Pages(lengths, num_kv_heads=1, device=device)
    staging = StaticStaging(device)

    def plan(runs: Sequence[AttentionRun]) -> attention_plan.AttentionPlan:
        staging.begin()
        return plan_attention(
            runs,
            num_rows=4,
            block_size=16,
            window=window,
            staging=staging,
            max_context=CONTEXT,
        )

    q = random(4, 4, 32, seed=3).to(device)
    captured = plan([])
    runs = make_runs([1, 1, 1], lengths, pages)
    for step in (runs[:1], runs, []):
        fresh = plan(step)
        assert fresh.decode is not None
        assert captured.decode is not None
        assert fresh.decode.table.data_ptr() == captured.decode.table.data_ptr()
        assert fresh.blocks.data_ptr() == captured.blocks.data_ptr()
        assert fresh.decode.max_chunks == captured.decode.max_chunks
        found = paged_attention(q, pages.k, pages.v, captured, 32**-0.5)
        if step:
            assert torch.equal(
                found[: len(step)], pages.attend(q[: len(step)], step, window=window)
            )
        assert not found[len(step) :].any()


def test_an_eager_step_writes_zeros_to_rows_of_no_run(device: torch.device) -> None:
    pages = Pages([20, 5], device=device)
    runs = [AttentionRun(1, 4, 17, pages.tables[0]), AttentionRun(5, 6, 4, pages.tables[1])]
    found = pages.attend(random(7, 4, 32).to(device), runs)
    assert not found[[0, 4, 6]].any()
    assert bool(found[[1, 2, 3, 5]].isfinite().all())


def test_a_step_of_padding_alone_is_zero(device: torch.device) -> None:
    pages = Pages([5], device=device)
    assert not pages.attend(random(3, 4, 32, seed=3).to(device), []).any()
