"""A step's integers say what its segments say, whatever the tiles."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiflora.kernels.ops import LoraFactors, LoraPart, Segment
from multiflora.kernels.staging import DirectStaging, PackedStaging, StagingOverflow
from multiflora.kernels.triton_ops.lora_plan import SHRINK_ROWS, LoraPlan, plan_lora
from multiflora.kernels.triton_ops.lora_tables import DeviceTables, float_bits

CPU = torch.device("cpu")


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Segment]]:
    """Runs of rows, each with no, one or several parents, as ``make_segments`` emits them."""
    segments, row = [], 0
    for _ in range(draw(st.integers(1, 8))):
        stop = row + draw(st.integers(1, 40))
        parents = draw(st.lists(st.integers(0, 9), max_size=3, unique=True))
        segments += [Segment(row, stop, slot, draw(st.floats(-2, 2))) for slot in parents]
        row = stop
    return row, segments


def make_plan(segments: list[Segment], num_rows: int, *, batch_invariant: bool = False) -> LoraPlan:
    return plan_lora(
        segments,
        num_rows=num_rows,
        staging=DirectStaging(CPU),
        batch_invariant=batch_invariant,
    )


@given(batches(), st.booleans())
def test_every_row_of_a_segment_is_shrunk_and_expanded_exactly_once(
    batch: tuple[int, list[Segment]], batch_invariant: bool
) -> None:
    num_rows, segments = batch
    plan = make_plan(segments, num_rows, batch_invariant=batch_invariant)
    wanted = sorted(
        (index, row) for index, s in enumerate(segments) for row in range(s.start, s.stop)
    )
    shrunk = [
        (index, row)
        for index, offset in plan.shrink_tiles.view(-1, 2).tolist()
        for row in range(
            segments[index].start + offset,
            min(segments[index].start + offset + SHRINK_ROWS, segments[index].stop),
        )
    ]
    expanded = [
        (index, row)
        for first, last, low, high in plan.expand_tiles.view(-1, 4).tolist()
        for index in range(low, high)
        for row in range(first, last)
    ]
    assert sorted(shrunk) == wanted
    assert sorted(expanded) == wanted


@given(batches())
def test_the_range_of_a_tile_covers_all_segments_that_touch_it(
    batch: tuple[int, list[Segment]],
) -> None:
    num_rows, segments = batch
    plan = make_plan(segments, num_rows)
    for tile, (low, high) in enumerate(plan.tiles.view(-1, 2).tolist()):
        rows = range(tile * plan.row_tile, (tile + 1) * plan.row_tile)
        touching = {
            i for i, s in enumerate(segments) if s.start < rows.stop and s.stop > rows.start
        }
        assert touching <= set(range(low, high))


@given(batches())
def test_shrunk_rows_of_segments_never_overlap(batch: tuple[int, list[Segment]]) -> None:
    num_rows, segments = batch
    plan = make_plan(segments, num_rows)
    taken: set[int] = set()
    for slot, start, stop, first, weight in plan.segments.view(-1, 5).tolist():
        rows = set(range(first, first + stop - start))
        assert not rows & taken
        taken |= rows
        index = len(taken)
        assert index <= plan.num_shrunk_rows
        assert slot in {s.slot for s in segments}
        assert struct.unpack("<f", struct.pack("<i", weight))[0] == pytest.approx(
            next(s.weight for s in segments if (s.start, s.slot) == (start, slot))
        )


def test_a_static_plan_has_the_same_places_and_grids_for_any_step_of_its_size() -> None:
    staging = PackedStaging(CPU, 4096, is_static=True)
    plans = []
    for segments in ([], [Segment(0, 1, 3)], [Segment(i, i + 1, i) for i in range(8)]):
        staging.begin()
        plan = plan_lora(segments, num_rows=8, staging=staging, batch_invariant=True)
        staging.commit()
        plans.append(plan)
    places = [(p.segments.data_ptr(), p.tiles.data_ptr(), p.shrink_tiles.data_ptr()) for p in plans]
    grids = [(p.num_shrink_tiles, p.num_expand_tiles, p.num_shrunk_rows) for p in plans]
    assert len(set(places)) == len(set(grids)) == 1
    assert plans[1].shrink_tiles.view(-1, 2)[8:, 0].eq(-1).all()


def test_a_step_that_a_static_plan_cannot_hold_is_refused() -> None:
    staging = PackedStaging(CPU, 4096, is_static=True)
    wide_blend = [Segment(0, 4, slot) for slot in range(3)]
    with pytest.raises(StagingOverflow, match="12 rows of blends"):
        plan_lora(wide_blend, num_rows=4, staging=staging, batch_invariant=True)


def test_the_way_of_the_expand_never_depends_on_neighbours_in_batch_invariant_mode() -> None:
    many = [Segment(i, i + 1, i) for i in range(16)]
    assert not make_plan(many, 16).in_epilogue
    assert make_plan(many[:2], 16).in_epilogue
    assert make_plan(many, 16, batch_invariant=True).in_epilogue


def make_factors(rank: int, dtype: torch.dtype = torch.float16) -> LoraFactors:
    return LoraFactors(
        torch.ones(rank, 64, dtype=dtype),
        (LoraPart(torch.ones(rank, 32, dtype=dtype), 0, 64, 0.75),),
    )


def test_an_entry_holds_addresses_ranks_and_scales_of_its_slices() -> None:
    tables = DeviceTables([(64, 32), (128,)], CPU)
    factors = make_factors(5)
    tables.write(3, {0: factors})
    entry = tables.projection(0).entries[3].tolist()
    assert entry[:2] == [factors.a.data_ptr(), 5]
    assert entry[2:5] == [0, factors.parts[0].b.data_ptr(), 0]
    assert entry[5:8] == [0, 5, 0]
    assert entry[11:14] == [0, float_bits(0.75), 0]
    assert not tables.projection(1).entries[3].any()
    assert tables.projection(0).slice_starts() == (64, 96)


def test_cleared_and_overwritten_slots_leave_nothing_behind() -> None:
    tables = DeviceTables([(64, 32), (128,)], CPU)
    tables.write(0, {0: make_factors(5)})
    tables.write(0, {1: LoraFactors(torch.ones(2, 64), (LoraPart(torch.ones(2, 128), 0, 0, 1.0),))})
    assert not tables.projection(0).entries[0].any()
    tables.clear(0)
    assert not tables.entries.any()


def test_tables_grow_without_losing_a_slot_and_say_that_they_moved() -> None:
    tables = DeviceTables([(64, 32)], CPU)
    tables.write(1, {0: make_factors(4)})
    before, generation = tables.entries[1].clone(), tables.generation
    projection = tables.projection(0)
    tables.write(3000, {0: make_factors(8)})
    assert tables.generation != generation
    assert torch.equal(tables.entries[1], before)
    assert int(projection.entries[3000, 1]) == 8
