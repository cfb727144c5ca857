import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multiflora.engine import memory_plan
from multiflora.engine.config import (
    AdapterConfig,
    BaseConfig,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
    TrainingConfig,
)
from multiflora.engine.errors import InvalidCheckpoint, NotEnoughMemory, StartupError
from multiflora.engine.memory_plan import (
    available_memory,
    has_fast_bfloat16,
    plan_memory,
    resolve_dtype,
)
from multiflora.engine.models.config import ModelConfig, RopeConfig

MIB, GIB = 1 << 20, 1 << 30
SMALL: dict[str, Any] = {
    "family": "llama",
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_layers": 8,
    "num_heads": 16,
    "num_kv_heads": 4,
    "head_dim": 64,
    "norm_eps": 1e-5,
    "max_position": 4096,
}
# 8 layers of q, o (1024 x 1024), k, v (256 x 1024) and three of 4096 x 1024.
LINEAR_WEIGHTS = 8 * 1024 * (2 * 1024 + 2 * 256 + 3 * 4096)


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})


def config(*, dtype: Any = "bfloat16", base: dict[str, Any] | None = None, **settings: Any) -> Any:
    return EngineConfig(base=BaseConfig(model="x", dtype=dtype, **(base or {})), **settings)


@pytest.fixture(autouse=True)
def host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 16 * GIB)


def test_base_is_nf4_with_dense_embedding_and_head() -> None:
    plan = plan_memory(config(), model())
    assert plan.linear_bytes == pytest.approx(LINEAR_WEIGHTS * 0.5625, rel=0.01)
    assert plan.embedding_bytes == plan.head_bytes == 32_000 * 1024 * 2
    assert plan.base_bytes == plan.linear_bytes + 2 * plan.embedding_bytes


def test_unquantized_base_is_dense() -> None:
    plan = plan_memory(config(base={"quantization": "none"}, dtype="float32"), model())
    assert plan.linear_bytes == pytest.approx(LINEAR_WEIGHTS * 4, rel=0.01)


def test_tied_head_costs_nothing_unless_it_is_quantized() -> None:
    tied = model(tie_embeddings=True)
    assert plan_memory(config(), tied).head_bytes == 0
    quantized = plan_memory(config(base={"quantize_head": True}), tied)
    assert quantized.head_bytes == int(32_000 * 1024 * 0.5625)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_tables_are_counted_as_the_backend_holds_them(tmp_path: Path, stored: torch.dtype) -> None:
    table = torch.zeros(64, 32, dtype=stored)
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    small = model(vocab_size=64, hidden_size=32)
    wide, narrow = (
        plan_memory(config(dtype="float32"), small, checkpoint=tmp_path, narrow_tables=is_narrow)
        for is_narrow in (False, True)
    )
    assert wide.embedding_bytes == wide.head_bytes == 64 * 32 * 4
    assert narrow.embedding_bytes == narrow.head_bytes == table.nbytes


def test_host_cache_holds_every_request_at_full_length_if_that_is_little() -> None:
    plan = plan_memory(
        config(max_model_len=100, scheduler=SchedulerConfig(max_num_requests=3)), model()
    )
    assert plan.num_kv_blocks == 3 * 7 + 1
    assert plan.kv_cache_bytes == (3 * 7 + 1) * 16 * (2 * 8 * 256 * 2)


def test_host_cache_and_adapters_take_a_bounded_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 4 * GIB)
    plan = plan_memory(config(), model(max_position=1 << 17))
    free = 4 * GIB - plan.base_bytes - plan.workspace_bytes
    assert free / 4 - MIB < plan.kv_cache_bytes <= free / 4
    assert plan.adapter_bytes == free // 4
    assert plan.total_bytes < 4 * GIB


def test_host_cache_and_adapters_have_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 1 << 40)
    plan = plan_memory(config(), model(max_position=1 << 17))
    assert 4 * GIB - MIB < plan.kv_cache_bytes <= 4 * GIB
    assert plan.adapter_bytes == GIB


def test_device_memory_is_used_up_but_for_a_reserve() -> None:
    plan = plan_memory(config(), model(max_position=1 << 17), available_bytes=24 * GIB)
    assert plan.available_bytes == 24 * GIB
    assert 0.88 * 24 * GIB < plan.total_bytes <= 0.95 * 24 * GIB


