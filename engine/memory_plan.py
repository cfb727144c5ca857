"""How device memory is divided before anything is loaded. Imports no torch.

Sizes of the base come from its configuration, and from the shards' headers where a checkpoint is
given. The KV cache and the adapters share what the base leaves.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from .config import EngineConfig
from .errors import NotEnoughMemory, StartupError
from .models.config import ModelConfig
from .models.size import ITEM_SIZES, BaseSize
from .training.config import BatchSettings, TrainingSettings
from .training.estimate import estimate_memory

CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")
MIB = 1 << 20
GIB = 1 << 30
# A host is shared with other programs: automatic sizes take little of it.
HOST_KV_SHARE, HOST_KV_LIMIT = 0.25, 4 * GIB
HOST_ADAPTER_SHARE, HOST_ADAPTER_LIMIT = 0.25, GIB
# Of the KV cache, what idle blocks may be lent to adapters.
LOAN_SHARE = 0.25
# Host memory behind an accelerator's adapters, as a multiple of theirs.
HOST_TIER_FACTOR = 4
# An accelerator is ours, but for fragmentation and the driver's own buffers.
DEVICE_RESERVE_SHARE = 0.08
DEVICE_ADAPTER_SHARE, DEVICE_ADAPTER_LIMIT = 0.10, 8 * GIB
# An automatic part for training holds one run of the default settings, with the largest of these
# micro-batches that takes no more than this share of what the base leaves.
TRAINING_SHARE = 0.15
TRAINING_TOKENS = (4096, 2048, 1024, 512, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What every part gets, in bytes; ``dtype`` and ``max_model_len`` are resolved too."""

    dtype: str
    max_model_len: int
    block_size: int
    num_kv_blocks: int
    linear_bytes: int
    embedding_bytes: int
    head_bytes: int
    kv_cache_bytes: int
    num_lendable_blocks: int
    adapter_bytes: int
    adapter_host_bytes: int
    training_bytes: int
    workspace_bytes: int
    available_bytes: int
    is_on_host: bool

    @property
    def base_bytes(self) -> int:
        """The whole base: linears with norms and biases, embedding, head."""
        return self.linear_bytes + self.embedding_bytes + self.head_bytes

    @property
    def total_bytes(self) -> int:
        """What is taken of ``available_bytes``; an accelerator leaves host memory alone."""
        host = self.adapter_host_bytes if self.is_on_host else 0
        lasting = self.kv_cache_bytes + self.adapter_bytes + self.training_bytes
        return self.base_bytes + lasting + self.workspace_bytes + host

    def _reserve_note(self) -> str:
        return "adapters that left" if self.is_on_host else "adapters that left, in host memory"

    def _loan_note(self) -> str:
        num_bytes = self.num_lendable_blocks * self.kv_cache_bytes // self.num_kv_blocks
        return f"and up to {_size(num_bytes)} of idle KV cache" if num_bytes else ""

    def render(self) -> str:
        """A table for people, one part per line."""
        tokens = self.num_kv_blocks * self.block_size
        rows = (
            ("linears", self.linear_bytes, f"{self.dtype} activations"),
            ("embedding", self.embedding_bytes, ""),
            ("head", self.head_bytes, "" if self.head_bytes else "shares the embedding"),
            ("KV cache", self.kv_cache_bytes, f"{self.num_kv_blocks} blocks, {tokens} tokens"),
            ("adapters", self.adapter_bytes, self._loan_note()),
            ("in reserve", self.adapter_host_bytes, self._reserve_note()),
            ("training", self.training_bytes, "" if self.training_bytes else "off"),
            ("workspace", self.workspace_bytes, "activations, logits, one tensor while loading"),
            ("total", self.total_bytes, f"of {_size(self.available_bytes)} available"),
        )
        lines = [f"{name:<10} {_size(size):>10}  {note}".rstrip() for name, size, note in rows]
        return "\n".join([*lines, f"context    {self.max_model_len:>10}  tokens per request"])


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    *,
    checkpoint: Path | None = None,
    available_bytes: int | None = None,
    dtype: str | None = None,
    narrow_tables: bool = False,
) -> MemoryPlan:
    """Divide ``available_bytes`` of an accelerator, or the free host memory where it is None.

    ``dtype`` is what the caller resolved; None resolves it here. ``narrow_tables`` tells whether
    the backend leaves an embedding and a head of bfloat16 as they are, which is the least.

    Raises `NotEnoughMemory` with the numbers and the remedies if the plan does not fit, and
    `InvalidCheckpoint` if ``checkpoint`` is given and a shard's header is damaged.
    """
    on_host = available_bytes is None
    available = available_memory() if available_bytes is None else available_bytes
    placed = replace(config, device="cpu" if on_host else "cuda")
    dtype = dtype or resolve_dtype(placed, model, has_fast_bfloat16=has_fast_bfloat16())
    wanted_len = _wanted_length(config, model)
    sizes = BaseSize.measure(config.base, model, dtype, checkpoint, narrow_tables=narrow_tables)
    workspace = _workspace_bytes(placed, model, dtype)
    free = available - sizes.total - workspace
    if free <= 0:
        raise NotEnoughMemory(_base_too_large(sizes.total, workspace, available, config))
    block_bytes = kv_block_bytes(config, model, dtype)
    adapters, kv_limit, training = _divide(placed, model, dtype, free, block_bytes)
    num_blocks = _num_blocks(config, wanted_len, kv_limit, block_bytes)
    # The null block holds no tokens.
    max_model_len = min(wanted_len, (num_blocks - 1) * config.cache.block_size)
    plan = MemoryPlan(
        dtype=dtype,
        max_model_len=max_model_len,
        block_size=config.cache.block_size,
        num_kv_blocks=num_blocks,
        linear_bytes=sizes.linears,
        embedding_bytes=sizes.embedding,
        head_bytes=sizes.head,
        kv_cache_bytes=num_blocks * block_bytes,
        num_lendable_blocks=_num_lendable(config, num_blocks, max_model_len, adapters, block_bytes),
        adapter_bytes=adapters,
        adapter_host_bytes=_host_tier_bytes(
            config,
            adapters,
            free - adapters - training - num_blocks * block_bytes if on_host else None,
        ),
        training_bytes=training,
        workspace_bytes=workspace,
        available_bytes=available,
        is_on_host=on_host,
    )
    _check(plan, config, block_bytes)
    return plan


