"""All matrices of a file in one call: the values torch reads, wherever and however they lie."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, bfloat16, float16, float32

from multiflora.kernels import matrix_copy
from multiflora.kernels.matrix_copy import MatrixCopies, MatrixCopy, values_at

TARGETS = (float32, bfloat16, float16)
_SIZES = st.integers(1, 21)


@st.composite
def matrices(draw: st.DrawFn) -> list[tuple[int, int, torch.dtype, bool, int]]:
    """Rows, columns, type, whether transposed, and bytes left free before it."""
    kinds = st.sampled_from((float32, bfloat16, float16))
    one = st.tuples(_SIZES, _SIZES, kinds, st.booleans(), st.integers(0, 5))
    return draw(st.lists(one, min_size=1, max_size=6))


def lay_out(
    wanted: Sequence[tuple[int, int, torch.dtype, bool, int]],
) -> tuple[list[MatrixCopy], Tensor, list[Tensor]]:
    """Copies, the file that they read, and each matrix as it is to be found in the target."""
    generator = torch.Generator().manual_seed(0)
    copies, file, expected = [], torch.zeros(0, dtype=torch.uint8), []
    target = 0
    for rows, columns, dtype, is_transposed, gap in wanted:
        values = torch.randn(rows, columns, generator=generator).to(dtype)
        stored = values.T.contiguous() if is_transposed else values
        file = torch.cat((file, torch.full((gap,), 255, dtype=torch.uint8)))
        copies.append(MatrixCopy(len(file), target, rows, columns, dtype, is_transposed))
        file = torch.cat((file, stored.view(-1).view(torch.uint8)))
        expected.append(values)
        target += rows * columns + 3
    return copies, file, expected


@pytest.mark.parametrize("dtype", TARGETS)
@given(wanted=matrices())
def test_every_matrix_is_what_torch_copies(
    dtype: torch.dtype, wanted: list[tuple[int, int, torch.dtype, bool, int]]
) -> None:
    copies, file, expected = lay_out(wanted)
    target = torch.full((copies[-1].target_stop + 3,), 7.0, dtype=dtype)
    MatrixCopies(copies).run(file, target)
    for copy, values in zip(copies, expected, strict=True):
        found = target[copy.target : copy.target_stop].view(values.shape)
        assert torch.equal(found, values.to(dtype))
        # What lies between two matrices stays as it was.
        assert (target[copy.target_stop : copy.target_stop + 3] == 7).all()


@given(wanted=matrices())
def test_torch_does_the_same_where_there_is_no_core(
    wanted: list[tuple[int, int, torch.dtype, bool, int]],
) -> None:
    copies, file, _ = lay_out(wanted)
    target, other = torch.zeros(2, copies[-1].target_stop, dtype=bfloat16)
    MatrixCopies(copies).run(file, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_copy, "load_core", lambda: None)
        MatrixCopies(copies).run(file, other)
    assert torch.equal(target, other)


@pytest.mark.parametrize("dtype", [float32, bfloat16])
def test_values_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    """Ties, overflow to infinity, subnormal numbers of each type, and NaN wherever it was."""
    edges = (1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40, -3e-6, 65504, -0.0, -math.inf, math.nan)
    values = torch.tensor(edges * 3)
    for stored in (values, values.half(), values.bfloat16()):
        target = torch.zeros(len(values), dtype=dtype)
        copies = MatrixCopies([MatrixCopy(0, 0, 3, len(edges), stored.dtype)])
        copies.run(stored.view(torch.uint8), target)
        assert torch.equal(target.nan_to_num(1e9), stored.to(dtype).nan_to_num(1e9))
        assert torch.equal(target.isnan(), stored.isnan())


@pytest.mark.parametrize("lacks", ["a byte", "an element"])
def test_nothing_is_read_or_written_beyond_the_end(lacks: str) -> None:
    copies, file, _ = lay_out([(4, 5, bfloat16, False, 0), (8, 8, float32, True, 2)])
    target = torch.zeros(copies[-1].target_stop)
    short = (file[:-1], target) if lacks == "a byte" else (file, target[:-1])
    with pytest.raises(ValueError, match="are copied, not"):
        MatrixCopies(copies).run(*short)
    assert not target.any()


@pytest.mark.parametrize("place", [(-1, 0), (0, -1)])
def test_nothing_is_read_or_written_before_the_start(place: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="before the start"):
        MatrixCopies([MatrixCopy(*place, 1, 1, float32)])


def test_a_type_that_no_adapter_has_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        MatrixCopies([MatrixCopy(0, 0, 1, 1, torch.float64)])


def test_every_float16_there_is_becomes_its_float32() -> None:
    stored = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(float16)
    target = torch.zeros(len(stored))
    MatrixCopies([MatrixCopy(0, 0, 1, len(stored), float16)]).run(stored.view(torch.uint8), target)
    expected = stored.float()
    assert torch.equal(target.isnan(), expected.isnan())
    assert torch.equal(target.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(target.signbit(), expected.signbit())


def test_nothing_to_copy_is_nothing() -> None:
    MatrixCopies([]).run(torch.zeros(0, dtype=torch.uint8), torch.zeros(0))


@pytest.mark.parametrize("start", range(5))
def test_values_are_found_at_any_byte(start: int) -> None:
    values = torch.randn(3, 4)
    data = torch.cat((torch.zeros(start, dtype=torch.uint8), values.view(-1).view(torch.uint8)))
    assert torch.equal(values_at(data, start, float32, (3, 4)), values)
    assert values_at(data, start, float32, ()) == values[0, 0]
