"""From the architecture named in config.json to the family that reads it. Imports no torch."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InvalidCheckpoint, UnsupportedModel
from . import llama, mistral, qwen2, qwen3
from .config import ModelConfig
from .hf_config import HfConfig

FAMILIES: dict[str, ModuleType] = {
    family.ARCHITECTURE: family for family in (llama, mistral, qwen2, qwen3)
}


def load_model_config(folder: Path) -> ModelConfig:
    """Read the base's configuration from a checkpoint folder.

    Raises `UnsupportedModel` for an architecture, or a setting that changes the maths, that is not
    implemented, and `InvalidCheckpoint` for files that cannot be understood.
    """
    values = _read_json(folder / "config.json")
    if "auto_map" in values:
        raise UnsupportedModel(
            "config.json asks for code from the model repository (auto_map); "
            f"no remote code is run. Supported: {_supported()}"
        )
    family = FAMILIES[_architecture(values)]
    generation = folder / "generation_config.json"
    return family.read_config(
        HfConfig(
            values=family.DEFAULTS | values,
            generation=_read_json(generation) if generation.is_file() else {},
        )
    )


def _architecture(values: dict[str, Any]) -> str:
    named = values.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in FAMILIES:
        found = ", ".join(map(str, named)) if isinstance(named, list) else named
        raise UnsupportedModel(f"architecture {found} is not supported. Supported: {_supported()}")
    return named[0]


def _supported() -> str:
    return ", ".join(FAMILIES)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidCheckpoint(f"{path.parent} has no {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"{path} holds a {type(values).__name__}, not a JSON object")
    return values
