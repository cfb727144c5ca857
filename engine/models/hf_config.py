"""Typed access to a Hugging Face config.json. Knows the key names that all families share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidCheckpoint, UnsupportedModel

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class HfConfig:
    """A config.json over its family's defaults, and the generation_config.json beside it.

    An explicit null stays null: transformers treats it differently from an absent key.
    """

    values: Mapping[str, Any]
    generation: Mapping[str, Any]

    def integer(self, key: str) -> int:
        """A required positive integer."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidCheckpoint(f"config.json: {key} is {value!r}; expected a positive integer")
        return value

    def integer_or(self, key: str, default: int) -> int:
        """A positive integer, or ``default`` where the key is absent or null."""
        return default if self.values.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A required finite, positive number."""
        return positive_number(self.values.get(key), key)

    def flag(self, key: str) -> bool:
        """A boolean; absent and null are false."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise InvalidCheckpoint(f"config.json: {key} is {value!r}; expected true or false")
        return bool(value)

    def only(self, key: str, supported: Any) -> None:
        """Refuse every value of ``key`` but ``supported`` (and null)."""
        value = self.values.get(key)
        if value is not None and value != supported:
            raise UnsupportedModel(
                f"config.json: {key} = {value!r} is not supported (only {supported!r})"
            )

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Ids under ``key``: generation_config.json first, then config.json; one id or a list."""
        value = self.generation.get(key)
        if value is None:
            value = self.values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise InvalidCheckpoint(f"config.json: {key} is {value!r}; expected token ids")
        return tuple(ids)

    def sliding_windows(self) -> tuple[int | None, ...]:
        """Windows of Qwen configs: ``use_sliding_window`` with layer_types or max_window_layers."""
        num_layers = self.integer("num_hidden_layers")
        window = self.integer_or("sliding_window", 0) if self.flag("use_sliding_window") else 0
        kinds = self.values.get("layer_types")
        if kinds is None:
            first = self.values.get("max_window_layers") or 0
            return tuple(window or None if layer >= first else None for layer in range(num_layers))
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise InvalidCheckpoint(
                f"config.json: layer_types must list {num_layers} layers, got {kinds!r}"
            )
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise UnsupportedModel(f"config.json: layer type {kind!r} is not supported")
        # A null window under sliding_attention is full attention, as in transformers.
        return tuple((window or None) if kind == "sliding_attention" else None for kind in kinds)

    def dtype(self) -> str:
        """The dtype the checkpoint declares; bfloat16 where it declares none."""
        value = self.values.get("dtype") or self.values.get("torch_dtype") or "bfloat16"
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            raise UnsupportedModel(f"config.json: dtype {name} is not supported, only {DTYPES}")
        return name

    def prequantized(self) -> bool:
        """Whether the checkpoint is bitsandbytes NF4; any other quantization is refused."""
        settings = self.values.get("quantization_config")
        if settings is None:
            return False
        method = settings.get("quant_method", "bitsandbytes")
        four_bit = settings.get("load_in_4bit", settings.get("_load_in_4bit", False))
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if method != "bitsandbytes" or not four_bit or kind != "nf4":
            found = method if method != "bitsandbytes" else ("fp4" if four_bit else "8-bit")
            raise UnsupportedModel(
                f"config.json: quantization_config is {found}; "
                "supported are unquantized checkpoints and bitsandbytes 4-bit nf4"
            )
        return True


def positive_number(value: Any, key: str) -> float:
    """``value`` as a float; ``key`` names it in the complaint."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise InvalidCheckpoint(f"config.json: {key} is {value!r}; expected a positive number")
    return float(value)
