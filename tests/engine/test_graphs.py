"""Captured decode steps give the tokens of uncaptured ones, whatever comes and goes meanwhile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiflora.engine.graphs import StepGraphs, eager_capacity, row_counts, static_capacity
from multiflora.engine.request import AdapterShare, GenerationRequest
from multiflora.kernels.staging import PackedStaging, StagingOverflow
from multiflora.kernels.triton_ops.interpreter import INTERPRETED

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter only")
BLOCKS = 32


class Recorded:
    """What a CUDA graph does, without one: the same call on the same tensors."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self._step = step

    def replay(self) -> Tensor:
        return self._step()


def make_graphs(loop, *, max_rows: int = 4) -> StepGraphs:
    runner = loop._runner
    return StepGraphs(
        runner._builder,
        runner.forward,
        loop._residency.tables,
        max_rows=max_rows,
        max_blocks=BLOCKS,
        device=CPU,
        capture=Recorded,
    )


def requests(bench, names: list[str | None], max_tokens: int = 3) -> list[GenerationRequest]:
    return [
        bench.request(name, range(5, 9 + index), max_tokens=max_tokens)
        for index, name in enumerate(names)
    ]


NAMES = [None, "rank-3", "rank-16-patterns"]


@interpreted
def test_the_triton_engine_answers_as_the_cpu_engine_captured_or_not(make_bench) -> None:
    answers = []
    for kernels, captured in (("cpu", False), ("triton", False), ("triton", True)):
        bench = make_bench("llama", kernels=kernels)
        if captured:
            bench.loop._runner.graphs = make_graphs(bench.loop)
        bench.run(requests(bench, NAMES))
        answers.append(bench.answers)
        graphs = bench.loop._runner.graphs
        assert (graphs.num_captured > 0) if captured else graphs is None
    assert answers[0] == answers[1] == answers[2]


@interpreted
def test_swaps_blends_and_padding_need_no_new_capture(make_bench) -> None:
    bench = make_bench("llama", kernels="triton")
    graphs = bench.loop._runner.graphs = make_graphs(bench.loop)
    bench.run(requests(bench, ["rank-1"], 2))
    captured = graphs.num_captured
    blend = GenerationRequest(
        id="blend",
        prompt=(5, 6, 7),
        sampling=requests(bench, [None], 2)[0].sampling,
        adapters=tuple(AdapterShare(bench.digests[name], 0.5) for name in ("rank-3", "rank-1")),
    )
    bench.run([blend, *requests(bench, ["rank-40-down"], 2)])
    assert graphs.num_captured == captured + 1, "one more size"
    plain = make_bench("llama")
    plain.run([blend, *requests(plain, ["rank-40-down"], 2)])
    assert {name: bench.answers[name] for name in plain.answers} == plain.answers


@interpreted
def test_tables_that_moved_void_all_captured_steps(make_bench) -> None:
    bench = make_bench("llama", kernels="triton")
    graphs = bench.loop._runner.graphs = make_graphs(bench.loop, max_rows=1)
    bench.run(requests(bench, ["rank-1"], 2))
    bench.loop._residency.tables.write(500, {})
    bench.reasons.clear()
    bench.run(requests(bench, [None], 2))
    assert graphs.num_captured == 1


@interpreted
def test_warm_up_captures_every_size_with_and_without_adapters_and_writes_no_cache(
    make_bench,
) -> None:
    bench = make_bench("llama", kernels="triton")
    graphs = make_graphs(bench.loop, max_rows=2)
    graphs.warm_up()
    assert graphs.num_captured == 2 * 2
    for keys, values in bench.loop._runner._caches:
        assert not keys.any()
        assert not values.any()


def test_sizes_end_at_the_most_requests_of_a_step() -> None:
    assert row_counts(1) == (1,)
    assert row_counts(20) == (1, 2, 4, 8, 16, 20)
    assert row_counts(64)[-1] == 64
    assert row_counts(1000)[-1] == 256


def test_a_static_staging_gives_the_same_places_each_step_and_one_copy() -> None:
    staging = PackedStaging(CPU, 256, is_static=True)
    places = []
    for values in ([1, 2, 3], [4]):
        staging.begin()
        first, second = staging.place(values, capacity=3), staging.place([7])
        staging.commit()
        places.append((first.data_ptr(), second.data_ptr()))
        assert first[: len(values)].tolist() == values
        assert second.tolist() == [7]
    assert places[0] == places[1]


def test_what_does_not_fit_a_staging_is_refused() -> None:
    staging = PackedStaging(CPU, 64, is_static=True)
    staging.begin()
    with pytest.raises(StagingOverflow):
        staging.place([1, 2, 3], capacity=2)
    staging.place([0] * 60)
    with pytest.raises(StagingOverflow):
        staging.place([0] * 8)


@pytest.mark.parametrize("rows", [1, 7, 64, 256])
def test_capacities_leave_room_for_the_block_tables_of_every_row(rows: int) -> None:
    assert static_capacity(rows, 1000, windows=2) > 2 * rows * 1000
    assert eager_capacity(512, rows, 1000, windows=1) > rows * 1000 + 5 * 512
