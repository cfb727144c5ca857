"""What is computed from a version and its base when it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multiflora.adapters import vector
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.flat_buffer import adjustment_views, factor_views
from multiflora.adapters.module_spec import PREFIX
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection, TargetModule
from multiflora.adapters.version_reader import HostVersion, VersionReader

HIDDEN, KV, VOCABULARY = 64, 300, 290
QKV = Projection(
    0,
    "qkv",
    tuple(
        TargetModule(name, width, HIDDEN, has_bias=True)
        for name, width in (("q", HIDDEN), ("k", KV), ("v", KV))
    ),
)
DOWN = Projection(0, "down", (TargetModule("down", HIDDEN, 96),))
HEAD = Projection(1, "head", (TargetModule("lm_head", VOCABULARY, HIDDEN, kind="head"),))
EMBEDDING = Projection(
    1, "embedding", (TargetModule("embed_tokens", HIDDEN, VOCABULARY, kind="embedding"),)
)
PROJECTIONS = (QKV, DOWN, HEAD, EMBEDDING)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class RandomBase:
    """A base of random float32 weights that counts what is read of it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        shapes = [
            p.slices[0].weight_shape if p is EMBEDDING else (p.out_features, p.in_features)
            for p in PROJECTIONS
        ]
        self.weights = [random(*shape).to(dtype).float() for shape in shapes]
        self.biases = [random(QKV.out_features, seed=1), None, None, None]
        self.reads: list[tuple[int, int, int]] = []

    def rows(self, index: int, start: int, stop: int) -> Tensor:
        self.reads.append((index, start, stop))
        return self.weights[index][start:stop]

    def bias(self, index: int) -> Tensor | None:
        return self.biases[index]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., HostVersion]:
    """``read(config, tensors, base, dtype=...)``: the host version of a stored adapter."""
    num_stored = 0

    def run(
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        base: RandomBase,
        dtype: torch.dtype = torch.float32,
    ) -> HostVersion:
        nonlocal num_stored
        num_stored += 1
        store, digest = AdapterStore(tmp_path), f"{num_stored:064x}"
        with store.staging() as staged:
            (staged / "adapter_config.json").write_text(json.dumps(config))
            named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
            save_file(named, staged / "adapter_model.safetensors")
            store.put(digest, staged)
        reader = VersionReader(
            store, PROJECTIONS, dtype=dtype, max_rank=None, is_pinned=False, base=base
        )
        planned = reader.plan(digest)
        version = reader.read(planned)
        assert version.num_bytes == planned.num_bytes
        return version

    return run


def adjustments(version: HostVersion) -> dict[int, Any]:
    return dict(adjustment_views(version.layout, version.buffer))


def lora(*targets: TargetModule, rank: int = 3) -> dict[str, Tensor]:
    tensors = {}
    for seed, target in enumerate(targets, start=10):
        tensors[f"{target.path}.lora_A.weight"] = random(rank, target.in_features, seed=seed)
        tensors[f"{target.path}.lora_B.weight"] = random(target.out_features, rank, seed=seed + 5)
    return tensors


def config(*modules: str, **changes: Any) -> dict[str, Any]:
    plain = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": list(modules)}
    return {**plain, **changes}