def available_memory(cgroup: Path = CGROUP) -> int:
    """Host bytes that can be allocated, within the container's limit if there is one."""
    free = psutil.virtual_memory().available
    try:
        # An unlimited container says "max", which is no number.
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stats = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # The page cache is charged to the container but given back on demand.
    reclaimable = int(stats.get("inactive_file", 0)) + int(stats.get("active_file", 0))
    return max(0, min(free, limit - used + reclaimable))


def has_fast_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16)."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "avx512_bf16" in flags.split()


def resolve_dtype(config: EngineConfig, model: ModelConfig, *, has_fast_bfloat16: bool) -> str:
    """The dtype of activations and dense weights.

    ``auto`` is the checkpoint's on CUDA, but bfloat16 for float32, which tensor cores do not take;
    on a CPU bfloat16 where it is native, else float32, because emulated bfloat16 is slower and less
    exact.
    """
    if config.base.dtype != "auto":
        return config.base.dtype
    if config.device == "cuda":
        return "bfloat16" if model.checkpoint_dtype == "float32" else model.checkpoint_dtype
    return "bfloat16" if has_fast_bfloat16 else "float32"


def kv_block_bytes(config: EngineConfig, model: ModelConfig, dtype: str) -> int:
    """Bytes of one block: keys and values of ``block_size`` tokens in every layer."""
    return 2 * model.num_layers * config.cache.block_size * model.kv_size * ITEM_SIZES[dtype]


def _workspace_bytes(config: EngineConfig, model: ModelConfig, dtype: str) -> int:
    """The larger of one step's temporaries and the largest tensor that passes through a load."""
    item = ITEM_SIZES[dtype]
    rows = config.scheduler.max_batched_tokens
    widest = 4 * model.hidden_size + 2 * model.q_size + 3 * model.intermediate_size
    activations = rows * widest * 4
    logits = 3 * config.scheduler.max_num_requests * model.vocab_size * 4
    matrices = [p.out_features * p.in_features for p in model.projections()]
    decoded = 0 if config.base.quantization == "none" else max(matrices) * item
    loading = max(model.vocab_size * model.hidden_size, *matrices) * 4
    return max(activations + logits + decoded + _kernel_scratch(config, rows), loading)


def _kernel_scratch(config: EngineConfig, rows: int) -> int:
    """What the GPU kernels keep between launches: split-K slabs, and shrunk rows of adapters.

    A split fills the device and no more, so that slabs have some 70,000 columns whatever the
    matrix; buffers may double as they grow.
    """
    if config.device != "cuda":
        return 0
    fused_rows = rows if config.batch_invariant else min(rows, 256)
    slabs = fused_rows * 70_000 * 4
    shrunk = rows * 8 * 768 * 4
    return 2 * (slabs + shrunk)


def _divide(
    config: EngineConfig, model: ModelConfig, dtype: str, free: int, block_bytes: int
) -> tuple[int, int, int]:
    """Bytes for adapters, the most that an automatic KV cache may take, and bytes for training."""
    on_host = config.device == "cpu"
    adapters, kv_limit = _automatic_sizes(config, free, on_host=on_host)
    if config.training.memory_bytes is not None:
        training = config.training.memory_bytes
    else:
        # Nothing that was asked for has to make room for it.
        length = math.ceil((config.max_model_len or 1) / config.cache.block_size)
        least_kv = kv_limit if on_host else (length + 1) * block_bytes
        taken = config.cache.memory_bytes or least_kv
        if on_host:
            taken += adapters + (config.adapter.host_memory_bytes or 0)
        spare = (free if on_host else kv_limit) - taken
        training = _default_run_bytes(config, model, dtype, min(spare, int(free * TRAINING_SHARE)))
    return adapters, kv_limit if on_host else max(0, kv_limit - training), training