def test_adapters_that_left_get_as_much_host_memory_as_is_left() -> None:
    on_host = plan_memory(config(), model())
    assert on_host.adapter_host_bytes == on_host.adapter_bytes
    explicit = AdapterConfig(memory_bytes=7 * MIB, host_memory_bytes=9 * MIB)
    assert plan_memory(config(adapter=explicit), model()).adapter_host_bytes == 9 * MIB
    tight = plan_memory(config(cache=CacheConfig(memory_bytes=11 * GIB)), model())
    assert tight.adapter_host_bytes < tight.adapter_bytes * 4
    assert tight.total_bytes <= tight.available_bytes


def test_an_accelerator_s_host_tier_is_not_taken_from_its_own_memory() -> None:
    plan = plan_memory(config(), model(), available_bytes=24 * GIB)
    assert plan.adapter_host_bytes == min(4 * plan.adapter_bytes, 4 * GIB)
    device = plan.base_bytes + plan.kv_cache_bytes + plan.adapter_bytes + plan.workspace_bytes
    assert plan.total_bytes == device + plan.training_bytes


def test_a_host_tier_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="--adapter-host-memory is 0 bytes"):
        AdapterConfig(host_memory_bytes=0)


def test_explicit_sizes_are_kept() -> None:
    plan = plan_memory(
        config(
            cache=CacheConfig(memory_bytes=64 * MIB), adapter=AdapterConfig(memory_bytes=7 * MIB)
        ),
        model(),
    )
    assert plan.adapter_bytes == 7 * MIB
    assert 63 * MIB < plan.kv_cache_bytes <= 64 * MIB


def test_context_defaults_to_the_declared_length() -> None:
    assert plan_memory(config(), model()).max_model_len == 4096


def test_default_context_shrinks_to_the_cache() -> None:
    plan = plan_memory(config(cache=CacheConfig(memory_bytes=MIB)), model())
    assert plan.max_model_len == (plan.num_kv_blocks - 1) * 16 < 4096


def test_explicit_context_that_the_cache_cannot_hold_is_refused_with_numbers() -> None:
    settings = config(cache=CacheConfig(memory_bytes=MIB), max_model_len=1000)
    with pytest.raises(NotEnoughMemory, match=r"1000 tokens.*lower --max-model-len to 112"):
        plan_memory(settings, model())


def test_context_beyond_the_base_is_refused() -> None:
    with pytest.raises(StartupError, match=r"--max-model-len 5000 is beyond the 4096"):
        plan_memory(config(max_model_len=5000), model())


def test_context_may_use_the_reach_of_rope_scaling() -> None:
    rope = RopeConfig(kind="yarn", factor=4.0, original_max_position=4096)
    plan = plan_memory(config(max_model_len=10_000), model(rope=rope))
    assert plan.max_model_len == 10_000


def test_base_that_does_not_fit_is_refused_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 100 * MIB)
    with pytest.raises(NotEnoughMemory, match=r"100\.0 MiB are available.*--quantization nf4"):
        plan_memory(config(base={"quantization": "none"}), model())


@pytest.mark.parametrize(
    "settings",
    [
        {"cache": CacheConfig(memory_bytes=1 << 50)},
        {"adapter": AdapterConfig(memory_bytes=1 << 50)},
    ],
    ids=["cache", "adapters"],
)
def test_explicit_sizes_that_do_not_fit_show_the_plan(settings: dict[str, Any]) -> None:
    with pytest.raises(NotEnoughMemory, match=r"16\.00 GiB are available(.|\n)*--kv-cache-memory"):
        plan_memory(config(**settings), model())


def test_cache_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(NotEnoughMemory, match="--kv-cache-memory"):
        plan_memory(config(cache=CacheConfig(memory_bytes=10)), model())


def test_table_names_every_part_and_adds_up() -> None:
    plan = plan_memory(config(), model(tie_embeddings=True))
    table = plan.render()
    for word in ("linears", "embedding", "head", "KV cache", "adapters", "training", "total"):
        assert word in table
    assert "16.00 GiB available" in table
    adapters = plan.adapter_bytes + plan.adapter_host_bytes
    parts = plan.base_bytes + plan.kv_cache_bytes + adapters + plan.workspace_bytes
    assert plan.total_bytes == parts + plan.training_bytes