@pytest.mark.parametrize("chunk_bytes", [1, 4 * HIDDEN * 256, 16 << 20])
def test_dora_divides_magnitudes_by_norms_slice_by_slice(
    chunk_bytes: int, read: Callable[..., HostVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "_CHUNK_BYTES", chunk_bytes)
    q, _, v = QKV.slices
    tensors = lora(q, v)
    magnitudes = {part.path: random(part.out_features, seed=30).abs() + 1 for part in (q, v)}
    for path, magnitude in magnitudes.items():
        tensors[f"{path}.lora_magnitude_vector"] = magnitude
    base = RandomBase()
    version = read(config("q", "v", use_dora=True), tensors, base)
    own = adjustments(version)[0]
    scale, shift = torch.ones(QKV.out_features), torch.zeros(QKV.out_features)
    for part, first in ((q, 0), (v, HIDDEN + KV)):
        rows = slice(first, first + part.out_features)
        a, b = (tensors[f"{part.path}.lora_{side}.weight"] for side in "AB")
        norms = (base.weights[0][rows] + 2.0 * b @ a).norm(dim=1)
        scale[rows] = magnitudes[part.path] / norms
        shift[rows] = base.biases[0][rows] * (1 - scale[rows])
    torch.testing.assert_close(own.output_scale, scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(own.output_shift, shift, rtol=1e-4, atol=1e-6)
    assert all(start % 128 == 0 for _, start, _ in base.reads)
    assert {index for index, _, _ in base.reads} == {0}


@pytest.mark.parametrize("chunk_bytes", [1, 16 << 20])
def test_dora_of_an_embedding_has_a_norm_for_each_feature(
    chunk_bytes: int, read: Callable[..., HostVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "_CHUNK_BYTES", chunk_bytes)
    target, base = EMBEDDING.slices[0], RandomBase()
    tensors = _lookup(target) | {f"{target.path}.lora_magnitude_vector": random(HIDDEN, seed=80)}
    version = read(config(target.path, use_dora=True), tensors, base)
    a, b = (tensors[f"{target.path}.lora_embedding_{side}"] for side in "AB")
    expected = random(HIDDEN, seed=80) / (base.weights[3] + 2.0 * (b @ a).T).norm(dim=0)
    torch.testing.assert_close(adjustments(version)[3].output_scale, expected)


def test_biases_shift_what_the_base_adds(read: Callable[..., HostVersion]) -> None:
    q, k, v = QKV.slices
    trained = {part.path: random(part.out_features, seed=40) for part in QKV.slices}
    tensors = lora(k) | {
        "q.bias": trained["q"],
        "k.base_layer.bias": trained["k"],
        "v.bias": trained["v"],
    }
    base = RandomBase()
    version = read(config("k", bias="all"), tensors, base)
    own = adjustments(version)[0]
    expected = torch.cat([trained[part.path] for part in (q, k, v)]) - base.biases[0]
    torch.testing.assert_close(own.output_shift, expected)
    assert own.output_scale is None
    assert not base.reads, "norms belong to DoRA"


def test_a_bias_of_b_is_scaled_as_its_product(read: Callable[..., HostVersion]) -> None:
    bias = random(HIDDEN, seed=50)
    tensors = lora(DOWN.slices[0]) | {"down.lora_B.bias": bias}
    version = read(config("down", lora_bias=True), tensors, RandomBase())
    own = adjustments(version)[1]
    torch.testing.assert_close(own.output_shift, 2.0 * bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_keep_float32_beside_factors_of_any_dtype(
    dtype: torch.dtype, read: Callable[..., HostVersion]
) -> None:
    scales = {"v.ia3_l": random(KV, 1, seed=60), "down.ia3_l": random(1, 96, seed=61)}
    settings = {"target_modules": ["v", "down"], "feedforward_modules": ["down"]}
    version = read({"peft_type": "IA3", **settings}, scales, RandomBase(dtype), dtype)
    views = adjustments(version)
    untouched = torch.ones(HIDDEN + KV)
    assert torch.equal(views[0].output_scale, torch.cat([untouched, scales["v.ia3_l"].view(-1)]))
    assert torch.equal(views[1].input_scale, scales["down.ia3_l"].view(-1))
    assert factor_views(version.layout, version.buffer) == {}
    assert version.num_bytes == 4 * (672 + 96), "two vectors, padded to an alignment"


def test_whole_modules_and_lookups_are_views_of_the_buffer(
    read: Callable[..., HostVersion],
) -> None:
    tensors = lora(DOWN.slices[0]) | {
        "embed_tokens.lora_embedding_A": random(3, VOCABULARY, seed=70),
        "embed_tokens.lora_embedding_B": random(HIDDEN, 3, seed=71),
        "lm_head.weight": random(VOCABULARY, HIDDEN, seed=72),
    }
    settings = config("down", "embed_tokens", modules_to_save=["lm_head"])
    version = read(settings, tensors, RandomBase())
    views = adjustments(version)
    assert torch.equal(views[2].weight, tensors["lm_head.weight"])
    lookup = views[3].lookup
    assert torch.equal(lookup.a, tensors["embed_tokens.lora_embedding_A"])
    assert torch.equal(lookup.parts[0].b, tensors["embed_tokens.lora_embedding_B"].T)
    assert lookup.parts[0].scale == 2.0
    first, stop = version.buffer.data_ptr(), version.buffer.data_ptr() + version.num_bytes
    assert all(first <= t.data_ptr() < stop for t in (views[2].weight, lookup.a))
    assert set(factor_views(version.layout, version.buffer)) == {1}


def test_a_norm_of_zero_is_refused_when_the_version_is_loaded(
    read: Callable[..., HostVersion],
) -> None:
    base = RandomBase()
    base.weights[1].zero_()
    tensors = lora(DOWN.slices[0]) | {"down.lora_magnitude_vector": torch.ones(HIDDEN)}
    tensors["down.lora_B.weight"].zero_()
    with pytest.raises(AdapterRejected, match="no finite number") as caught:
        read(config("down", use_dora=True), tensors, base)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize(
    ("resident", "saved"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=str,
)
def test_a_copy_of_the_base_may_be_rounded_but_not_another(
    resident: torch.dtype, saved: torch.dtype, read: Callable[..., HostVersion]
) -> None:
    for index, target in ((2, HEAD.slices[0]), (3, EMBEDDING.slices[0])):
        tensors = lora(target) if index == 2 else _lookup(target)
        copy = random(*target.weight_shape)
        tensors[f"{target.path}.base_layer.weight"] = copy.to(saved)
        read(config(target.path), tensors, RandomBase(resident), resident)
        copy[-1, -1] += 0.5
        tensors[f"{target.path}.base_layer.weight"] = copy.to(saved)
        with pytest.raises(AdapterRejected, match="not the weight of this base") as caught:
            read(config(target.path), tensors, RandomBase(resident), resident)
        assert caught.value.code == "wrong_base"


def _lookup(target: TargetModule) -> dict[str, Tensor]:
    return {
        f"{target.path}.lora_embedding_A": random(3, VOCABULARY),
        f"{target.path}.lora_embedding_B": random(HIDDEN, 3),
    }
