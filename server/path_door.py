"""Adapters from paths that clients name: only inside one folder that the operator chose."""

from functools import partial
from pathlib import Path

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import AdapterRejected

from .access.caller import Caller
from .access.ownership import owner_of
from .adapter_change import after_change
from .errors import SourceNotAllowed
from .publishing import Terms
from .service import Service


class DoorClosed(SourceNotAllowed):
    """No folder was chosen."""

    def __init__(self) -> None:
        super().__init__(
            "paths on the server are not taken; start it with --adapters-root DIR, or upload the "
            "adapter with POST /v1/adapters",
            param="path",
        )


async def publish_path(
    service: Service, name: str, path: str, *, in_place: bool, caller: Caller
) -> AdapterEntry:
    """Publish the folder or archive at ``path``, absolute or relative to the root, as ``name``.

    Raises ``DoorClosed``, ``NameTaken`` unless ``in_place``, and what ``Publisher.publish`` raises:
    ``AdapterRejected`` with ``not_found`` also for whatever lies outside the root.
    """
    source = resolve_inside(service.adapters_root, path)
    publish = partial(
        service.publisher.publish,
        source,
        name,
        source=f"path:{source}",
        terms=Terms(is_new=not in_place, tenant=owner_of(caller, service.registry, name)),
    )
    with service.drain.running():
        taken = await service.publisher.run(publish)
    await after_change(service, "publish")
    return taken.entry


def resolve_inside(root: Path | None, path: str) -> Path:
    """The real path, links followed. What is outside is not told from what is not there."""
    if root is None:
        raise DoorClosed
    try:
        inside = root.resolve(strict=True)
        found = (inside / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise _not_found(path) from None
    if not found.is_relative_to(inside) or found == inside:
        raise _not_found(path)
    return found


def _not_found(path: str) -> AdapterRejected:
    return AdapterRejected("not_found", f"No adapter found for {path!r} under --adapters-root")