def _default_run_bytes(config: EngineConfig, model: ModelConfig, dtype: str, limit: int) -> int:
    """What a run of the default settings takes, micro-batches cut to ``limit``; 0 if none fits."""
    kernels = config.kernels
    if kernels == "auto":
        kernels = "torch" if config.device == "cpu" else "triton"
    for tokens in TRAINING_TOKENS:
        memory = estimate_memory(
            model,
            TrainingSettings(batch=BatchSettings(micro_batch_tokens=tokens)),
            dtype=dtype,
            kernels=kernels,
            is_quantized=config.base.quantization != "none",
        )
        needed = memory.device_bytes + (memory.host if config.device == "cpu" else 0)
        if needed <= limit:
            return needed
    return 0


def _automatic_sizes(config: EngineConfig, free: int, *, on_host: bool) -> tuple[int, int]:
    """Bytes for adapters, and the most that an automatic KV cache may take."""
    if on_host:
        adapters = min(int(free * HOST_ADAPTER_SHARE), HOST_ADAPTER_LIMIT)
        kv_limit = min(int(free * HOST_KV_SHARE), HOST_KV_LIMIT)
    else:
        adapters = min(int(free * DEVICE_ADAPTER_SHARE), DEVICE_ADAPTER_LIMIT)
        kv_limit = 0
    if config.adapter.memory_bytes is not None:
        adapters = config.adapter.memory_bytes
    if not on_host:
        kv_limit = int(free * (1 - DEVICE_RESERVE_SHARE)) - adapters
    return adapters, max(kv_limit, 0)


def _host_tier_bytes(config: EngineConfig, adapters: int, left: int | None) -> int:
    """Bytes of the tier behind the device; ``left`` is what a CPU engine has for it."""
    if config.adapter.host_memory_bytes is not None:
        return config.adapter.host_memory_bytes
    if left is not None:
        return max(0, min(adapters, left))
    return min(HOST_TIER_FACTOR * adapters, int(available_memory() * HOST_ADAPTER_SHARE))


def _num_blocks(config: EngineConfig, length: int, kv_limit: int, block_bytes: int) -> int:
    if config.cache.memory_bytes is not None:
        return config.cache.memory_bytes // block_bytes
    per_request = math.ceil(length / config.cache.block_size)
    return min(per_request * config.scheduler.max_num_requests + 1, kv_limit // block_bytes)


def _num_lendable(
    config: EngineConfig, num_blocks: int, max_model_len: int, adapters: int, block_bytes: int
) -> int:
    """Blocks that adapters may borrow; the longest request always finds room beside them."""
    spare = num_blocks - 1 - math.ceil(max_model_len / config.cache.block_size)
    if config.adapter.max_memory_bytes is None:
        wanted = int(num_blocks * LOAN_SHARE)
    else:
        wanted = (config.adapter.max_memory_bytes - adapters) // block_bytes
    return max(0, min(spare, wanted))


def _wanted_length(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_context:
        raise StartupError(
            f"--max-model-len {config.max_model_len} is beyond the {model.max_context} positions "
            "this base was made for; lower it, or use a config.json with rope scaling"
        )
    return config.max_model_len


def _check(plan: MemoryPlan, config: EngineConfig, block_bytes: int) -> None:
    if plan.total_bytes > plan.available_bytes:
        raise NotEnoughMemory(
            f"the plan needs {_size(plan.total_bytes)}, {_size(plan.available_bytes)} are "
            f"available:\n{plan.render()}\n"
            "lower --kv-cache-memory, --adapter-memory, --adapter-host-memory, --training-memory "
            "or --max-model-len"
        )
    needed = (math.ceil((config.max_model_len or 1) / plan.block_size) + 1) * block_bytes
    if plan.kv_cache_bytes < needed:
        raise NotEnoughMemory(
            f"one request of {config.max_model_len or 1} tokens needs {_size(needed)} of KV cache, "
            f"the plan has {_size(plan.kv_cache_bytes)} ({plan.max_model_len} tokens): lower "
            f"--max-model-len to {plan.max_model_len} or raise --kv-cache-memory"
        )


def _base_too_large(base: int, workspace: int, available: int, config: EngineConfig) -> str:
    remedy = "use a smaller base"
    if config.base.quantization == "none":
        remedy += " or --quantization nf4"
    return (
        f"the base needs {_size(base)} and its workspace {_size(workspace)}, "
        f"{_size(available)} are available: free memory or {remedy}"
    )


def _size(num_bytes: int) -> str:
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB"
