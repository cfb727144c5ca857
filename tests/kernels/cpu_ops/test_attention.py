"""The core's attention: both element types, any head, and no key that a query may not see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.cpu_ops import attention, core
from multiflora.kernels.ops import AttentionRun, Ops
from multiflora.kernels.staging import DirectStaging

BLOCK = 16
pytestmark = pytest.mark.skipif(core.load_core() is None, reason="the core is not built here")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(
    ops: Ops, q: Tensor, caches: tuple[Tensor, Tensor], runs: list[AttentionRun], window: int | None
) -> Tensor:
    plan = ops.plan_attention(
        runs,
        num_rows=len(q),
        block_size=BLOCK,
        window=window,
        max_context=4096,
        staging=DirectStaging(torch.device("cpu")),
    )
    return ops.paged_attention(q, *caches, plan, q.shape[2] ** -0.5)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 200),
    new=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 6)]),
    head_dim=st.sampled_from([8, 24, 64, 72, 128]),
    window=st.sampled_from([None, 1, 17, 64]),
    dtype=st.sampled_from(core.DTYPES),
)
def test_equals_the_plain_definition(
    length: int,
    new: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    new = min(new, length)
    num_blocks = -(-length // BLOCK)
    shape = (num_blocks + 1, BLOCK, heads[1], head_dim)
    caches = (random(*shape, seed=1).to(dtype), random(*shape, seed=2).to(dtype))
    q = random(new, heads[0], head_dim, seed=3).to(dtype)
    table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(length)).tolist()
    runs = [AttentionRun(0, new, length - new, table)]
    found = attend(cpu_ops, q, caches, runs, window)
    expected = attend(torch_ops, q, caches, runs, window)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 20])
def test_what_a_query_may_not_see_is_never_read(window: int | None) -> None:
    q = random(3, 4, 32)
    caches = (random(6, BLOCK, 2, 32, seed=1), random(6, BLOCK, 2, 32, seed=2))
    runs = [AttentionRun(0, 3, 40, [4, 0, 2])]
    clean = attend(cpu_ops, q, caches, runs, window)
    for cache in caches:
        cache[[1, 3, 5]] = float("nan")
        cache[2, 43 - 32 :] = float("inf")
        if window:
            cache[4] = float("nan")
    assert torch.equal(attend(cpu_ops, q, caches, runs, window), clean)


def test_a_nan_that_is_seen_shows() -> None:
    q, caches = random(1, 2, 32), (random(1, BLOCK, 2, 32, seed=1), random(1, BLOCK, 2, 32))
    caches[0][0, 3, 1, 7] = float("nan")
    found = attend(cpu_ops, q, caches, [AttentionRun(0, 1, 9, [0])], None)
    assert torch.isfinite(found[0, 0]).all()
    assert torch.isnan(found[0, 1]).all()


def test_large_scores_do_not_overflow() -> None:
    q, caches = 1e4 * random(1, 1, 64), (1e4 * random(8, BLOCK, 1, 64), random(8, BLOCK, 1, 64))
    runs = [AttentionRun(0, 1, 8 * BLOCK - 1, list(range(8)))]
    found = attend(cpu_ops, q, caches, runs, None)
    torch.testing.assert_close(found, attend(torch_ops, q, caches, runs, None))


def test_heads_that_the_core_does_not_take_are_attended_by_torch() -> None:
    q, caches = random(2, 2, 20), (random(2, BLOCK, 1, 20, seed=1), random(2, BLOCK, 1, 20, seed=2))
    runs = [AttentionRun(0, 2, 20, [1, 0])]
    found = attend(cpu_ops, q, caches, runs, None)
    torch.testing.assert_close(found, attend(torch_ops, q, caches, runs, None))


@settings(max_examples=40, deadline=None)
@given(
    context=st.integers(0, 150),
    heads=st.sampled_from([(4, 4), (7, 1), (6, 2)]),
    head_dim=st.sampled_from([8, 64, 72]),
    window=st.sampled_from([None, 1, 40]),
    dtype=st.sampled_from(core.DTYPES),
    cut=st.integers(1, 19),
)
def test_a_row_is_the_same_bits_alone_and_among_others(
    context: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    cut: int,
) -> None:
    """Twenty rows at once, cut in two, and one by one."""
    num_rows, num_blocks = 20, 11
    shape = (num_blocks, BLOCK, heads[1], head_dim)
    caches = (random(*shape, seed=1).to(dtype), random(*shape, seed=2).to(dtype))
    q = random(num_rows, heads[0], head_dim, seed=3).to(dtype)
    table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(5)).tolist()

    def rows(start: int, stop: int) -> Tensor:
        runs = [AttentionRun(0, stop - start, context + start, table)]
        return attend(cpu_ops, q[start:stop], caches, runs, window)

    whole = rows(0, num_rows)
    assert torch.equal(torch.cat((rows(0, cut), rows(cut, num_rows))), whole)
    assert torch.equal(torch.cat([rows(row, row + 1) for row in range(num_rows)]), whole)


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 10),
    context=st.integers(0, 140),
    heads=st.sampled_from([(3, 3), (7, 1), (6, 2)]),
    head_dim=st.sampled_from([8, 24, 64]),
    window=st.sampled_from([None, 20, 70]),
    dtype=st.sampled_from(core.DTYPES),
)
def test_both_widths_give_the_same_bits(
    emulated_core: core.Core,
    avx2_core: core.Core,
    num_rows: int,
    context: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    shape = (10, BLOCK, heads[1], head_dim)
    caches = (random(*shape, seed=1).to(dtype), random(*shape, seed=2).to(dtype))
    q = random(num_rows, heads[0], head_dim, seed=3).to(dtype)
    found = []
    for width in (emulated_core, avx2_core):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "core_for", lambda dtype, width=width: width)
            runs = [AttentionRun(0, num_rows, context, list(range(9, -1, -1)))]
            found.append(attend(cpu_ops, q, caches, runs, window))
    assert torch.equal(*found)
