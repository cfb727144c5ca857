"""Builds an engine from its settings: the one composition root."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from multiflora.adapters.loader import Loader
from multiflora.adapters.residency import Residency
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.transfer import make_transfer
from multiflora.adapters.version_reader import VersionReader
from multiflora.kernels.choose import KernelsUnavailable, choose_ops
from multiflora.kernels.cpu_ops import has_fast_bfloat16
from multiflora.kernels.ops import Ops, RopeTable
from multiflora.kernels.staging import DirectStaging, PackedStaging

from .background import Background, NoTraining
from .config import EngineConfig
from .constraint_desk import ConstraintDesk
from .errors import NotEnoughMemory, StartupError
from .forward_batch import BatchBuilder
from .graphs import CudaCapture, StepGraphs, eager_capacity, uncaptured_row_counts
from .kv_arena import KvArena
from .kv_blocks import BlockPool
from .kv_lender import KvLender
from .loop import EngineLoop
from .machine import Machine
from .memory_plan import MemoryPlan, plan_memory, resolve_dtype
from .messages import Progress, Report
from .models.base_rows import BaseRows
from .models.config import ModelConfig
from .models.decoder import Decoder
from .models.load import load_base
from .models.registry import load_model_config
from .models.rope import rope_tables
from .models.source import resolve_model
from .models.weights import BaseWeights
from .request import EngineInfo
from .runner import Runner
from .scheduler import Scheduler
from .training.desk import TrainingDesk
from .training.heap import keep_freed_memory
from .training.job_run import Workplace
from .training.memory_budget import MemoryBudget
from .training.network import TrainingNetwork


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an engine runs and in what form."""

    device: torch.device
    dtype: torch.dtype
    ops: Ops


def build_engine(config: EngineConfig, report: Callable[[Report], None]) -> EngineLoop:
    """Load the base and connect everything. Raises ``StartupError``."""
    started = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = resolve_model(config.base.model, config.base.revision)
    model = load_model_config(folder)
    place = _choose_place(config, model)
    plan = _plan_memory(config, model, place, folder)
    weights = load_base(
        folder,
        model,
        config.base,
        ops=place.ops,
        dtype=place.dtype,
        device=place.device,
        cache_dir=Path(config.data_dir) / "prepared",
        progress=lambda stage, fraction: report(Progress(stage, fraction)),
    )
    return _connect(config, model, place, plan, weights, folder, report, started)


def _choose_place(config: EngineConfig, model: ModelConfig) -> _Place:
    device = torch.device(_device_type(config))
    config = replace(config, device=device.type)
    dtype = getattr(torch, resolve_dtype(config, model, has_fast_bfloat16=has_fast_bfloat16()))
    try:
        ops = choose_ops(config.kernels, device, dtype, batch_invariant=config.batch_invariant)
    except KernelsUnavailable as error:
        raise StartupError(str(error)) from error
    return _Place(device, dtype, ops)


