"""Launch parameters follow from shapes alone."""

from hypothesis import given
from hypothesis import strategies as st

from multiflora.kernels.triton_ops.tiling import num_slabs, row_tile, split_k, tile_matmul

SHAPES = st.tuples(st.integers(1, 1000), st.integers(1, 300), st.sampled_from([60, 108, 132, 144]))


@given(SHAPES)
def test_a_split_leaves_every_share_a_group_and_fills_the_device_if_it_can(
    shape: tuple[int, int, int],
) -> None:
    blocks, groups, multiprocessors = shape
    split = split_k(blocks, groups, multiprocessors)
    assert 1 <= split <= min(8, groups)
    if split < 8 and 2 * split <= groups:
        assert blocks * split >= 2 * multiprocessors
    if split > 1:
        assert blocks * (split // 2) < 2 * multiprocessors


@given(SHAPES, st.integers(1, 2000))
def test_in_batch_invariant_mode_the_sum_of_a_row_is_cut_the_same_for_any_number_of_rows(
    shape: tuple[int, int, int], num_rows: int
) -> None:
    one, many = (tile_matmul(rows, *shape, batch_invariant=True) for rows in (1, num_rows))
    assert one.split == many.split
    # Tiles of 64 rows compile to another instruction on Hopper.
    assert many.rows in (16, 32)


def test_the_splits_of_an_8b_model_on_an_h100_are_the_designed_ones() -> None:
    widths = {4096: 8, 6144: 8, 28672: 2}
    assert {n: split_k(n // 128, 64, 132) for n in widths} == widths


def test_rows_and_slabs_grow_with_their_shape() -> None:
    assert [row_tile(m, batch_invariant=False) for m in (1, 16, 17, 32, 33, 256)] == [
        16, 16, 32, 32, 64, 64,
    ]  # fmt: skip
    assert [num_slabs(k) for k in (64, 512, 896, 4096, 14336)] == [1, 1, 1, 8, 8]
