"""Captured decode steps give the tokens of uncaptured ones, whatever comes and goes meanwhile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiflora.engine.graphs import (
    CaptureFailed,
    StepGraphs,
    eager_capacity,
    row_counts,
    static_capacity,
    uncaptured_row_counts,
)
from multiflora.engine.request import AdapterShare, GenerationRequest
from multiflora.kernels.staging import PackedStaging, StagingOverflow
from multiflora.kernels.triton_ops.interpreter import INTERPRETED

from .peft_extras import Extras

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter only")
BLOCKS = 32


class Recorder:
    """Records calls as ``CudaCapture`` does; ``fails`` as a device may."""

    def __init__(self) -> None:
        self.num_resets = 0
        self.fails = False

    def __call__(self, step: Callable[[], Tensor]) -> "Recorded":
        if self.fails:
            raise CaptureFailed("the driver says no")
        return Recorded(step)

    def reset(self) -> None:
        self.num_resets += 1


class Recorded:
    """What a CUDA graph does, without one: the same call on the same tensors."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self._step = step

    def replay(self) -> Tensor:
        return self._step()


def make_graphs(loop, *, max_rows: int = 4, recorder: Recorder | None = None) -> StepGraphs:
    runner = loop._runner
    return StepGraphs(
        runner._builder,
        runner.forward,
        loop._residency.tables,
        max_rows=max_rows,
        max_blocks=BLOCKS,
        device=CPU,
        capture=recorder or Recorder(),
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
    # All are resident from here on, so that both requests of a pair decode together.
    for name in ("rank-1", "rank-3", "rank-40-down"):
        bench.run([bench.request(name, range(5, 9), id=f"alone-{name}", max_tokens=2)])
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
@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_steps_with_adjusted_rows_are_never_captured(
    extras: Callable[[str], Extras], make_bench
) -> None:
    model, adapters = extras("biased")
    chosen = {name: adapters[name] for name in ("bias-dora", "head-embedding")}
    benches = [
        make_bench(kernels=kernels, model=model, adapters=chosen) for kernels in ("triton", "cpu")
    ]
    graphs = benches[0].loop._runner.graphs = make_graphs(benches[0].loop)
    for bench in benches:
        bench.run(requests(bench, [*chosen], 2))
    assert graphs.num_captured == 0
    for bench in benches:
        bench.run([bench.request(None, range(5, 8), max_tokens=2)])
    assert graphs.num_captured == 1, "the base alone is captured beside resident versions"
    assert benches[0].answers == benches[1].answers


@interpreted
def test_tables_that_moved_void_all_captured_steps(make_bench) -> None:
    bench = make_bench("llama", kernels="triton")
    recorder = Recorder()
    graphs = bench.loop._runner.graphs = make_graphs(bench.loop, max_rows=1, recorder=recorder)
    bench.run(requests(bench, ["rank-1"], 2))
    bench.loop._residency.tables.write(5000, {})
    bench.reasons.clear()
    bench.run(requests(bench, [None], 2))
    assert graphs.num_captured == 1
    assert recorder.num_resets == 1


@interpreted
def test_after_a_failed_capture_steps_run_uncaptured_for_good(make_bench, caplog) -> None:
    bench = make_bench("llama", kernels="triton")
    recorder = Recorder()
    graphs = bench.loop._runner.graphs = make_graphs(bench.loop, max_rows=1, recorder=recorder)
    recorder.fails = True
    bench.run(requests(bench, ["rank-1"], 3))
    assert len(bench.answers["rank-1-4"]) == 3
    assert caplog.text.count("no step is captured any more") == 1
    assert graphs.num_captured == 0


@interpreted
def test_warm_up_captures_every_size_and_kind_of_step_and_writes_no_cache(
    make_bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multiflora.kernels.triton_ops import lora_plan

    monkeypatch.setattr(lora_plan, "_LONGEST_WALK", 1)
    bench = make_bench("llama", kernels="triton")
    graphs = make_graphs(bench.loop, max_rows=2)
    graphs.warm_up()
    # One row has no other kind than one version and none.
    assert graphs.num_captured == 2 + 3
    bench.loop._runner.warm_up((3,))
    assert not bench.loop._runner._arena.pages.any()


def test_sizes_end_at_the_most_requests_of_a_step() -> None:
    assert row_counts(1) == (1,)
    assert row_counts(20) == (1, 2, 4, 8, 16, 20)
    assert row_counts(64)[-1] == 64
    assert row_counts(1000)[-1] == 256
    assert uncaptured_row_counts(100) == (16, 32, 64)


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
