"""The tiny models as a trainer sees them, and the same models in transformers and PEFT."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from multiflora.adapters.peft_format import ModuleSpec, parse_lora
from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.rope import rope_tables
from multiflora.engine.training.config import (
    LoraSettings,
    SupervisedSettings,
    TrainingSettings,
)
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.example import Example, Preference
from multiflora.engine.training.factors import TrainedFactors
from multiflora.engine.training.job import TrainingJob
from multiflora.engine.training.network import TrainingNetwork
from multiflora.engine.training.packed_batch import PackedBatch, Packer
from multiflora.engine.training.quantum import StepTaken, TrainingEvent
from multiflora.engine.training.run import TrainingRun, make_task
from multiflora.kernels import nf4
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.ops import RopeTable
from multiflora.kernels.quantize import quantize

from .job_bench import SETTINGS

CPU = torch.device("cpu")
Result = TypeVar("Result")


@pytest.fixture(scope="session")
def make_network(model_folder: Callable[..., Path]) -> Callable[..., TrainingNetwork]:
    """``make_network(family, kernels=..., quantization=..., dtype=...)``: as serving holds it."""
    made: dict[str, TrainingNetwork] = {}

    def make(
        family: str = "llama",
        *,
        kernels: str = "cpu",
        quantization: str = "nf4",
        dtype: str = "float32",
    ) -> TrainingNetwork:
        key = f"{family} {kernels} {quantization} {dtype}"
        if key not in made:
            base = BaseConfig(model="", dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
            made[key] = _open_network(model_folder(family), base, kernels)
        return made[key]

    return make


def _open_network(folder: Path, base: BaseConfig, kernels: str = "cpu") -> TrainingNetwork:
    config = load_model_config(folder)
    dtype = torch.float32 if base.dtype == "auto" else getattr(torch, base.dtype)
    ops = choose_ops(kernels, CPU, dtype)
    weights = load_base(
        folder,
        config,
        base,
        ops=ops,
        dtype=dtype,
        device=CPU,
        cache_dir=None,
        progress=lambda stage, fraction: None,
    )
    cos, sin = rope_tables(
        config.rope,
        head_dim=config.head_dim,
        max_len=config.max_position,
        max_position=config.max_position,
    )
    return TrainingNetwork(config, weights, ops, RopeTable(cos, sin))


@pytest.fixture
def make_factors() -> Callable[..., TrainedFactors]:
    """``make_factors(network, **settings)``: random A, B and magnitudes for PEFT settings."""

    def make(network: TrainingNetwork, *, seed: int = 3, **settings: Any) -> TrainedFactors:
        projections = network.config.projections()
        parsed = parse_lora({"peft_type": "LORA", **settings})
        modules = tuple(
            ModuleSpec(
                path=target.path,
                rank=parsed.rank_of(target.path),
                scale=parsed.scale_of(target.path),
                a_name=f"base_model.model.{target.path}.lora_A.weight",
                b_name=f"base_model.model.{target.path}.lora_B.weight",
                magnitude=f"base_model.model.{target.path}.lora_magnitude_vector"
                if parsed.use_dora
                else None,
            )
            for projection in projections
            for target in projection.slices
            if parsed.is_target(target.path)
        )
        factors = TrainedFactors(projections, modules, device=CPU)
        generator = torch.Generator().manual_seed(seed)
        factors.initialize("kaiming", lambda path: generator, network.row_norms)
        factors.load(
            {
                name: (tensor if "magnitude" in name else 0)
                + 0.1 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in factors.tensors().items()
            }
        )
        return factors

    return make


@pytest.fixture(scope="session")
def reference_model(model_folder: Callable[..., Path]) -> Callable[..., Any]:
    """``reference_model(family)``: transformers' own, every linear but the head through NF4."""

    def make(family: str = "llama", *, quantized: bool = True) -> Any:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder(family), dtype=torch.float32, attn_implementation="eager"
        )
        for name, module in model.named_modules():
            if quantized and isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
                module.weight.data = nf4.dequantize(quantize(module.weight.data))
        return model.eval()

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    """``make_examples(lengths, first=...)``: random ids; the first ``first`` are a prompt."""

    def make(lengths: list[int], *, first: int = 3, seed: int = 5) -> list[Example]:
        generator = torch.Generator().manual_seed(seed)
        return [
            Example(
                ids=tuple(torch.randint(2, 384, (length,), generator=generator).tolist()),
                weights=(0.0,) * first + (1.0,) * (length - first),
                line=line,
            )
            for line, length in enumerate(lengths, start=1)
        ]

    return make


