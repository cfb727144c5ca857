"""A whole decode step of a random model: tokens per second beside the roofline of its bytes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernels.random_weights import random_base, random_factors
from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.forward_batch import BatchBuilder
from multiflora.engine.graphs import CudaCapture, StepGraphs, eager_capacity
from multiflora.engine.kv_arena import KvArena
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.decoder import Decoder
from multiflora.engine.models.rope import rope_tables
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams
from multiflora.engine.runner import Runner
from multiflora.engine.scheduler import ScheduledRequest, StepPlan
from multiflora.kernels.ops import LoraFactors, RopeTable
from multiflora.kernels.staging import PackedStaging
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps

BLOCK_SIZE = 16
RANK = 16


@dataclass(frozen=True, slots=True)
class StepRun:
    """Batch sizes and numbers of distinct adapters at one context length."""

    model: ModelConfig
    context: int
    batches: Sequence[int]
    adapter_counts: Sequence[int]
    batch_invariant: bool
    dtype: torch.dtype
    device: torch.device
    steps: int = 30


class Bench:
    """A runner over random weights, with as many resident adapters as any case needs."""

    def __init__(self, run: StepRun) -> None:
        self.run = run
        model, device = run.model, run.device
        ops = TritonOps(Accelerator.open(device), batch_invariant=run.batch_invariant)
        projections = model.projections()
        widths = [[target.out_features for target in p.slices] for p in projections]
        tables = ops.make_lora_tables([*widths, [model.vocab_size]], device)
        self.adapter_bytes = 0
        for slot in range(max(run.adapter_counts)):
            factors = {
                index: random_factors(
                    slices, projections[index].in_features, RANK, run.dtype, device
                )
                for index, slices in enumerate(widths)
            }
            tables.write(slot, factors)
            self.adapter_bytes = sum(map(_num_bytes, factors.values()))
        weights = random_base(model, run.dtype, device)
        head = weights.head.num_bytes
        self.linear_bytes = weights.num_bytes - head - weights.embedding.nbytes
        self.head_bytes = head
        self._blocks = -(-run.context // BLOCK_SIZE)
        most = max(run.batches)
        arena = KvArena(model, most * self._blocks, BLOCK_SIZE, dtype=run.dtype, device=device)
        arena.pages.normal_()
        cos, sin = rope_tables(
            model.rope,
            head_dim=model.head_dim,
            max_len=model.max_position,
            max_position=model.max_position,
        )
        builder = BatchBuilder(
            ops,
            rope=RopeTable(cos.to(device), sin.to(device)),
            block_size=BLOCK_SIZE,
            pages_per_block=arena.pages_per_block,
            windows=model.windows or (None,),
            slot_of=lambda digest: int(digest),
        )
        capacity = eager_capacity(most, most, self._blocks, windows=1)
        self.runner = Runner(
            Decoder(model, weights, ops, tables),
            builder,
            arena,
            PackedStaging(device, capacity, is_static=False),
            zeroes_blocks=False,
        )
        if device.type == "cuda":
            self.runner.graphs = StepGraphs(
                builder,
                self.runner.forward,
                tables,
                max_rows=most,
                max_blocks=self._blocks,
                device=device,
                capture=CudaCapture(),
            )

    def plan(self, batch: int, adapters: int) -> StepPlan:
        """One row per request at the last position, adapters in runs as the scheduler orders."""
        items = []
        for index in range(batch):
            slot = index * adapters // batch
            request = ActiveRequest(
                GenerationRequest(
                    id=str(index),
                    prompt=tuple(range(1, self.run.context + 1)),
                    sampling=SamplingParams(max_tokens=1, temperature=0),
                    adapters=(AdapterShare(str(slot)),) if adapters else (),
                ),
                0,
            )
            first = index * self._blocks
            request.blocks = list(range(first, first + self._blocks))
            items.append(ScheduledRequest(request, self.run.context - 1, 1, samples=True))
        return StepPlan(items=tuple(items), fresh_blocks=())

    def kv_bytes(self, batch: int) -> int:
        model = self.run.model
        return 2 * 2 * model.num_layers * model.kv_size * self.run.context * batch


def measure(run: StepRun, bytes_per_second: float) -> Iterator[dict[str, Any]]:
    """Per batch and number of adapters: seconds of a whole step, sampling and host included."""
    bench = Bench(run)
    for batch in run.batches:
        for adapters in (0, *(count for count in run.adapter_counts if count <= batch)):
            seconds = _step_seconds(bench, bench.plan(batch, adapters))
            moved = bench.linear_bytes + bench.head_bytes + bench.kv_bytes(batch)
            roofline = (moved + adapters * bench.adapter_bytes) / bytes_per_second
            yield {
                "batch": batch,
                "adapters": adapters,
                "context": run.context,
                "batch_invariant": run.batch_invariant,
                "step_ms": round(seconds * 1e3, 4),
                "tokens_per_s": round(batch / seconds, 1),
                "byte_roofline_ms": round(roofline * 1e3, 4),
                "step_over_roofline": round(seconds / roofline, 3),
            }


def _step_seconds(bench: Bench, plan: StepPlan) -> float:
    """Median wall time of a step: build, copy, forward, draw, tokens on the host."""
    for _ in range(3 if bench.run.steps > 3 else 1):
        bench.runner.run(plan)
    seconds = []
    for _ in range(bench.run.steps):
        started = time.perf_counter()
        bench.runner.run(plan)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


def _num_bytes(factors: LoraFactors) -> int:
    elements = factors.a.numel() + sum(part.b.numel() for part in factors.parts)
    return elements * factors.a.element_size()
