"""Rotary settings of a Hugging Face config: the older and the newer spelling, all known kinds."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidCheckpoint, UnsupportedModel
from .config import RopeConfig
from .hf_config import HfConfig, positive_number

YARN_NUMBERS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
LLAMA3_NUMBERS = ("low_freq_factor", "high_freq_factor")
# What each kind may carry: anything else might change the maths. transformers ignores a factor
# without a type and original_max_position_embeddings outside llama3 and yarn, so they may stay.
LENGTHS = frozenset({"factor", "original_max_position_embeddings"})
KEYS = {
    "default": LENGTHS,
    "linear": LENGTHS,
    "dynamic": LENGTHS,
    "llama3": LENGTHS | frozenset(LLAMA3_NUMBERS),
    "yarn": LENGTHS | frozenset(YARN_NUMBERS) | {"truncate"},
}
COMMON_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def read_rope(config: HfConfig) -> RopeConfig:
    """Read ``rope_parameters``, or the older ``rope_theta`` with ``rope_scaling``."""
    raw = config.values.get("rope_scaling") or config.values.get("rope_parameters") or {}
    if not isinstance(raw, dict):
        raise InvalidCheckpoint(f"config.json: rope parameters are {raw!r}; expected an object")
    given = {key: value for key, value in raw.items() if value is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    _check(kind, given, config)
    theta = given.get("rope_theta", config.values.get("rope_theta"))
    theta = 10_000.0 if theta is None else positive_number(theta, "rope_theta")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind in ("linear", "dynamic"):
        return RopeConfig(theta=theta, kind=kind, factor=_factor(given))
    return _long_context_rope(kind, theta, given, config)


def _check(kind: Any, given: Mapping[str, Any], config: HfConfig) -> None:
    if kind not in KEYS:
        raise UnsupportedModel(
            f"config.json: rope type {kind!r} is not supported (supported: {', '.join(KEYS)})"
        )
    unknown = sorted(given.keys() - KEYS[kind] - COMMON_KEYS)
    if unknown:
        raise UnsupportedModel(
            f"config.json: rope type {kind!r} with {', '.join(unknown)} is not supported"
        )
    partial = given.get("partial_rotary_factor", config.values.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise UnsupportedModel(
            f"config.json: partial_rotary_factor = {partial!r} is not supported (only 1)"
        )


def _long_context_rope(
    kind: Any, theta: float, given: Mapping[str, Any], config: HfConfig
) -> RopeConfig:
    max_position = config.integer("max_position_embeddings")
    # transformers lets the top-level key win over the one beside the factor.
    original = config.values.get("original_max_position_embeddings")
    original = original or given.get("original_max_position_embeddings") or max_position
    original = int(positive_number(original, "original_max_position_embeddings"))
    if kind == "llama3":
        numbers = {key: positive_number(given.get(key), key) for key in LLAMA3_NUMBERS}
    else:
        # A zero means "the default", as in transformers.
        numbers = {key: positive_number(given[key], key) for key in YARN_NUMBERS if given.get(key)}
    has_factor = kind == "llama3" or "factor" in given
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=_factor(given) if has_factor else max_position / original,
        original_max_position=original,
        truncate=bool(given.get("truncate", True)),
        **numbers,
    )


def _factor(given: Mapping[str, Any]) -> float:
    return positive_number(given.get("factor"), "rope scaling factor")
