"""Adapters from the Hugging Face hub: only from repositories that the operator allowed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.engine.models.source import HUB_ID

from .errors import HubNotFound, HubUnavailable, SourceNotAllowed, StorageFull, is_disk_full

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_FILES: Final = (CONFIG_NAME, WEIGHTS_NAME)
_SECONDS: Final = 10.0


def check_pattern(text: str) -> str:
    """Return ``text`` if it is ``owner/name``, ``*`` allowed in both. Raises ``ValueError``."""
    if not HUB_ID.fullmatch(text.replace("*", "x")):
        raise ValueError(f"{text!r} is not OWNER/NAME; a star stands for any part, as in my-org/*")
    return text


class HubDoor:
    """Fetches adapters from repositories that match one of the ``allowed`` patterns."""

    def __init__(self, allowed: Sequence[str] = (), *, endpoint: str | None = None) -> None:
        self._allowed = tuple(check_pattern(pattern) for pattern in allowed)
        self._endpoint = endpoint

    def check(self, hub_id: str) -> None:
        """Raises ``SourceNotAllowed``, whether the repository exists or not."""
        if not HUB_ID.fullmatch(hub_id) or not any(_matches(hub_id, p) for p in self._allowed):
            raise SourceNotAllowed(
                f"{hub_id[:100]!r} may not be imported; the server's --adapters-hub flags say what "
                "may",
                param="hub",
            )

    def fetch(self, hub_id: str, revision: str | None, folder: Path, *, max_bytes: int) -> str:
        """Download the adapter's two files into ``folder``; returns the commit they are from.

        Blocks. Nothing else of the repository is fetched, and nothing larger than ``max_bytes``.
        Raises ``SourceNotAllowed``, ``HubNotFound``, ``HubUnavailable``, ``StorageFull``, and
        ``AdapterRejected`` for a repository without an adapter.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        self.check(hub_id)
        disable_progress_bars()
        hub = HfApi(endpoint=self._endpoint)
        with _hub_errors(hub_id, revision):
            info = hub.model_info(hub_id, revision=revision, timeout=_SECONDS, files_metadata=True)
            _check_files(info, hub_id, max_bytes)
            assert info.sha is not None
            for name in _FILES:
                hub.hf_hub_download(hub_id, name, revision=info.sha, local_dir=folder)
        return info.sha


def _matches(hub_id: str, pattern: str) -> bool:
    pairs = zip(hub_id.split("/"), pattern.split("/"), strict=True)
    return all(fnmatchcase(part, allowed) for part, allowed in pairs)


def _check_files(info: "ModelInfo", hub_id: str, max_bytes: int) -> None:
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in _FILES:
        if name not in sizes:
            raise AdapterRejected("not_found", f"the hub's {hub_id} holds no {name}")
        size = sizes[name]
        if size is None or size > max_bytes:
            raise AdapterRejected(
                "adapter_too_large",
                f"{name} of {hub_id} has {size} bytes, over --max-upload-size {max_bytes}",
            )


@contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The root of the errors of whichever HTTP library this version of the hub's client uses.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except GatedRepoError as error:
        text = f"{hub_id} is gated: accept its licence on the hub and set HF_TOKEN for the server"
        raise HubNotFound(text, param="hub") from error
    except RevisionNotFoundError as error:
        text = f"{hub_id} has no revision {str(revision)[:100]!r}"
        raise HubNotFound(text, param="revision") from error
    except RepositoryNotFoundError as error:
        text = f"the hub has no {hub_id} that this server's token can see"
        raise HubNotFound(text, param="hub") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, http_error) as error:
        raise HubUnavailable(f"the hub did not give {hub_id}: {type(error).__name__}") from error
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull("the disk is full; nothing was published") from error
        raise
