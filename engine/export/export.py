"""A base and one adapter as one ordinary checkpoint: ``merge_and_unload``, on disk."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from multiflora.adapters import durable
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.tensor_file import stream_tensors

from ..errors import ExportRefused, NotEnoughMemory
from ..models.named_folder import NamedFolder
from ..models.plain_base import PlainBase
from ..models.shard import INDEX_NAME
from .comparison import compare
from .merged_base import MergedBase
from .model_folder import copy_text_files, nf4_settings, write_config, write_json
from .module_record import ModuleRecord, summarize
from .probe import Probe
from .sharding import OutputShard, index_of, plan_shards

REPORT_NAME = "export_report.json"
Form = Literal["quantized", "original"]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What to write.

    ``base`` is the dequantized NF4 base that adapters are served on, or the checkpoint's own
    weights. With ``requantize`` the linears become NF4 again, which is refused if less than
    ``min_delta_kept`` of the delta survives, unless ``force``. Raises ``ValueError``.
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    base: Form = "quantized"
    weight: float = 1.0
    max_shard_bytes: int = 5_000_000_000
    requantize: bool = False
    min_delta_kept: float = 0.8
    force: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        if self.max_shard_bytes < 1:
            raise ValueError(f"--max-shard-size is {self.max_shard_bytes}; it must be at least 1")
        if not abs(self.weight) < float("inf"):
            raise ValueError(f"--adapter-weight is {self.weight}; it must be a finite number")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def export_model(
    model: NamedFolder,
    adapter: NamedFolder,
    out: Path,
    settings: ExportSettings,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Write the folder ``out``, all or nothing, and return what its ``export_report.json`` holds.

    Raises ``AdapterRejected`` for an adapter that is not plain LoRA on this base,
    ``ExportRefused``, ``StartupError`` for the base, ``FileExistsError`` for ``out`` and
    ``OSError``; nothing is left then.
    """
    if settings.verify:
        _check_memory(model, settings)
    base = _open_base(model, settings)
    with ExitStack() as opened:
        parent = opened.enter_context(Parent(adapter.folder, name=adapter.name))
        inspect_adapter(AdapterFolder(adapter.folder), base.config.adapter_projections())
        staged = opened.enter_context(durable.new_folder(out))
        records = _write_weights(base, parent, staged, settings, progress)
        base.check_all_read()
        summary = summarize(records)
        _refuse_lost(summary, settings)
        copy_text_files(model.folder, staged)
        # Last: without it nobody takes the folder for a model.
        quantization = nf4_settings(model.folder, settings.dtype) if settings.requantize else None
        write_config(model.folder, staged, dtype=settings.dtype, quantization=quantization)
        report = _about(model, adapter, parent.base_name, settings) | {
            "summary": summary,
            "logits": _verify(model, adapter, staged, settings, progress),
            "modules": {record.path: record.as_json() for record in records},
        }
        write_json(staged / REPORT_NAME, report)
    return report


def _check_memory(model: NamedFolder, settings: ExportSettings) -> None:
    """Find out before gigabytes are written."""
    try:
        _probe(model.folder, settings, base=model.folder).check_memory()
    except NotEnoughMemory as error:
        raise NotEnoughMemory(
            f"the written model could not be compared with the served one: {error}; "
            "or skip that with --no-verify"
        ) from error


def _open_base(model: NamedFolder, settings: ExportSettings) -> PlainBase:
    base = PlainBase(model.folder, quantized=settings.base == "quantized")
    if base.config.prequantized and settings.base == "original":
        raise ExportRefused(
            f"{model.name} is stored as NF4, its original weights are not in it: name the "
            "unquantized checkpoint with --model, or use --base quantized"
        )
    return base


def _write_weights(
    base: PlainBase, parent: Parent, staged: Path, settings: ExportSettings, progress: Progress
) -> list[ModuleRecord]:
    merged = MergedBase(
        base,
        parent,
        weight=settings.weight,
        dtype=settings.torch_dtype,
        requantize=settings.requantize,
    )
    shards = plan_shards(merged.groups(), max_bytes=settings.max_shard_bytes)
    _check_space(shards, staged)

    def read(name: str) -> torch.Tensor:
        progress("writing the model", base.progress)
        return merged.read(name)

    for shard in shards:
        stream_tensors(staged / shard.name, shard.specs, read, {"format": "pt"})
    if len(shards) > 1:
        write_json(staged / INDEX_NAME, index_of(shards))
    return merged.records


def _check_space(shards: tuple[OutputShard, ...], folder: Path) -> None:
    needed = sum(shard.num_bytes for shard in shards)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportRefused(
            f"the model takes {needed} bytes, the disk of {folder.parent} has {free} left"
        )


def _refuse_lost(summary: Mapping[str, Any], settings: ExportSettings) -> None:
    kept = summary["delta_kept"]
    if not settings.requantize or settings.force or kept is None:
        return
    if kept < settings.min_delta_kept:
        raise ExportRefused(
            f"rounding to NF4 keeps {kept:.3f} of the adapter, below {settings.min_delta_kept} "
            f"(|D| / |W| is {summary['relative_delta']:.4f}): serve base and adapter unmerged, "
            "export without --requantize, or insist with --force"
        )


def _verify(
    model: NamedFolder,
    adapter: NamedFolder,
    staged: Path,
    settings: ExportSettings,
    progress: Progress,
) -> dict[str, Any]:
    if not settings.verify:
        return {"verified": False, "reason": "--no-verify"}
    served = Probe.open(model.folder, "nf4", dtype_like=model.folder)
    expected = served.logits(adapter=adapter.folder, weight=settings.weight, progress=progress)
    exported = _probe(staged, settings, base=model.folder)
    found = exported.logits(progress=progress)
    dtype = str(exported.dtype).removeprefix("torch.")
    return {"verified": True, "computed_in": dtype, **asdict(compare(found, expected))}


def _probe(folder: Path, settings: ExportSettings, *, base: Path) -> Probe:
    return Probe.open(folder, "nf4" if settings.requantize else "none", dtype_like=base)


def _about(
    model: NamedFolder, adapter: NamedFolder, adapter_base: str | None, settings: ExportSettings
) -> dict[str, Any]:
    return {
        "base": {"name": model.name, "weights": settings.base},
        "adapter": {
            "name": adapter.name,
            "weight": settings.weight,
            "trained_on": adapter_base,
        },
        "dtype": settings.dtype,
        "linears": "nf4" if settings.requantize else settings.dtype,
    }
