"""The form that adapters come in: a config and weights, or one archive."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import Request

from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.adapters.store import AdapterStore

from .uploads import ANY_SIZE, FormField, FormFields, MalformedUpload, Upload, receive_upload

_MAX_CONFIG_BYTES: Final = 1 << 20
ADAPTER_FORM: Final[FormFields] = {
    "name": FormField(),
    "activate": FormField(),
    "config": FormField(file=CONFIG_NAME, max_bytes=_MAX_CONFIG_BYTES),
    "weights": FormField(file=WEIGHTS_NAME, max_bytes=ANY_SIZE),
    "archive": FormField(file="archive", max_bytes=ANY_SIZE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUpload:
    """``source`` is what the gate is to check: a folder of two files or one archive."""

    texts: Mapping[str, str]
    source: Path
    fingerprint: str


@asynccontextmanager
async def receive_adapter(
    request: Request, store: AdapterStore, *, idle_seconds: float
) -> AsyncIterator[AdapterUpload]:
    """Receive an adapter into the store's staging. Raises as ``receive_upload`` does."""
    async with receive_upload(
        request, store.staging, ADAPTER_FORM, idle_seconds=idle_seconds
    ) as upload:
        yield AdapterUpload(
            texts=upload.texts, source=_source(upload), fingerprint=upload.fingerprint
        )


def _source(upload: Upload) -> Path:
    given = set(upload.files)
    if given == {"archive"}:
        return upload.files["archive"].path
    if given == {"config", "weights"}:
        return upload.files["config"].path.parent
    shown = ", ".join(sorted(given)) or "none"
    missing = next((name for name in ("weights", "config") if name not in given), "archive")
    raise MalformedUpload(
        "send either config (adapter_config.json) and weights (adapter_model.safetensors), or "
        f"archive (one .tar.gz or .zip of the folder); got {shown}",
        param=missing,
    )