def _device_type(config: EngineConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise StartupError("--device cuda: torch finds no CUDA device; use --device cpu")
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _plan_memory(
    config: EngineConfig, model: ModelConfig, place: _Place, folder: Path
) -> MemoryPlan:
    available = torch.cuda.mem_get_info()[0] if place.device.type == "cuda" else None
    return plan_memory(
        config,
        model,
        checkpoint=folder,
        available_bytes=available,
        dtype=str(place.dtype).removeprefix("torch."),
        narrow_tables=place.ops.table_dtype(torch.bfloat16, place.dtype) != place.dtype,
    )


def _connect(
    config: EngineConfig,
    model: ModelConfig,
    place: _Place,
    plan: MemoryPlan,
    weights: BaseWeights,
    folder: Path,
    report: Callable[[Report], None],
    started: float,
) -> EngineLoop:
    projections = model.adapter_projections()
    # All but the embedding, which is looked up and not multiplied with.
    widths = [[target.out_features for target in p.slices] for p in projections[:-1]]
    tables = place.ops.make_lora_tables(widths, place.device)
    transfer = make_transfer(place.device)
    reader = VersionReader(
        AdapterStore(Path(config.data_dir)),
        projections,
        dtype=place.dtype,
        max_rank=tables.max_rank,
        is_pinned=not transfer.shares_memory,
        base=BaseRows(weights, place.ops),
    )
    pool = BlockPool(
        plan.num_kv_blocks, config.cache.block_size, prefix_caching=config.cache.prefix_caching
    )
    arena = _allocate_cache(config, model, place, plan)
    rope = _rope(model, place, plan)
    residency = Residency(
        Loader(reader),
        tables,
        transfer,
        device_bytes=plan.adapter_bytes,
        host_bytes=plan.adapter_host_bytes,
        lender=KvLender(pool, arena, max_blocks=plan.num_lendable_blocks),
    )
    return EngineLoop(
        info=_info(config, model, place, plan, weights, time.perf_counter() - started),
        eos_token_ids=model.eos_token_ids,
        scheduler=Scheduler(config.scheduler, pool, residency),
        pool=pool,
        residency=residency,
        runner=_build_runner(config, model, place, plan, arena, weights, residency, rope),
        background=_build_background(config, model, place, plan, weights, rope, report),
        constraints=ConstraintDesk(
            folder, vocab_size=model.vocab_size, eos_token_ids=model.eos_token_ids
        ),
        machine=Machine(place.device),
        report=report,
    )


def _rope(model: ModelConfig, place: _Place, plan: MemoryPlan) -> RopeTable:
    cos, sin = rope_tables(
        model.rope,
        head_dim=model.head_dim,
        max_len=plan.max_model_len,
        max_position=model.max_position,
    )
    return RopeTable(cos.to(place.device), sin.to(place.device))


def _build_background(
    config: EngineConfig,
    model: ModelConfig,
    place: _Place,
    plan: MemoryPlan,
    weights: BaseWeights,
    rope: RopeTable,
    report: Callable[[Report], None],
) -> Background:
    if not plan.training_bytes:
        return NoTraining(
            "no memory is set aside for training; give --training-memory a size such as 4GiB",
            report,
        )
    if place.device.type == "cpu":
        keep_freed_memory()
    workplace = Workplace(
        network=TrainingNetwork(model, weights, place.ops, rope),
        store=AdapterStore(Path(config.data_dir)),
        config=config.training,
        budget=MemoryBudget(plan.training_bytes),
        kernels=place.ops.NAME,
        is_quantized=config.base.quantization != "none",
        clock=time.perf_counter,
        synchronize=torch.cuda.synchronize if place.device.type == "cuda" else lambda: None,
    )
    return TrainingDesk(workplace, report)


def _build_runner(
    config: EngineConfig,
    model: ModelConfig,
    place: _Place,
    plan: MemoryPlan,
    arena: KvArena,
    weights: BaseWeights,
    residency: Residency,
    rope: RopeTable,
) -> Runner:
    tables = residency.tables
    builder = BatchBuilder(
        place.ops,
        rope=rope,
        block_size=config.cache.block_size,
        pages_per_block=arena.pages_per_block,
        windows=model.windows or (None,),
        slot_of=residency.slots.slot_of,
        adjustments=residency.adjustments,
        head=len(model.projections()),
    )
    max_blocks = -(-plan.max_model_len // config.cache.block_size)
    runner = Runner(
        Decoder(model, weights, place.ops, tables, residency.adjustments),
        builder,
        arena,
        _make_staging(config, place, max_blocks, builder.num_windows),
        zeroes_blocks=not place.ops.MASKS_UNWRITTEN_KV,
    )
    if place.ops.NAME != "triton" or place.device.type != "cuda":
        return runner
    if config.cuda_graphs:
        runner.graphs = StepGraphs(
            builder,
            runner.forward,
            tables,
            max_rows=config.scheduler.max_num_requests,
            max_blocks=max_blocks,
            device=place.device,
            capture=CudaCapture(),
        )
        runner.graphs.warm_up()
    runner.warm_up(uncaptured_row_counts(config.scheduler.max_batched_tokens))
    return runner


def _make_staging(
    config: EngineConfig, place: _Place, max_blocks: int, num_windows: int
) -> DirectStaging | PackedStaging:
    if place.ops.NAME != "triton":
        return DirectStaging(place.device)
    limits = config.scheduler
    capacity = eager_capacity(
        limits.max_batched_tokens, limits.max_num_requests, max_blocks, windows=num_windows
    )
    return PackedStaging(place.device, capacity, is_static=False)


def _allocate_cache(
    config: EngineConfig, model: ModelConfig, place: _Place, plan: MemoryPlan
) -> KvArena:
    try:
        return KvArena(
            model,
            plan.num_kv_blocks,
            config.cache.block_size,
            dtype=place.dtype,
            device=place.device,
        )
    except RuntimeError as error:
        raise NotEnoughMemory(
            f"the KV cache of {plan.kv_cache_bytes} bytes cannot be allocated; "
            "lower --kv-cache-memory or --max-model-len"
        ) from error


def _info(
    config: EngineConfig,
    model: ModelConfig,
    place: _Place,
    plan: MemoryPlan,
    weights: BaseWeights,
    load_seconds: float,
) -> EngineInfo:
    return EngineInfo(
        model=config.base.model,
        family=model.family,
        base_digest=weights.digest,
        max_model_len=plan.max_model_len,
        vocab_size=model.vocab_size,
        device=str(place.device),
        kernels=f"{place.ops.NAME} ({place.ops.describe()})",
        dtype=str(place.dtype).removeprefix("torch."),
        quantization=config.base.quantization,
        num_kv_blocks=plan.num_kv_blocks,
        block_size=config.cache.block_size,
        base_bytes=weights.num_bytes,
        kv_cache_bytes=plan.kv_cache_bytes,
        adapter_bytes=plan.adapter_bytes,
        load_seconds=load_seconds,
    )
