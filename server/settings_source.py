"""Where settings come from: flags before environment before config file before defaults."""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import yaml

from .adapter_source import parse_adapters
from .settings import ServeSettings

PREFIX: Final = "MULTIFLORA_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
# What clients read; it says nothing to a server.
KEY_VARIABLE: Final = f"{PREFIX}API_KEY"
_FIELDS: Final = {setting.name: setting for setting in fields(ServeSettings)}


def read_settings(
    flags: Mapping[str, object], environment: Mapping[str, str], *, config: Path | None = None
) -> ServeSettings:
    """Merge all sources. Raises ``ValueError`` with one line: what is wrong, where, the remedy."""
    if config is None and environment.get(CONFIG_VARIABLE):
        config = Path(environment[CONFIG_VARIABLE])
    from_file = {} if config is None else read_config_file(config)
    return ServeSettings(**{**from_file, **read_environment(environment), **flags})


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among environment variables."""
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in (CONFIG_VARIABLE, KEY_VARIABLE):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _FIELDS:
            known = [_variable(name) for name in _FIELDS]
            raise ValueError(_unknown("environment variable", variable, known))
        values[name] = convert(name, text, source=variable)
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML or TOML file; keys may be written with dashes."""
    values: dict[str, Any] = {}
    for key, value in _parse_file(path).items():
        name = str(key).replace("-", "_")
        if name not in _FIELDS:
            raise ValueError(_unknown(f"key in {path}", str(key), _FIELDS))
        values[name] = convert(name, value, source=f"{key} in {path}")
    return values


def convert(name: str, value: object, *, source: str) -> Any:
    """Turn a written value into the field's type. Raises ``ValueError`` naming the source."""
    try:
        if name == "adapters":
            return parse_adapters(value)
        parse: Callable[[str], object] = _FIELDS[name].metadata["parse"]
        return parse(",".join(map(str, value)) if isinstance(value, list) else str(value))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _parse_file(path: Path) -> Mapping[object, object]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            content: object = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text) or {}
        else:
            raise ValueError(f"{path} must end in .yaml, .yml or .toml")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is malformed: {reason}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold keys and values")
    return content


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else "; see multiflora serve --help"
    return f"unknown {kind}: {name}{hint}"
