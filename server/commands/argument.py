"""Adapters and bases as the command line names them."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from multiflora.adapters.error import UnknownName
from multiflora.adapters.folder import CONFIG_NAME, AdapterFolder
from multiflora.adapters.published import published_folder
from multiflora.engine.errors import BaseNotFound
from multiflora.engine.models.named_folder import NamedFolder
from multiflora.engine.models.source import resolve_model

from ..base_model import DEMO
from ..settings_source import PREFIX

T = TypeVar("T")
DATA_DIR: Final = Path(
    os.environ.get(f"{PREFIX}DATA_DIR", Path.home() / ".multiflora")
).expanduser()
# What the demo's adapters call their base.
DEMO_BASE_NAME = "multiflora/demo-base"


def find_adapter(text: str, *, data_dir: Path) -> Path:
    """The PEFT folder at the path ``text``, or of that name in ``data_dir`` or in the demo.

    Raises ``UnknownName``, ``AdapterRejected``, ``RegistryUnavailable``.
    """
    path = Path(text).expanduser()
    if path.is_dir() or "/" in text:
        return AdapterFolder(path).path
    try:
        return published_folder(data_dir, text)
    except UnknownName:
        demo = DEMO / "adapters" / text
        if (demo / CONFIG_NAME).is_file():
            return demo
        raise


def find_base(text: str | None, *, adapter: Path) -> NamedFolder:
    """The base ``text``, or the one that the config of ``adapter`` names; as ``find_model``."""
    name = text or AdapterFolder(adapter).config.get("base_model_name_or_path")
    if not name:
        raise BaseNotFound(f"{adapter / CONFIG_NAME} names no base; name it with --model")
    return find_model(str(name))


def find_model(text: str) -> NamedFolder:
    """The folder or hub id ``text``, or the demo's base. Raises ``StartupError``."""
    return NamedFolder(text, DEMO / "base" if text == DEMO_BASE_NAME else resolve_model(text, None))


def typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` as a type of argparse, which then reports its message."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return convert
