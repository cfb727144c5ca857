"""What the JSON files beside a tokenizer say: special tokens, flags, chat templates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from ..errors import InvalidCheckpoint

_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
LlamaPrefix: TypeAlias = Literal["always", "first", "never"]
_LISTS: Final = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialToken:
    """A token with the matching rules of ``tokenizers.AddedToken``."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFolder:
    """The settings of one tokenizer; ``added_tokens`` are in the order in which ids are given.

    ``llama_prefix`` says where transformers' `LlamaTokenizer` puts a space in front of text; it is
    None for all other tokenizer classes.
    """

    special_tokens: Mapping[str, SpecialToken] = field(default_factory=dict)
    added_tokens: tuple[SpecialToken, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    llama_prefix: LlamaPrefix | None = None

    def special_text(self, name: str) -> str | None:
        token = self.special_tokens.get(name)
        return None if token is None else token.content


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Read everything but tokenizer.json itself. Raises ``InvalidCheckpoint``."""
    _require_fast_tokenizer(path)
    config = _read_json(path / "tokenizer_config.json")
    legacy = _read_json(path / "special_tokens_map.json")
    named = _named_tokens({**legacy, **config})
    return TokenizerFolder(
        special_tokens=named,
        added_tokens=_added_tokens(config, named, {**legacy, **config}),
        chat_templates=_chat_templates(path, config),
        llama_prefix=_llama_prefix(config, _read_json(path / "config.json")),
    )


def _require_fast_tokenizer(path: Path) -> None:
    if (path / "tokenizer.json").is_file():
        return
    slow = [name for name in ("tokenizer.model", "vocab.json") if (path / name).is_file()]
    found = f" (it has only {slow[0]})" if slow else ""
    raise InvalidCheckpoint(
        f"{path} has no tokenizer.json{found}; copy the tokenizer files of the base model into it, "
        "or make them with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InvalidCheckpoint(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _llama_prefix(config: Mapping[str, Any], model: Mapping[str, Any]) -> LlamaPrefix | None:
    named = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if named != "LlamaTokenizer" or model.get("model_type") != "llama":
        return None
    if config.get("add_prefix_space") is False:
        return "never"
    return "always" if config.get("legacy", False) else "first"


def _named_tokens(config: Mapping[str, Any]) -> dict[str, SpecialToken]:
    named = {name: _token(config[name]) for name in _NAMES if config.get(name) is not None}
    return {name: token for name, token in named.items() if token is not None}


def _added_tokens(
    config: Mapping[str, Any], named: Mapping[str, SpecialToken], merged: Mapping[str, Any]
) -> tuple[SpecialToken, ...]:
    decoder = config.get("added_tokens_decoder") or {}
    by_id = [_token(decoder[key]) for key in sorted(decoder, key=int)]
    listed = [_token(value) for name in _LISTS for value in _listed(merged.get(name))]
    tokens = {token.content: token for token in (*named.values(), *listed) if token is not None}
    tokens.update({token.content: token for token in by_id if token is not None})
    ordered = [token.content for token in by_id if token is not None] + list(tokens)
    return tuple(tokens[content] for content in dict.fromkeys(ordered))


def _listed(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


def _token(value: object) -> SpecialToken | None:
    """A token is written as a string, or as the dict of an AddedToken."""
    if isinstance(value, str):
        return SpecialToken(content=value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        return None
    flags = ("single_word", "lstrip", "rstrip")
    return SpecialToken(
        content=value["content"],
        **{flag: bool(value.get(flag, False)) for flag in flags},
        special=bool(value.get("special", True)),
        normalized=bool(value.get("normalized", False)),
    )


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the file wins over the config, as it does in transformers."""
    templates = _configured_templates(config.get("chat_template"))
    if (file := path / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    return templates


def _configured_templates(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else []
    return {entry["name"]: entry["template"] for entry in entries}
