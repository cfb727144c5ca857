"""What the API process knows about the base: its folder, name, configuration and text side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import multiflora
from multiflora.engine.errors import StartupError
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.source import resolve_model
from multiflora.engine.text.chat_template import ChatTemplate, chat_template_of
from multiflora.engine.text.tokenizer import Tokenizer, load_tokenizer

from .adapter_source import AdapterSource
from .base_match import base_fingerprint
from .settings import ServeSettings

DEMO: Final = Path(multiflora.__file__).parent / "engine" / "demo"
DEMO_NAME: Final = "multiflora-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base whose files were read; its weights are the engine's affair."""

    name: str
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate

    @property
    def fingerprint(self) -> str:
        return base_fingerprint(self.config)


def read_base_model(settings: ServeSettings) -> BaseModel:
    """Find, or download, and read the base. Raises ``StartupError``."""
    folder = _folder(settings)
    tokenizer = load_tokenizer(folder)
    return BaseModel(
        name=settings.served_model_name or _name(settings.model, folder),
        folder=folder,
        config=load_model_config(folder),
        tokenizer=tokenizer,
        chat_template=chat_template_of(tokenizer.folder),
    )


def adapter_sources(settings: ServeSettings) -> tuple[AdapterSource, ...]:
    """The adapters to publish: the given ones, and the demo's where the demo base is served."""
    named = {source.name: source for source in settings.adapters}
    if settings.model is None:
        found = sorted((DEMO / "adapters").glob("*/adapter_config.json"))
        demo = {path.parent.name: AdapterSource(path.parent.name, path.parent) for path in found}
        named = {**demo, **named}
    return tuple(named.values())


def _folder(settings: ServeSettings) -> Path:
    if settings.model is not None:
        return resolve_model(settings.model, settings.revision)
    if settings.revision is not None:
        raise StartupError("--revision needs a MODEL from the hub; the demo has none")
    if not (DEMO / "base").is_dir():
        raise StartupError("this installation has no demo base; name a MODEL to serve")
    return DEMO / "base"


def _name(model: str | None, folder: Path) -> str:
    if model is None:
        return DEMO_NAME
    return folder.resolve().name if Path(model).expanduser().is_dir() else model