@pytest.fixture
def pack() -> Callable[[list[Example]], PackedBatch]:
    """All examples in one micro-batch."""

    def make(examples: list[Example]) -> PackedBatch:
        packer = Packer()
        for row, example in enumerate(examples):
            packer.add_example(row, example)
        return packer.pack(CPU)

    return make


@pytest.fixture
def drain() -> Callable[[Generator[Any, None, Result]], Result]:
    """Run all quanta, return the result."""

    def run(quanta: Generator[Any, None, Result]) -> Result:
        while True:
            try:
                next(quanta)
            except StopIteration as end:
                return end.value

    return run


@pytest.fixture
def make_run(
    make_network: Callable[..., TrainingNetwork], tmp_path: Path
) -> Iterator[Callable[..., TrainingRun]]:
    """``make_run(rows, folder=..., validation=..., rank=..., batch=..., ...)`` on a tiny base."""
    made: list[TrainingRun] = []

    def make(
        rows: list[Any],
        *,
        folder: str = "run",
        family: str = "llama",
        kernels: str = "cpu",
        dtype: str = "float32",
        validation: list[Any] | None = None,
        start: dict[str, torch.Tensor] | None = None,
        reference: TrainedFactors | None = None,
        **settings: Any,
    ) -> TrainingRun:
        chosen = TrainingSettings(**{"lora": LoraSettings(rank=4, alpha=8), **settings})
        run = TrainingRun(
            make_network(family, kernels=kernels, dtype=dtype),
            make_task(rows, chosen.method),
            chosen,
            folder=tmp_path / folder,
            validation=None if validation is None else make_task(validation, chosen.method),
            start=start,
            reference=reference,
        )
        made.append(run)
        return run

    yield make
    for run in made:
        run.close()


@pytest.fixture
def finish() -> Callable[[TrainingRun], list[TrainingEvent]]:
    """Run all quanta, return the events."""

    def run_all(run: TrainingRun) -> list[TrainingEvent]:
        events = []
        while not run.has_ended:
            event = run.run_quantum().event
            if event is not None:
                events.append(event)
        return events

    return run_all


@pytest.fixture
def losses(finish: Callable[..., Any]) -> Callable[[TrainingRun], list[float]]:
    """Run to the end, return the loss of every step."""
    return lambda run: [e.metrics["loss"] for e in finish(run) if isinstance(e, StepTaken)]


@pytest.fixture
def make_preferences() -> Callable[..., list[Preference]]:
    """``make_preferences([(prompt, chosen, rejected), ...])``: random ids of these lengths."""

    def make(lengths: list[tuple[int, int, int]], *, seed: int = 6) -> list[Preference]:
        generator = torch.Generator().manual_seed(seed)

        def ids(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(2, 384, (count,), generator=generator).tolist())

        return [
            Preference(ids(prompt), ids(chosen), ids(rejected), line)
            for line, (prompt, chosen, rejected) in enumerate(lengths, start=1)
        ]

    return make


@pytest.fixture
def make_rows(
    make_examples: Callable[..., list[Example]], make_preferences: Callable[..., list[Preference]]
) -> Callable[[object], list[Any]]:
    """Seven rows of the kind that the method takes."""

    def make(method: object) -> list[Any]:
        if isinstance(method, SupervisedSettings):
            return make_examples([30, 12, 45, 7, 22, 18, 9])
        shapes = [(9, 5, 8), (4, 12, 3), (20, 6, 6), (3, 3, 14), (11, 2, 2), (7, 9, 4), (2, 5, 5)]
        return make_preferences(shapes)

    return make


@pytest.fixture(scope="session")
def open_network() -> Callable[..., TrainingNetwork]:
    """``open_network(folder, base, kernels=...)`` of any checkpoint."""
    return _open_network


@pytest.fixture
def make_job(tmp_path: Path, make_examples: Callable[..., Any]) -> Callable[..., TrainingJob]:
    """``make_job(id, settings=..., data=..., ...)`` over five short rows."""
    data = tmp_path / "prepared"
    with DatasetWriter(data, DataConfig()) as writer:
        for example in make_examples([20, 30, 10, 40, 25]):
            writer.add(example)
        writer.finish(Report(format="test"), fingerprint="")

    def make(id: str = "job", **changes: Any) -> TrainingJob:
        return TrainingJob(
            **{
                "id": id,
                "data": str(data),
                "folder": str(tmp_path / "jobs" / id),
                "settings": SETTINGS,
                "base_name": "tiny",
                **changes,
            }
        )

    return make
