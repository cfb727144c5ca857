"""DoRA, biases, (IA)^3, heads and embeddings in files: what is claimed, and what is refused."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.feature import why_unblendable
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.inspection import CheckedAdapter, GateLimits, inspect_source
from multiflora.adapters.module_spec import PREFIX
from multiflora.adapters.target import Projection, TargetModule

HIDDEN, VOCABULARY = 64, 40
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
OUT, DOWN = "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
Tensors = dict[str, Tensor]


@pytest.fixture
def base(projections: tuple[Projection, ...]) -> tuple[Projection, ...]:
    """The first layer of the tiny base, with biases on qkv, its head and its embedding."""
    qkv, *others = projections[:4]
    biased = replace(qkv, slices=tuple(replace(part, has_bias=True) for part in qkv.slices))
    head = TargetModule(HEAD, VOCABULARY, HIDDEN, kind="head")
    embedding = TargetModule(EMBEDDING, HIDDEN, VOCABULARY, kind="embedding")
    return (
        biased,
        *others,
        Projection(1, "head", (head,)),
        Projection(1, "embedding", (embedding,)),
    )


@pytest.fixture
def check(tmp_path: Path, base: tuple[Projection, ...]) -> Callable[..., CheckedAdapter]:
    """``check(config, tensors)`` runs the whole check in this process."""
    number = 0

    def run(config: Mapping[str, Any], tensors: Tensors) -> CheckedAdapter:
        nonlocal number
        number += 1
        source, staged = tmp_path / f"source-{number}", tmp_path / f"staged-{number}"
        source.mkdir()
        staged.mkdir()
        (source / "adapter_config.json").write_text(json.dumps(config))
        save_file({f"{PREFIX}{name}": t.clone() for name, t in tensors.items()}, source / "x")
        (source / "x").rename(source / "adapter_model.safetensors")
        return inspect_source(source, staged, projections=base, limits=GateLimits())

    return run


def lora(*paths: str, n: int = HIDDEN, k: int = HIDDEN) -> Tensors:
    tensors = {}
    for path in paths:
        tensors[f"{path}.lora_A.weight"] = torch.ones(2, k)
        tensors[f"{path}.lora_B.weight"] = torch.ones(n, 2)
    return tensors


def config(*modules: str, **changes: Any) -> dict[str, Any]:
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(modules)}
    return {**plain, **changes}


def ia3(*modules: str, feedforward: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    names = {"target_modules": list(modules), "feedforward_modules": list(feedforward)}
    return {"peft_type": "IA3", **names, **changes}


WIDE = torch.ones(HIDDEN)
MATRIX = torch.ones(VOCABULARY, HIDDEN)
HEAD_LORA = lora(HEAD, n=VOCABULARY)
LOOKUP = {
    f"{EMBEDDING}.lora_embedding_A": torch.ones(2, VOCABULARY),
    f"{EMBEDDING}.lora_embedding_B": torch.ones(HIDDEN, 2),
}
BIASES = {
    f"{Q}.base_layer.bias": WIDE,
    "model.layers.0.self_attn.k_proj.bias": torch.ones(32),
    f"{V}.bias": torch.ones(32),
}
MAGNITUDE = {f"{Q}.lora_magnitude_vector": WIDE}
# By name: config, tensors, and the features that are found.
SERVED: dict[str, tuple[dict[str, Any], Tensors, tuple[str, ...]]] = {
    "plain": (config("q_proj"), lora(Q), ()),
    "dora": (config("q_proj", use_dora=True), lora(Q) | MAGNITUDE, ("dora",)),
    "dora, long name": (
        config("q_proj", use_dora=True),
        lora(Q) | {f"{Q}.lora_magnitude_vector.weight": WIDE},
        ("dora",),
    ),
    "bias": (config("q_proj", bias="all"), lora(Q) | BIASES, ("bias",)),
    "bias of targets": (
        config("q_proj", "o_proj", bias="lora_only"),
        lora(Q, OUT) | {f"{Q}.base_layer.bias": WIDE},
        ("bias",),
    ),
    "no bias to train": (config("o_proj", bias="lora_only"), lora(OUT), ()),
    "lora bias": (
        config("o_proj", lora_bias=True),
        lora(OUT) | {f"{OUT}.lora_B.bias": WIDE},
        ("bias",),
    ),
    "ia3": (
        ia3("v_proj", "down_proj", feedforward=("down_proj",)),
        {f"{V}.ia3_l": torch.ones(32, 1), f"{DOWN}.ia3_l": torch.ones(1, 96)},
        ("ia3",),
    ),
    "head": (config("lm_head"), HEAD_LORA, ("head",)),
    "head with its base": (
        config("lm_head"),
        HEAD_LORA | {f"{HEAD}.base_layer.weight": MATRIX},
        ("head",),
    ),
    "embedding": (config("embed_tokens"), LOOKUP, ("embedding",)),
    "saved head": (
        config("q_proj", modules_to_save=["lm_head"]),
        lora(Q) | {f"{HEAD}.weight": MATRIX},
        ("head", "saved_module"),
    ),
    "saved modules are no targets": (
        config("q_proj", "lm_head", modules_to_save=["lm_head"]),
        lora(Q) | {f"{HEAD}.weight": MATRIX},
        ("head", "saved_module"),
    ),
}


@pytest.mark.parametrize("case", SERVED)
def test_every_tensor_is_claimed_and_named(case: str, check: Callable[..., CheckedAdapter]) -> None:
    settings, tensors, features = SERVED[case]
    assert check(settings, tensors).features == features


def test_all_linear_is_neither_the_head_nor_the_embedding(
    base: tuple[Projection, ...], check: Callable[..., CheckedAdapter]
) -> None:
    tensors = {}
    for part in (part for projection in base[:-2] for part in projection.slices):
        tensors |= lora(part.path, n=part.out_features, k=part.in_features)
    found = check(config() | {"target_modules": "all-linear"}, tensors)
    assert (found.num_modules, found.features) == (7, ())


def drop(case: str, name: str) -> tuple[dict[str, Any], Tensors]:
    settings, tensors, _ = SERVED[case]
    return settings, {key: value for key, value in tensors.items() if key != name}


def put(case: str, name: str, tensor: Tensor) -> tuple[dict[str, Any], Tensors]:
    settings, tensors, _ = SERVED[case]
    return settings, tensors | {name: tensor}


def with_config(case: str, **changes: Any) -> tuple[dict[str, Any], Tensors]:
    settings, tensors, _ = SERVED[case]
    return settings | changes, tensors


NAN = float("nan")
HOSTILE: dict[str, tuple[tuple[dict[str, Any], Tensors], str, str]] = {
    "no magnitude": (drop("dora", f"{Q}.lora_magnitude_vector"), "missing_tensor", "magnitude"),
    "long magnitude": (
        put("dora", f"{Q}.lora_magnitude_vector", torch.ones(65)),
        "wrong_shape",
        "magnitude",
    ),
    "magnitude as a matrix": (
        put("dora", f"{Q}.lora_magnitude_vector", torch.ones(1, HIDDEN)),
        "wrong_shape",
        "magnitude",
    ),
    "magnitude twice": (
        put("dora", f"{Q}.lora_magnitude_vector.weight", WIDE),
        "unmatched_tensor",
        "magnitude",
    ),
    "magnitude without dora": (
        with_config("dora", use_dora=False),
        "unmatched_tensor",
        "no use_dora",
    ),
    "nan magnitude": (
        put("dora", f"{Q}.lora_magnitude_vector", WIDE * NAN),
        "not_finite",
        "magnitude",
    ),
    "missing bias": (drop("bias", f"{V}.bias"), "missing_tensor", "v_proj.bias"),
    "long bias": (put("bias", f"{V}.bias", WIDE), "wrong_shape", r"\[32\]"),
    "bias of no config": (with_config("bias", bias="none"), "unmatched_tensor", "no such bias"),
    "bias that the base has not": (
        put("bias", f"{OUT}.bias", WIDE),
        "unmatched_tensor",
        "this base has none",
    ),
    "bias under its plain name": (put("bias", f"{Q}.bias", WIDE), "unmatched_tensor", "bias"),
    "no lora bias": (drop("lora bias", f"{OUT}.lora_B.bias"), "missing_tensor", "lora_B.bias"),
    "lora bias of no config": (
        with_config("lora bias", lora_bias=False),
        "unmatched_tensor",
        "no such bias",
    ),
    "ia3 the other way": (
        put("ia3", f"{DOWN}.ia3_l", torch.ones(HIDDEN, 1)),
        "wrong_shape",
        r"\[1, 96\]",
    ),
    "ia3 input of a slice": (
        (
            ia3("v_proj", feedforward=("v_proj",)),
            {f"{V}.ia3_l": torch.ones(1, HIDDEN)},
        ),
        "unsupported_feature",
        "input of model.layers.0.self_attn.v_proj",
    ),
    "ia3 without saying where": (
        with_config("ia3", feedforward_modules=None),
        "invalid_config",
        "feedforward_modules",
    ),
    "ia3 on the embedding": (
        (ia3("embed_tokens"), {f"{EMBEDDING}.ia3_l": torch.ones(HIDDEN, 1)}),
        "unsupported_feature",
        "no .IA.",
    ),
    "lora in ia3": (
        (SERVED["ia3"][0], SERVED["ia3"][1] | lora(Q)),
        "unmatched_tensor",
        "another peft_type",
    ),
    "ia3 in lora": (put("plain", f"{V}.ia3_l", torch.ones(32, 1)), "unmatched_tensor", "another"),
    "ia3 with an unknown key": (with_config("ia3", r=8), "unsupported_feature", "r=8"),
    "another vocabulary": (
        (config("lm_head"), lora(HEAD, n=VOCABULARY + 1)),
        "wrong_shape",
        "another base",
    ),
    "another embedding": (
        put("embedding", f"{EMBEDDING}.lora_embedding_A", torch.ones(2, VOCABULARY + 8)),
        "wrong_shape",
        "another base",
    ),
    "another base's copy": (
        put("head with its base", f"{HEAD}.base_layer.weight", torch.ones(VOCABULARY, 32)),
        "wrong_shape",
        "another base",
    ),
    "a copy of what is no target": (
        put("plain", f"{HEAD}.base_layer.weight", MATRIX),
        "unmatched_tensor",
        "does not target",
    ),
    "a copy of a layer": (
        put("plain", f"{Q}.base_layer.weight", torch.ones(HIDDEN, HIDDEN)),
        "unmatched_tensor",
        "base_layer",
    ),
    "another saved head": (
        put("saved head", f"{HEAD}.weight", torch.ones(VOCABULARY, HIDDEN + 1)),
        "wrong_shape",
        "another base",
    ),
    "nan in a saved head": (
        put("saved head", f"{HEAD}.weight", MATRIX * NAN),
        "not_finite",
        "lm_head.weight",
    ),
    "no saved head": (drop("saved head", f"{HEAD}.weight"), "missing_tensor", "lm_head.weight"),
    "a head that nobody saved": (
        put("plain", f"{HEAD}.weight", MATRIX),
        "unmatched_tensor",
        "modules_to_save",
    ),
    "only a saved head": (
        (config("nothing", modules_to_save=["lm_head"]), {f"{HEAD}.weight": MATRIX}),
        "no_target",
        "target_modules",
    ),
    "tied adapters": (
        with_config("head", ensure_weight_tying=True),
        "unsupported_feature",
        "ensure_weight_tying",
    ),
    "no magnitude on the embedding": (
        with_config("embedding", use_dora=True),
        "missing_tensor",
        "embed_tokens.lora_magnitude_vector",
    ),
    "lora bias on the embedding": (
        with_config("embedding", lora_bias=True),
        "unsupported_feature",
        "lora_bias",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_incomplete_surplus_or_foreign_is_refused(
    case: str, check: Callable[..., CheckedAdapter]
) -> None:
    (settings, tensors), code, message = HOSTILE[case]
    with pytest.raises(AdapterRejected, match=message) as caught:
        check(settings, tensors)
    assert caught.value.code == code


def test_digests_cover_what_a_vector_does(check: Callable[..., CheckedAdapter]) -> None:
    """The same tensors in two square modules: only the config tells input from output."""
    square = {f"{OUT}.ia3_l": torch.ones(HIDDEN, 1)}
    other = {f"{OUT}.ia3_l": torch.ones(1, HIDDEN)}
    digests = {
        check(ia3("o_proj"), square).digest,
        check(ia3("o_proj", feedforward=("o_proj",)), other).digest,
        check(*SERVED["dora"][:2]).digest,
        check(*SERVED["plain"][:2]).digest,
    }
    assert len(digests) == 4


def test_the_digest_of_plain_lora_knows_of_no_other_features(
    check: Callable[..., CheckedAdapter], tmp_path: Path
) -> None:
    digest = check(*SERVED["plain"][:2]).digest
    folder = AdapterFolder(tmp_path / "staged-1")
    names = {side: f"{PREFIX}{Q}.lora_{side}.weight" for side in "AB"}
    meaning = {"path": Q, "rank": 2, "scale": 2.0, "a_name": names["A"], "b_name": names["B"]}
    total = hashlib.sha256(json.dumps([meaning], sort_keys=True).encode())
    for name, tensor in sorted(load_file(folder.path / "adapter_model.safetensors").items()):
        total.update(f"\0{name}\0F32\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.numpy().tobytes())
    assert digest == total.hexdigest()


def test_only_sums_of_deltas_and_shifts_can_be_blended() -> None:
    assert why_unblendable(()) is None
    assert why_unblendable(("bias", "embedding", "head")) is None
    for feature, word in (("dora", "DoRA"), ("ia3", "IA"), ("saved_module", "modules_to_save")):
        assert word in (why_unblendable(("bias", feature)) or "")
