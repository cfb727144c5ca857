"""`ServeSettings`: everything `multiflora serve` can be told, in one place.

Flags, environment variables and config keys are all made from its fields.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from multiflora.engine.config import (
    AdapterConfig,
    BaseConfig,
    CacheConfig,
    Device,
    Dtype,
    EngineConfig,
    Kernels,
    Quantization,
    SchedulerConfig,
    TrainingConfig,
    TrainingPace,
)
from multiflora.engine.log_line import LogFormat
from multiflora.engine.training.jobs.tracking.message import SinkName

from .adapter_source import AdapterSource
from .admission import AdmissionLimits
from .limits import Limits
from .rate_limit import RateLimits, parse_limits
from .schemas.sampling import MAX_CHOICES
from .setting_value import (
    parse_bool,
    parse_float,
    parse_int,
    parse_judges,
    parse_path,
    parse_patterns,
    parse_sinks,
)
from .size import parse_size

LogLevel = Literal["debug", "info", "warning", "error"]


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _about(
    help: str, parse: Callable[[str], object] = str, *, metavar: str | None = None
) -> dict[str, object]:
    return {"help": help, "parse": parse, "metavar": metavar}


def _choice(kind: Any, help: str) -> dict[str, object]:
    choices = get_args(kind)
    return _about(help, _one_of(*choices), metavar="|".join(choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of one server. ``model`` None is the embedded demo base with its adapters."""

    model: str | None = field(
        default=None,
        metadata=_about("folder or hub id of the base; without it, the embedded demo is served"),
    )
    adapters: tuple[AdapterSource, ...] = field(
        default=(),
        metadata=_about("publish the PEFT folder PATH as NAME; repeatable", metavar="NAME=PATH"),
    )
    adapters_dir: Path | None = field(
        default=None,
        metadata=_about("publish every PEFT folder in this folder, also later ones", parse_path),
    )
    adapters_root: Path | None = field(
        default=None,
        metadata=_about(
            "open the load_lora_adapter routes for paths inside this folder", parse_path
        ),
    )
    adapters_hub: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "hub repositories that may be imported, such as my-org/*; several with commas",
            parse_patterns,
            metavar="OWNER/NAME",
        ),
    )
    allow_adapter_templates: bool = field(
        default=False,
        metadata=_about(
            "render chats with the chat_template.jinja that an adapter brings, and keep it",
            parse_bool,
        ),
    )
    max_upload_size: int = field(
        default=2 << 30,
        metadata=_about("largest upload of an adapter, such as 2GiB", parse_size, metavar="SIZE"),
    )
    max_file_size: int = field(
        default=512 << 20,
        metadata=_about("largest upload of a training file", parse_size, metavar="SIZE"),
    )
    gate_judges: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata=_about(
            "chat endpoints that quality gates may ask as judges: NAME=URL,...",
            parse_judges,
            metavar="NAME=URL",
        ),
    )
    served_model_name: str | None = field(
        default=None,
        metadata=_about("name of the base in the API; default: the hub id or the folder's name"),
    )
    host: str = field(default="127.0.0.1", metadata=_about("address to listen on"))
    port: int = field(
        default=8000, metadata=_about("port to listen on; 0 picks a free one", parse_int)
    )
    insecure: bool = field(
        default=False,
        metadata=_about("listen on any address although there are no API keys", parse_bool),
    )
    open_metrics: bool = field(
        default=False,
        metadata=_about("answer /metrics, with all names, to routers that have no key", parse_bool),
    )
    api_key_file: Path | None = field(
        default=None,
        metadata=_about("API keys beside those of the database; see multiflora keys", parse_path),
    )
    data_dir: Path = field(
        default=Path.home() / ".multiflora",
        metadata=_about("where adapters and prepared weights are kept", parse_path),
    )
    device: Device = field(default="auto", metadata=_choice(Device, "where the base lives"))
    dtype: Dtype = field(
        default="auto", metadata=_choice(Dtype, "type of activations and unquantized weights")
    )
    kernels: Kernels = field(default="auto", metadata=_choice(Kernels, "implementation of the ops"))
    batch_invariant: bool = field(
        default=False,
        metadata=_about("same bits whoever shares the batch; always so on CPU", parse_bool),
    )
    cuda_graphs: bool = field(
        default=True, metadata=_about("replay decode steps from CUDA graphs", parse_bool)
    )
    quantization: Quantization = field(
        default="nf4", metadata=_choice(Quantization, "form of the base's linears")
    )
    quantize_head: bool = field(
        default=False, metadata=_about("make the output head NF4 too", parse_bool)
    )
    revision: str | None = field(default=None, metadata=_about("branch, tag or commit of a hub id"))
    max_model_len: int | None = field(
        default=None,
        metadata=_about(
            "tokens of prompt plus answer; default: what model and memory allow", parse_int
        ),
    )
    kv_cache_memory: int | None = field(
        default=None,
        metadata=_about("memory of the KV cache, such as 4GiB", parse_size, metavar="SIZE"),
    )
    adapter_memory: int | None = field(
        default=None,
        metadata=_about("memory of resident adapters, such as 500MB", parse_size, metavar="SIZE"),
    )
    adapter_memory_max: int | None = field(
        default=None,
        metadata=_about(
            "most memory of resident adapters, which may borrow idle KV cache up to it",
            parse_size,
            metavar="SIZE",
        ),
    )
    adapter_host_memory: int | None = field(
        default=None,
        metadata=_about(
            "host memory that keeps adapters which left the device, such as 4GiB",
            parse_size,
            metavar="SIZE",
        ),
    )
    training_memory: int | None = field(
        default=None,
        metadata=_about(
            "memory of training jobs beside the base, such as 4GiB; 0 turns training off",
            parse_size,
            metavar="SIZE",
        ),
    )
    training_pace: TrainingPace = field(
        default="balanced",
        metadata=_choice(TrainingPace, "how much training may take from requests"),
    )
    tracking: tuple[SinkName, ...] = field(
        default=("tensorboard",),
        metadata=_about(
            "where jobs may send metrics: tensorboard, wandb, trackio or none, with commas; the "
            "last two may leave this machine, under the server's own account",
            parse_sinks,
            metavar="SINKS",
        ),
    )
    max_num_requests: int = field(
        default=64, metadata=_about("most requests in one step", parse_int)
    )
    max_batched_tokens: int = field(
        default=512, metadata=_about("most tokens in one step", parse_int)
    )
    max_queued_requests: int = field(
        default=256, metadata=_about("most sequences that wait for their first token", parse_int)
    )
    max_queued_tokens: int = field(
        default=500_000, metadata=_about("most prompt tokens that wait", parse_int)
    )
    max_choices: int = field(
        default=16, metadata=_about("most choices (n) of one request, up to 128", parse_int)
    )
    strict_fields: bool = field(
        default=False,
        metadata=_about(
            "refuse request fields that nobody knows, instead of naming them in a header",
            parse_bool,
        ),
    )
    key_limits: RateLimits = field(
        default=RateLimits(),
        metadata=_about(
            "limits of API keys without their own, such as requests=60,tokens=100000,concurrent=8",
            parse_limits,
        ),
    )
    adapter_limits: RateLimits = field(
        default=RateLimits(),
        metadata=_about("limits of each adapter, as --key-limits", parse_limits),
    )
    request_timeout: float | None = field(
        default=None,
        metadata=_about("longest time of an answer; default: none", parse_float, metavar="SECONDS"),
    )
    threads: int | None = field(
        default=None, metadata=_about("CPU threads of the engine", parse_int)
    )
    stall_timeout: float = field(
        default=60.0,
        metadata=_about("when who reads nothing is disconnected", parse_float, metavar="SECONDS"),
    )
    step_timeout: float = field(
        default=120.0,
        metadata=_about(
            "an engine that is silent for so long is ended and started again",
            parse_float,
            metavar="SECONDS",
        ),
    )
    drain_notice: float = field(
        default=0.0,
        metadata=_about(
            "time after SIGTERM in which /ready says 503 and requests are still taken, for routers",
            parse_float,
            metavar="SECONDS",
        ),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=_about(
            "time that running requests get after SIGTERM", parse_float, metavar="SECONDS"
        ),
    )
    log_level: LogLevel = field(
        default="info", metadata=_choice(LogLevel, "least level of log lines")
    )
    log_format: LogFormat = field(default="text", metadata=_choice(LogFormat, "form of log lines"))
    log_requests: bool = field(
        default=False, metadata=_about("log a line about every request, without texts", parse_bool)
    )
    otlp_endpoint: str | None = field(
        default=None, metadata=_about("send traces to this OTLP/HTTP URL", metavar="URL")
    )
    dry_run: bool = field(
        default=False, metadata=_about("print the memory plan and exit", parse_bool)
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}; it must be between 0 and 65535")
        for flag, seconds in (
            ("--drain-notice", self.drain_notice),
            ("--drain-timeout", self.drain_timeout),
        ):
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{flag} is {seconds}; it must be 0 or more")
        for flag, size in (
            ("--max-upload-size", self.max_upload_size),
            ("--max-file-size", self.max_file_size),
        ):
            if size < 1:
                raise ValueError(f"{flag} is {size}; it must be at least 1")
        for flag, folder in (
            ("--adapters-dir", self.adapters_dir),
            ("--adapters-root", self.adapters_root),
        ):
            if folder is not None and not folder.is_dir():
                raise ValueError(f"{flag} is {folder}; it must be an existing folder")
        if self.request_timeout is not None and not 0 < self.request_timeout < float("inf"):
            raise ValueError(f"--request-timeout is {self.request_timeout}; it must be above 0")
        if not 1 <= self.max_choices <= MAX_CHOICES:
            raise ValueError(f"--max-choices is {self.max_choices}; it must be 1 to {MAX_CHOICES}")
        if not 0 < self.stall_timeout < float("inf"):
            raise ValueError(f"--stall-timeout is {self.stall_timeout}; it must be above 0")
        if not 1 <= self.step_timeout < float("inf"):
            raise ValueError(f"--step-timeout is {self.step_timeout}; it must be 1 or more")
        self.admission_limits()
        _check_names([adapter.name for adapter in self.adapters])

    def admission_limits(self) -> AdmissionLimits:
        """Raises ``ValueError``."""
        return AdmissionLimits(
            max_queued_requests=self.max_queued_requests,
            max_queued_tokens=self.max_queued_tokens,
            key=self.key_limits,
            adapter=self.adapter_limits,
        )

    def limits(self) -> Limits:
        """Bounds of the HTTP side."""
        return Limits(
            max_upload_bytes=self.max_upload_size,
            max_file_bytes=self.max_file_size,
            stall_seconds=self.stall_timeout,
            max_choices=self.max_choices,
            refuses_unknown_fields=self.strict_fields,
        )

    def engine_config(self, model: Path) -> EngineConfig:
        """Settings of the engine for the base in the folder ``model``. Raises ``ValueError``."""
        return EngineConfig(
            base=BaseConfig(
                model=str(model),
                dtype=self.dtype,
                quantization=self.quantization,
                quantize_head=self.quantize_head,
            ),
            device=self.device,
            kernels=self.kernels,
            batch_invariant=self.batch_invariant,
            cuda_graphs=self.cuda_graphs,
            threads=self.threads,
            max_model_len=self.max_model_len,
            data_dir=str(self.data_dir),
            cache=CacheConfig(memory_bytes=self.kv_cache_memory),
            scheduler=SchedulerConfig(
                max_num_requests=self.max_num_requests,
                max_batched_tokens=self.max_batched_tokens,
                max_queued_requests=max(
                    # The API process refuses first; one request may exceed its bound.
                    self.max_queued_requests + Limits().max_sequences,
                    SchedulerConfig().max_queued_requests,
                ),
            ),
            adapter=AdapterConfig(
                memory_bytes=self.adapter_memory,
                max_memory_bytes=self.adapter_memory_max,
                host_memory_bytes=self.adapter_host_memory,
            ),
            training=TrainingConfig(memory_bytes=self.training_memory, pace=self.training_pace),
        )


def _check_names(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the adapter name {name!r} is given twice; names must differ")
