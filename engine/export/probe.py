"""Logits of fixed prompts through the engine's own decoder, without an engine around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from multiflora.adapters.flat_buffer import factor_views, fill_buffer
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.layout import plan_layout
from multiflora.adapters.mapped_tensors import MappedTensors
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.cpu_ops import has_fast_bfloat16
from multiflora.kernels.ops import LoraTables, Ops, RopeTable
from multiflora.kernels.staging import DirectStaging

from ..active_request import ActiveRequest
from ..config import BaseConfig, Device, EngineConfig, Quantization
from ..forward_batch import BatchBuilder
from ..kv_arena import KvArena
from ..memory_plan import plan_memory, resolve_dtype
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.load import load_base
from ..models.registry import load_model_config
from ..models.rope import rope_tables
from ..request import AdapterShare, GenerationRequest, SamplingParams
from ..scheduler import ScheduledRequest, StepPlan

BLOCK_SIZE = 16
NUM_PROMPTS, PROMPT_LENGTH = 4, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A model to ask: the checkpoint in ``folder``, its linears in ``quantization``."""

    folder: Path
    quantization: Quantization
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def open(cls, folder: Path, quantization: Quantization, *, dtype_like: Path) -> "Probe":
        """On the device, and in the dtype, in which ``multiflora serve`` holds ``dtype_like``."""
        device: Device = "cuda" if torch.cuda.is_available() else "cpu"
        name = resolve_dtype(
            EngineConfig(base=BaseConfig(model=str(dtype_like)), device=device),
            load_model_config(dtype_like),
            has_fast_bfloat16=has_fast_bfloat16(),
        )
        return cls(
            folder=folder,
            quantization=quantization,
            device=torch.device(device),
            dtype=getattr(torch, name),
        )

    def check_memory(self) -> None:
        """Raise ``NotEnoughMemory`` if an engine could not hold the model."""
        model = load_model_config(self.folder)
        config = EngineConfig(
            base=BaseConfig(model=str(self.folder), quantization=self.quantization),
            device="cuda" if self.device.type == "cuda" else "cpu",
            max_model_len=min(PROMPT_LENGTH, model.max_context),
        )
        plan_memory(
            config,
            model,
            checkpoint=self.folder,
            available_bytes=torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else None,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def logits(
        self,
        *,
        adapter: Path | None = None,
        weight: float = 1.0,
        progress: Callable[[str, float], None],
    ) -> Tensor:
        """float32 [T, V] of every position of the fixed prompts, one after the other.

        ``adapter`` is a PEFT folder, added as the engine adds it, times ``weight``.
        """
        model = load_model_config(self.folder)
        prompts = fixed_prompts(model)
        ops = choose_ops("auto", self.device, self.dtype)
        weights = load_base(
            self.folder,
            model,
            BaseConfig(model=str(self.folder), quantization=self.quantization),
            ops=ops,
            dtype=self.dtype,
            device=self.device,
            cache_dir=None,
            progress=progress,
        )
        # All but the embedding, which is looked up and not multiplied with.
        projections = model.adapter_projections()[:-1]
        widths = [[part.out_features for part in p.slices] for p in projections]
        tables = ops.make_lora_tables(widths, self.device)
        shares = ()
        if adapter is not None:
            self._place(adapter, model, tables)
            shares = (AdapterShare("", weight),)
        plan = _plan(prompts, shares)
        arena = KvArena(
            model,
            1 + sum(len(item.request.blocks) for item in plan.items),
            BLOCK_SIZE,
            dtype=self.dtype,
            device=self.device,
        )
        builder = self._builder(ops, model, arena)
        integers = torch.int32 if ops.NAME == "triton" else torch.int64
        batch = builder.build(plan, staging=DirectStaging(self.device, integers))
        # Every row is asked for its logits, not only the last of each prompt.
        batch = replace(batch, head_lora=batch.lora)
        decoder = Decoder(model, weights, ops, tables)
        # Not around the load, whose threads would not be in this mode.
        with torch.inference_mode():
            return decoder.logits(decoder.forward(batch, arena.caches()), batch).cpu()

    def _place(self, adapter: Path, model: ModelConfig, tables: LoraTables) -> None:
        projections = model.adapter_projections()
        folder = AdapterFolder(adapter)
        modules = inspect_adapter(folder, projections)
        layout = plan_layout(projections, modules, itemsize=self.dtype.itemsize)
        assert not layout.needs_base, "only plain LoRA is exported"
        buffer = fill_buffer(layout, MappedTensors(folder).get, self.dtype)
        tables.write(0, factor_views(layout, buffer.to(self.device)))

    def _builder(self, ops: Ops, model: ModelConfig, arena: KvArena) -> BatchBuilder:
        cos, sin = rope_tables(
            model.rope,
            head_dim=model.head_dim,
            max_len=PROMPT_LENGTH,
            max_position=model.max_position,
        )
        return BatchBuilder(
            ops,
            rope=RopeTable(cos.to(self.device), sin.to(self.device)),
            block_size=BLOCK_SIZE,
            pages_per_block=arena.pages_per_block,
            windows=model.windows or (None,),
            slot_of=lambda _: 0,
        )


def fixed_prompts(model: ModelConfig) -> list[tuple[int, ...]]:
    """Token sequences that depend on the sizes of the model only, spread over the vocabulary."""
    length = min(PROMPT_LENGTH, model.max_context)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_PROMPTS, length)
    drawn = torch.randint(model.vocab_size, shape, generator=generator).tolist()
    return [tuple(row) for row in drawn]


def _plan(prompts: Sequence[tuple[int, ...]], shares: tuple[AdapterShare, ...]) -> StepPlan:
    """Prefill all prompts in one step; block 0 stays the engine's null block."""
    items = []
    per_prompt = -(-PROMPT_LENGTH // BLOCK_SIZE)
    for number, prompt in enumerate(prompts):
        request = GenerationRequest(
            id=str(number), prompt=prompt, sampling=SamplingParams(max_tokens=1), adapters=shares
        )
        first = 1 + number * per_prompt
        active = ActiveRequest(request, number, blocks=list(range(first, first + per_prompt)))
        items.append(ScheduledRequest(active, 0, len(prompt), samples=False))
    return StepPlan(tuple(items), ())