def test_modules_left_dense_are_counted_from_the_headers(tmp_path: Path) -> None:
    tiny = model(hidden_size=64, intermediate_size=64, num_layers=1, vocab_size=8, num_heads=1,
                 num_kv_heads=1, prequantized=True)  # fmt: skip
    names = [part.path for projection in tiny.projections() for part in projection.slices]
    quantized = [name for name in names if not name.endswith("down_proj")]
    save_file(
        {f"{name}.weight.absmax": torch.ones(1) for name in quantized}, tmp_path / "m.safetensors"
    )
    assumed = plan_memory(config(), tiny)
    measured = plan_memory(config(), tiny, checkpoint=tmp_path)
    assert measured.linear_bytes - assumed.linear_bytes == 64 * 64 * 2 - int(64 * 64 * 0.5625)


def test_truncated_checkpoint_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidCheckpoint, match="truncated"):
        plan_memory(config(), model(), checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("wanted", "device", "fast", "expected"),
    [
        ("float16", "cpu", True, "float16"),
        ("float32", "cuda", True, "float32"),
        ("auto", "cuda", False, "float16"),
        ("auto", "cpu", True, "bfloat16"),
        ("auto", "cpu", False, "float32"),
    ],
)
def test_dtype_follows_wish_checkpoint_and_processor(
    wanted: str, device: Any, fast: bool, expected: str
) -> None:
    settings = config(dtype=wanted, device=device)
    assert (
        resolve_dtype(settings, model(checkpoint_dtype="float16"), has_fast_bfloat16=fast)
        == expected
    )


def test_plan_keeps_the_dtype_of_its_caller() -> None:
    assert plan_memory(config(dtype="auto"), model(), dtype="float16").dtype == "float16"


def test_fast_bfloat16_is_read_from_the_processor_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t: avx2 avx512f avx512_bf16\n")
    assert has_fast_bfloat16(info)
    info.write_text("flags\t: avx2 avx512f\n")
    assert not has_fast_bfloat16(info)
    assert not has_fast_bfloat16(tmp_path / "missing")


def test_container_limit_bounds_the_host(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{300 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{200 * MIB}\n")
    stats = {"anon": 100 * MIB, "inactive_file": 40 * MIB, "active_file": 10 * MIB}
    (tmp_path / "memory.stat").write_text("\n".join(f"{k} {v}" for k, v in stats.items()))
    assert available_memory(tmp_path) == 150 * MIB


@pytest.mark.parametrize("limit", ["max", "garbage", None])
def test_host_without_container_limit_is_measured(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1")
        (tmp_path / "memory.stat").write_text("anon 1")
    assert available_memory(tmp_path) > MIB


def test_planning_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, json; from multiflora.engine import memory_plan; "
        "from multiflora.engine.models import registry, source; "
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(output.stdout) == []


@pytest.mark.parametrize("available", [None, 24 * GIB], ids=["host", "accelerator"])
def test_training_gets_what_a_default_run_takes(available: int | None) -> None:
    plan = plan_memory(config(), model(), available_bytes=available)
    flat = 4 * 16 * 8 * sum(n + k for n, k in [(1024, 1024)] * 2 + [(256, 1024)] * 2)
    assert plan.training_bytes > 4 * flat
    free = plan.available_bytes - plan.base_bytes - plan.workspace_bytes
    assert plan.training_bytes <= 0.15 * free
    assert plan.total_bytes <= plan.available_bytes


@pytest.mark.parametrize("num_bytes", [0, 5 * MIB])
def test_training_memory_can_be_chosen(num_bytes: int) -> None:
    chosen = config(training=TrainingConfig(memory_bytes=num_bytes))
    assert plan_memory(chosen, model()).training_bytes == num_bytes


def test_automatic_training_memory_takes_nothing_that_was_asked_for() -> None:
    plan = plan_memory(config(cache=CacheConfig(memory_bytes=int(11.5 * GIB))), model())
    assert plan.kv_cache_bytes > 11.4 * GIB
    assert plan.total_bytes <= plan.available_bytes
    long, wide = config(max_model_len=1 << 17), model(max_position=1 << 17)
    roomy = plan_memory(long, wide, available_bytes=24 * GIB)
    # Of what the base leaves, 8 percent are a reserve and 10 the adapters'.
    free = int(8200 * roomy.kv_cache_bytes / roomy.num_kv_blocks / 0.82)
    available = free + roomy.base_bytes + roomy.workspace_bytes
    tight = plan_memory(long, wide, available_bytes=available)
    assert tight.max_model_len == 1 << 17
    assert tight.training_bytes == 0
    assert "off" in tight.render()
