"""The adapters that the command line names, published before the server is ready.

A flag must not undo what was decided through the API since. It is applied if its name is new, if
the name still points where a flag put it, or if its content was never published under that name;
otherwise the name stays as it is.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multiflora.adapters.error import AdapterRejected, RegistryError, UnknownName
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version
from multiflora.engine.errors import EngineError, StartupError

from .adapter_source import AdapterSource
from .publishing import Publisher, Terms

logger = logging.getLogger(__name__)

FLAG_SOURCE: Final = "flag:"
_POINTER_MOVES: Final = ("point", "rollback", "promote")
_MAX_EVENTS: Final = 1000


def publish_at_start(
    sources: Sequence[AdapterSource], registry: Registry, publisher: Publisher
) -> None:
    """Check all adapters at once, then publish them. Raises ``StartupError`` for a bad one."""

    def take_in(path: Path) -> Version | Exception:
        try:
            return publisher.take_in(path, source=f"{FLAG_SOURCE}{path}")
        except (AdapterRejected, EngineError, OSError) as error:
            return error

    for source in sources:
        _check_name(source, registry)
    taken = publisher.map(take_in, [source.path for source in sources])
    for source, version in zip(sources, taken, strict=True):
        if isinstance(version, Exception):
            raise _refusal(source, version)
    for source, version in zip(sources, taken, strict=True):
        assert isinstance(version, Version)
        try:
            _apply(source, version, registry, publisher)
        except RegistryError as error:
            raise _refusal(source, error) from error


def _check_name(source: AdapterSource, registry: Registry) -> None:
    try:
        registry.check_name(source.name)
    except RegistryError as error:
        raise StartupError(
            f"{error}; or rename the base with --served-model-name, if the name is the base's"
        ) from None


def _refusal(source: AdapterSource, error: Exception) -> StartupError:
    return StartupError(f"adapter {source.name!r} from {source.path}: {error}")


def _apply(
    source: AdapterSource, version: Version, registry: Registry, publisher: Publisher
) -> None:
    if is_decided_elsewhere(registry, source.name, version.digest):
        logger.warning(
            "%r stays at the version that was chosen while the server ran; the one at %s was "
            "published before",
            source.name,
            source.path,
        )
        publisher.give_up(version)
    else:
        publisher.point(source.name, version, terms=Terms())


def is_decided_elsewhere(registry: Registry, name: str, digest: str) -> bool:
    """Whether ``name`` was moved by the API to where it is, after ``digest`` had been its own."""
    try:
        entry = registry.entry(name)
    except UnknownName:
        return False
    if entry.digest == digest:
        return False
    events = registry.history(name, limit=_MAX_EVENTS)
    last = next((event for event in events if event.action in _POINTER_MOVES), None)
    by_flag = registry.version(entry.digest).source.startswith(FLAG_SOURCE)
    if last is not None and last.action == "point" and by_flag:
        return False
    return any(event.to_digest == digest for event in events)
