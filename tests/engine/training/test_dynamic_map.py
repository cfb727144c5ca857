"""The 8-bit data type against bitsandbytes, and what it promises for every block."""

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.dynamic_map import DynamicMap
from multiflora.engine.training.optimizer_size import BLOCK

CPU = torch.device("cpu")
SIGNED, UNSIGNED = DynamicMap.signed(CPU), DynamicMap.unsigned(CPU)


@pytest.mark.parametrize(("ours", "is_signed"), [(SIGNED, True), (UNSIGNED, False)])
def test_codes_are_those_of_bitsandbytes(ours: DynamicMap, is_signed: bool) -> None:
    torch.testing.assert_close(ours.codes, create_dynamic_map(is_signed), rtol=1e-6, atol=0)


def test_a_number_becomes_the_nearest_code_and_no_farther_one_than_in_bitsandbytes() -> None:
    values = torch.randn(9 * BLOCK, generator=torch.Generator().manual_seed(0)) ** 5
    codes, largest = SIGNED.encode(values)
    scaled = values / largest.repeat_interleave(BLOCK)
    distances = (SIGNED.codes[:, None] - scaled).abs()
    assert torch.equal(SIGNED.codes[codes.long()], SIGNED.codes[distances.argmin(0)])
    theirs, state = quantize_blockwise(values, code=SIGNED.codes, blocksize=BLOCK)
    assert torch.equal(largest, state.absmax)
    torch.testing.assert_close(
        SIGNED.decode(theirs, largest), dequantize_blockwise(theirs, state), rtol=0, atol=0
    )
    # Its table of codes on a CPU is coarse near zero.
    assert (
        distances[codes.long(), range(9 * BLOCK)] <= distances[theirs.long(), range(9 * BLOCK)]
    ).all()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=BLOCK))
def test_a_code_is_found_as_by_a_search(numbers: list[float]) -> None:
    values = torch.zeros(BLOCK)
    values[: len(numbers)] = torch.tensor(numbers)
    values[-1] = 1.0
    for each, scaled in ((SIGNED, values), (UNSIGNED, values.abs())):
        codes, _ = each.encode(scaled)
        assert torch.equal(codes.long(), torch.bucketize(scaled, each.bounds))


@given(st.lists(st.floats(-36, 30), min_size=1, max_size=BLOCK))
def test_nothing_positive_becomes_zero_and_nothing_moves_far(exponents: list[float]) -> None:
    values = torch.zeros(BLOCK)
    values[: len(exponents)] = 10 ** torch.tensor(exponents)
    decoded = UNSIGNED.decode(*UNSIGNED.encode(values))
    largest = float(values.max())
    # What underflows against a large neighbour has no code above 0.
    is_seen = values > largest * 1e-30
    assert (decoded[is_seen] > 0).all()
    assert not decoded[values == 0].any()
    # The lowest of seven decades has two codes, every next one twice as many.
    is_large = values > largest * 1e-6
    assert ((decoded - values).abs()[is_large] <= 0.5 * values[is_large]).all()
    assert float(decoded.max()) == pytest.approx(largest, rel=1e-6)


def test_zeros_and_largest_values_are_kept() -> None:
    values = torch.zeros(3 * BLOCK)
    values[3], values[BLOCK + 5] = -2.5, 7.0
    decoded = SIGNED.decode(*SIGNED.encode(values))
    assert torch.equal(decoded.nonzero(), values.nonzero())
    assert float(decoded[BLOCK + 5]) == 7.0
    assert float(decoded[3]) == pytest.approx(-2.5, rel=1e-2)
