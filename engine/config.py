"""Frozen settings of the engine, validated where they are made. Sizes are bytes; None is auto."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Kernels = Literal["auto", "torch", "cpu", "triton"]
Quantization = Literal["nf4", "none"]
TrainingPace = Literal["idle-only", "balanced", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """Which base model, and the form in which it is resident."""

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    quantization: Quantization = "nf4"
    double_quantization: bool = True
    quantize_head: bool = False

    def __post_init__(self) -> None:
        if self.quantize_head and self.quantization == "none":
            raise ValueError("--quantize-head needs --quantization nf4")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    memory_bytes: int | None = None
    block_size: int = 16
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ValueError(f"block_size is {self.block_size}; choose 8, 16, 32, 64 or 128")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise ValueError(f"--kv-cache-memory is {self.memory_bytes} bytes; it must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits on one step and on the queue.

    ``starvation_steps`` bounds how many steps a waiting request may be passed over for fairness.
    """

    max_num_requests: int = 64
    max_batched_tokens: int = 512
    max_queued_requests: int = 1024
    starvation_steps: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_batched_tokens < self.max_num_requests:
            raise ValueError(
                f"max_batched_tokens ({self.max_batched_tokens}) is below max_num_requests "
                f"({self.max_num_requests}); a step could not serve every running request"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Memory for adapter versions: on the device, and in host memory ahead of it.

    Up to ``max_memory_bytes`` on the device they may borrow idle blocks of the KV cache; None is
    automatic, and ``memory_bytes`` itself rules borrowing out.
    """

    memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    host_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.host_memory_bytes is not None and self.host_memory_bytes < 1:
            raise ValueError(
                f"--adapter-host-memory is {self.host_memory_bytes} bytes; every version passes "
                "through it, so it must hold the largest one"
            )
        if (self.max_memory_bytes or 0) < (self.memory_bytes or 0) and self.max_memory_bytes:
            raise ValueError(
                f"--adapter-memory-max is {self.max_memory_bytes} bytes, below --adapter-memory "
                f"{self.memory_bytes}; leave it out or raise it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What training jobs may take of the device: memory beside the base, and time.

    ``memory_bytes`` 0 turns training off. ``idle-only`` trains while there are no requests,
    ``balanced`` also beside them for half of the time that serving takes, or, if that is given, as
    long as tokens come within ``token_gap_seconds`` of each other; ``throughput`` for as long as it
    serves.
    A request waits for one quantum at most, which micro-batches are sized to keep below
    ``quantum_seconds``.
    """

    memory_bytes: int | None = None
    pace: TrainingPace = "balanced"
    token_gap_seconds: float | None = None
    quantum_seconds: float = 0.02

    def __post_init__(self) -> None:
        if (self.memory_bytes or 0) < 0:
            raise ValueError(f"--training-memory is {self.memory_bytes} bytes; 0 turns it off")
        for name in ("token_gap_seconds", "quantum_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All settings of one engine process.

    ``batch_invariant`` refuses kernels whose results depend on a request's neighbours; those for
    CPUs never do.
    """

    base: BaseConfig
    device: Device = "auto"
    kernels: Kernels = "auto"
    batch_invariant: bool = False
    cuda_graphs: bool = True
    threads: int | None = None
    max_model_len: int | None = None
    data_dir: str = field(default_factory=lambda: str(Path.home() / ".multiflora"))
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ValueError(f"--max-model-len is {self.max_model_len}; it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; it must be at least 1")
