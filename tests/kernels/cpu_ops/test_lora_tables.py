"""The core's view of the adapter tables follows every write, and slots grow as they are needed."""

import pytest
import torch

from multiflora.kernels.cpu_ops.lora_tables import CpuTables, plan_lora
from multiflora.kernels.ops import LoraFactors, LoraPart, Segment
from multiflora.kernels.staging import DirectStaging


def factors(rank: int, dtype: torch.dtype = torch.float32) -> LoraFactors:
    part = LoraPart(torch.ones(rank, 8, dtype=dtype), 0, 4, 0.5)
    return LoraFactors(torch.ones(rank, 16, dtype=dtype), (part,))


def test_a_write_fills_one_slot_of_every_projection() -> None:
    tables = CpuTables(3)
    held = factors(5)
    tables.write(2, {1: held})
    assert [len(tables.projection(i).factors) for i in range(3)] == [3, 3, 3]
    assert tables.projection(0).factors == [None, None, None]
    table = tables.projection(1)
    assert table.factors[2] is held
    record = table.versions[2]
    assert (record.a, record.num_ranks, record.num_parts) == (held.a.data_ptr(), 5, 1)
    part = record.parts[0]
    assert (part.rank, part.first_rank, part.first_column, part.width) == (5, 0, 4, 8)
    assert (part.b, part.scale) == (held.parts[0].b.data_ptr(), 0.5)
    assert [version.num_ranks for version in table.versions] == [0, 0, 5]


def test_growing_keeps_what_lower_slots_hold() -> None:
    tables = CpuTables(1)
    table = tables.projection(0)
    for slot in (0, 1, 7, 3):
        tables.write(slot, {0: factors(slot + 1)})
    assert [version.num_ranks for version in table.versions] == [1, 2, 0, 4, 0, 0, 0, 8]
    assert all(bool(version.parts) == bool(version.num_ranks) for version in table.versions)


def test_a_cleared_slot_adds_nothing() -> None:
    tables = CpuTables(1)
    tables.write(0, {0: factors(4)})
    tables.clear(0)
    assert tables.projection(0).factors == [None]
    assert tables.projection(0).versions[0].num_ranks == 0


def test_factors_that_the_core_cannot_read_stay_out_of_its_table() -> None:
    tables = CpuTables(1)
    tables.write(0, {0: factors(4, torch.float16)})
    assert tables.projection(0).dtype == torch.float16
    assert tables.projection(0).versions[0].num_ranks == 0
    with pytest.raises(AssertionError, match=r"float16 and torch\.float32"):
        tables.write(1, {0: factors(4)})


def test_a_plan_holds_the_segments_in_order() -> None:
    segments = (Segment(0, 2, 1), Segment(0, 2, 3, -0.5), Segment(4, 5, 0))
    plan = plan_lora(segments, num_rows=5, staging=DirectStaging(torch.device("cpu")))
    assert plan.segments == segments
    found = [(record.start, record.stop, record.slot, record.weight) for record in plan.records]
    assert found == [(0, 2, 1, 1.0), (0, 2, 3, -0.5), (4, 5, 0, 1.0)]
